"""From the native grid to the one the networks see, and back.

Preprocessing brings a scan to RAS+ (TorchIO's ``ToCanonical``), resamples it (``Resample``), crops or pads it
about its centre (``CropOrPad``) and normalises its intensities. Every step keeps the axes' directions, so each axis
of the preprocessed grid is a straight line in native voxels, and the way back is exact.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt

from datamodules.errors import InputError
from datamodules.images import Volume, spacing_of
from datamodules.normalisation import KINDS, Normalisation, normalisation_of
from datamodules.resampling import Positions3, interpolate

_SAME_SPACING = 1e-6
"""Spacings that agree to this fraction are the same: NIfTI stores them as float32."""
_ROUNDING_VOXELS = 1e-4
"""A grid may be this much too short for its last voxel: float32 spacings times the number of voxels."""

_HALF = np.float32(0.5 - 1e-5)
"""A voxel with half a share of mask counts, whatever the rounding of the share."""

Optional3 = tuple[float | None, float | None, float | None]


@dataclasses.dataclass(frozen=True, slots=True)
class Preprocessing:
    """What is done to each scan before any network sees it. Part of the store's key.

    Args:
        spacing: Voxel size in mm along the RAS+ axes (left-right, posterior-anterior, inferior-superior); None, or
            None for one axis, keeps the native one.
        shape: Voxels along the RAS+ axes after cropping or padding about the centre; None keeps what resampling gave.
        normalisation: ``zscore``, ``percentile``, ``nyul`` or ``none``, see ``datamodules.normalisation``.
        landmarks: For ``nyul`` only, from ``datamodules.normalisation.fit_nyul`` on training patients.
        mask_interpolation: ``nearest`` (TorchIO's choice for label maps) or ``linear`` (the share of mask, cut at 0.5:
            smoother on thick slices).
        bias_correction: N4 correction of the coil's shading before everything else. Slow, off by default.

    Raises:
        InputError: A value is out of range, or landmarks and normalisation do not fit together.
    """

    spacing: Optional3 | None = None
    shape: tuple[int, int, int] | None = None
    normalisation: str = "zscore"
    landmarks: tuple[float, ...] = ()
    mask_interpolation: str = "linear"
    bias_correction: bool = False

    def __post_init__(self) -> None:
        faults = []
        # lists arrive from YAML; a frozen value must hash
        for field in ("spacing", "shape", "landmarks"):
            value = getattr(self, field)
            if value is not None:
                object.__setattr__(self, field, tuple(value))
        if self.spacing is not None and (
            len(self.spacing) != 3 or any(s is not None and not 0.05 <= s <= 100 for s in self.spacing)
        ):
            faults.append(f"spacing {self.spacing}: give three values between 0.05 and 100 mm, or null to keep one")
        if self.shape is not None and (len(self.shape) != 3 or any(int(n) != n or n < 1 for n in self.shape)):
            faults.append(f"shape {self.shape}: give three whole numbers of voxels")
        if self.normalisation not in KINDS:
            faults.append(f"normalisation {self.normalisation!r}: choose one of {', '.join(KINDS)}")
        if (self.normalisation == "nyul") != bool(self.landmarks):
            faults.append("landmarks: the nyul normalisation, and no other, needs landmarks; fit them with fit_nyul")
        if self.mask_interpolation not in ("nearest", "linear"):
            faults.append(f"mask_interpolation {self.mask_interpolation!r}: choose nearest or linear")
        if faults:
            raise InputError(*faults)

    def as_json(self) -> dict[str, Any]:
        """The parameters as JSON values, in a fixed order."""
        return dataclasses.asdict(self)


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
        return cls(**{name: _tuples(item) for name, item in value.items()})

    def to_canonical(self, array: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
        """View a native array (I, J, K) or (C, I, J, K) in RAS+ axis order."""
        offset = array.ndim - 3
        moved = array.transpose(*range(offset), *(axis + offset for axis in self.axes))
        turned = [slice(None)] * offset + [slice(None, None, -1 if flip else None) for flip in self.flips]
        return moved[tuple(turned)]

    def from_canonical(self, array: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
        """View a RAS+ array (I, J, K) or (C, I, J, K) in the file's axis order."""
        offset = array.ndim - 3
        turned = [slice(None)] * offset + [slice(None, None, -1 if flip else None) for flip in self.flips]
        back = np.argsort(self.axes)
        return array[tuple(turned)].transpose(*range(offset), *(int(axis) + offset for axis in back))

    @property
    def content(self) -> tuple[slice, slice, slice]:
        """The window of the preprocessed grid that is no padding."""
        i, j, k = (slice(low, n - high) for (low, high), n in zip(self.padded, self.shape, strict=True))
        return i, j, k

    def positions(self) -> Positions3:
        """For each RAS+ axis, where the preprocessed voxels (without padding) lie, in canonical native voxels."""
        i, j, k = (
            start + np.arange(n)[window] * step
            for start, step, n, window in zip(self.start, self.step, self.shape, self.content, strict=True)
        )
        return i, j, k


