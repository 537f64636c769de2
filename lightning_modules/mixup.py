"""Mixup: train on weighted means of two patients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from datamodules.batch import Batch
from lightning_modules.networks.mask_injection import fill_empty_masks


def mix(batch: Batch, alpha: float, ways: Sequence[str] = ()) -> tuple[Batch, Tensor, float]:
    """Mix each patient of a batch with another one of it.

    The share is one draw a batch from Beta(alpha, alpha). An image whose network multiplies it by the mask is
    multiplied before it is mixed, so that no voxel outside a patient's own liver comes in by the other's mask; the
    mixed mask is the larger of the two, in each voxel.

    Args:
        batch: A training batch.
        alpha: Larger mixes more evenly; positive.
        ways: The network's ways of the mask in.

    Returns:
        The mixed batch with the first patients' targets, the others' targets (B,), and the first's share in [0, 1]:
        the loss is share * loss of the first + (1 - share) * loss of the others.

    Source: Zhang et al. 2018, mixup: Beyond empirical risk minimization. What becomes of masks is our choice.
    """
    share = float(torch.distributions.Beta(alpha, alpha).sample())
    image = batch["image"]
    order = torch.randperm(len(image)).to(image.device)
    made = dict(batch)
    if "mask" in batch:
        mask, _ = fill_empty_masks(batch["mask"])
        if "multiply" in ways:
            image = image * mask.to(image.dtype)
        made["mask"] = torch.maximum(mask, mask[order])
    made["image"] = share * image + (1 - share) * image[order]
    return cast("Batch", made), batch["target"][order], share
