"""Classify a patient from the whole volume at once, by a 3D encoder; the mask in as asked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from lightning_modules.networks.mask_injection import (
    AttentionPool,
    InputInjection,
    check_ways,
    fill_empty_masks,
    resize_mask,
)
from lightning_modules.networks.patient_network import ClassifierOutput, PatientNetwork
from lightning_modules.networks.volume_encoder import VolumeEncoder


class WholeVolumeClassifier(PatientNetwork):
    """Encode the volume in 3D, pool its locations, classify.

    The ways of the mask in are those of the slice-wise classifier, over three axes: ``attention`` weighs locations of
    the last stage's maps in 3D. ``crop`` cuts in-plane and keeps all slices, as it does there. A volume whose mask is
    empty is treated as if all of it were liver, and flagged in ``empty_mask``.

    Args:
        encoder: A 3D network, see ``VolumeEncoder``; its own number of input channels must be the image's, and one
            more with ``channel``.
        in_channels: Channels of the image.
        classes: Logits, as many as the module's loss asks for: 1 for two classes, else one a class.
        mask_injection: See ``SliceClassifier``.
        pooling: From locations to the patient: ``mean`` or ``attention``. The way ``attention`` of the mask implies
            attention, restricted to the liver.
        weights_from: Run directory or checkpoint of a segmenter of the same network and fold: its encoder's weights
            are where training begins. The command line checks that it saw none of the fold's other patients.
        weights_file: A local file with weights in the encoder's own naming.
        dropout: Before the classifier.
        crop_margin: Voxels left around the liver by ``crop``.
        initial_pass: Share of the outside that a gate lets pass at the start.
        freeze: Train nothing of the encoder, only gates and what comes after it.

    Raises:
        ValueError: An unknown name, an unknown kind of encoder, or weights that do not fit.
    """

    def __init__(
        self,
        encoder: nn.Module,
        in_channels: int = 1,
        classes: int = 1,
        mask_injection: Sequence[str] = (),
        pooling: Literal["mean", "attention"] = "mean",
        weights_from: str | Path | None = None,
        weights_file: str | Path | None = None,
        dropout: float = 0.0,
        crop_margin: int = 8,
        initial_pass: float = 0.5,
        freeze: bool = False,
    ) -> None:
        super().__init__()
        self.ways = check_ways(mask_injection)
        self.outputs = classes
        if pooling not in ("mean", "attention"):
            raise ValueError(f"pooling {pooling!r} is not one of mean, attention")
        self.injection = InputInjection(self.ways, crop_margin)
        channels = in_channels + self.injection.extra_channels
        gate = "gate" in self.ways
        self.encoder = VolumeEncoder(encoder, channels, weights_from, weights_file, gate, initial_pass, freeze)
        features = self.encoder.channels[-1]
        attends = pooling == "attention" or "attention" in self.ways
        self.pool = AttentionPool(features, dimensions=3) if attends else None
        self.head = nn.Sequential(nn.Dropout(dropout), nn.Linear(features, classes))

    def forward(self, image: Tensor, mask: Tensor | None = None) -> ClassifierOutput:
        """Classify.

        Args:
            image: Normalised volumes, shape (B, C, I, J, K).
            mask: Share of liver in each voxel, in [0, 1], shape (B, 1, I, J, K); None for a direct arm.

        Returns:
            Logits and what they rest on; the attention over the maps' locations is given for each of the K slices.

        Raises:
            ValueError: A mask is missing, unexpected, or of another shape.
        """
        if mask is None and self.uses_mask:
            raise ValueError(f"mask_injection={self.ways} needs a mask, but the batch holds none")
        if mask is not None and not self.uses_mask:
            raise ValueError("a direct arm (mask_injection none) was given a mask; take it out of the batch")
        slices = image.shape[4]
        empty = torch.zeros(len(image), dtype=torch.bool, device=image.device)
        if mask is not None:
            if mask.shape != (len(image), 1, *image.shape[2:]):
                raise ValueError(f"mask {tuple(mask.shape)} does not fit the image {tuple(image.shape)}")
            mask, empty = fill_empty_masks(mask.float())
            image, mask = self.injection(image, mask)
        maps = self.encoder(image, mask if "gate" in self.ways else None)[-1]
        if self.pool is None:
            even = torch.full((len(image), slices), 1.0 / slices, device=image.device)
            return ClassifierOutput(self.head(maps.mean((2, 3, 4))), even, None, empty)
        inside = resize_mask(mask, maps.shape[2:]) if mask is not None and "attention" in self.ways else None
        vectors, weights = self.pool(maps, inside)
        return ClassifierOutput(self.head(vectors), *by_slice(weights, slices), empty)


def by_slice(weights: Tensor, slices: int) -> tuple[Tensor, Tensor]:
    """Attention over the locations of a map as that of the volume's slices.

    Args:
        weights: Shape (B, H, W, D), summing to 1.
        slices: The volume's slices K.

    Returns:
        Weight of each slice, shape (B, K), summing to 1, and of each location within its slice, shape (B, K, H, W),
        summing to 1, or zero where the slice has no weight.
    """
    depth = weights.shape[3]
    place = ((torch.arange(slices, device=weights.device) + 0.5) * depth / slices).long().clamp(max=depth - 1)
    # a map's slice is shared by those of the volume that lie in it; where it has none, the others make up for it
    count = torch.bincount(place, minlength=depth).clamp(min=1)
    shares = (weights / count).permute(0, 3, 1, 2)[:, place]
    by_slices = shares.sum((2, 3))
    by_slices = by_slices / by_slices.sum(1, keepdim=True)
    within = shares.sum((2, 3), keepdim=True)
    return by_slices, torch.where(within > 0, shares / within.clamp(min=1e-12), torch.zeros_like(shares))