def geometry_of(shape: tuple[int, int, int], affine: npt.NDArray[np.float64], params: Preprocessing) -> Geometry:
    """Where the preprocessed grid of a scan lies; its voxels are not needed.

    Sizes and origin follow TorchIO's ``Resample`` (as many voxels as fit in the native extent, same centre; an axis of
    one voxel keeps it) and ``CropOrPad`` (the odd voxel is taken from the lower end). Two differences: rounding of a
    header's float32 spacing never costs a voxel, and at least one voxel is left.

    Args:
        shape: Native voxels (I, J, K).
        affine: Native affine, shape (4, 4).
        params: The preprocessing.
    """
    orientation = nib.io_orientation(affine)
    axes = np.argsort(orientation[:, 0]).astype(int)
    flips = orientation[axes, 1] < 0
    canonical = affine @ nib.orientations.inv_ornt_aff(orientation, shape)
    sizes = np.array(shape)[axes]
    native = np.array(spacing_of(canonical))
    wanted = np.array([n if w is None else w for n, w in zip(native, params.spacing or native, strict=True)])
    spacing = np.where(np.abs(wanted / native - 1) < _SAME_SPACING, native, wanted)
    step = spacing / native
    resampled = np.maximum(np.floor(sizes / step + _ROUNDING_VOXELS), 1).astype(int)
    resampled[sizes == 1] = 1
    start = (sizes - 1) / 2 - (resampled - 1) / 2 * step
    target = resampled if params.shape is None else np.array(params.shape)
    cut = [_halves(n) for n in np.maximum(resampled - target, 0).tolist()]
    added = [_halves(n) for n in np.maximum(target - resampled, 0).tolist()]
    start = start + np.array([c[0] - a[0] for c, a in zip(cut, added, strict=True)]) * step
    final = canonical.copy()
    final[:3, :3] = canonical[:3, :3] * step
    final[:3, 3] = canonical[:3, :3] @ start + canonical[:3, 3]
    return Geometry(
        native_shape=_tuples(shape),
        native_affine=_tuples(affine.tolist()),
        axes=_tuples(axes.tolist()),
        flips=_tuples(flips.tolist()),
        spacing=_tuples(spacing.tolist()),
        step=_tuples(step.tolist()),
        start=_tuples(start.tolist()),
        shape=_tuples(target.tolist()),
        cropped=tuple((low > 0, high > 0) for low, high in cut),
        padded=tuple(added),
        affine=_tuples(final.tolist()),
    )


def preprocess(
    image: Volume, mask: Volume | None, params: Preprocessing
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.uint8] | None, Geometry]:
    """Bring a scan to the grid and intensities that networks see.

    Args:
        image: The scan on its native grid.
        mask: Its mask on the same grid, or None.
        params: What to do.

    Returns:
        The normalised image, float32 (I, J, K) in RAS+; the mask, uint8 in {0, 1} of the same shape, or None; and the
        geometry. Padding has intensity 0 before normalisation (or the image's minimum where that is negative), as air.

    Raises:
        InputError: The image cannot be normalised.
    """
    array, normalisation, geometry = intensities(image, params)
    out = normalisation.apply(array)
    return out, None if mask is None else preprocess_mask(mask.data, geometry, params), geometry


def intensities(image: Volume, params: Preprocessing) -> tuple[npt.NDArray[np.float32], Normalisation, Geometry]:
    """Resample and crop or pad a scan, and find its normalisation without applying it.

    Returns:
        Intensities, float32 (I, J, K) in RAS+; the normalisation, whose statistics leave padding out; the geometry.

    Raises:
        InputError: The image cannot be normalised.
    """
    data = image.data
    if params.bias_correction:
        data = correct_bias(data)
    geometry = geometry_of(_tuples(data.shape), image.affine, params)
    canonical = geometry.to_canonical(data)
    array = np.ascontiguousarray(interpolate(canonical, geometry.positions(), "linear"), dtype=np.float32)
    try:
        normalisation = normalisation_of(array, params.normalisation, params.landmarks)
    except ValueError as error:
        raise InputError(f"{image.name}: {error}; check the scan or leave it out") from error
    if array.shape != geometry.shape:
        air = np.float32(min(0.0, float(array.min())))
        padded = np.full(geometry.shape, air, dtype=np.float32)
        padded[geometry.content] = array
        array = padded
    return array, normalisation, geometry


