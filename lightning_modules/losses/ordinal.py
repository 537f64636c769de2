"""Losses that know that stages are ordered."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812  # torch's own habit
from torch import Tensor, nn


class CornLoss(nn.Module):
    """Conditional ordinal regression (CORN): each logit asks "beyond stage k, given beyond k - 1?".

    A network for C stages gives C - 1 logits. The k-th task is learned only from patients who are at
    least at stage k; the losses are averaged over all such pairs of patient and task.

    Args:
        classes: Number of stages C, at least 2.

    Source: Shi, Cao, Raschka 2021, Deep neural networks for rank-consistent ordinal regression based
    on conditional probabilities, arXiv:2111.08851, eq. 6. The authors' package is not kept up, so
    the few lines are written out here.
    """

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        if classes < 2:
            raise ValueError(f"classes={classes}: an ordinal loss needs at least two")
        self.classes = classes

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Compute the loss of logits (B, classes - 1) against stages (B,), 0-based.

        Raises:
            ValueError: The number of logits does not fit.
        """
        if logits.ndim != 2 or logits.shape[1] != self.classes - 1:
            raise ValueError(
                f"logits {tuple(logits.shape)}: CORN takes (B, {self.classes - 1}) for {self.classes} stages"
            )
        steps = torch.arange(self.classes - 1, device=target.device)
        asked = target[:, None] >= steps
        beyond = (target[:, None] > steps).float()
        loss = F.binary_cross_entropy_with_logits(logits.float(), beyond, reduction="none")
        return (loss * asked).sum() / asked.sum()


def corn_exceedance(logits: Tensor) -> Tensor:
    """Probability that the stage is beyond each k: the product of the conditional ones up to k.

    Args:
        logits: CORN's logits, shape (B, classes - 1).

    Returns:
        P(stage > k) for k = 0 … classes - 2, shape (B, classes - 1), falling along each row.
    """
    return F.logsigmoid(logits.float()).cumsum(1).exp()


def corn_probabilities(logits: Tensor) -> Tensor:
    """Probability of each stage from CORN's logits (B, classes - 1); returns (B, classes), rows sum to 1."""
    beyond = corn_exceedance(logits)
    ones = beyond.new_ones(beyond.shape[0], 1)
    return torch.cat([ones, beyond], 1) - torch.cat([beyond, beyond.new_zeros(beyond.shape[0], 1)], 1)


class SoftOrdinalLoss(nn.Module):
    """Cross-entropy against labels softened towards neighbouring stages.

    The target of stage y is softmax over i of -sharpness * (i - y)^2, so a near miss costs less.

    Args:
        classes: Number of stages.
        sharpness: Large for nearly hard labels.

    Source: Diaz and Marathe 2019, Soft labels for ordinal regression, eq. 5, squared distance.
    """

    def __init__(self, classes: int = 3, sharpness: float = 1.5) -> None:
        super().__init__()
        if classes < 2 or sharpness <= 0:
            raise ValueError(f"classes={classes}, sharpness={sharpness}: need at least two classes, and more than 0")
        self.classes = classes
        self.sharpness = sharpness

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Compute the mean loss of logits (B, classes) against stages (B,), 0-based."""
        return F.cross_entropy(logits.float(), self.soften(target))

    def soften(self, target: Tensor) -> Tensor:
        """Soft labels (B, classes) of stages (B,)."""
        stages = torch.arange(self.classes, device=target.device)
        return (-self.sharpness * (stages - target[:, None]).float().square()).softmax(1)
