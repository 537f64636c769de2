"""nnU-Net v2's own way to its grid and back, for models that nnU-Net trained.

A file's (I, J, K) becomes nnU-Net's array (K, J, I), or that of the file turned to RAS+ where the plans' reader says
so; its axes are transposed as the plans say, voxels are cropped to what is not 0, normalised, and only then resampled.
Nothing of nnU-Net is needed: scikit-image's ``resize``, which nnU-Net calls, is SciPy's ``zoom`` on the voxels' edges.

Source: nnU-Net 2.8, ``DefaultPreprocessor`` and ``default_resampling``; Isensee et al. 2021, Nature Methods 18:203-211.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from datamodules.errors import InputError
from datamodules.geometry import geometry_of
from datamodules.images import Volume
from datamodules.preprocessing import bounding_box
from datamodules.resampling import interpolate

SCHEMES = ("ZScoreNormalization", "CTNormalization", "RescaleTo01Normalization", "NoNormalization")
ANISOTROPY = 3.0
"""Beyond this ratio of spacings, slices are resampled one by one and only then across."""
_EPSILON = 1e-8
OUTSIDE = -1e4
"""Log-odds of liver where the scan was cropped away: nnU-Net writes background there."""

Order = Literal[0, 1, 2, 3, 4, 5]
Array = npt.NDArray[np.float32]
Ints3 = tuple[int, int, int]
Floats3 = tuple[float, float, float]


@dataclasses.dataclass(frozen=True, slots=True)
class Resampling:
    """How arrays are brought from one spacing to another.

    Attributes:
        order: Of the spline in a slice, or in all axes where slices are not apart.
        order_z: Across slices, where they are apart.
        separate: Whether slices are apart; None decides by ``ANISOTROPY``.
    """

    order: Order
    order_z: Order = 0
    separate: bool | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class NNUNetGrid:
    """What the plans say about preprocessing; axes are nnU-Net's, transposed.

    Attributes:
        spacing: Voxel size in mm; two numbers keep the slices of the scan as they are.
        transpose: For each axis, the array axis it was.
        scheme: One of ``SCHEMES``.
        nonzero_only: Whether the z-score is that of the voxels that are not 0.
        intensities: Of the training foreground, for ``CTNormalization``.
        image: Resampling of images.
        logits: Resampling of logits.
        reoriented: Whether the plans' reader turns files to RAS+ first.
    """

    spacing: tuple[float, ...]
    transpose: Ints3
    scheme: str
    nonzero_only: bool
    intensities: Mapping[str, float]
    image: Resampling
    logits: Resampling
    reoriented: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class NNUNetCase:
    """A preprocessed scan and the way back.

    Attributes:
        data: Normalised intensities, float32, transposed axes.
        native_shape: Voxels of the file.
        native_affine: Its affine.
        whole: Voxels of the transposed array before the crop.
        box: Where the crop lies in it.
        spacing: Native voxel size along the transposed axes in mm.
        target: Voxel size of ``data`` in mm.
    """

    data: Array
    native_shape: Ints3
    native_affine: npt.NDArray[np.float64]
    whole: Ints3
    box: tuple[slice, slice, slice]
    spacing: Floats3
    target: Floats3


def preprocess_as_nnunet(image: Volume, grid: NNUNetGrid) -> NNUNetCase:
    """Bring a scan to the grid and intensities of a plan.

    Args:
        image: The scan, as read from its file.
        grid: The plan's.

    Returns:
        The case; its data equal nnU-Net's to rounding.

    Raises:
        InputError: All voxels are 0.
    """
    array, spacing = _array(image, grid)
    shape = _three(array.shape)
    inside = array != 0
    box = bounding_box(inside)
    if box is None:
        raise InputError(f"{image.name}: all voxels are 0; check the scan or leave it out")
    # holes are filled for the statistics; the box is the same either way
    mask = ndimage.binary_fill_holes(inside)[box] if grid.nonzero_only else None
    data = _normalised(np.array(array[box], dtype=np.float32, order="C"), mask, grid)
    # a plan of two dimensions leaves the slices where they are
    target = _three(grid.spacing if len(grid.spacing) == 3 else (spacing[0], *grid.spacing))
    wanted = _three([round(old / new * n) for old, new, n in zip(spacing, target, data.shape, strict=True)])
    out = resampled(data, wanted, spacing, target, grid.image)
    return NNUNetCase(out, _three(image.data.shape), image.affine, shape, box, spacing, target)


def to_native_as_nnunet(array: Array, case: NNUNetCase, grid: NNUNetGrid, fill: float = OUTSIDE) -> Array:
    """Bring an array on the plan's grid back to the scan's own voxels.

    Args:
        array: Shape of ``case.data``: a logit, or a difference of logits.
        case: The way back.
        grid: The plan's.
        fill: Value where the scan was cropped away.

    Returns:
        float32, shape ``case.native_shape``, in the file's axis order.
    """
    cropped = _three([part.stop - part.start for part in case.box])
    inner = resampled(array, cropped, case.target, case.spacing, grid.logits)
    whole = np.full(case.whole, fill, dtype=np.float32)
    whole[case.box] = inner
    back = np.argsort(grid.transpose)
    turned = whole.transpose(*(int(axis) for axis in back)).transpose(2, 1, 0)
    if grid.reoriented:
        turned = geometry_of(case.native_shape, case.native_affine).from_canonical(turned)
    return np.ascontiguousarray(turned, dtype=np.float32)


def resampled(array: Array, shape: Ints3, spacing: Sequence[float], target: Sequence[float], how: Resampling) -> Array:
    """Resample a volume to a shape, as nnU-Net does.

    Where one axis' spacing is over three times the smallest (of the old grid, else of the new one), slices are
    resampled in their plane with a spline of ``how.order`` and across with ``how.order_z``; else all axes at once.
    Values are cut at the volume's (or slice's) own range.

    Args:
        array: Shape (A, B, C).
        shape: Wanted voxels.
        spacing: Voxel size of ``array`` in mm.
        target: Voxel size wanted, in mm.
        how: Orders.

    Returns:
        float32 of the wanted shape.
    """
    if array.shape == shape:
        return array
    axis = lone_axis(spacing, target, how.separate)
    if how.order == 1 and (axis is None or how.order_z == 0):
        # the same numbers as a spline of order 1, in a fraction of the time
        places = [_places(old, new) for old, new in zip(array.shape, shape, strict=True)]
        if axis is not None:
            array = np.take(array, _nearest(array.shape[axis], shape[axis]), axis=axis)
            places[axis] = np.arange(shape[axis], dtype=np.float64)
        return np.asarray(interpolate(array, (places[0], places[1], places[2]), "linear"), dtype=np.float32)
    volume = np.asarray(array, dtype=np.float64)
    if axis is None:
        return _zoomed(volume, shape, how.order).astype(np.float32)
    plane = [shape[other] for other in range(3) if other != axis]
    slices = [_zoomed(part, plane, how.order) for part in np.moveaxis(volume, axis, 0)]
    stack = np.stack(slices, axis=axis)
    if stack.shape[axis] != shape[axis]:
        if how.order_z == 0:
            stack = np.take(stack, _nearest(stack.shape[axis], shape[axis]), axis=axis)
        else:
            places = [np.arange(n, dtype=np.float64) for n in shape]
            places[axis] = _places(stack.shape[axis], shape[axis])
            stack = ndimage.map_coordinates(
                stack, np.stack(np.meshgrid(*places, indexing="ij")), order=how.order_z, mode="nearest"
            )
    return np.ascontiguousarray(stack, dtype=np.float32)


def lone_axis(spacing: Sequence[float], target: Sequence[float], separate: bool | None) -> int | None:
    """The axis whose slices are resampled one by one; None where all axes go together.

    Args:
        spacing: Voxel size before, in mm.
        target: Voxel size after, in mm.
        separate: What the plan demands; None decides by ``ANISOTROPY``.
    """
    if separate is False:
        return None
    chosen: Sequence[float] | None = spacing if separate else None
    if separate is None:
        chosen = next((values for values in (spacing, target) if max(values) / min(values) > ANISOTROPY), None)
    if chosen is None:
        return None
    largest = [axis for axis in range(3) if max(chosen) / chosen[axis] == 1]
    # two coarse axes are no stack of slices
    return largest[0] if len(largest) == 1 else None


def _array(image: Volume, grid: NNUNetGrid) -> tuple[npt.NDArray[Any], Floats3]:
    """The scan as nnU-Net's transposed array, float32, and its spacing along the same axes."""
    shape = _three(image.data.shape)
    data, spacing = image.data, list(image.spacing)
    if grid.reoriented:
        geometry = geometry_of(shape, image.affine)
        data, spacing = geometry.to_canonical(data), [image.spacing[axis] for axis in geometry.axes]
    array = np.asarray(data.transpose(2, 1, 0).transpose(*grid.transpose), dtype=np.float32)
    reverse = spacing[::-1]
    return array, _three([float(reverse[axis]) for axis in grid.transpose])


