"""From the native grid to the one the networks see, and back.

Preprocessing brings a scan to RAS+ (TorchIO's ``ToCanonical``), resamples it (``Resample``), crops or pads it
about its centre (``CropOrPad``) and normalises its intensities. Every step keeps the axes' directions, so each axis
of the preprocessed grid is a straight line in native voxels, and the way back is exact.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt

from datamodules.errors import InputError
from datamodules.geometry import Geometry, Optional3, geometry_of, to_native
from datamodules.images import Volume
from datamodules.normalisation import KINDS, Normalisation, normalisation_of
from datamodules.resampling import interpolate

_HALF = np.float32(0.5 - 1e-5)
"""A voxel with half a share of mask counts, whatever the rounding of the share."""


# no slots: jsonargparse reads a default's values from its __dict__
@dataclasses.dataclass(frozen=True)
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
        # lists arrive from YAML, and a frozen value must hash; 1 and 1.0 mm are the same key
        for field, kind in (("spacing", float), ("landmarks", float), ("shape", int)):
            value = getattr(self, field)
            if value is not None:
                object.__setattr__(self, field, tuple(v if v is None or v != kind(v) else kind(v) for v in value))
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
        from datamodules.bias import correct_bias

        data = correct_bias(data)
    geometry = geometry_of(image.data.shape, image.affine, params.spacing, params.shape)
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


def preprocess_mask(mask: npt.NDArray[Any], geometry: Geometry, params: Preprocessing) -> npt.NDArray[np.uint8]:
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


__all__ = ["Geometry", "Preprocessing", "bounding_box", "intensities", "preprocess", "preprocess_mask", "to_native"]
