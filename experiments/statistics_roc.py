"""The area under the ROC curve: DeLong's covariance and test, small-sample intervals, and what a test set can show."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, stats

from experiments.statistics_proportions import Interval, check_level

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class DeLong:
    """Result of DeLong's paired test.

    Attributes:
        auc_a: AUC of the first score.
        auc_b: AUC of the second score.
        z: (auc_a - auc_b) / standard error; 0 where the two rank the patients alike.
        p_value: Two-sided.
        standard_error: Of the difference.
        low: Lower end of the Wald interval of auc_a - auc_b.
        high: Its upper end.
        correlation: Between the two estimated areas; NaN where one of them does not vary.
    """

    auc_a: float
    auc_b: float
    z: float
    p_value: float
    standard_error: float
    low: float
    high: float
    correlation: float


def binary_target(target: ArrayLike, *scores: ArrayLike) -> tuple[NDArray[np.bool_], list[Floats]]:
    """Check a binary target and scores of the same patients.

    Returns:
        Whether each patient is positive, shape (n,), and each score as float64, shape (n,).

    Raises:
        ValueError: Shapes differ, a score is not finite, the target is not 0/1, or one class is missing.
    """
    truth = np.asarray(target)
    if truth.ndim != 1 or not np.isin(truth, (0, 1)).all():
        raise ValueError("the target is one 0 or 1 per patient")
    positive = truth.astype(bool)
    if positive.all() or not positive.any():
        raise ValueError("an AUC is not estimable: only one class occurs")
    arrays = [np.asarray(values, dtype=float) for values in scores]
    for values in arrays:
        if values.shape != positive.shape:
            raise ValueError(f"scores of shape {values.shape} for {len(positive)} patients")
        if not np.isfinite(values).all():
            raise ValueError("a score is NaN or infinite")
    return positive, arrays


def delong_covariance(target: ArrayLike, *scores: ArrayLike) -> tuple[Floats, Floats]:
    """Areas under several ROC curves of the same patients, and DeLong's estimate of their covariance.

    Args:
        target: 0 or 1 per patient, shape (n,); at least two of each class for a covariance.
        scores: One or more scores, higher for class 1, each of shape (n,).

    Returns:
        AUCs, shape (k,), and their covariance, shape (k, k).

    Raises:
        ValueError: Bad shapes or values, one class only, or fewer than two patients in a class.

    Source: DeLong, DeLong, Clarke-Pearson 1988; computed by midranks as in Sun, Xu 2014, in O(n log n).
    """
    positive, arrays = binary_target(target, *scores)
    m, n = int(positive.sum()), int((~positive).sum())
    if min(m, n) < 2:
        raise ValueError(f"DeLong's covariance needs two patients of each class, not {m} and {n}")
    share_positive, share_negative = np.empty((len(arrays), m)), np.empty((len(arrays), n))
    for row, values in enumerate(arrays):
        # midranks count ties by half, as the Mann-Whitney statistic does
        ranks = stats.rankdata(values)
        share_positive[row] = (ranks[positive] - stats.rankdata(values[positive])) / n
        share_negative[row] = 1 - (ranks[~positive] - stats.rankdata(values[~positive])) / m
    areas = share_positive.mean(axis=1)
    covariance = np.atleast_2d(np.cov(share_positive)) / m + np.atleast_2d(np.cov(share_negative)) / n
    return areas, covariance


def auc(target: ArrayLike, scores: ArrayLike) -> float:
    """Area under the ROC curve: the chance that a positive scores higher than a negative, ties counted by half.

    Raises:
        ValueError: Bad shapes or values, or one class only: then the AUC is not estimable (and is not 0.5).
    """
    positive, (values,) = binary_target(target, scores)
    m, n = int(positive.sum()), int((~positive).sum())
    return float((stats.rankdata(values)[positive].sum() - m * (m + 1) / 2) / (m * n))


def delong_test(target: ArrayLike, scores_a: ArrayLike, scores_b: ArrayLike, level: float = 0.95) -> DeLong:
    """Whether two scores of the same patients differ in AUC, by DeLong's two-sided paired test.

    Args:
        target: 0 or 1 per patient, shape (n,).
        scores_a: First score, higher for class 1, shape (n,).
        scores_b: Second score, patients in the same order, shape (n,).
        level: Confidence level of the interval of the difference.

    Raises:
        ValueError: Bad shapes or values, or fewer than two patients in a class.

    Source: DeLong, DeLong, Clarke-Pearson 1988, eq. 7.
    """
    check_level(level)
    areas, covariance = delong_covariance(target, scores_a, scores_b)
    difference = float(areas[0] - areas[1])
    # rounding may leave -1e-19 where the two scores rank alike
    error = math.sqrt(max(0.0, float(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])))
    if error < 1e-12:
        error = 0.0
    z = difference / error if error else (0.0 if abs(difference) < 1e-12 else math.copysign(math.inf, difference))
    half = float(stats.norm.ppf((1 + level) / 2)) * error
    scale = math.sqrt(float(covariance[0, 0] * covariance[1, 1]))
    return DeLong(
        auc_a=float(areas[0]),
        auc_b=float(areas[1]),
        z=z,
        p_value=float(2 * stats.norm.sf(abs(z))),
        standard_error=error,
        low=difference - half,
        high=difference + half,
        correlation=float(covariance[0, 1]) / scale if scale > 0 else math.nan,
    )


def delong_interval(target: ArrayLike, scores: ArrayLike, level: float = 0.95) -> Interval:
    """AUC with DeLong's interval on the logit scale, which stays inside [0, 1].

    At an AUC of exactly 0 or 1 the variance estimate vanishes; ``newcombe_interval`` still answers there.

    Raises:
        ValueError: Bad shapes or values, fewer than two patients in a class, or no variance.

    Source: DeLong et al. 1988; logit transform: Pepe 2003, section 5.2.4.
    """
    check_level(level)
    areas, covariance = delong_covariance(target, scores)
    area, variance = float(areas[0]), float(covariance[0, 0])
    if not 0 < area < 1:
        raise ValueError(f"DeLong's interval is not defined at an AUC of {area:g}")
    half = float(stats.norm.ppf((1 + level) / 2)) * math.sqrt(variance) / (area * (1 - area))
    centre = math.log(area / (1 - area))
    low, high = (1 / (1 + math.exp(-(centre + sign * half))) for sign in (-1, 1))
    return Interval(area, low, high, level, "DeLong, logit scale")


def hanley_mcneil_variance(area: float, positives: int, negatives: int) -> float:
    """Variance of an estimated AUC when scores are about negatively exponential: AUC and class sizes suffice.

    Args:
        area: True AUC in [0, 1].
        positives: Number of positive patients.
        negatives: Number of negative patients.

    Source: Hanley, McNeil 1982, eq. 2 with Q1 = A / (2 - A), Q2 = 2 A² / (1 + A).
    """
    q1, q2 = area / (2 - area), 2 * area**2 / (1 + area)
    square = area**2
    numerator = area * (1 - area) + (positives - 1) * (q1 - square) + (negatives - 1) * (q2 - square)
    return max(0.0, numerator / (positives * negatives))


def newcombe_interval(area: float, positives: int, negatives: int, level: float = 0.95) -> Interval:
    """Score-type interval of an AUC from the AUC and class sizes alone; it does not degenerate at 0 or 1.

    Args:
        area: Estimated AUC in [0, 1].
        positives: Number of positive patients, at least 1.
        negatives: Number of negative patients, at least 1.
        level: Confidence level in (0, 1).

    Raises:
        ValueError: A count below 1, or an AUC or level out of range.

    Source: Newcombe 2006 (Statistics in Medicine 25:559), method 5: the true areas A with
        |area - A| = z sqrt(V(A)), V of Hanley-McNeil with m* = n* = (m + n) / 2 in place of m and n.
    """
    check_level(level)
    if not 0 <= area <= 1 or positives < 1 or negatives < 1:
        raise ValueError(f"an AUC of {area} from {positives} positives and {negatives} negatives cannot be")
    z = float(stats.norm.ppf((1 + level) / 2))
    half = (positives + negatives) / 2 - 1

    def variance(true: float) -> float:
        spread = 1 + half * (1 - true) / (2 - true) + half * true / (1 + true)
        return true * (1 - true) * spread / (positives * negatives)

    def distance(true: float) -> float:
        return (area - true) ** 2 - z**2 * variance(true)

    low = 0.0 if area == 0 else float(optimize.brentq(distance, 0.0, area - 1e-12)) if distance(0.0) > 0 else 0.0
    high = 1.0 if area == 1 else float(optimize.brentq(distance, area + 1e-12, 1.0)) if distance(1.0) > 0 else 1.0
    return Interval(area, low, high, level, "Newcombe method 5")


def auc_interval(target: ArrayLike, scores: ArrayLike, level: float = 0.95) -> Interval:
    """The interval of an AUC that comparison uses: DeLong's on the logit scale, Newcombe's where that is not defined.

    Newcombe's answers where every positive scores above every negative (or below), and where a class has one patient.

    Raises:
        ValueError: Bad shapes or values, or one class only.
    """
    positive, (values,) = binary_target(target, scores)
    m, n = int(positive.sum()), int((~positive).sum())
    if min(m, n) >= 2:
        areas, covariance = delong_covariance(target, values)
        if 0 < areas[0] < 1 and covariance[0, 0] > 0:
            return delong_interval(target, values, level)
    return newcombe_interval(auc(target, values), m, n, level)


def smallest_detectable_auc_difference(
    area: float, positives: int, negatives: int, correlation: float = 0.5, level: float = 0.95, power: float = 0.8
) -> float:
    """The smallest gain in AUC over ``area`` that a paired test on this many patients finds with the given power.

    Args:
        area: AUC of the reference arm, in [0.5, 1).
        positives: Number of positive patients.
        negatives: Number of negative patients.
        correlation: Between the two estimated areas, in [-1, 1); 0.5 is usual for arms on the same scans.
        level: 1 - the two-sided error of the first kind.
        power: Chance to find the difference when it is there.

    Returns:
        The difference, or infinity where even a perfect arm would not be told apart.

    Raises:
        ValueError: A count below 1, or another value out of range.

    Source: Hanley, McNeil 1983 (difference of correlated areas) with the variances of Hanley, McNeil 1982:
        d = z(1 - alpha/2) sqrt(2 V(A) (1 - r)) + z(power) sqrt(V(A) + V(A + d) - 2 r sqrt(V(A) V(A + d))).
    """
    check_level(level)
    if not 0 <= area <= 1 or min(positives, negatives) < 1 or not -1 <= correlation <= 1 or not 0 < power < 1:
        raise ValueError("an AUC in [0, 1], both classes, a correlation in [-1, 1] and a power in (0, 1) are needed")
    z_level, z_power = float(stats.norm.ppf((1 + level) / 2)), float(stats.norm.ppf(power))
    base = hanley_mcneil_variance(area, positives, negatives)

    def shortfall(gain: float) -> float:
        other = hanley_mcneil_variance(area + gain, positives, negatives)
        null = z_level * math.sqrt(2 * base * (1 - correlation))
        alternative = z_power * math.sqrt(max(0.0, base + other - 2 * correlation * math.sqrt(base * other)))
        return gain - null - alternative

    if shortfall(1 - area) < 0:
        return math.inf
    return float(optimize.brentq(shortfall, 0.0, 1 - area))
