"""The pixels of a DICOM stack, rescaled as its headers say."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from datamodules.errors import InputError
from datamodules.images import MAX_VOXELS
from datamodules.readers._dicom_header import Slice, quiet_pydicom, read_dataset
from datamodules.readers._dicom_series import Geometry


def read_volume(slices: Sequence[Slice], grid: Geometry, name: str) -> NDArray[np.generic]:
    """Read the pixels of a stack, rescaled slice by slice as the headers say.

    Args:
        slices: The stack that ``grid`` was measured on.
        grid: Its geometry.
        name: What errors call the series.

    Returns:
        Shape (columns, rows, slices), int16 or uint16 where every value is a whole number in its
        range, float32 otherwise.

    Raises:
        InputError: Pixels are missing, truncated, coloured, or packed in a way that neither pydicom
            nor SimpleITK unpacks.
    """
    first = slices[0]
    if first.rows * first.columns * len(slices) > MAX_VOXELS:
        raise InputError(
            f"{name}: {first.columns} × {first.rows} × {len(slices)} voxels are no MR image; check the header"
        )
    planes: dict[int, NDArray[np.float64]] = {}
    frames: dict[str, NDArray[np.float64]] = {}
    for index in grid.order:
        item = slices[index]
        if item.frame is None:
            planes[index] = _pixels(item)
        else:
            if str(item.path) not in frames:
                frames[str(item.path)] = _pixels(item)
            whole = frames[str(item.path)]
            planes[index] = whole[item.frame] if whole.ndim == 3 else whole
        if planes[index].shape != (first.rows, first.columns):
            raise InputError(
                f"{item.path}: its pixels do not fill {first.columns} × {first.rows}; fetch the file again"
            )
    volume = np.stack([planes[index].T for index in grid.order], axis=2)
    if not np.isfinite(volume).all():
        raise InputError(f"{name}: holds values that are not finite after rescaling; fetch the series again")
    if np.array_equal(volume, np.rint(volume)):
        for kind in (np.int16, np.uint16):
            if volume.min() >= np.iinfo(kind).min and volume.max() <= np.iinfo(kind).max:
                return volume.astype(kind)
    return volume.astype(np.float32)


def _pixels(item: Slice) -> NDArray[np.float64]:
    """The rescaled pixels of a file: shape (rows, columns), or (frames, rows, columns)."""
    size = item.path.stat().st_size
    dataset = read_dataset(item.path, pixels=True)
    frames = int(dataset.get("NumberOfFrames") or 1)
    if item.rows * item.columns * frames > 1000 * size:
        raise InputError(
            f"{item.path}: a header of {item.columns} × {item.rows} × {frames} pixels in a file of {size} bytes; "
            "fetch the file again"
        )
    if "PixelData" not in dataset:
        raise InputError(f"{item.path}: holds no pixels; fetch the file again")
    try:
        with quiet_pydicom():
            raw = dataset.pixel_array.astype(np.float64)
    except (ValueError, AttributeError, IndexError) as error:
        raise InputError(f"{item.path}: its pixels cannot be read ({type(error).__name__}: {_brief(error)}); "
                         "fetch the file again") from error  # fmt: skip
    except (RuntimeError, NotImplementedError, ImportError):
        # pydicom has no decoder of its own for compressed pixels; SimpleITK brings GDCM's, and rescales
        return _pixels_by_simpleitk(item)
    if frames > 1:
        shared = dataset.get("SharedFunctionalGroupsSequence")
        for number, group in enumerate(dataset.get("PerFrameFunctionalGroupsSequence") or []):
            slope, intercept = _rescale(group, shared[0] if shared else None, dataset)
            raw[number] = raw[number] * slope + intercept
        return raw
    groups = dataset.get("PerFrameFunctionalGroupsSequence") or [None]
    shared = dataset.get("SharedFunctionalGroupsSequence") or [None]
    slope, intercept = _rescale(groups[0], shared[0], dataset)
    return raw * slope + intercept


def _rescale(*places: object) -> tuple[float, float]:
    """Slope and intercept from the first place that has them."""
    from pydicom.dataset import Dataset

    for place in places:
        if not isinstance(place, Dataset):
            continue
        transformation = place.get("PixelValueTransformationSequence")
        where = transformation[0] if transformation else place
        if where.get("RescaleSlope") not in (None, ""):
            return float(where.RescaleSlope), float(where.get("RescaleIntercept") or 0)
    return 1.0, 0.0


def _pixels_by_simpleitk(item: Slice) -> NDArray[np.float64]:
    import SimpleITK as sitk  # noqa: N813 - its users know it by this name

    try:
        array = sitk.GetArrayFromImage(sitk.ReadImage(str(item.path)))
    except RuntimeError as error:
        raise InputError(f"{item.path}: its compressed pixels cannot be unpacked; decompress it first (gdcmconv --raw)"
                         ) from error  # fmt: skip
    return np.asarray(array[0] if len(array) == 1 else array, dtype=np.float64)


def _brief(error: Exception) -> str:
    return " ".join(str(error).split())[:120]