def _normalised(data: Array, mask: npt.NDArray[np.bool_] | None, grid: NNUNetGrid) -> Array:
    """Intensities by one of ``SCHEMES``, in place."""
    if grid.scheme == "ZScoreNormalization":
        if mask is not None:
            inside = data[mask]
            data[mask] = (inside - inside.mean()) / max(inside.std(), _EPSILON)
        else:
            mean, std = data.mean(), data.std()
            data -= mean
            data /= max(std, _EPSILON)
    elif grid.scheme == "CTNormalization":
        facts = grid.intensities
        np.clip(data, facts["percentile_00_5"], facts["percentile_99_5"], out=data)
        data -= facts["mean"]
        data /= max(facts["std"], _EPSILON)
    elif grid.scheme == "RescaleTo01Normalization":
        data -= data.min()
        data /= max(float(data.max()), _EPSILON)
    elif grid.scheme != "NoNormalization":
        raise ValueError(f"normalisation is one of {', '.join(SCHEMES)}, not {grid.scheme!r}")
    return data


def _zoomed(array: npt.NDArray[np.float64], shape: Sequence[int], order: Order) -> npt.NDArray[np.float64]:
    """Spline interpolation between the voxels' outer edges, cut at the array's own range."""
    if array.shape == tuple(shape):
        return array
    factors = [new / old for new, old in zip(shape, array.shape, strict=True)]
    out: npt.NDArray[np.float64] = ndimage.zoom(array, factors, order=order, mode="nearest", grid_mode=True)
    np.clip(out, array.min(), array.max(), out=out)
    return out


def _places(old: int, new: int) -> npt.NDArray[np.float64]:
    """Where the voxels of a new grid of the same extent lie in the old one."""
    return np.asarray((np.arange(new, dtype=np.float64) + 0.5) * (old / new) - 0.5)


def _nearest(old: int, new: int) -> npt.NDArray[np.intp]:
    """The old voxel that each new one is a copy of, as SciPy rounds."""
    row = ndimage.map_coordinates(np.arange(old, dtype=np.float64), [_places(old, new)], order=0, mode="nearest")
    return np.asarray(np.rint(row), dtype=np.intp)


def _three(values: Sequence[Any]) -> tuple[Any, Any, Any]:
    first, second, third = values
    return first, second, third
