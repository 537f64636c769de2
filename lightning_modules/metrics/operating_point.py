"""The operating point: the probability from which a patient counts as positive. No torch."""

from __future__ import annotations

import numpy as np
from sklearn.metrics import roc_curve


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
    lower = score[score < cuts[best]]
    return float((cuts[best] + (lower.max() if lower.size else 0.0)) / 2)
