"""Operating points: sensitivity at a fixed specificity and the reverse, and what counts alone can show."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from experiments.statistics_bootstrap import Statistic, Weights
from experiments.statistics_proportions import check_level
from experiments.statistics_roc import binary_target

Floats = NDArray[np.float64]
_ROUNDING = 1e-9


def sensitivity_at_specificity(target: ArrayLike, scores: ArrayLike, specificity: float) -> float:
    """The highest sensitivity that a threshold reaches while specificity is at least as asked.

    Args:
        target: 0 or 1 per patient, shape (n,).
        scores: Higher for class 1, shape (n,).
        specificity: Wanted, in [0, 1].

    Raises:
        ValueError: Bad shapes or values, or one class only.
    """
    positive, (values,) = binary_target(target, scores)
    thresholds = np.append(np.unique(values), np.inf)
    called = values[None, :] >= thresholds[:, None]
    enough = (~called[:, ~positive]).mean(axis=1) >= specificity - _ROUNDING
    return float(called[enough][:, positive].mean(axis=1).max())


def specificity_at_sensitivity(target: ArrayLike, scores: ArrayLike, sensitivity: float) -> float:
    """The highest specificity that a threshold reaches while sensitivity is at least as asked.

    Raises:
        ValueError: Bad shapes or values, or one class only.
    """
    return sensitivity_at_specificity(1 - np.asarray(target), -np.asarray(scores, dtype=float), sensitivity)


def sensitivity_at_specificity_statistic(target: ArrayLike, scores: ArrayLike, specificity: float) -> Statistic:
    """Sensitivity at a fixed specificity as a function of bootstrap weights.

    The threshold is found anew in each resample, on its own negatives: the interval holds the uncertainty of the
    threshold as well as that of the sensitivity.

    Args:
        target: 0 or 1 per patient, shape (n,).
        scores: Higher for class 1, shape (n,).
        specificity: Wanted, in [0, 1].

    Returns:
        A statistic; NaN for a resample without one of the classes.

    Raises:
        ValueError: Bad shapes or values, or one class only.
    """
    positive, (values,) = binary_target(target, scores)
    up, down = np.flatnonzero(positive), np.flatnonzero(~positive)
    # both from the highest score down
    up, down = up[np.argsort(-values[up], kind="stable")], down[np.argsort(-values[down], kind="stable")]
    # negatives of equal scores are called together: only the last of each group ends a possible threshold
    last = np.append(np.diff(values[down]) < 0, True)
    # positives above each group of negatives; where every group is allowed, all of them
    above = np.append(np.searchsorted(-values[up], -values[down][last], side="left"), len(up))

    def statistic(weights: Weights) -> Floats:
        # weights are whole numbers, and their sums exact in float32
        alarms = np.cumsum(weights[:, down], axis=1)
        allowed = ((1 - specificity) * alarms[:, -1].astype(np.float64) + _ROUNDING * len(down))[:, None]
        groups = ((alarms if last.all() else alarms[:, last]) <= allowed).sum(axis=1)
        hits = np.cumsum(weights[:, up], axis=1).astype(np.float64)
        reached = above[groups]
        called = np.where(reached > 0, hits[np.arange(len(weights)), np.maximum(reached, 1) - 1], 0.0)
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(alarms[:, -1] > 0, called / hits[:, -1], np.nan)

    return statistic


def specificity_at_sensitivity_statistic(target: ArrayLike, scores: ArrayLike, sensitivity: float) -> Statistic:
    """Specificity at a fixed sensitivity as a function of bootstrap weights; see the reverse for how.

    Raises:
        ValueError: Bad shapes or values, or one class only.
    """
    turned = 1 - np.asarray(target), -np.asarray(scores, dtype=float)
    return sensitivity_at_specificity_statistic(*turned, sensitivity)


def smallest_significant_count(patients: int, level: float = 0.95) -> int | None:
    """How many patients one arm must get right that the other gets wrong, with none the other way round.

    The best case of McNemar's exact test: every discordant patient speaks for the same arm.

    Args:
        patients: Size of the test set, at least 1.
        level: 1 - the two-sided error of the first kind.

    Returns:
        The count, or None where not even all patients would be enough.

    Raises:
        ValueError: No patient, or a level out of range.
    """
    check_level(level)
    if patients < 1:
        raise ValueError(f"a test set of {patients} patients cannot be")
    # two-sided exact p of k to nothing is 2 · 0.5^k
    needed = int(np.ceil(np.log2(2 / (1 - level)) - _ROUNDING))
    return needed if needed <= patients else None


def smallest_detectable_accuracy_difference(patients: int, level: float = 0.95, power: float = 0.8) -> float:
    """The smallest true gain in accuracy that McNemar's exact test on this many patients finds, in the best case.

    Best case: the better arm is right wherever the other is, so that all discordant patients speak for it. With any
    discordance the other way round a larger gain is needed.

    Args:
        patients: Size of the test set, at least 1.
        level: 1 - the two-sided error of the first kind.
        power: Chance to find the difference when it is there.

    Returns:
        The difference in accuracy in (0, 1], or infinity where the set is too small for any.

    Raises:
        ValueError: A value out of range.

    Source: the power of the exact binomial test on k discordant patients, k being binomial(patients, gain): the
        smallest gain for which P(k >= needed) reaches the power.
    """
    if not 0 < power < 1:
        raise ValueError(f"a power lies between 0 and 1, not at {power}")
    needed = smallest_significant_count(patients, level)
    if needed is None:
        return float("inf")
    # P(binomial(n, d) >= k) is the beta distribution function of k, n - k + 1 at d
    return float(stats.beta.ppf(power, needed, patients - needed + 1))
