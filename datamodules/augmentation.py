"""Augmentation of whole batches on the device they are on, in TorchIO's words.

Scaling, rotation, translation and elastic deformation of image and mask are fused into one
resampling. Parameters are drawn for each item from its own seed, so they are the same in any batch, for
any number of workers and processes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from datamodules.augmentation_base import BatchedTransform, IntensityTransform, Params
from datamodules.augmentation_intensity import (
    RandomBiasField,
    RandomBrightness,
    RandomContrast,
    RandomGamma,
    RandomIntensityRemap,
    RandomNoise,
)
from datamodules.augmentation_organ import RandomOrganSignal
from datamodules.augmentation_resolution import RandomAnisotropy, RandomBlur, RandomLowResolution
from datamodules.augmentation_spatial import (
    RandomAffine,
    RandomElasticDeformation,
    RandomFlip,
    pull_affine,
    resample,
    sampling_grid,
)

__all__ = [
    "BatchedAugmentation",
    "BatchedTransform",
    "Drawn",
    "RandomAffine",
    "RandomAnisotropy",
    "RandomBiasField",
    "RandomBlur",
    "RandomBrightness",
    "RandomContrast",
    "RandomElasticDeformation",
    "RandomFlip",
    "RandomGamma",
    "RandomIntensityRemap",
    "RandomLowResolution",
    "RandomNoise",
    "RandomOrganSignal",
    "classification_preset",
    "segmentation_preset",
]

_SPATIAL = (RandomFlip, RandomAffine, RandomElasticDeformation)


class Drawn(NamedTuple):
    """What was drawn for one transform: which items it takes, and the parameters of those."""

    active: Tensor
    params: Params


class BatchedAugmentation:
    """A chain of batched transforms: the spatial ones first, fused, then the intensities in order.

    Args:
        transforms: The chain. Spatial transforms stand first, in the order flip, affine, elastic,
            each at most once.
        seed: Of the chain; it is mixed with each item's own.
        spacing: Voxel spacing in mm along the axes, where it is the same for all volumes.
        label_interpolation: For the mask: ``nearest``, or ``linear`` for masks in [0, 1], which goes
            through the same resampling as the image; whole-number masks are cut at 1/2.
        default_pad_value: Outside the image: ``minimum`` of each item's channel, or a number. The
            mask is 0 there.

    Raises:
        ValueError: Spatial transforms out of place or twice, or an unknown word.
    """

    def __init__(
        self,
        transforms: Sequence[BatchedTransform],
        seed: int = 0,
        spacing: Sequence[float] | None = None,
        label_interpolation: Literal["nearest", "linear"] = "nearest",
        default_pad_value: Literal["minimum"] | float = "minimum",
    ) -> None:
        self.transforms = tuple(transforms)
        places = [_SPATIAL.index(type(t)) if isinstance(t, _SPATIAL) else len(_SPATIAL) for t in self.transforms]
        if places != sorted(places) or any(places.count(place) > 1 for place in range(len(_SPATIAL))):
            names = ", ".join(type(t).__name__ for t in self.transforms)
            raise ValueError(
                "augmentation: RandomFlip, RandomAffine, RandomElasticDeformation stand first, in this order, "
                f"each at most once; found {names}"
            )
        for transform in self.transforms:
            if not isinstance(transform, (*_SPATIAL, IntensityTransform, RandomOrganSignal)):
                raise ValueError(f"augmentation: {type(transform).__name__} is not a batched transform")
        if label_interpolation not in ("nearest", "linear"):
            raise ValueError(f"label_interpolation={label_interpolation!r} is not one of nearest, linear")
        if isinstance(default_pad_value, str) and default_pad_value != "minimum":
            raise ValueError(f"default_pad_value={default_pad_value!r}: give minimum or a number")
        self.seed = int(seed)
        self.spacing = None if spacing is None else tuple(float(n) for n in spacing)
        self.label_interpolation = label_interpolation
        self.default_pad_value = default_pad_value

    def __call__(
        self,
        image: Tensor,
        mask: Tensor | None = None,
        seeds: Sequence[int] | None = None,
        spacing: Sequence[float] | Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Augment a batch.

        Args:
            image: float32, shape (B, C, I, J, K).
            mask: Shape (B, 1, I, J, K), or (B, S, I, J, K), any number type; None where there is none.
            seeds: One an item, not negative; the same seed gives the same augmentation in any batch. Their
                places in the batch where not given.
            spacing: In mm, shape (3,) or (B, 3); None takes the chain's own.

        Returns:
            New image and mask, of the same shapes and types.

        Raises:
            ValueError: A transform works in mm and no spacing is known, or shapes do not fit.
        """
        chosen = range(image.shape[0]) if seeds is None else seeds
        if len(chosen) != image.shape[0]:
            raise ValueError(f"{len(chosen)} seeds for {image.shape[0]} items: give one an item")
        drawn = self.make_params(chosen, image.shape[1])
        return self.apply(image, mask, drawn, spacing)

    def make_params(self, seeds: Sequence[int], channels: int) -> list[Drawn]:
        """Draw everything random for a batch, on the CPU, from one seed an item; one entry a transform."""
        active: list[list[int]] = [[] for _ in self.transforms]
        params: list[list[Params]] = [[] for _ in self.transforms]
        for item, seed in enumerate(seeds):
            words = np.random.SeedSequence([self.seed, int(seed)]).generate_state(2, np.uint32)
            generator = torch.Generator().manual_seed(int(words[0]) << 31 | int(words[1]) >> 1)
            chances = torch.rand(len(self.transforms), generator=generator).tolist()
            for index, transform in enumerate(self.transforms):
                if chances[index] < transform.p:
                    active[index].append(item)
                    params[index].append(transform.make_params(1, channels, generator))
        return [
            Drawn(
                torch.tensor(items, dtype=torch.int64), {name: torch.cat([p[name] for p in each]) for name in each[0]}
            )
            if items
            else Drawn(torch.tensor([], dtype=torch.int64), {})
            for items, each in zip(active, params, strict=True)
        ]

    def apply(
        self,
        image: Tensor,
        mask: Tensor | None,
        drawn: Sequence[Drawn],
        spacing: Sequence[float] | Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Apply what was drawn; nothing here is random. Arguments and returns as for a call."""
        if mask is not None and (mask.shape[0], *mask.shape[2:]) != (image.shape[0], *image.shape[2:]):
            raise ValueError(f"mask {tuple(mask.shape)} does not fit the image {tuple(image.shape)}")
        steps = self._spacing(spacing, image)
        image = image.clone()
        mask = None if mask is None else mask.clone()
        pairs = list(zip(self.transforms, drawn, strict=True))
        self._move(image, mask, [pair for pair in pairs if isinstance(pair[0], _SPATIAL)], steps)
        for transform, (active, params) in pairs:
            if isinstance(transform, _SPATIAL) or active.numel() == 0:
                continue
            index = active.to(image.device)
            chosen = {name: value.to(image.device) for name, value in params.items()}
            if isinstance(transform, RandomOrganSignal):
                if mask is None:
                    raise ValueError("RandomOrganSignal needs the organ's mask, and this batch has none")
                image[index] = transform.apply(image[index], mask[index], chosen)
                continue
            assert isinstance(transform, IntensityTransform)  # the constructor lets nothing else in
            if transform.needs_spacing and steps is None:
                raise ValueError(_no_spacing(transform))
            if active.numel() == image.shape[0]:
                image = transform.apply(image, chosen, steps)
            else:
                image[index] = transform.apply(image[index], chosen, None if steps is None else steps[index])
        return image, mask

    def _move(
        self,
        image: Tensor,
        mask: Tensor | None,
        pairs: Sequence[tuple[BatchedTransform, Drawn]],
        spacing: Tensor | None,
    ) -> None:
        """Flip and resample in place, only the items that a spatial transform takes."""
        items, device = image.shape[0], image.device
        affine: Tensor | None = None
        control: Tensor | None = None
        moved = torch.zeros(items, dtype=torch.bool)
        for transform, (active, params) in pairs:
            if active.numel() == 0:
                continue
            if isinstance(transform, RandomFlip):
                _flip(image, mask, active, params["flip"])
                continue
            if spacing is None:
                raise ValueError(_no_spacing(transform))
            moved[active] = True
            if isinstance(transform, RandomAffine):
                affine = torch.eye(3, 4).repeat(items, 1, 1)
                affine[active] = pull_affine(*(params[k] for k in ("scales", "degrees", "translation")))
            else:
                points = params["control_points"]
                control = points.new_zeros(items, *points.shape[1:])
                control[active] = points
        if spacing is None or not moved.any():
            return
        chosen = moved.nonzero()[:, 0]
        # where all are moved, nothing has to be picked
        index = slice(None) if chosen.numel() == items else chosen.to(device)
        grid = sampling_grid(
            image.shape[2:],
            spacing[index],
            None if affine is None else affine[chosen].to(device),
            None if control is None else control[chosen].to(device),
        )
        source = image[index]
        pad = (
            source.amin((2, 3, 4))
            if self.default_pad_value == "minimum"
            else torch.full(source.shape[:2], float(self.default_pad_value), device=device)
        )
        if mask is None or self.label_interpolation == "nearest":
            image[index], labels = resample(source, grid, pad, None if mask is None else mask[index])
            if mask is not None and labels is not None:
                mask[index] = labels
        else:
            both = torch.cat([source, mask[index].to(source.dtype)], 1)
            pad = torch.cat([pad, pad.new_zeros(pad.shape[0], mask.shape[1])], 1)
            both, _ = resample(both, grid, pad)
            image[index] = both[:, : source.shape[1]]
            soft = both[:, source.shape[1] :]
            mask[index] = (soft if mask.is_floating_point() else soft >= 0.5).to(mask.dtype)

    def _spacing(self, given: Sequence[float] | Tensor | None, image: Tensor) -> Tensor | None:
        value = self.spacing if given is None else given
        if value is None:
            return None
        spacing = torch.as_tensor(value, dtype=torch.float32, device=image.device)
        if spacing.shape not in ((3,), (image.shape[0], 3)):
            raise ValueError(f"spacing of shape {tuple(spacing.shape)}: give (3,) or ({image.shape[0]}, 3), in mm")
        return spacing.expand(image.shape[0], 3)


def segmentation_preset() -> list[BatchedTransform]:
    """Transforms for training a segmenter: nnU-Net's set, plus a coil's bias and random intensity curves."""
    return [
        RandomAffine(scales=(0.8, 1.25), degrees=(10.0, 10.0, 20.0), translation=10.0, isotropic=True, p=0.5),
        RandomElasticDeformation(num_control_points=7, max_displacement=7.5, p=0.2),
        RandomIntensityRemap(num_points=6, max_shift=0.3, p=0.3),
        RandomBiasField(coefficients=0.3, order=3, p=0.3),
        RandomNoise(std=(0.0, 0.2), p=0.15),
        RandomBlur(std=(0.0, 1.5), p=0.15),
        RandomBrightness(multiplier=(0.75, 1.25), p=0.15),
        RandomContrast(factor=(0.75, 1.25), p=0.15),
        RandomLowResolution(downsampling=(1.0, 2.0), p=0.2),
        RandomGamma(log_gamma=(-0.35, 0.4), invert_probability=0.25, p=0.3),
    ]


def classification_preset() -> list[BatchedTransform]:
    """Transforms for training a classifier: gentle ones, since texture and contour carry the stage."""
    return [
        RandomAffine(scales=(0.9, 1.1), degrees=(5.0, 5.0, 10.0), translation=10.0, isotropic=True, p=0.7),
        RandomBiasField(coefficients=0.2, order=3, p=0.3),
        RandomNoise(std=(0.0, 0.1), p=0.2),
        RandomBrightness(multiplier=(0.85, 1.15), p=0.3),
        RandomContrast(factor=(0.85, 1.15), p=0.3),
        RandomGamma(log_gamma=(-0.2, 0.2), p=0.3),
    ]


def _flip(image: Tensor, mask: Tensor | None, active: Tensor, flip: Tensor) -> None:
    for item, mirrored in zip(active.tolist(), flip.tolist(), strict=True):
        axes = [1 + axis for axis in range(3) if mirrored[axis]]
        if axes:
            image[item] = image[item].flip(axes)
            if mask is not None:
                mask[item] = mask[item].flip(axes)


def _no_spacing(transform: BatchedTransform) -> str:
    return f"augmentation: {type(transform).__name__} works in mm; give the voxel spacing"