def preprocess_mask(mask: npt.NDArray[np.generic], geometry: Geometry, params: Preprocessing) -> npt.NDArray[np.uint8]:
    """Bring a mask on the native grid to the preprocessed grid.

    Args:
        mask: Shape (I, J, K) in the file's axis order; any value but zero counts.
        geometry: The scan's geometry.
        params: Says how masks are interpolated.

    Returns:
        uint8 in {0, 1}, shape ``geometry.shape``; padding is 0.
    """
    inside = mask.view(np.bool_) if mask.dtype == np.uint8 and int(mask.max(initial=0)) <= 1 else mask != 0
    out = np.zeros(geometry.shape, dtype=np.uint8)
    box = bounding_box(inside)
    if box is None:
        return out
    # a liver fills a tenth of its scan: only voxels next to it can be anything but 0
    cut = tuple(slice(max(0, part.start - 1), part.stop + 1) for part in box)
    sampled_at, written_to = [], []
    for axis, place in enumerate(geometry.positions()):
        native_axis, size = geometry.axes[axis], inside.shape[geometry.axes[axis]]
        low, high = cut[native_axis].start, min(cut[native_axis].stop, size)
        if geometry.flips[axis]:
            low, high = size - high, size - low
        near = np.flatnonzero((place >= low - 0.5) & (place <= high - 0.5))
        if not len(near):
            return out
        first = geometry.content[axis].start
        sampled_at.append(place[near] - low)
        written_to.append(slice(first + int(near[0]), first + int(near[-1]) + 1))
    canonical = geometry.to_canonical(inside.view(np.uint8)[cut])
    sampled = interpolate(canonical, (sampled_at[0], sampled_at[1], sampled_at[2]), params.mask_interpolation)
    out[tuple(written_to)] = sampled >= _HALF if params.mask_interpolation == "linear" else sampled
    return out


def bounding_box(inside: npt.NDArray[np.bool_]) -> tuple[slice, slice, slice] | None:
    """The smallest window of a 3-D array that holds all that is true; None where nothing is."""
    plane = np.logical_or.reduce(inside, axis=2)
    parts = [
        plane.any(axis=1),
        plane.any(axis=0),
        np.array([bool(inside[..., k].any()) for k in range(inside.shape[2])]),
    ]
    found = [np.flatnonzero(part) for part in parts]
    if not len(found[0]):
        return None
    i, j, k = (slice(int(part[0]), int(part[-1]) + 1) for part in found)
    return i, j, k


def to_native(
    array: npt.NDArray[np.generic], geometry: Geometry, interpolation: str = "linear", fill: float = 0.0
) -> npt.NDArray[np.generic]:
    """Bring an array on the preprocessed grid back to the scan's own voxels.

    Args:
        array: Shape (I, J, K) or (C, I, J, K) on the preprocessed grid: logits, a mask, attention.
        geometry: The scan's geometry.
        interpolation: ``linear`` for anything smooth (take the arg-max of logits afterwards), ``nearest`` for labels.
        fill: Value where the native grid was cropped away.

    Returns:
        Shape ``geometry.native_shape`` (with C in front where there was one), in the file's axis order; float32 for
        linear, the array's dtype for nearest.

    Raises:
        ValueError: The array is not on the preprocessed grid.
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
    out = interpolate(array, (positions[0], positions[1], positions[2]), interpolation)
    out = np.array(geometry.from_canonical(out))
    for axis, gone in enumerate(outside):
        if gone.any():
            view = geometry.to_canonical(out)
            window: list[Any] = [slice(None)] * view.ndim
            window[view.ndim - 3 + axis] = gone
            view[tuple(window)] = fill
    return out


def correct_bias(data: npt.NDArray[np.generic]) -> npt.NDArray[np.float32]:
    """Remove the coil's smooth shading with N4, fitted on a grid of a quarter of the resolution.

    Args:
        data: Intensities (I, J, K).

    Returns:
        Corrected intensities, float32, same shape.

    Source: Tustison et al. 2010, IEEE TMI 29(6):1310-1320, as implemented in ITK.
    """
    import SimpleITK as sitk  # noqa: N813 - the name that ITK's own manual uses

    image = sitk.GetImageFromArray(np.ascontiguousarray(data.T, dtype=np.float32))
    body = sitk.OtsuThreshold(image, 0, 1, 200)
    shrink = [min(4, size) for size in image.GetSize()]
    corrector = sitk.N4BiasFieldCorrectionImageFilter()
    corrector.SetMaximumNumberOfIterations([50, 50, 50])
    corrector.Execute(sitk.Shrink(image, shrink), sitk.Shrink(body, shrink))
    field = sitk.Exp(corrector.GetLogBiasFieldAsImage(image))
    corrected: npt.NDArray[np.float32] = sitk.GetArrayFromImage(sitk.Divide(image, sitk.Cast(field, sitk.sitkFloat32)))
    return corrected.T


def _halves(voxels: int) -> tuple[int, int]:
    """Voxels to take or add at the lower and upper end; the odd one at the lower, as TorchIO does."""
    return voxels - voxels // 2, voxels // 2


def _tuples(value: Any) -> Any:
    """Lists and arrays of JSON as nested tuples."""
    if isinstance(value, (list, tuple)):
        return tuple(_tuples(item) for item in value)
    return value
