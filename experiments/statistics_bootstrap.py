"""The bootstrap over patients (and seeds): stratified by class, paired, bias-corrected and accelerated, vectorised.

A resample is a row of whole-number weights, one per patient. Every statistic here is a function of weights, so one
matrix of weights serves all arms, seeds and metrics: that makes the comparison paired, and quick.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from experiments.statistics_proportions import Interval, check_level

Floats = NDArray[np.float64]
Weights = NDArray[np.float32]
Statistic = Callable[[Weights], Floats]
"""Weights of shape (R, n) to values of shape (R,)."""

_EXACT_PAIRS = 2**22
CHUNK = 1000
"""Resamples held at once: 1,000 × 500 patients are 2 MB a matrix."""


def patient_weights(
    strata: ArrayLike, resamples: int, seed: int, clusters: ArrayLike | None = None, chunk: int = CHUNK
) -> Iterator[Weights]:
    """Draw stratified bootstrap resamples as weights, a chunk at a time.

    Args:
        strata: Class of each row; each resample keeps the size of each class. Shape (n,).
        resamples: How many in all.
        seed: Of the random generator; the same seed gives the same resamples.
        clusters: Patient of each row, where a patient has several; all rows of a patient are drawn together, and a
            patient belongs to the stratum of their highest class.
        chunk: Resamples per matrix.

    Yields:
        Weights (how often each row was drawn) as float32, shape (at most chunk, n).
    """
    values = np.asarray(strata)
    rows = np.arange(len(values)) if clusters is None else np.unique(np.asarray(clusters), return_inverse=True)[1]
    classes = np.unique(values, return_inverse=True)[1]
    stratum = np.zeros(rows.max() + 1, dtype=int)
    np.maximum.at(stratum, rows, classes)
    generator = np.random.default_rng(seed)
    for start in range(0, resamples, chunk):
        size = min(chunk, resamples - start)
        drawn = np.zeros((size, len(stratum)), dtype=np.float32)
        for value in np.unique(stratum):
            members = np.flatnonzero(stratum == value)
            equal = np.full(len(members), 1 / len(members))
            drawn[:, members] = generator.multinomial(len(members), equal, size=size)
        yield drawn if clusters is None else drawn[:, rows]


def seed_weights(seeds: int, resamples: int, seed: int) -> Floats:
    """How much each training seed counts in each resample, shape (R, S), rows summing to 1.

    A single seed always counts in full: its interval then speaks of patients only.
    """
    if seeds == 1:
        return np.ones((resamples, 1))
    generator = np.random.default_rng([seed, seeds])
    return generator.multinomial(seeds, np.full(seeds, 1 / seeds), size=resamples) / seeds


def pair_kernel(target: ArrayLike, scores: ArrayLike) -> NDArray[np.floating[Any]]:
    """1 where a positive scores above a negative, 1/2 in a tie, 0 otherwise; shape (positives, negatives).

    float32 while all sums of pairs stay exact in it, float64 for larger sets.
    """
    positive, values = np.asarray(target).astype(bool), np.asarray(scores, dtype=float)
    above = np.sign(values[positive][:, None] - values[~positive][None, :])
    kernel: Floats = 0.5 * (above + 1)
    return kernel.astype(np.float64 if kernel.size >= _EXACT_PAIRS else np.float32)


def auc_statistic(target: ArrayLike, scores: ArrayLike) -> Statistic:
    """The AUC as a function of weights.

    With K[i, j] = 1 where positive i scores above negative j, 1/2 in a tie, 0 otherwise, and weights u, v of positives
    and negatives: AUC = u' K v / (sum u · sum v).

    Returns:
        A statistic; NaN for a resample without one of the classes.
    """
    positive = np.asarray(target).astype(bool)
    kernel = pair_kernel(target, scores)

    def statistic(weights: Weights) -> Floats:
        up, down = weights[:, positive], weights[:, ~positive]
        # the products are halves of whole numbers, exact in the kernel's precision; add them in float64
        pairs = ((up @ kernel) * down).sum(axis=1, dtype=np.float64)
        sizes = up.sum(axis=1, dtype=np.float64) * down.sum(axis=1, dtype=np.float64)
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray(pairs / sizes, dtype=np.float64)

    return statistic


def mean_statistic(values: ArrayLike, within: ArrayLike | None = None) -> Statistic:
    """The mean of a per-patient value (a hit, a squared error) as a function of weights.

    Args:
        values: One number per patient, shape (n,).
        within: Restrict to these patients (the positives, for sensitivity), shape (n,).

    Returns:
        A statistic; NaN for a resample that draws none of the patients.
    """
    kept = np.ones(np.shape(values)[0], dtype=bool) if within is None else np.asarray(within, dtype=bool)
    numbers = np.asarray(values, dtype=float)[kept]

    def statistic(weights: Weights) -> Floats:
        inside = weights[:, kept].astype(np.float64)
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray(inside @ numbers / inside.sum(axis=1), dtype=np.float64)

    return statistic


def leave_one_out(patients: int, clusters: ArrayLike | None = None) -> Weights:
    """Weights of the jackknife: each row leaves one patient out, shape (patients, n)."""
    rows = np.arange(patients) if clusters is None else np.unique(np.asarray(clusters), return_inverse=True)[1]
    return np.asarray(np.arange(rows.max() + 1)[:, None] != rows[None, :], dtype=np.float32)


def interval_of(
    estimate: float,
    resampled: ArrayLike,
    left_out: ArrayLike | None = None,
    level: float = 0.95,
    strata: ArrayLike | None = None,
) -> Interval:
    """Interval from bootstrap values: BCa where jackknife values are given, else percentile.

    Args:
        estimate: The statistic on the patients as they are.
        resampled: Its values in the resamples, shape (R,); NaN (not estimable) are left out.
        left_out: Its values with each patient left out, shape (n,), for the acceleration.
        level: Confidence level in (0, 1).
        strata: Class of each patient: the acceleration then centres and scales within classes, as the resampling does.

    Returns:
        The interval; NaN ends where fewer than 50 resamples were estimable. Where all resamples agree (an AUC of 1)
        both ends equal the estimate, and the bootstrap says nothing: see ``newcombe_interval``.

    Source: Efron 1987; Efron, Tibshirani 1993, eq. 14.9-14.15.
    """
    check_level(level)
    values = np.asarray(resampled, dtype=float)
    values = values[np.isfinite(values)]
    if len(values) < 50 or not math.isfinite(estimate):
        return Interval(estimate, math.nan, math.nan, level, "not estimable")
    tails = np.array([(1 - level) / 2, (1 + level) / 2])
    if left_out is None or np.ptp(values) == 0:
        low, high = np.quantile(values, tails)
        return Interval(estimate, float(low), float(high), level, "percentile bootstrap")
    # ties count by half: an AUC takes few values on a small set
    below = float((values < estimate - 1e-12).mean() + 0.5 * (np.abs(values - estimate) <= 1e-12).mean())
    bias = float(stats.norm.ppf(min(max(below, 0.5 / len(values)), 1 - 0.5 / len(values))))
    acceleration = _acceleration(np.asarray(left_out, dtype=float), strata)
    z = bias + stats.norm.ppf(tails)
    adjusted = stats.norm.cdf(bias + z / (1 - acceleration * z))
    low, high = np.quantile(values, adjusted)
    return Interval(estimate, float(low), float(high), level, "BCa bootstrap")


def _acceleration(left_out: Floats, strata: ArrayLike | None) -> float:
    """A sixth of the skewness of the statistic's influence; for strata summed as Davison, Hinkley 1997, eq. 5.28."""
    classes = (
        np.zeros(len(left_out), dtype=int) if strata is None else np.unique(np.asarray(strata), return_inverse=True)[1]
    )
    cubes = squares = 0.0
    for value in np.unique(classes):
        inside = left_out[(classes == value) & np.isfinite(left_out)]
        if len(inside) < 2:
            continue
        # empirical influence l = (n - 1)(mean - left out), over n
        influence = (len(inside) - 1) * (inside.mean() - inside) / len(inside)
        cubes += float((influence**3).sum())
        squares += float((influence**2).sum())
    return 0.0 if squares < 1e-18 else cubes / (6 * squares**1.5)


