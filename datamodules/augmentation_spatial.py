"""Batched spatial transforms, fused into one resampling.

A cubic B-spline reproduces straight lines, and an affine map of its control points maps the whole
spline. So scaling, rotation, translation and elastic deformation become one small grid of control
points, evaluated once at every voxel.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
import torch.nn.functional as F  # noqa: N812  # torch's own habit
from torch import Tensor

from datamodules.augmentation_base import BatchedTransform, Params, Range, as_axis_ranges, draw_axes, uniform
from datamodules.grid_sampling import sample, sample_with_labels

_DEGREE = 3  # of the B-spline, as in TorchIO


class RandomFlip(BatchedTransform):
    """Mirror along axes. A liver is not symmetric, so no preset mirrors left and right.

    Args:
        axes: Axes that may be mirrored, 0, 1 or 2.
        flip_probability: Of each axis.
        p: Probability that an item is transformed.
    """

    def __init__(self, axes: int | Sequence[int] = 0, flip_probability: float = 0.5, p: float = 1.0) -> None:
        super().__init__(p)
        self.axes = (axes,) if isinstance(axes, int) else tuple(axes)
        if any(axis not in (0, 1, 2) for axis in self.axes):
            raise ValueError(f"RandomFlip: axes={axes!r} must be among 0, 1, 2")
        if not 0 <= flip_probability <= 1:
            raise ValueError(f"RandomFlip: flip_probability={flip_probability} must lie in [0, 1]")
        self.flip_probability = float(flip_probability)

    def make_params(self, items: int, channels: int, generator: torch.Generator) -> Params:
        """Draw whether each axis is mirrored: ``flip``, bool, (items, 3)."""
        allowed = torch.tensor([axis in self.axes for axis in range(3)])
        return {"flip": (torch.rand((items, 3), generator=generator) < self.flip_probability) & allowed}


class RandomAffine(BatchedTransform):
    """Scale, rotate and translate about the volume's centre, in mm, so thick slices are not sheared.

    Args:
        scales: 0.1 for (0.9, 1.1) on each axis, or ranges as in TorchIO; 1.5 makes things larger.
        degrees: Rotation about each axis, 10 for (-10, 10).
        translation: In mm along each axis, 5 for (-5, 5).
        isotropic: One scale for all axes.
        p: Probability that an item is transformed.

    Source: TorchIO's RandomAffine: scale after rotation about Z, X, Y in turn.
    """

    def __init__(
        self,
        scales: Range = 0.1,
        degrees: Range = 10.0,
        translation: Range = 0.0,
        isotropic: bool = False,
        p: float = 1.0,
    ) -> None:
        super().__init__(p)
        self.scales = as_axis_ranges(scales, "RandomAffine: scales", around=1.0, minimum=0.01)
        self.degrees = as_axis_ranges(degrees, "RandomAffine: degrees")
        self.translation = as_axis_ranges(translation, "RandomAffine: translation")
        self.isotropic = isotropic

    def make_params(self, items: int, channels: int, generator: torch.Generator) -> Params:
        """Draw ``scales``, ``degrees`` and ``translation`` (mm), each (items, 3)."""
        scales = draw_axes(generator, self.scales, items)
        if self.isotropic:
            scales = scales[:, :1].expand(items, 3).clone()
        return {
            "scales": scales,
            "degrees": draw_axes(generator, self.degrees, items),
            "translation": draw_axes(generator, self.translation, items),
        }


class RandomElasticDeformation(BatchedTransform):
    """Deform by a cubic B-spline through a coarse grid of random displacements.

    Args:
        num_control_points: Along each axis, at least 4.
        max_displacement: Of a control point along each axis, in mm. Above half the control points'
            distance the deformation may fold.
        locked_borders: Layers of control points at the border that stay in place, 0, 1 or 2.
        p: Probability that an item is transformed.
    """

    def __init__(
        self,
        num_control_points: int | Sequence[int] = 7,
        max_displacement: float | Sequence[float] = 7.5,
        locked_borders: int = 2,
        p: float = 1.0,
    ) -> None:
        super().__init__(p)
        points = (num_control_points,) * 3 if isinstance(num_control_points, int) else tuple(num_control_points)
        reach = (max_displacement,) * 3 if isinstance(max_displacement, (int, float)) else tuple(max_displacement)
        if len(points) != 3 or min(points) < 4:
            raise ValueError(f"RandomElasticDeformation: num_control_points={num_control_points!r}: at least 4 an axis")
        if len(reach) != 3 or min(reach) < 0:
            raise ValueError(f"RandomElasticDeformation: max_displacement={max_displacement!r}: must not be negative")
        if locked_borders not in (0, 1, 2) or min(points) <= 2 * locked_borders:
            raise ValueError(
                f"RandomElasticDeformation: locked_borders={locked_borders} must be 0, 1 or 2 "
                f"and leave some of the {min(points)} control points free"
            )
        self.num_control_points = (points[0], points[1], points[2])
        self.max_displacement = torch.tensor([float(n) for n in reach])
        self.locked_borders = locked_borders

    def make_params(self, items: int, channels: int, generator: torch.Generator) -> Params:
        """Draw ``control_points``: displacements in mm along the axes, (items, n, n, n, 3)."""
        field = uniform(generator, -1, 1, items, *self.num_control_points, 3) * self.max_displacement
        for layer in range(self.locked_borders):
            for place in (layer, -1 - layer):
                field[:, place] = 0
                field[:, :, place] = 0
                field[:, :, :, place] = 0
        return {"control_points": field}


def sampling_grid(
    shape: Sequence[int], spacing: Tensor, affine: Tensor | None, control_points: Tensor | None
) -> Tensor:
    """Make the grid that resamples a batch: elastic deformation after the affine transform.

    Args:
        shape: Edges (I, J, K) in voxels.
        spacing: In mm, shape (N, 3).
        affine: Where each output point is taken from, in mm about the centre, shape (N, 3, 4).
        control_points: Displacements in mm, shape (N, n, n, n, 3), or None.

    Returns:
        Grid for ``grid_sample`` with ``align_corners=False``, shape (N, I, J, K, 3).
    """
    items = spacing.shape[0]
    counts = tuple(control_points.shape[1:4]) if control_points is not None else (4, 4, 4)
    edges = torch.tensor([float(n) for n in shape], device=spacing.device)
    half = spacing * edges / 2  # mm from the centre to the volume's border
    # control points of the identity, in units of the half extent: one beyond the border on each side
    axes = [(2 * torch.arange(n, device=spacing.device) - (n - 1)) / (n - _DEGREE) for n in counts]
    rest = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1)
    points = rest * half[:, None, None, None]
    if control_points is not None:
        points = points + control_points
    if affine is not None:
        flat = points.reshape(items, -1, 3) @ affine[:, :, :3].transpose(1, 2) + affine[:, None, :, 3]
        points = flat.view_as(points)
    points = (points / half[:, None, None, None]).flip(-1)  # grid_sample counts axes from the last
    bases = [_basis(int(edge), n, points.dtype, points.device) for edge, n in zip(shape, counts, strict=True)]
    # coordinates first and K last in memory: the sampler then reads three rows from one end to the other
    field = torch.einsum("ia,nabcd->dnibc", bases[0], points)
    field = torch.einsum("jb,dnibc->dnijc", bases[1], field)
    return F.linear(field.contiguous(), bases[2]).movedim(0, -1)


def pull_affine(scales: Tensor, degrees: Tensor, translation: Tensor) -> Tensor:
    """Where each output point is taken from under scaling, rotation and translation.

    Args:
        scales: Shape (N, 3).
        degrees: About each axis, shape (N, 3).
        translation: In mm, shape (N, 3).

    Returns:
        The inverse of x -> S (R x + t), shape (N, 3, 4), in mm about the centre.
    """
    radians = torch.deg2rad(degrees)
    turns = [_rotation(radians[:, axis], axis) for axis in range(3)]
    inverse = (turns[2] @ turns[0] @ turns[1]).transpose(1, 2)
    linear = inverse / scales[:, None, :]
    shift = -(inverse @ translation[:, :, None])
    return torch.cat([linear, shift], 2)


def resample(volume: Tensor, grid: Tensor, pad: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    """Resample a batch linearly, and its labels by nearest neighbours.

    Args:
        volume: Shape (N, C, I, J, K), float.
        grid: From :func:`sampling_grid`.
        pad: Value outside the volume, shape (N, C); labels are 0 there.
        labels: Shape (N, S, I, J, K), any number type, or None.

    Returns:
        Both, of the same shapes and types.
    """
    level = pad.view(*pad.shape, 1, 1, 1)
    if labels is None:
        return sample(volume - level, grid).add_(level), None
    moved, moved_labels = sample_with_labels(volume - level, labels, grid)
    return moved.add_(level), moved_labels


@functools.lru_cache(maxsize=64)
def _basis(edge: int, points: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Weight of each control point in each voxel centre of an axis, shape (edge, points); not to be changed."""
    spans = points - _DEGREE
    place = (torch.arange(edge, device=device, dtype=torch.float64) + 0.5) / edge * spans
    distance = (place[:, None] - (torch.arange(points, device=device, dtype=torch.float64) - 1)).abs()
    near = 2 / 3 - distance**2 + distance**3 / 2
    far = (2 - distance).clamp(min=0) ** 3 / 6
    return torch.where(distance < 1, near, far).to(dtype)


def _rotation(angle: Tensor, axis: int) -> Tensor:
    """Rotation matrices about one axis, angle (N,) in radians; returns (N, 3, 3)."""
    first, second = [(1, 2), (2, 0), (0, 1)][axis]
    matrix = torch.zeros(angle.shape[0], 3, 3, dtype=angle.dtype, device=angle.device)
    matrix[:, axis, axis] = 1
    matrix[:, first, first] = matrix[:, second, second] = angle.cos()
    matrix[:, first, second] = -angle.sin()
    matrix[:, second, first] = angle.sin()
    return matrix
