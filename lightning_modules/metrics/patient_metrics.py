"""Metrics accumulated over patients, the same under one process as under many.

Distributed samplers pad the last batch with scans that were seen already. So each value is kept with
its scan's id, all are gathered, and each id counts once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.functional.classification import binary_auroc, multiclass_auroc


class _ByScan(Metric):
    """Keeps values with the ids of their scans; a subclass says what is made of them."""

    full_state_update = False
    ids: list[Tensor]

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.add_state("ids", default=[], dist_reduce_fx="cat")

    def _first_of_each(self) -> Tensor:
        """Places of the first value of each scan, in the order of the ids' hashes."""
        ids = _joined(self.ids)
        ordered, places = ids.sort(stable=True)
        first = torch.ones_like(ordered, dtype=torch.bool)
        first[1:] = ordered[1:] != ordered[:-1]
        return places[first]


class PatientDice(_ByScan):
    """Mean Dice over scans, each scan counted once.

    State: ids and Dice of each scan, reduced by concatenation. Dice = 2 |P ∩ R| / (|P| + |R|); 1
    where both masks are empty. For validation on the preprocessed grid; the record's Dice is
    computed on the native grid by :func:`lightning_modules.metrics.segmentation.dice`.
    """

    higher_is_better = True
    is_differentiable = False
    values: list[Tensor]

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.add_state("values", default=[], dist_reduce_fx="cat")

    def update(self, pred: Tensor, target: Tensor, scan_id: Sequence[str]) -> None:
        """Add scans.

        Args:
            pred: Predicted masks, non-zero is liver, shape (B, 1, I, J, K) or (B, I, J, K).
            target: Reference masks, the same shape.
            scan_id: One id an item.

        Raises:
            ValueError: The shapes or the number of ids differ.
        """
        if pred.shape != target.shape or len(scan_id) != pred.shape[0]:
            raise ValueError(
                f"pred {tuple(pred.shape)}, target {tuple(target.shape)} and {len(scan_id)} ids do not fit"
            )
        p, r = pred.flatten(1) != 0, target.flatten(1) != 0
        total = (p.sum(1) + r.sum(1)).double()
        overlap = (p & r).sum(1).double()
        self.values.append(torch.where(total > 0, 2 * overlap / total.clamp(min=1), torch.ones_like(total)))
        self.ids.append(id_numbers(scan_id, pred.device))

    def compute(self) -> Tensor:
        """Mean over scans, float32 in [0, 1]."""
        return _joined(self.values)[self._first_of_each()].mean().float()


class PatientAUROC(_ByScan):
    """Area under the ROC curve over patients, each patient counted once.

    State: ids, scores and targets, reduced by concatenation. For several classes the mean of
    one-versus-rest over the classes that occur. 0.5 while only one class has been seen.

    Args:
        classes: 1 or 2 for a binary score, else the number of classes.
    """

    higher_is_better = True
    is_differentiable = False
    scores: list[Tensor]
    targets: list[Tensor]

    def __init__(self, classes: int = 1, **options: Any) -> None:
        super().__init__(**options)
        self.classes = classes
        self.add_state("scores", default=[], dist_reduce_fx="cat")
        self.add_state("targets", default=[], dist_reduce_fx="cat")

    def update(self, scores: Tensor, target: Tensor, patient_id: Sequence[str]) -> None:
        """Add patients.

        Args:
            scores: Logits or probabilities of class 1, shape (B,) or (B, 1); probabilities of each
                class, (B, classes), for several.
            target: Class of each patient, shape (B,).
            patient_id: One id an item.

        Raises:
            ValueError: The shapes or the number of ids differ.
        """
        scores = scores.detach().float()
        if self.classes <= 2:
            scores = scores.reshape(scores.shape[0], -1)
            if scores.shape[1] != 1:
                raise ValueError(f"scores {tuple(scores.shape)}: a binary AUROC takes one score a patient")
        elif scores.ndim != 2 or scores.shape[1] != self.classes:
            raise ValueError(f"scores {tuple(scores.shape)}: give (B, {self.classes})")
        if not scores.shape[0] == target.shape[0] == len(patient_id):
            raise ValueError(f"{scores.shape[0]} scores, {target.shape[0]} targets, {len(patient_id)} ids do not fit")
        self.scores.append(scores)
        self.targets.append(target.long())
        self.ids.append(id_numbers(patient_id, scores.device))

    def compute(self) -> Tensor:
        """AUROC in [0, 1]."""
        first = self._first_of_each()
        scores, targets = _joined(self.scores)[first], _joined(self.targets)[first]
        present = torch.bincount(targets).nonzero()[:, 0]
        if present.numel() < 2:
            return scores.new_tensor(0.5)
        if self.classes <= 2:
            # ranks only: torchmetrics would pass logits through a sigmoid, where far ones become equal
            ranks = torch.unique(scores[:, 0], return_inverse=True)[1].double()
            return binary_auroc(ranks / (ranks.max() + 1), targets).float()
        per_class = multiclass_auroc(scores, targets, self.classes, average="none")
        return per_class[present].mean()


class PatientAccuracy(_ByScan):
    """Share of patients whose class is right, each patient counted once.

    State: ids and hits, reduced by concatenation.
    """

    higher_is_better = True
    is_differentiable = False
    hits: list[Tensor]

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.add_state("hits", default=[], dist_reduce_fx="cat")

    def update(self, predicted: Tensor, target: Tensor, patient_id: Sequence[str]) -> None:
        """Add patients with predicted and true classes, both (B,), and one id an item."""
        if not predicted.shape[0] == target.shape[0] == len(patient_id):
            raise ValueError(
                f"{predicted.shape[0]} classes, {target.shape[0]} targets, {len(patient_id)} ids do not fit"
            )
        self.hits.append((predicted == target).float())
        self.ids.append(id_numbers(patient_id, target.device))

    def compute(self) -> Tensor:
        """Accuracy in [0, 1]."""
        return _joined(self.hits)[self._first_of_each()].mean()


def id_numbers(ids: Sequence[str], device: torch.device | str = "cpu") -> Tensor:
    """Turn ids into int64 numbers, the same in every process; shape (len(ids),)."""
    digests = [hashlib.blake2b(name.encode(), digest_size=8).digest() for name in ids]
    return torch.tensor([int.from_bytes(d, "big", signed=True) for d in digests], dtype=torch.int64, device=device)


def _joined(state: list[Tensor] | Tensor) -> Tensor:
    """A list state is a list before, and one tensor after, it is gathered."""
    if isinstance(state, Tensor):
        return state
    if not state:
        raise ValueError("the metric has seen no scan yet; update it before computing")
    return torch.cat(state)
