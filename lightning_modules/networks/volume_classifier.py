"""Classify a patient from a volume: slices through a backbone, the mask in as asked, slices pooled."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from lightning_modules.networks.mask_injection import (
    AttentionPool,
    InputInjection,
    check_ways,
    fill_empty_masks,
    resize_mask,
)
from lightning_modules.networks.patient_network import ClassifierOutput, PatientNetwork
from lightning_modules.networks.slice_aggregation import Aggregation, slice_aggregation
from lightning_modules.networks.slice_encoder import SliceEncoder


class SliceClassifier(PatientNetwork):
    """Classify volumes slice by slice, all slices of all patients encoded together.

    Slices without liver are not even encoded where the arm may know the mask. A volume whose mask is
    empty is treated as if all of it were liver, and flagged in ``empty_mask``.

    Args:
        backbone: timm's name of the encoder.
        pretrained: Load timm's weights; fails where they cannot be had.
        in_channels: Channels of the volume.
        classes: Logits, as many as the module's loss asks for: 1 for two classes, else one a class.
        mask_injection: Ways of the mask in, any of ``multiply, crop, channel, gate, attention``;
            or a probe, ``erase``, ``erase_box`` or ``mask_only``; empty or ``none`` for a direct arm,
            which must not be given a mask.
        aggregation: From slices to a patient: ``mean``, ``vote``, ``attention`` or ``transformer``.
        pooling: From locations to a slice: ``mean`` or ``attention``. The way ``attention`` of the
            mask implies attention, restricted to the liver.
        neighbours: Slices on each side given as further channels (2.5D); repeated at the ends.
        weights_file: Local weights instead of timm's.
        dropout: Before the classifier.
        crop_margin: Voxels left around the liver by ``crop``.
        initial_pass: Share of the outside that a gate lets pass at the start.
        freeze: Train nothing of the backbone, only what comes after it (and gates); see ``SliceEncoder``.

    Raises:
        ValueError: An unknown name, or weights that cannot be had.
    """

    def __init__(
        self,
        backbone: str = "resnet18",
        pretrained: bool = False,
        in_channels: int = 1,
        classes: int = 1,
        mask_injection: Sequence[str] = (),
        aggregation: Aggregation = "attention",
        pooling: Literal["mean", "attention"] = "mean",
        neighbours: int = 0,
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
        if neighbours < 0:
            raise ValueError(f"neighbours={neighbours}: must not be negative")
        self.neighbours = neighbours
        self.injection = InputInjection(self.ways, crop_margin)
        channels = (in_channels + self.injection.extra_channels) * (2 * neighbours + 1)
        self.encoder = SliceEncoder(
            backbone, channels, pretrained, weights_file, "gate" in self.ways, initial_pass, freeze
        )
        features = self.encoder.channels[-1]
        self.pool = AttentionPool(features) if pooling == "attention" or "attention" in self.ways else None
        self.aggregate = slice_aggregation(aggregation, features, classes, dropout)

    def forward(self, image: Tensor, mask: Tensor | None = None) -> ClassifierOutput:
        """Classify.

        Args:
            image: Normalised volumes, shape (B, C, I, J, K).
            mask: Share of liver in each voxel, in [0, 1], shape (B, 1, I, J, K); None for a direct arm.

        Returns:
            Logits and what they rest on.

        Raises:
            ValueError: A mask is missing, unexpected, or of another shape.
        """
        batch, _, edge_i, edge_j, slices = image.shape
        if mask is None and self.uses_mask:
            raise ValueError(f"mask_injection={self.ways} needs a mask, but the batch holds none")
        if mask is not None and not self.uses_mask:
            raise ValueError("a direct arm (mask_injection none) was given a mask; take it out of the batch")
        if mask is not None:
            if mask.shape != (batch, 1, edge_i, edge_j, slices):
                raise ValueError(f"mask {tuple(mask.shape)} does not fit the image {tuple(image.shape)}")
            mask, empty = fill_empty_masks(mask.float())
            image, mask = self.injection(image, mask)
            used = mask.amax((1, 2, 3)) > 0
            # interpolation can lose a liver of a single voxel: then nothing is left out
            used = used | ~used.any(1, keepdim=True)
        else:
            empty = torch.zeros(batch, dtype=torch.bool, device=image.device)
            used = torch.ones(batch, slices, dtype=torch.bool, device=image.device)
        pixels = with_neighbours(image, self.neighbours).permute(0, 4, 1, 2, 3)[used]
        planes = mask.permute(0, 4, 1, 2, 3)[used] if mask is not None else None
        counts = used.sum(1).tolist() if self.encoder.memory is not None else None
        maps = self.encoder(pixels, planes if "gate" in self.ways else None, counts)[-1]
        locations: Tensor | None = None
        if self.pool is None:
            vectors = maps.mean((2, 3))
        else:
            inside = resize_mask(planes, maps.shape[2:]) if planes is not None and "attention" in self.ways else None
            vectors, weights = self.pool(maps, inside)
            locations = scatter_slices(weights, used)
        logits, attention = self.aggregate(scatter_slices(vectors, used), used)
        return ClassifierOutput(logits, attention, locations, empty)


def masked_attention_resnet(backbone: str = "resnet18", **options: Any) -> SliceClassifier:
    """Build our reading of the masked attention ResNet of the two-stage fibrosis paper.

    The paper's text is not public, so this is what we chose, not what its authors did: the image is
    multiplied by the mask, every stage of the ResNet is gated by the down-sampled mask with a learned
    pass rate, locations are pooled by attention restricted to the liver, and slices by gated attention.

    Args:
        backbone: A ResNet, or any other backbone that can be gated.
        **options: Further arguments of :class:`SliceClassifier`.

    Returns:
        The network.
    """
    options.setdefault("mask_injection", ("multiply", "gate", "attention"))
    return SliceClassifier(backbone, **options)


def with_neighbours(image: Tensor, neighbours: int) -> Tensor:
    """Give each slice its neighbours as channels: (B, C, I, J, K) to (B, C * (2n + 1), I, J, K)."""
    if neighbours == 0:
        return image
    slices = image.shape[-1]
    places = torch.arange(slices, device=image.device)
    shifted = [image[..., (places + step).clamp(0, slices - 1)] for step in range(-neighbours, neighbours + 1)]
    return torch.cat(shifted, 1)


def scatter_slices(values: Tensor, used: Tensor) -> Tensor:
    """Put the used slices' values (N, …) back to (B, K, …), zero elsewhere."""
    full = values.new_zeros((*used.shape, *values.shape[1:]))
    return full.masked_scatter(used.view(*used.shape, *[1] * (values.ndim - 1)), values)
