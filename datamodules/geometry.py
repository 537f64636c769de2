"""Where the preprocessed grid of a scan lies in its native one, and the way back."""

from __future__ import annotations

import dataclasses
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt

from datamodules.images import spacing_of
from datamodules.resampling import Positions3, interpolate

_SAME_SPACING = 1e-6
"""Spacings that agree to this fraction are the same: NIfTI stores them as float32."""
_ROUNDING_VOXELS = 1e-4
"""A grid may be this much too short for its last voxel: float32 spacings times the number of voxels."""

Optional3 = tuple[float | None, float | None, float | None]


@dataclasses.dataclass(frozen=True, slots=True)
class Geometry:
    """How the preprocessed grid lies in the native one: all that the way back needs.

    Attributes:
        native_shape: Voxels of the file, in its own axis order.
        native_affine: Its affine, 4 rows of 4, mm in RAS+.
        axes: For each RAS+ axis, the file's axis that runs along it.
        flips: For each RAS+ axis, whether the file's axis runs against it.
        spacing: Voxel size of the preprocessed grid in mm.
        step: For each RAS+ axis, preprocessed voxels as a share of canonical native ones.
        start: For each RAS+ axis, where the first preprocessed voxel lies, in canonical native voxels.
        shape: Voxels of the preprocessed grid.
        cropped: For each RAS+ axis, whether voxels were cut off at its (lower, upper) end.
        padded: For each RAS+ axis, how many voxels of air were added at its (lower, upper) end.
        affine: Affine of the preprocessed grid, 4 rows of 4, mm in RAS+.
    """

    native_shape: tuple[int, int, int]
    native_affine: tuple[tuple[float, ...], ...]
    axes: tuple[int, int, int]
    flips: tuple[bool, bool, bool]
    spacing: tuple[float, float, float]
    step: tuple[float, float, float]
    start: tuple[float, float, float]
    shape: tuple[int, int, int]
    cropped: tuple[tuple[bool, bool], ...]
    padded: tuple[tuple[int, int], ...]
    affine: tuple[tuple[float, ...], ...]

    def as_json(self) -> dict[str, Any]:
        """The geometry as JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Geometry:
        """The inverse of :meth:`as_json`.

        Raises:
            TypeError: Fields are missing or unknown.
        """
        return cls(**{name: nested_tuples(item) for name, item in value.items()})

    def to_canonical(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """View a native array (I, J, K) or (C, I, J, K) in RAS+ axis order."""
        offset = array.ndim - 3
        moved = array.transpose(*range(offset), *(axis + offset for axis in self.axes))
        turned = [slice(None)] * offset + [slice(None, None, -1 if flip else None) for flip in self.flips]
        out: npt.NDArray[Any] = moved[tuple(turned)]
        return out

    def from_canonical(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """View a RAS+ array (I, J, K) or (C, I, J, K) in the file's axis order."""
        offset = array.ndim - 3
        turned = [slice(None)] * offset + [slice(None, None, -1 if flip else None) for flip in self.flips]
        back = np.argsort(self.axes)
        out: npt.NDArray[Any] = array[tuple(turned)]
        return out.transpose(*range(offset), *(int(axis) + offset for axis in back))

    @property
    def content(self) -> tuple[slice, slice, slice]:
        """The window of the preprocessed grid that is no padding."""
        i, j, k = (slice(low, n - high) for (low, high), n in zip(self.padded, self.shape, strict=True))
        return i, j, k

    def positions(self) -> Positions3:
        """For each RAS+ axis, where the preprocessed voxels (without padding) lie, in canonical native voxels."""
        i, j, k = (
            start + np.arange(n, dtype=np.float64)[window] * step
            for start, step, n, window in zip(self.start, self.step, self.shape, self.content, strict=True)
        )
        return i, j, k


