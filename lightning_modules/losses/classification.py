"""Classification losses, each called as ``loss(logits, target)``."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F  # noqa: N812  # torch's own habit
from torch import Tensor, nn


class WeightedBCELoss(nn.Module):
    """Binary cross-entropy of one logit, with a weight on the positive patients.

    Args:
        positive_weight: Weight of a positive beside a negative; negatives / positives of the
            training patients balances them.
        label_smoothing: Share e of certainty given away: the targets become e/2 and 1 - e/2.
    """

    positive_weight: Tensor

    def __init__(self, positive_weight: float = 1.0, label_smoothing: float = 0.0) -> None:
        super().__init__()
        _check_smoothing(label_smoothing)
        if positive_weight <= 0:
            raise ValueError(f"positive_weight={positive_weight}: must be positive")
        self.label_smoothing = label_smoothing
        self.register_buffer("positive_weight", torch.tensor(float(positive_weight)))

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Compute the mean loss of logits (B, 1) or (B,) against targets 0 or 1, shape (B,)."""
        logits = _single(logits)
        soft = target.float() * (1 - self.label_smoothing) + self.label_smoothing / 2
        return F.binary_cross_entropy_with_logits(logits, soft, pos_weight=self.positive_weight)


class BalancedCELoss(nn.Module):
    """Cross-entropy over classes with a weight for each class.

    Args:
        class_weights: One weight a class, or None for even ones; see :func:`class_balanced_weights`.
        label_smoothing: Share of certainty spread over all classes.
    """

    class_weights: Tensor | None

    def __init__(self, class_weights: Sequence[float] | None = None, label_smoothing: float = 0.0) -> None:
        super().__init__()
        _check_smoothing(label_smoothing)
        self.label_smoothing = label_smoothing
        weights = None if class_weights is None else torch.tensor([float(w) for w in class_weights])
        self.register_buffer("class_weights", weights)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Compute the loss of logits (B, classes) against classes (B,), averaged by weight."""
        return F.cross_entropy(logits.float(), target, self.class_weights, label_smoothing=self.label_smoothing)


class FocalLoss(nn.Module):
    """Focal loss: cross-entropy scaled by (1 - p)^gamma, so that easy patients count less.

    Args:
        gamma: Focus; 0 gives cross-entropy.
        class_weights: One weight a class (two for a single logit: negative, positive), or None.

    Source: Lin et al. 2017, Focal loss for dense object detection, eq. 5.
    """

    class_weights: Tensor | None

    def __init__(self, gamma: float = 2.0, class_weights: Sequence[float] | None = None) -> None:
        super().__init__()
        if gamma < 0:
            raise ValueError(f"gamma={gamma}: must not be negative")
        self.gamma = gamma
        weights = None if class_weights is None else torch.tensor([float(w) for w in class_weights])
        self.register_buffer("class_weights", weights)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Compute the mean loss of logits (B, classes), or (B, 1) for one logit, against classes (B,)."""
        if logits.ndim == 1 or logits.shape[1] == 1:
            logit = _single(logits)
            log_probabilities = torch.stack([F.logsigmoid(-logit), F.logsigmoid(logit)], 1)
        else:
            log_probabilities = logits.float().log_softmax(1)
        target = target.long()
        log_p = log_probabilities.gather(1, target[:, None])[:, 0]
        loss = -((1 - log_p.exp()) ** self.gamma) * log_p
        if self.class_weights is not None:
            loss = loss * self.class_weights[target]
        return loss.mean()


def class_balanced_weights(counts: Sequence[int], beta: float | None = None) -> tuple[float, ...]:
    """Weights that balance classes, averaging 1 over the classes.

    Args:
        counts: Training patients of each class, all positive.
        beta: None for inverse frequency; else the effective number's beta in [0, 1).

    Raises:
        ValueError: A class without patients, or beta out of range.

    Source: Cui et al. 2019, Class-balanced loss based on effective number of samples, eq. 2.
    """
    if any(count <= 0 for count in counts):
        raise ValueError(
            f"class counts {tuple(counts)}: a class has no training patient; merge classes or change the rule"
        )
    if beta is not None and not 0 <= beta < 1:
        raise ValueError(f"beta={beta}: must lie in [0, 1)")
    raw = [1 / n if beta is None else (1 - beta) / (1 - beta**n) for n in counts]
    return tuple(weight * len(raw) / sum(raw) for weight in raw)


def _single(logits: Tensor) -> Tensor:
    """Bring one logit a patient, (B, 1) or (B,), to float32 (B,)."""
    if logits.ndim == 2 and logits.shape[1] == 1:
        logits = logits[:, 0]
    if logits.ndim != 1:
        raise ValueError(f"logits {tuple(logits.shape)}: this loss takes one logit a patient, (B, 1) or (B,)")
    return logits.float()


def _check_smoothing(label_smoothing: float) -> None:
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"label_smoothing={label_smoothing}: must lie in [0, 1)")
