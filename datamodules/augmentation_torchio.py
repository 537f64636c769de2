"""The batched augmentation's words carried out by TorchIO, one transform after another: slow, and the reference."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from datamodules.augmentation import BatchedAugmentation, Drawn
from datamodules.augmentation_base import BatchedTransform, IntensityTransform, Params
from datamodules.augmentation_intensity import RandomBiasField, RandomGamma, RandomNoise
from datamodules.augmentation_organ import RandomOrganSignal
from datamodules.augmentation_resolution import RandomAnisotropy, RandomBlur
from datamodules.augmentation_spatial import RandomAffine, RandomElasticDeformation, RandomFlip

Step = Callable[[Any], Any]


class TorchIOAugmentation(BatchedAugmentation):
    """A reference for :class:`BatchedAugmentation`: same arguments, same parameters drawn, TorchIO's arithmetic.

    To find out whether the batched transforms cost accuracy: train twice, with this class in ``class_path`` and with
    the other. It works on the processor, scan by scan, and many times slower. Affine transform and elastic
    deformation are two resamplings here, of which the second smooths a little; elastic deformation fills what comes
    from outside with each channel's minimum, whatever ``default_pad_value``. Transforms that TorchIO does not have
    (contrast, brightness, intensity curves, low resolution along several axes, the organ's signal) are ours.
    """

    def apply(
        self,
        image: Tensor,
        mask: Tensor | None,
        drawn: Sequence[Drawn],
        spacing: Sequence[float] | Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Apply what was drawn, item by item; arguments and returns as for the base."""
        steps = self._spacing(spacing, image)
        images, masks = [], []
        for item in range(image.shape[0]):
            own = None if steps is None else steps[item : item + 1]
            one = image[item : item + 1].cpu()
            one_mask = None if mask is None else mask[item : item + 1].cpu()
            for transform, (active, params) in zip(self.transforms, drawn, strict=True):
                places = (active == item).nonzero()[:, 0]
                if len(places):
                    chosen = {name: value[places] for name, value in params.items()}
                    one, one_mask = self._one(transform, chosen, one, one_mask, own)
            images.append(one.to(image.device))
            masks.append(None if one_mask is None else one_mask.to(image.device))
        moved = [part for part in masks if part is not None]
        return torch.cat(images), torch.cat(moved) if moved else None

    def _one(
        self, transform: BatchedTransform, params: Params, image: Tensor, mask: Tensor | None, spacing: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """One transform of one item, image (1, C, I, J, K)."""
        step = self._step(transform, params)
        if step is None:
            return self._ours(transform, params, image, mask, spacing)
        if spacing is None and isinstance(transform, (RandomAffine, RandomElasticDeformation, RandomBlur)):
            raise ValueError(f"augmentation: {type(transform).__name__} works in mm; give the voxel spacing")
        # a power and a coil's gain act on the signal above the minimum, as in the batched transforms
        low, width = torch.zeros(1, image.shape[1], 1, 1, 1), torch.ones(1, image.shape[1], 1, 1, 1)
        if isinstance(transform, (RandomGamma, RandomBiasField)):
            low = image.amin((2, 3, 4), keepdim=True)
        if isinstance(transform, RandomGamma):
            width = (image.amax((2, 3, 4), keepdim=True) - low).clamp(min=1e-7)
        moved, moved_mask = self._carried_out(step, (image - low) / width, mask, spacing)
        return moved * width + low, moved_mask

    def _carried_out(
        self, step: Step, image: Tensor, mask: Tensor | None, spacing: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        # TorchIO takes seconds to import
        import torchio

        tio: Any = torchio  # only partly typed
        affine = np.diag([*([1.0] * 3 if spacing is None else spacing[0].tolist()), 1.0])
        parts = {"image": tio.ScalarImage(tensor=image[0].clone(), affine=affine)}
        if mask is not None:
            parts["mask"] = tio.LabelMap(tensor=mask[0].float(), affine=affine)
        with warnings.catch_warnings():
            # that a deformation may fold is said where it is configured
            warnings.simplefilter("ignore", RuntimeWarning)
            subject = step(tio.Subject(**parts))
        moved: Tensor = subject["image"].data[None].float()
        if mask is None:
            return moved, None
        soft: Tensor = subject["mask"].data[None]
        whole = self.label_interpolation == "linear" and not mask.is_floating_point()
        return moved, (soft >= 0.5 if whole else soft).to(mask.dtype)

    def _step(self, transform: BatchedTransform, params: Params) -> Any:
        """TorchIO's transform with the parameters drawn; None where TorchIO has none."""
        import torchio

        tio: Any = torchio
        labels = {"label_interpolation": self.label_interpolation}
        if isinstance(transform, RandomFlip):
            axes = tuple(axis for axis in range(3) if params["flip"][0, axis])
            return tio.Flip(axes) if axes else _unchanged
        if isinstance(transform, RandomAffine):
            scales, degrees, shift = (tuple(params[k][0].tolist()) for k in ("scales", "degrees", "translation"))
            return tio.Affine(scales, degrees, shift, default_pad_value=self.default_pad_value, **labels)
        if isinstance(transform, RandomElasticDeformation):
            # SimpleITK counts the first two axes backwards, and displaces along left and posterior
            points = params["control_points"][0].flip([0, 1]) * torch.tensor([-1.0, -1.0, 1.0])
            return tio.ElasticDeformation(points.numpy(), tuple(transform.max_displacement.tolist()), **labels)
        if isinstance(transform, RandomBiasField):
            grid = params["coefficients"][0]
            size = transform.order + 1
            flat = [
                float(grid[x, y, z]) for x in range(size) for y in range(size - x) for z in range(size - x - y)
            ]  # TorchIO's own order
            return tio.BiasField(flat, transform.order)
        if isinstance(transform, RandomGamma):
            return _gamma_of(params)
        if isinstance(transform, RandomNoise):
            return tio.Noise(float(params["mean"][0]), float(params["std"][0]), int(params["seed"][0]))
        if isinstance(transform, RandomBlur):
            return tio.Blur(tuple(params["std"][0].tolist()))
        if isinstance(transform, RandomAnisotropy):
            factors = params["downsampling"][0]
            axis = int(factors.argmax())
            return tio.RandomAnisotropy(axes=axis, downsampling=(float(factors[axis]),) * 2)
        return None

    def _ours(
        self, transform: BatchedTransform, params: Params, image: Tensor, mask: Tensor | None, spacing: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        if isinstance(transform, RandomOrganSignal):
            if mask is None:
                raise ValueError("RandomOrganSignal needs the organ's mask, and this batch has none")
            return transform.apply(image, mask, params), mask
        assert isinstance(transform, IntensityTransform)  # the constructor lets nothing else in
        return transform.apply(image, params, spacing), mask


def _gamma_of(params: Params) -> Step:
    """TorchIO's power, of each channel's own exponent, of the image or of its negative."""
    import torchio

    tio: Any = torchio
    exponents, inverted = params["gamma"][0], bool(params["invert"][0])

    def step(subject: Any) -> Any:
        share = subject["image"].data
        turned = 1 - share if inverted else share
        powers = [
            tio.Gamma(float(gamma))(tio.ScalarImage(tensor=channel[None])).data
            for channel, gamma in zip(turned, exponents, strict=True)
        ]
        result = torch.cat(powers)
        subject["image"].set_data(1 - result if inverted else result)
        return subject

    return step


def _unchanged(subject: Any) -> Any:
    return subject
