"""Classification losses, each called as ``loss(logits, target)``, and what their logits mean."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F  # noqa: N812  # torch's own habit
from torch import Tensor, nn

Balanced = Literal["balanced"]


class ClassificationLoss(nn.Module):
    """Base of the classification losses: it says how many logits a network gives, and what they mean.

    All that comes after the network (metrics, threshold, temperature, records) works on *class logits*: one
    logit for two classes, whose sigmoid is the probability of class 1, else one logit a class, whose softmax
    are the probabilities.
    """

    needs_counts = False
    """Whether :meth:`set_counts` has to be called with the training part's classes before training."""

    def outputs(self, classes: int) -> int:
        """Logits that a network has to give for so many classes: one for two classes, else one a class.

        Raises:
            ValueError: The loss was made for another number of classes.
        """
        return 1 if classes == 2 else classes

    def class_logits(self, logits: Tensor) -> Tensor:
        """Class logits, shape (B, 1) for two classes or (B, classes), from the network's logits (B, outputs)."""
        return logits

    def probabilities(self, logits: Tensor) -> Tensor:
        """Probability of each class, shape (B, classes), from the network's logits (B, outputs)."""
        return one_a_class(self.class_logits(logits)).softmax(1)

    def set_counts(self, counts: Sequence[int]) -> None:
        """Take the number of training items of each class, where :attr:`needs_counts`."""


class WeightedBCELoss(ClassificationLoss):
    """Binary cross-entropy of one logit, with a weight on the positive patients.

    Args:
        positive_weight: Weight of a positive beside a negative; ``balanced`` takes negatives / positives of the
            training part.
        label_smoothing: Share e of certainty given away: the targets become e/2 and 1 - e/2.
    """

    positive_weight: Tensor

    def __init__(self, positive_weight: float | Balanced = 1.0, label_smoothing: float = 0.0) -> None:
        super().__init__()
        _check_smoothing(label_smoothing)
        self.needs_counts = positive_weight == "balanced"
        weight = 1.0 if positive_weight == "balanced" else float(positive_weight)
        if weight <= 0:
            raise ValueError(f"positive_weight={positive_weight}: must be positive")
        self.label_smoothing = label_smoothing
        # configuration, not something learned: it is no part of a checkpoint
        self.register_buffer("positive_weight", torch.tensor(weight), persistent=False)

    def outputs(self, classes: int) -> int:
        """One logit; see ``ClassificationLoss``."""
        if classes != 2:
            raise ValueError(
                f"model.init_args.loss: WeightedBCELoss has two classes, not {classes}; take BalancedCELoss"
            )
        return 1

    def set_counts(self, counts: Sequence[int]) -> None:
        """Weigh the positives by negatives / positives."""
        class_balanced_weights(counts)  # refuses a class without items
        self.positive_weight.fill_(counts[0] / counts[1])

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Compute the mean loss of logits (B, 1) or (B,) against targets 0 or 1, shape (B,)."""
        logits = _single(logits)
        soft = target.float() * (1 - self.label_smoothing) + self.label_smoothing / 2
        return F.binary_cross_entropy_with_logits(logits, soft, pos_weight=self.positive_weight)


class WeighedByClass(ClassificationLoss):
    """Base of the losses with a weight for each class.

    Args:
        class_weights: One weight a class (for two classes: negative, positive); None for even ones; ``balanced``
            for :func:`class_balanced_weights` of the training part.
        beta: See :func:`class_balanced_weights`; for ``balanced`` alone.

    Raises:
        ValueError: A weight is not positive, or ``beta`` has nothing to act on.
    """

    class_weights: Tensor | None

    def __init__(self, class_weights: Sequence[float] | Balanced | None = None, beta: float | None = None) -> None:
        super().__init__()
        self.needs_counts = isinstance(class_weights, str)
        if isinstance(class_weights, str) and class_weights != "balanced":
            raise ValueError(f"class_weights={class_weights!r}: give one weight a class, 'balanced', or null")
        if beta is not None and not self.needs_counts:
            raise ValueError(f"beta={beta}: acts on class_weights: balanced alone; set that, or leave it out")
        given = None if class_weights is None or isinstance(class_weights, str) else [float(w) for w in class_weights]
        if given is not None and min(given, default=0.0) <= 0:
            raise ValueError(f"class_weights={given}: each must be positive")
        self.beta = beta
        # configuration, not something learned: it is no part of a checkpoint
        self.register_buffer("class_weights", None if given is None else torch.tensor(given), persistent=False)

    def outputs(self, classes: int) -> int:
        """See ``ClassificationLoss``."""
        if self.class_weights is not None and len(self.class_weights) != classes:
            raise ValueError(
                f"model.init_args.loss.init_args.class_weights: has {len(self.class_weights)} weights for {classes} "
                "classes; give one a class"
            )
        if self.needs_counts and self.class_weights is None:
            # room for what set_counts gives: callbacks that copy the module's buffers want them to be there
            self.class_weights = torch.ones(classes)
        return super().outputs(classes)

    def set_counts(self, counts: Sequence[int]) -> None:
        """Weigh each class by :func:`class_balanced_weights`."""
        weights = torch.tensor(class_balanced_weights(counts, self.beta))
        self.class_weights = weights if self.class_weights is None else weights.to(self.class_weights)


class BalancedCELoss(WeighedByClass):
    """Cross-entropy over classes with a weight for each class.

    Args:
        class_weights: See ``WeighedByClass``.
        label_smoothing: Share of certainty spread over all classes.
        beta: See ``WeighedByClass``.
    """

    def __init__(
        self,
        class_weights: Sequence[float] | Balanced | None = None,
        label_smoothing: float = 0.0,
        beta: float | None = None,
    ) -> None:
        super().__init__(class_weights, beta)
        _check_smoothing(label_smoothing)
        self.label_smoothing = label_smoothing

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Compute the loss of logits (B, classes), or (B, 1) for two, against classes (B,), averaged by weight."""
        logits = one_a_class(logits.float())
        return F.cross_entropy(logits, target, self.class_weights, label_smoothing=self.label_smoothing)


class FocalLoss(WeighedByClass):
    """Focal loss: cross-entropy scaled by (1 - p)^gamma, so that easy patients count less.

    Args:
        gamma: Focus; 0 gives cross-entropy.
        class_weights: See ``WeighedByClass``.
        beta: See ``WeighedByClass``.

    Source: Lin et al. 2017, Focal loss for dense object detection, eq. 5.
    """

    def __init__(
        self, gamma: float = 2.0, class_weights: Sequence[float] | Balanced | None = None, beta: float | None = None
    ) -> None:
        super().__init__(class_weights, beta)
        if gamma < 0:
            raise ValueError(f"gamma={gamma}: must not be negative")
        self.gamma = gamma

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


def one_a_class(logits: Tensor) -> Tensor:
    """One logit a class, shape (B, classes), from class logits: a single logit (B, 1) stands beside a zero."""
    return torch.cat([torch.zeros_like(logits), logits], 1) if logits.shape[1] == 1 else logits


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
