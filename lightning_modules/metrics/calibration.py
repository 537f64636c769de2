"""Temperature scaling and the rule for the threshold: what is chosen on validation patients. No torch."""

from __future__ import annotations

import dataclasses

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp

from lightning_modules.metrics.operating_point import ThresholdRule

LOWEST, HIGHEST = 0.2, 20.0
"""Range of the temperature. Beyond it a probability of one sort of patient would round to 0 or 1, and ranks be lost."""
_LARGEST_LOGIT = 20.0


@dataclasses.dataclass(frozen=True)
class Calibration:
    """What is chosen on the validation patients after each validation within training, and kept in the checkpoint.

    Attributes:
        temperature: Divide the logits by a temperature that minimises the validation patients' negative
            log-likelihood; False leaves them as they are.
        threshold: Rule for the probability from which a patient counts as positive, of two classes:
            ``youden``, ``sensitivity``, ``specificity`` or ``fixed``; see ``choose_threshold``.
        value: The sensitivity or specificity that is to be reached, or the fixed threshold; in [0, 1].

    Raises:
        ValueError: A rule lacks its value, or a value has no rule.
    """

    temperature: bool = True
    threshold: ThresholdRule = "youden"
    value: float | None = None

    def __post_init__(self) -> None:
        key = "model.init_args.calibration"
        if (self.threshold == "youden") != (self.value is None):
            what = "takes no value; leave it out" if self.threshold == "youden" else "needs a value in [0, 1]; set it"
            raise ValueError(f"{key}.value: threshold {self.threshold} {what}")
        if self.value is not None and not 0.0 <= self.value <= 1.0:
            raise ValueError(f"{key}.value: {self.value} does not lie in [0, 1]; correct it")


def fit_temperature(target: np.ndarray, logits: np.ndarray) -> float:
    """The temperature T that minimises the negative log-likelihood of the logits divided by it.

    Args:
        target: Classes, shape (N,).
        logits: Class logits, shape (N, 1) for two classes or (N, classes).

    Returns:
        T in [0.2, 20]; 1 where that is no worse, where only one class is there, and where the classes are separated
        so well that the likelihood would grow for ever: then these patients cannot say how sure to be.

    Source: Guo et al. 2017, On calibration of modern neural networks, section 4.2. The loss is convex in 1 / T.
    """
    if len(np.unique(target)) < 2:
        return 1.0
    largest = float(np.abs(logits).max())
    lowest = min(1.0, max(LOWEST, largest / _LARGEST_LOGIT))
    found = minimize_scalar(
        lambda inverse: negative_log_likelihood(target, logits * inverse),
        bounds=(1.0 / HIGHEST, 1.0 / lowest),
        method="bounded",
        options={"xatol": 1e-6},
    )
    inverse = float(found.x)
    unbounded = inverse > (1.0 / lowest) * (1 - 1e-4)
    if unbounded or negative_log_likelihood(target, logits * inverse) >= negative_log_likelihood(target, logits):
        return 1.0
    return 1.0 / inverse


def negative_log_likelihood(target: np.ndarray, logits: np.ndarray) -> float:
    """Mean negative log-likelihood in nats of classes (N,) under class logits (N, 1) or (N, classes)."""
    if logits.shape[1] == 1:
        logits = np.concatenate([np.zeros_like(logits), logits], axis=1)
    chosen = np.take_along_axis(logits, target[:, None], axis=1)[:, 0]
    return float(np.mean(logsumexp(logits, axis=1) - chosen))