def geometry_of(
    shape: tuple[int, int, int],
    affine: npt.NDArray[np.float64],
    wanted_spacing: Optional3 | None = None,
    wanted_shape: tuple[int, int, int] | None = None,
) -> Geometry:
    """Where the preprocessed grid of a scan lies; its voxels are not needed.

    Sizes and origin follow TorchIO's ``Resample`` (as many voxels as fit in the native extent, same centre; an axis of
    one voxel keeps it) and ``CropOrPad`` (the odd voxel is taken from the lower end). Two differences: rounding of a
    header's float32 spacing never costs a voxel, and at least one voxel is left.

    Args:
        shape: Native voxels (I, J, K).
        affine: Native affine, shape (4, 4).
        wanted_spacing: Voxel size in mm along the RAS+ axes; None keeps the native one, of one axis or of all.
        wanted_shape: Voxels along the RAS+ axes; None for all.
    """
    orientation = nib.io_orientation(affine)
    axes = np.argsort(orientation[:, 0]).astype(int)
    flips = orientation[axes, 1] < 0
    canonical = affine @ nib.orientations.inv_ornt_aff(orientation, shape)
    sizes = np.array(shape)[axes]
    native = np.array(spacing_of(canonical))
    wanted = np.array([n if w is None else w for n, w in zip(native, wanted_spacing or native, strict=True)])
    spacing = np.where(np.abs(wanted / native - 1) < _SAME_SPACING, native, wanted)
    step = spacing / native
    resampled = np.maximum(np.floor(sizes / step + _ROUNDING_VOXELS), 1).astype(int)
    resampled[sizes == 1] = 1
    start = (sizes - 1) / 2 - (resampled - 1) / 2 * step
    target = resampled if wanted_shape is None else np.array(wanted_shape)
    cut = [_halves(n) for n in np.maximum(resampled - target, 0).tolist()]
    added = [_halves(n) for n in np.maximum(target - resampled, 0).tolist()]
    start = start + np.array([c[0] - a[0] for c, a in zip(cut, added, strict=True)]) * step
    final = canonical.copy()
    final[:3, :3] = canonical[:3, :3] * step
    final[:3, 3] = canonical[:3, :3] @ start + canonical[:3, 3]
    return Geometry(
        native_shape=nested_tuples(shape),
        native_affine=nested_tuples(affine.tolist()),
        axes=nested_tuples(axes.tolist()),
        flips=nested_tuples(flips.tolist()),
        spacing=nested_tuples(spacing.tolist()),
        step=nested_tuples(step.tolist()),
        start=nested_tuples(start.tolist()),
        shape=nested_tuples(target.tolist()),
        cropped=tuple((low > 0, high > 0) for low, high in cut),
        padded=tuple(added),
        affine=nested_tuples(final.tolist()),
    )


def to_native(
    array: npt.NDArray[Any], geometry: Geometry, interpolation: str = "linear", fill: float = 0.0
) -> npt.NDArray[Any]:
    """Bring an array on the preprocessed grid back to the scan's own voxels.

    Args:
        array: Shape (I, J, K) or (C, I, J, K) on the preprocessed grid: logits, a mask, attention.
        geometry: The scan's geometry.
        interpolation: ``linear`` for anything smooth (take the arg-max of logits afterwards); ``label`` for masks and
            label maps (each label's share is interpolated and the largest wins; smoother than nearest, and no label
            is invented); ``nearest`` for a label map where each voxel must be some voxel's copy.
        fill: Value where the native grid was cropped away.

    Returns:
        Shape ``geometry.native_shape`` (with C in front where there was one), in the file's axis order; float32 for
        linear, the array's dtype otherwise.

    Raises:
        ValueError: Another interpolation, or the array is not on the preprocessed grid.
    """
    if array.ndim not in (3, 4) or array.shape[-3:] != geometry.shape:
        raise ValueError(f"an array of shape {array.shape} is not on the preprocessed grid {geometry.shape}")
    sizes = tuple(geometry.native_shape[axis] for axis in geometry.axes)
    positions = []
    outside = []
    for axis in range(3):
        place = (np.arange(sizes[axis]) - geometry.start[axis]) / geometry.step[axis]
        below, above = geometry.cropped[axis]
        gone = np.zeros(len(place), dtype=bool)
        if below:
            gone |= place < -0.5
        if above:
            gone |= place > geometry.shape[axis] - 0.5
        content = geometry.content[axis]
        positions.append(np.clip(place, content.start, content.stop - 1))
        outside.append(gone)
    there = (positions[0], positions[1], positions[2])
    sampled = _label(array, there) if interpolation == "label" else interpolate(array, there, interpolation)
    out = np.array(geometry.from_canonical(sampled), order="C")
    for axis, gone in enumerate(outside):
        if gone.any():
            view = geometry.to_canonical(out)
            window: list[Any] = [slice(None)] * view.ndim
            window[view.ndim - 3 + axis] = gone
            view[tuple(window)] = fill
    return out


def _label(array: npt.NDArray[Any], positions: Positions3) -> npt.NDArray[Any]:
    """For each place the label with the largest interpolated share; of equal shares the larger label."""
    labels = np.unique(array)
    out = np.full((*array.shape[:-3], *(len(place) for place in positions)), labels[0], dtype=array.dtype)
    if len(labels) == 1:
        return out
    best = interpolate(array == labels[0], positions, "linear")
    for label in labels[1:]:
        share = interpolate(array == label, positions, "linear")
        # rounding must not decide between equal shares
        wins = share > best - np.float32(1e-5)
        out[wins] = label
        np.maximum(best, share, out=best)
    return out


def _halves(voxels: int) -> tuple[int, int]:
    """Voxels to take or add at the lower and upper end; the odd one at the lower, as TorchIO does."""
    return voxels - voxels // 2, voxels // 2


def nested_tuples(value: Any) -> Any:
    """Lists and arrays of JSON as nested tuples."""
    if isinstance(value, (list, tuple)):
        return tuple(nested_tuples(item) for item in value)
    return value
