"""The batch: all that learning modules and data modules know of each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NotRequired, TypedDict

from torch import Tensor


class Batch(TypedDict):
    """One batch of preprocessed scans, in TorchIO's axis order and RAS+ orientation.

    ``I`` runs from left to right, ``J`` from posterior to anterior, ``K`` from inferior to superior,
    so a slice is ``image[b, c, :, :, k]``.

    Keys:
        image: float32, shape (B, C, I, J, K), normalised. For staging, C counts the sequences in the
            order of the data module's ``sequences``, and a missing one is filled with zeros.
        mask: float32 in [0, 1], shape (B, 1, I, J, K), or (B, S, I, J, K) for S sequences. Only
            there when the arm may see it: a direct arm's batch has no such key, so it cannot cheat.
        present: bool, shape (B, S): which sequences the patient has. Absent for one-sequence data.
        covariates: float32, shape (B, F): clinical covariates as measured, in the order of the data module's
            ``covariates``; NaN where unknown. Only there when the arm asks for some.
        target: int64, shape (B,) for classification. Absent for segmentation and prediction.
        seed: Seed of each item's random draws, one an item, in training only. It is gone when the batch
            reaches a learning module.
        patient_id: One person's id for each item.
        scan_id: The scan's id for each item; for several sequences, the ids joined by ``+``.
    """

    image: Tensor
    mask: NotRequired[Tensor]
    present: NotRequired[Tensor]
    covariates: NotRequired[Tensor]
    target: NotRequired[Tensor]
    seed: NotRequired[Sequence[int]]
    patient_id: list[str]
    scan_id: list[str]
