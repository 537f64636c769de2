"""Reference masks that come slice by slice beside a DICOM series."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from datamodules.errors import InputError
from datamodules.images import write_nifti
from datamodules.readers._common import Notify, listed, natural_key
from datamodules.readers._dicom_header import Slice
from datamodules.readers._dicom_series import Geometry, geometry
from datamodules.readers.dicom import read_folder


def one_stack(folder: Path, notify: Notify) -> tuple[list[Slice], Geometry]:
    """The slices of a folder that holds exactly one volume, in natural order of file names.

    Raises:
        InputError: No image, fewer than two, or a stack that :func:`geometry` refuses.
    """
    faults: list[str] = []
    slices = [item for item in read_folder(folder, notify, faults) if item.placed]
    if faults:
        raise InputError(*faults)
    if len(slices) < 2:
        raise InputError(f"{folder}: {len(slices)} DICOM slices, a volume has at least 2; copy the data set again")
    slices.sort(key=lambda item: natural_key(item.path.name))
    return slices, geometry(slices, str(folder))


def paired(slices: Sequence[Slice], files: Sequence[Path], folder: Path) -> dict[Path, Path]:
    """Which mask file belongs to which image file: by equal stems, else by the order of both.

    The order counts only where it is the order of positions too: otherwise the masks would be put
    on the wrong slices without anybody noticing.

    Args:
        slices: The images, in natural order of names.
        files: The mask files.
        folder: What errors name.

    Returns:
        From image path to mask path.

    Raises:
        InputError: The numbers differ, or the order of names is not that of positions.
    """
    masks = sorted(files, key=lambda path: natural_key(path.name))
    if len(masks) != len(slices):
        raise InputError(f"{folder}: {len(masks)} mask slices for {len(slices)} image slices; copy the data set again")
    by_stem = {path.stem: path for path in masks}
    if set(by_stem) == {item.path.stem for item in slices}:
        return {item.path: by_stem[item.path.stem] for item in slices}
    normal = np.cross(slices[0].orientation[:3], slices[0].orientation[3:])
    steps = np.diff([float(np.dot(item.position, normal)) for item in slices])
    if not (np.all(steps > 0) or np.all(steps < 0)):
        raise InputError(
            f"{folder}: masks and images have different names, and the images' names are not in the order of their "
            "positions, so no mask can be told its slice; name each mask as its image"
        )
    return {item.path: mask for item, mask in zip(slices, masks, strict=True)}


def write_mask(
    target: Path, slices: Sequence[Slice], grid: Geometry, planes: Mapping[Path, NDArray[np.bool_]], name: str
) -> None:
    """Stack boolean planes (rows, columns), keyed by image path, on the image's grid; write NIfTI.

    Raises:
        InputError: A plane has another size than its image, or no plane holds any liver.
    """
    first = slices[0]
    odd = [path.name for path, plane in planes.items() if plane.shape != (first.rows, first.columns)]
    if odd:
        raise InputError(
            f"{name}: the masks of {listed(odd, 3)} are not {first.columns} × {first.rows}; copy them again"
        )
    volume = np.stack([planes[slices[index].path].T for index in grid.order], axis=2).astype(np.uint8)
    if not volume.any():
        raise InputError(f"{name}: the masks hold no liver; copy the data set again")
    write_nifti(target, volume, grid.affine)
