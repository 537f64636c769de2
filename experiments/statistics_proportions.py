"""Proportions, paired decisions and families of tests, by statsmodels, in the shapes that comparison uses."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate with its confidence interval; unpacks as ``low, high``.

    Attributes:
        estimate: The point estimate.
        low: Lower end.
        high: Upper end.
        level: Confidence level in (0, 1).
        method: How it was made, in words a methods section can use.
    """

    estimate: float
    low: float
    high: float
    level: float = 0.95
    method: str = ""

    def __iter__(self) -> Iterator[float]:
        return iter((self.low, self.high))


@dataclass(frozen=True, slots=True)
class McNemar:
    """Result of McNemar's exact test.

    Attributes:
        only_a: Patients whom only the first reader or arm judged correctly.
        only_b: Patients whom only the second judged correctly.
        p_value: Two-sided, exact; 1 where nobody is discordant.
    """

    only_a: int
    only_b: int
    p_value: float


def wilson_interval(successes: int, total: int, level: float = 0.95) -> Interval:
    """Wilson's score interval of a proportion, without continuity correction.

    Args:
        successes: Number of successes, 0 to ``total``.
        total: Number of trials, at least 1.
        level: Confidence level in (0, 1).

    Raises:
        ValueError: The counts are impossible, or the level lies outside (0, 1).

    Source: Wilson 1927; recommended for small samples by Brown, Cai, DasGupta 2001.
    """
    return _proportion(successes, total, level, "wilson", "Wilson")


def clopper_pearson_interval(successes: int, total: int, level: float = 0.95) -> Interval:
    """The exact (conservative) interval of a proportion: it covers at least ``level``, often more.

    Args:
        successes: Number of successes, 0 to ``total``.
        total: Number of trials, at least 1.
        level: Confidence level in (0, 1).

    Raises:
        ValueError: The counts are impossible, or the level lies outside (0, 1).

    Source: Clopper, Pearson 1934.
    """
    return _proportion(successes, total, level, "beta", "Clopper–Pearson")


def _proportion(successes: int, total: int, level: float, method: str, words: str) -> Interval:
    # statsmodels takes a quarter of a second to import
    from statsmodels.stats.proportion import proportion_confint

    if total < 1 or not 0 <= successes <= total:
        raise ValueError(f"{successes} successes of {total} trials cannot be")
    check_level(level)
    low, high = proportion_confint(successes, total, alpha=1 - level, method=method)
    return Interval(successes / total, float(low), float(high), level, words)


def check_level(level: float) -> None:
    """Refuse a confidence level outside (0, 1).

    Raises:
        ValueError: It is, for example 95 instead of 0.95.
    """
    if not 0 < level < 1:
        raise ValueError(f"a confidence level lies between 0 and 1, not at {level}")


def mcnemar_test(correct_a: ArrayLike, correct_b: ArrayLike) -> McNemar:
    """Whether two arms differ in how many of the same patients they judge correctly, by the exact binomial test.

    Args:
        correct_a: Whether the first arm was right, one truth value per patient, shape (n,).
        correct_b: The same for the second arm, patients in the same order.

    Raises:
        ValueError: The shapes differ.

    Source: McNemar 1947; exact form: twice the binomial tail of the discordant pairs.
    """
    from statsmodels.stats.contingency_tables import mcnemar

    a, b = np.asarray(correct_a, dtype=bool), np.asarray(correct_b, dtype=bool)
    if a.shape != b.shape or a.ndim != 1:
        raise ValueError(f"two lists of one patient each are needed, not shapes {a.shape} and {b.shape}")
    table = [[int((a & b).sum()), int((a & ~b).sum())], [int((~a & b).sum()), int((~a & ~b).sum())]]
    only_a, only_b = table[0][1], table[1][0]
    p_value = 1.0 if only_a + only_b == 0 else float(mcnemar(table, exact=True).pvalue)
    return McNemar(only_a, only_b, p_value)


def holm(p_values: Sequence[float] | NDArray[np.float64]) -> NDArray[np.float64]:
    """P-values adjusted by Holm's step-down rule over one family of tests.

    Args:
        p_values: The family, each in [0, 1], in any order; may be empty.

    Returns:
        Adjusted p-values in the order given, each at most 1.

    Raises:
        ValueError: A p-value is NaN or outside [0, 1].

    Source: Holm 1979.
    """
    from statsmodels.stats.multitest import multipletests

    values = np.asarray(p_values, dtype=float)
    if values.size == 0:
        return values
    if not ((values >= 0) & (values <= 1)).all():
        raise ValueError("p-values lie between 0 and 1")
    return np.asarray(multipletests(values, method="holm")[1], dtype=float)
