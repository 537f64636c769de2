"""Paired differences of per-patient measurements (Dice, distances), and whether an arm is not worse than another."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from experiments.statistics_proportions import Interval, check_level


@dataclass(frozen=True, slots=True)
class PairedRanks:
    """Result of Wilcoxon's signed-rank test.

    Attributes:
        median_difference: Median of a - b, in the unit of the values.
        effect: Matched-pairs rank-biserial correlation in [-1, 1]: the share of rank sum in favour of a, minus the
            share in favour of b; 0 where all pairs are tied.
        p_value: Two-sided; 1 where all pairs are tied.
        pairs: Pairs with both values.
    """

    median_difference: float
    effect: float
    p_value: float
    pairs: int


@dataclass(frozen=True, slots=True)
class NonInferiority:
    """Whether an arm is worse than the reference by less than a margin.

    Attributes:
        margin: The largest loss that would not matter, stated before looking, above 0.
        shown: Whether the interval of the difference lies wholly above minus the margin.
        low: The interval's lower end.
    """

    margin: float
    shown: bool
    low: float


def wilcoxon_test(values_a: ArrayLike, values_b: ArrayLike) -> PairedRanks:
    """Whether two arms differ in a measurement on the same patients, with an effect size.

    Args:
        values_a: One value per patient, shape (n,); pairs with a NaN or infinite value are left out (and ``pairs``
            tells how many were not).
        values_b: The same for the second arm, patients in the same order.

    Raises:
        ValueError: The shapes differ, or no pair has both values.

    Source: Wilcoxon 1945; effect: Kerby 2014. Ties at zero are dropped (Wilcoxon's own rule).
    """
    a, b = np.asarray(values_a, dtype=float), np.asarray(values_b, dtype=float)
    if a.shape != b.shape or a.ndim != 1:
        raise ValueError(f"two lists of one value per patient are needed, not shapes {a.shape} and {b.shape}")
    both = np.isfinite(a) & np.isfinite(b)
    if not both.any():
        raise ValueError("no patient has both values")
    gap = a[both] - b[both]
    moved = gap[gap != 0]
    if not len(moved):
        return PairedRanks(0.0, 0.0, 1.0, int(both.sum()))
    ranks = stats.rankdata(np.abs(moved))
    effect = float((ranks * np.sign(moved)).sum() / ranks.sum())
    p_value = float(stats.wilcoxon(moved).pvalue)
    return PairedRanks(float(np.median(gap)), effect, p_value, int(both.sum()))


def non_inferiority(difference: Interval, margin: float) -> NonInferiority:
    """Whether arm minus reference is shown to lie above minus the margin, by its confidence interval.

    A two-sided interval at level 1 - alpha tests one-sidedly at alpha / 2, as regulators ask.

    Args:
        difference: Arm minus reference, higher being better.
        margin: Stated before looking, in the unit of the metric, above 0.

    Raises:
        ValueError: The margin is not above 0, or the interval has no lower end.
    """
    if not margin > 0 or math.isnan(difference.low):
        raise ValueError("a margin above 0 and an interval with ends are needed")
    return NonInferiority(margin, difference.low > -margin, difference.low)


def square_and_add_interval(first: Interval, second: Interval, correlation: float = 0.0) -> Interval:
    """Interval of ``first`` minus ``second`` from an interval of each and the correlation of the two estimates.

    Each side of the difference is built from the ends that matter there, so that skewed intervals (an AUC near 1)
    stay skewed. With a = first, b = second, and l, u their ends:

        low = a - b - sqrt((a - l_a)² + (u_b - b)² - 2 r (a - l_a)(u_b - b))
        high = a - b + sqrt((u_a - a)² + (b - l_b)² - 2 r (u_a - a)(b - l_b))

    Args:
        first: Interval of the first estimate.
        second: Interval of the second, at the same level.
        correlation: Of the two estimates, in [-1, 1]; NaN, where one of them does not vary, counts as 0, which makes
            the interval wider.

    Raises:
        ValueError: The levels differ, or the correlation is out of range.

    Source: Newcombe 1998 (method 10, for paired proportions); Zou, Donner 2008 for any estimate (MOVER).
    """
    check_level(first.level)
    if first.level != second.level:
        raise ValueError(f"intervals at the same level are needed, not at {first.level:g} and {second.level:g}")
    r = 0.0 if math.isnan(correlation) else correlation
    if not -1 - 1e-9 <= r <= 1 + 1e-9:
        raise ValueError(f"a correlation lies between -1 and 1, not at {correlation:g}")

    def reach(ours: float, theirs: float) -> float:
        # rounding may leave -1e-19 where both sides are equal
        return math.sqrt(max(0.0, ours**2 + theirs**2 - 2 * r * ours * theirs))

    gap = first.estimate - second.estimate
    low = gap - reach(first.estimate - first.low, second.high - second.estimate)
    high = gap + reach(first.high - first.estimate, second.estimate - second.low)
    return Interval(gap, low, high, first.level, f"square and add: {first.method}")
