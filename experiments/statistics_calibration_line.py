"""The calibration line: slope and intercept of the logistic recalibration, with profile likelihood intervals."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, stats
from scipy.special import expit

from experiments.statistics_proportions import Interval, check_level
from experiments.statistics_roc import binary_target

Floats = NDArray[np.float64]
METHOD = "profile likelihood"
_CLIP = 1e-6  # a probability of exactly 0 or 1 has no logit
_FURTHEST = 2.0**20  # a slope beyond this is no slope


@dataclass(frozen=True, slots=True)
class Calibration:
    """The calibration line: logit(true risk) = intercept + slope × logit(predicted risk).

    Attributes:
        slope: 1 is ideal; below 1 the predictions are too extreme. NaN where it cannot be estimated.
        intercept: Calibration in the large, with the slope held at 1; 0 is ideal, above 0 risks are too low.
        note: Why there is no estimate, or empty.
        slope_interval: Of the slope; None where there is none. Without an upper bound where the classes are
            perfectly separated.
        intercept_interval: Of the intercept.
    """

    slope: float
    intercept: float
    note: str = ""
    slope_interval: Interval | None = None
    intercept_interval: Interval | None = None


def calibration_line(target: ArrayLike, probabilities: ArrayLike, level: float = 0.95) -> Calibration:
    """Calibration slope, and intercept with the slope held at 1, by logistic regression without penalty.

    Args:
        target: 0 or 1 per patient, shape (n,).
        probabilities: Risk in [0, 1], shape (n,); 0 and 1 are moved by 1e-6, for they have no logit.
        level: Of the intervals: all values that the likelihood ratio test does not refuse.

    Raises:
        ValueError: Bad shapes or values, one class only, or a level out of range.

    Source: Cox 1958; Van Calster et al. 2016 for the words; Venzon, Moolgavkar 1988 for the intervals.
    """
    check_level(level)
    positive, (values,) = binary_target(target, probabilities)
    clipped = np.clip(values, _CLIP, 1 - _CLIP)
    logits = np.log(clipped / (1 - clipped))
    truth = positive.astype(float)
    allowed = float(stats.chi2.ppf(level, 1)) / 2

    intercept = _intercept(truth, logits)
    best = _likelihood(truth, intercept + logits)
    ends = _ends(lambda a: best - _likelihood(truth, a + logits) - allowed, intercept)
    found = Interval(intercept, *ends, level, METHOD)
    if np.ptp(logits) < 1e-9:
        return Calibration(math.nan, intercept, "all patients have the same probability", None, found)

    def profile(slope: float) -> float:
        return _likelihood(truth, _intercept(truth, slope * logits) + slope * logits)

    gap_up = float(logits[positive].min() - logits[~positive].max())
    gap_down = float(logits[~positive].min() - logits[positive].max())
    if gap_up >= 0 or gap_down >= 0:
        note = "the classes are perfectly separated: the slope has no bound"
        # the likelihood nears 1 as the slope grows; patients of both classes on the border keep it away from there
        bounded = None
        if gap_up > 0:
            low, _ = _ends(lambda b: -profile(b) - allowed, 1.0 / gap_up * 40)
            bounded = Interval(math.inf, low, math.inf, level, METHOD)
        return Calibration(math.nan, intercept, note, bounded, found)
    slope = float(optimize.minimize_scalar(lambda b: -profile(b), bracket=(0.0, 1.0), tol=1e-10).x)
    highest = profile(slope)
    ends = _ends(lambda b: highest - profile(b) - allowed, slope)
    return Calibration(slope, intercept, "", Interval(slope, *ends, level, METHOD), found)


def _likelihood(truth: Floats, logits: Floats) -> float:
    """Logarithm of the likelihood of the truth, given logits of the risk."""
    return float((truth * logits - np.logaddexp(0, logits)).sum())


def _intercept(truth: Floats, offset: Floats) -> float:
    """The a for which the mean of sigmoid(a + offset) equals the prevalence: the likelihood equation itself."""
    goal = truth.mean()
    a = math.log(goal / (1 - goal)) - float(np.median(offset))
    for _ in range(20):
        risk = expit(a + offset)
        spread = float((risk * (1 - risk)).mean())
        if spread < 1e-9:
            break
        step = float((goal - risk.mean()) / spread)
        if abs(step) > 5:  # Newton leaps where the curve is flat
            break
        a += step
        if abs(step) < 1e-12:
            return a
    reach = float(np.abs(offset).max()) + 40
    return float(optimize.brentq(lambda x: float(expit(x + offset).mean() - goal), -reach, reach, xtol=1e-12))


def _ends(excess: Callable[[float], float], inside: float) -> tuple[float, float]:
    """Where a function that is negative inside, and grows to both sides, crosses zero; infinite where it does not."""
    found = []
    for sign in (-1.0, 1.0):
        step = 0.5
        while excess(inside + sign * step) < 0 and step < _FURTHEST:
            step *= 2
        outside = inside + sign * step
        if step >= _FURTHEST:
            found.append(sign * math.inf)
        else:
            found.append(float(optimize.brentq(excess, inside, outside, xtol=1e-6)))
    return found[0], found[1]
