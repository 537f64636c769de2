"""The operating point: the probability from which a patient counts as positive. No torch."""

from __future__ import annotations

from typing import Literal

import numpy as np
from sklearn.metrics import roc_curve

ThresholdRule = Literal["youden", "sensitivity", "specificity", "fixed"]


def choose_threshold(
    target: np.ndarray, probability: np.ndarray, rule: ThresholdRule = "youden", value: float | None = None
) -> float:
    """The threshold that a rule chooses; never to be asked about test patients.

    Args:
        target: 0 or 1, shape (N,).
        probability: Shape (N, 2).
        rule: ``youden`` maximises sensitivity + specificity - 1; ``sensitivity`` takes the highest threshold whose
            sensitivity is at least ``value``, ``specificity`` the lowest whose specificity is; ``fixed`` is ``value``.
        value: See ``rule``.

    Returns:
        The middle between two neighbouring scores, so that the threshold does not sit on a patient; 0.5 where only
        one class is there and the rule is not ``fixed``.

    Raises:
        ValueError: A rule other than ``youden`` without a value.
    """
    if rule == "youden":
        return youden_threshold(target, probability)
    if value is None:
        raise ValueError(f"threshold {rule} needs a value")
    if rule == "fixed":
        return value
    if len(np.unique(target)) < 2:
        return 0.5
    score = probability[:, 1]
    false_positive, true_positive, cuts = roc_curve(target, score, drop_intermediate=False)
    # sensitivity rises along the curve, specificity falls
    if rule == "sensitivity":
        best = int(np.argmax(true_positive >= value - 1e-12))
    else:
        best = int(np.flatnonzero(1 - false_positive >= value - 1e-12)[-1])
    return _below(float(cuts[best]), score)


def youden_threshold(target: np.ndarray, probability: np.ndarray) -> float:
    """The probability that maximises sensitivity + specificity - 1 (Youden 1950).

    Args:
        target: 0 or 1, shape (N,).
        probability: Shape (N, 2).

    Returns:
        The middle between the chosen score and the next lower one, so that the threshold does not sit on a
        validation patient; 0.5 where only one class is there.
    """
    if len(np.unique(target)) < 2:
        return 0.5
    score = probability[:, 1]
    false_positive, true_positive, cuts = roc_curve(target, score, drop_intermediate=False)
    best = int(np.argmax(true_positive - false_positive))
    if not np.isfinite(cuts[best]):
        return 0.5
    return _below(float(cuts[best]), score)


def _below(cut: float, score: np.ndarray) -> float:
    """The middle between a score and the next lower one; above all scores, that between the highest and 1."""
    if not np.isfinite(cut):
        return float((score.max() + 1.0) / 2)
    lower = score[score < cut]
    return float((cut + (lower.max() if lower.size else 0.0)) / 2)