def two_sided_p(resampled: ArrayLike) -> float:
    """Twice the smaller share of resampled differences at or beyond zero, with one added to both counts.

    NaN where no resample was estimable.

    Source: Davison, Hinkley 1997, section 4.4; the added one keeps p above zero.
    """
    values = np.asarray(resampled, dtype=float)
    values = values[np.isfinite(values)]
    if not len(values):
        return math.nan
    smaller = min(int((values <= 0).sum()), int((values >= 0).sum()))
    return min(1.0, 2 * (smaller + 1) / (len(values) + 1))


def bootstrap_interval(
    target: ArrayLike,
    scores: ArrayLike,
    scores_b: ArrayLike | None = None,
    *,
    statistic: Callable[[ArrayLike, ArrayLike], Statistic] = auc_statistic,
    clusters: ArrayLike | None = None,
    resamples: int = 10_000,
    level: float = 0.95,
    seed: int = 0,
    method: str = "auto",
) -> Interval:
    """Interval of a metric, or of the paired difference of two, by the bootstrap over patients stratified by class.

    Args:
        target: Class of each patient, shape (n,).
        scores: Scores of one arm, shape (n,), or of its training seeds, shape (S, n): then the value is the mean over
            seeds, and each resample draws patients and seeds both (hierarchical).
        scores_b: Scores of a second arm on the same patients, shape (n,) or (S', n): then the value is the metric of
            ``scores`` minus that of ``scores_b``; seeds of the two arms are drawn apart, patients together.
        statistic: ``target, scores -> (weights (R, n) -> values (R,))``; the AUC where not given.
        clusters: Patient of each entry, where a patient has several; they are drawn together.
        resamples: Bootstrap resamples.
        level: Confidence level in (0, 1).
        seed: Of the random generator.
        method: ``bca``, ``percentile``, or ``auto``: BCa for one arm, percentile for a difference. In simulations
            of 23 patients with equal AUCs from 0.7 to 0.95 the BCa interval of a difference covers 88-91 %, the
            percentile interval 92-98 %; with unequal AUCs the latter falls to 88 %. For one score an arm prefer
            ``square_and_add_interval``, as ``compare`` does.

    Returns:
        The interval. It is too narrow with fewer than about five seeds, where seeds differ much: resampling S seeds
        shows (S - 1) / S of their variance.

    Raises:
        ValueError: Shapes differ, a level is out of range, or the method is unknown.
    """
    check_level(level)
    if method not in ("auto", "bca", "percentile"):
        raise ValueError(f"the method is auto, bca or percentile, not {method}")
    bca = method == "bca" or (method == "auto" and scores_b is None)
    classes = np.asarray(target)
    arms = [np.atleast_2d(np.asarray(values, dtype=float)) for values in (scores, scores_b) if values is not None]
    for values in arms:
        if values.shape[1:] != classes.shape:
            raise ValueError(f"scores of shape {values.shape} for {len(classes)} patients")
    statistics = [[statistic(classes, row) for row in values] for values in arms]
    drawn = [seed_weights(len(values), resamples, seed + 1 + index) for index, values in enumerate(arms)]
    signs = (1.0, -1.0)

    def combined(weights: Weights, seeds: Sequence[Floats]) -> Floats:
        total = np.zeros(len(weights))
        for sign, members, share in zip(signs, statistics, seeds, strict=False):
            total += sign * (np.column_stack([member(weights) for member in members]) * share).sum(axis=1)
        return total

    even = [np.full((1, len(values)), 1 / len(values)) for values in arms]
    estimate = float(combined(np.ones((1, len(classes)), dtype=np.float32), even)[0])
    left_out = combined(leave_one_out(len(classes), clusters), even)
    resampled, start = [], 0
    for weights in patient_weights(classes, resamples, seed, clusters):
        stop = start + len(weights)
        resampled.append(combined(weights, [share[start:stop] for share in drawn]))
        start = stop
    strata = classes if clusters is None else None
    return interval_of(estimate, np.concatenate(resampled), left_out if bca else None, level, strata)
