"""Batched transforms that take resolution away, each a product with a small matrix along an axis."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from datamodules.augmentation_base import (
    IntensityTransform,
    Params,
    Range,
    along_axis,
    as_axis_ranges,
    as_range,
    draw_axes,
    uniform,
)


class RandomBlur(IntensityTransform):
    """Blur with a Gaussian of a width of its own along each axis.

    Args:
        std: Range of the standard deviation in mm; one number is the upper end, two are a range for
            each axis, three the upper end on each axis, six a range an axis.
        p: Probability that an item is transformed.
    """

    needs_spacing = True

    def __init__(self, std: Range = (0.0, 2.0), p: float = 1.0) -> None:
        super().__init__(p)
        numbers = [float(std)] * 3 if isinstance(std, (int, float)) else [float(n) for n in std]
        if len(numbers) == 3:
            numbers = [bound for top in numbers for bound in (0.0, top)]
        self.std = as_axis_ranges(numbers, "RandomBlur: std", minimum=0.0)

    def make_params(self, items: int, channels: int, generator: torch.Generator) -> Params:
        """Draw ``std`` in mm, (items, 3)."""
        return {"std": draw_axes(generator, self.std, items)}

    def apply(self, image: Tensor, params: Params, spacing: Tensor | None) -> Tensor:
        """Blur along each axis; the image is mirrored at its border."""
        if spacing is None:
            raise ValueError("RandomBlur: std is in mm, so the spacing must be given")
        width = params["std"] / spacing
        for axis in range(3):
            image = along_axis(image, _gaussian(image.shape[2 + axis], width[:, axis]), axis)
        return image


class RandomAnisotropy(IntensityTransform):
    """Simulate thick slices along one axis: take fewer voxels, and interpolate them back.

    Args:
        axes: Axes of which one is drawn, 0, 1 or 2.
        downsampling: Range of the factor, at least 1; one number is the factor itself.
        p: Probability that an item is transformed.

    Source: Billot et al. 2020; TorchIO's RandomAnisotropy.
    """

    def __init__(self, axes: int | Sequence[int] = (0, 1, 2), downsampling: Range = (1.5, 5.0), p: float = 1.0) -> None:
        super().__init__(p)
        self.axes = _axes(axes, "RandomAnisotropy")
        self.downsampling = as_range(downsampling, "RandomAnisotropy: downsampling", minimum=1.0, symmetric=False)

    def make_params(self, items: int, channels: int, generator: torch.Generator) -> Params:
        """Draw ``downsampling``, (items, 3), which is 1 except along one axis."""
        chosen = torch.tensor(self.axes)[torch.randint(0, len(self.axes), (items,), generator=generator)]
        factor = torch.ones(items, 3)
        factor[torch.arange(items), chosen] = uniform(generator, *self.downsampling, items)
        return {"downsampling": factor}

    def apply(self, image: Tensor, params: Params, spacing: Tensor | None) -> Tensor:
        """Take resolution away along the axes whose factor is above 1."""
        return _coarsen(image, params["downsampling"])


class RandomLowResolution(IntensityTransform):
    """Simulate a coarser grid along several axes at once, as nnU-Net does.

    Args:
        axes: Axes made coarser together.
        downsampling: Range of the factor, one for all axes.
        p: Probability that an item is transformed.
    """

    def __init__(self, axes: int | Sequence[int] = (0, 1, 2), downsampling: Range = (1.0, 2.0), p: float = 1.0) -> None:
        super().__init__(p)
        self.axes = _axes(axes, "RandomLowResolution")
        self.downsampling = as_range(downsampling, "RandomLowResolution: downsampling", minimum=1.0, symmetric=False)

    def make_params(self, items: int, channels: int, generator: torch.Generator) -> Params:
        """Draw ``downsampling``, (items, 3), which is 1 along the axes left alone."""
        factor = torch.ones(items, 3)
        factor[:, list(self.axes)] = uniform(generator, *self.downsampling, items, 1)
        return {"downsampling": factor}

    def apply(self, image: Tensor, params: Params, spacing: Tensor | None) -> Tensor:
        """Take resolution away along the axes whose factor is above 1."""
        return _coarsen(image, params["downsampling"])


def _coarsen(image: Tensor, factor: Tensor) -> Tensor:
    for axis in range(3):
        image = along_axis(image, _down_and_up(image.shape[2 + axis], factor[:, axis]), axis)
    return image


def _gaussian(edge: int, width: Tensor) -> Tensor:
    """Matrices of Gaussian blur with mirrored borders, width (N,) in voxels; returns (N, edge, edge)."""
    places = torch.arange(edge, device=width.device)
    # cut at four standard deviations, as SciPy does
    reach = (4 * width + 0.5).floor()[:, None, None]
    sigma = width.clamp(min=1e-4)[:, None, None]
    matrix = torch.zeros(width.shape[0], edge, edge, device=width.device)
    # a line mirrored at both ends repeats every two edges; wider kernels would reach further mirrors
    for mirror in range(-2, 3):
        for source in (places + 2 * mirror * edge, 2 * mirror * edge - 1 - places):
            distance = (places[:, None] - source[None, :]).abs()[None].float()
            matrix += torch.where(distance <= reach, torch.exp(-0.5 * (distance / sigma) ** 2), 0.0)
    return matrix / matrix.sum(2, keepdim=True)


def _down_and_up(edge: int, factor: Tensor) -> Tensor:
    """Matrices that pick the nearest voxels on a coarser grid and interpolate back; (N, edge, edge)."""
    matrices = []
    for value in factor.tolist():
        count = max(1, int(edge / value))
        # centres of the coarse voxels, about the same centre and within the same extent, as TorchIO's
        centres = (torch.arange(count) - (count - 1) / 2) * value + (edge - 1) / 2
        picked = (centres + 0.5).floor().clamp(0, edge - 1).long()
        place = ((torch.arange(edge) - (edge - 1) / 2) / value + (count - 1) / 2).clamp(0, count - 1)
        left = place.floor().clamp(max=max(count - 2, 0)).long()
        share = (place - left).clamp(0, 1)
        matrix = torch.zeros(edge, edge)
        rows = torch.arange(edge)
        matrix.index_put_((rows, picked[left]), 1 - share, accumulate=True)
        matrix.index_put_((rows, picked[(left + 1).clamp(max=count - 1)]), share, accumulate=True)
        matrices.append(matrix)
    return torch.stack(matrices).to(factor.device)


def _axes(axes: int | Sequence[int], name: str) -> tuple[int, ...]:
    read = (axes,) if isinstance(axes, int) else tuple(axes)
    if not read or any(axis not in (0, 1, 2) for axis in read):
        raise ValueError(f"{name}: axes={axes!r} must be among 0, 1, 2")
    return read
