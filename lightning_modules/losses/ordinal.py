"""Losses that know that stages are ordered."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812  # torch's own habit
from torch import Tensor

from lightning_modules.losses.classification import ClassificationLoss, one_a_class


class CornLoss(ClassificationLoss):
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

    def outputs(self, classes: int) -> int:
        """One logit a step between neighbouring stages; see ``ClassificationLoss``."""
        _check_classes(self, self.classes, classes)
        return classes - 1

    def class_logits(self, logits: Tensor) -> Tensor:
        """Logarithms of the stages' probabilities, whose softmax they are; of two stages, the logit itself."""
        return logits if logits.shape[1] == 1 else corn_log_probabilities(logits)

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


def corn_log_probabilities(logits: Tensor) -> Tensor:
    """Logarithm of each stage's probability, float32, shape (B, classes); finite for any finite logits.

    Stage k is reached by passing all steps before it, and not passing the k-th.

    Args:
        logits: CORN's logits, shape (B, classes - 1).
    """
    zero = torch.zeros_like(logits[:, :1], dtype=torch.float32)
    passed = torch.cat([zero, F.logsigmoid(logits.float()).cumsum(1)], 1)
    stopped = torch.cat([F.logsigmoid(-logits.float()), zero], 1)
    return passed + stopped


class SoftOrdinalLoss(ClassificationLoss):
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

    def outputs(self, classes: int) -> int:
        """See ``ClassificationLoss``."""
        _check_classes(self, self.classes, classes)
        return super().outputs(classes)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Compute the mean loss of logits (B, classes), or (B, 1) for two, against stages (B,), 0-based."""
        return F.cross_entropy(one_a_class(logits.float()), self.soften(target))

    def soften(self, target: Tensor) -> Tensor:
        """Soft labels (B, classes) of stages (B,)."""
        stages = torch.arange(self.classes, device=target.device)
        return (-self.sharpness * (stages - target[:, None]).float().square()).softmax(1)


def _check_classes(loss: ClassificationLoss, own: int, classes: int) -> None:
    if own != classes:
        raise ValueError(
            f"model.init_args.loss.init_args.classes: {type(loss).__name__} has {own} stages, the model {classes} "
            f"classes; set it to {classes}"
        )
