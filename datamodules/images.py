"""Read and write NIfTI, strictly: a file is right, or the error says what is wrong with it."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
from isal import igzip

from datamodules.errors import InputError
from datamodules.files import atomic_path
from datamodules.nifti_bytes import (
    MAX_DEFLATE_RATIO,
    MAX_VOXELS,
    inflate,
    nifti_affine,
    nifti_dtype,
    nifti_header,
    nifti_shape,
    scaled,
    spacing_of,
    times,
)

MAX_CORNER_DRIFT = 0.1
"""How far the corners of image and mask may lie apart, in voxels: rounding in headers, not another grid."""


@dataclasses.dataclass(frozen=True, slots=True)
class Volume:
    """One scalar volume and where its voxels lie in the patient.

    Attributes:
        data: Shape (I, J, K), any real dtype, in the file's own axis order.
        affine: Voxel indices to mm in RAS+ (x grows to the patient's right), shape (4, 4), float64.
        path: The file it came from, for errors; None for a volume made in memory.
    """

    data: npt.NDArray[Any]
    affine: npt.NDArray[np.float64]
    path: Path | None = None

    @property
    def name(self) -> str:
        """What errors call the volume."""
        return "volume" if self.path is None else str(self.path)

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Distance of neighbouring voxels along I, J and K in mm."""
        return spacing_of(self.affine)


def read_image(path: Path) -> Volume:
    """Read an intensity image.

    Args:
        path: A ``.nii`` or ``.nii.gz`` file with one 3-D volume (trailing axes of length 1 are dropped).

    Returns:
        The voxels as stored where the header has no scaling, else scaled as float32.

    Raises:
        InputError: The file is missing, no NIfTI, truncated, not 3-D, of a colour or complex type, larger
            than ``MAX_VOXELS``, without a usable affine, or has NaN or infinite voxels.
    """
    return decode(read_bytes(path), path)


def read_mask(path: Path, labels: tuple[int, ...]) -> Volume:
    """Read a label image and keep where it has one of the labels.

    Args:
        path: A NIfTI file as in :func:`read_image`.
        labels: Values that count, such as ``(1, 2)``; empty: any value but zero.

    Returns:
        uint8, 1 where the file has one of ``labels``, else 0. It may be empty: that is for the caller
        to judge.

    Raises:
        InputError: As :func:`read_image`, or a voxel is not a whole number.
    """
    return decode_mask(read_bytes(path), path, labels)


def read_bytes(path: Path) -> bytes:
    """The bytes of a file.

    Raises:
        InputError: It is missing or cannot be read.
    """
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file; correct the path in the cohort table") from error
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({error}); check the file and its permissions") from error


def decode_mask(raw: bytes, path: Path, labels: tuple[int, ...]) -> Volume:
    """:func:`read_mask` on bytes that were already read from ``path``."""
    volume = decode(raw, path)
    data = volume.data
    if data.dtype.kind == "f" and not bool((data == np.rint(data)).all()):
        raise InputError(f"{path}: a mask has whole numbers, this file has others; give a label image")
    if not labels:
        inside = data != 0
    elif len(labels) == 1:
        inside = data == labels[0]
    else:
        inside = np.isin(data, labels)
    return Volume(inside.view(np.uint8), volume.affine, path)


def decode(raw: bytes, path: Path) -> Volume:
    """:func:`read_image` on bytes that were already read from ``path``."""
    kind = "".join(path.suffixes[-2:]).lower()
    zipped = kind.endswith(".nii.gz")
    if not zipped and not kind.endswith(".nii"):
        raise InputError(f"{path}: not a .nii or .nii.gz file; convert it to NIfTI")
    header = nifti_header(raw, path, zipped)
    shape = nifti_shape(header, path)
    dtype = nifti_dtype(header, path)
    affine = nifti_affine(header, path)
    count = math.prod(shape)
    start = int(header["vox_offset"])
    end = start + count * dtype.itemsize
    available = len(raw) * MAX_DEFLATE_RATIO if zipped else len(raw)
    if end > available:
        raise InputError(
            f"{path}: the file is too short for the {times(shape)} voxels that its header promises; copy it again"
        )
    plain = inflate(raw, path, end) if zipped else raw
    if len(plain) < end:
        raise InputError(
            f"{path}: the file ends after {len(plain)} of {end} bytes (truncated); copy or convert it again"
        )
    stored = np.frombuffer(plain, dtype=dtype, count=count, offset=start)
    data = scaled(stored, header, path).reshape(shape, order="F")
    return Volume(data, affine, path)


def read_header(path: Path) -> tuple[tuple[int, int, int], npt.NDArray[np.float64], np.dtype[np.generic]]:
    """Shape, affine (4, 4) and stored dtype of a NIfTI file, without reading its voxels.

    Raises:
        InputError: As :func:`read_image`, as far as the header tells.
    """
    try:
        with path.open("rb") as stream:
            raw = stream.read(65536)
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file; correct the path in the cohort table") from error
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({error}); check the file and its permissions") from error
    header = nifti_header(raw, path, path.name.lower().endswith(".nii.gz"))
    return nifti_shape(header, path), nifti_affine(header, path), nifti_dtype(header, path)


def check_same_grid(image: Volume, mask: Volume, image_path: Path, mask_path: Path) -> None:
    """Refuse a mask that does not lie on its image's voxels.

    Raises:
        InputError: Shapes differ, or a corner of the grid lies more than ``MAX_CORNER_DRIFT`` voxels apart.
    """
    if image.data.shape != mask.data.shape:
        raise InputError(
            f"{mask_path}: the mask has {times(mask.data.shape)} voxels, its image {image_path} has "
            f"{times(image.data.shape)}; resample the mask to the image's grid"
        )
    drift = corner_drift(image.affine, mask.affine, image.data.shape)
    if drift > MAX_CORNER_DRIFT:
        raise InputError(
            f"{mask_path}: the mask lies up to {drift:.2f} voxels away from its image {image_path} (their affines "
            "differ); resample the mask to the image's grid or correct its header"
        )


def corner_drift(affine_a: npt.NDArray[np.float64], affine_b: npt.NDArray[np.float64], shape: tuple[int, ...]) -> float:
    """Greatest distance between the same corner voxel under two affines, in voxels of the first."""
    corners = np.array(
        [(i, j, k, 1.0) for i in (0, shape[0] - 1) for j in (0, shape[1] - 1) for k in (0, shape[2] - 1)]
    )
    difference = corners @ (affine_b - affine_a).T
    voxels = np.linalg.solve(affine_a[:3, :3], difference[:, :3].T)
    return float(np.linalg.norm(voxels, axis=0).max())


def write_nifti(path: Path, data: npt.NDArray[Any], affine: npt.NDArray[np.float64], like: Path | None = None) -> None:
    """Write a volume as ``.nii`` or ``.nii.gz``, atomically; the same content gives the same bytes.

    Args:
        path: The file. Its parent folders are made.
        data: Shape (I, J, K) or more axes; its dtype is kept (bool becomes uint8).
        affine: Voxel to mm in RAS+, shape (4, 4).
        like: A NIfTI file whose geometry fields (sform, qform, codes, units) are taken over bit by bit, so
            that viewers see the same grid; its affine must agree with ``affine``.

    Raises:
        InputError: The folder cannot be written to, or ``like`` is unreadable or on another grid.
    """
    if data.dtype == np.bool_:
        data = data.view(np.uint8)
    if not path.name.endswith((".nii", ".nii.gz")):
        raise InputError(f"{path}: a NIfTI file ends in .nii or .nii.gz; rename it")
    image = nib.Nifti1Image(np.asarray(data), np.asarray(affine, dtype=np.float64), dtype=data.dtype)
    image.header.set_xyzt_units("mm")
    if like is not None:
        shape, affine_like, _ = read_header(like)
        if shape != tuple(data.shape[:3]) or corner_drift(affine_like, affine, shape) > 1e-3:
            raise InputError(f"{path}: its voxels do not lie on the grid of {like}; bring them back to it first")
        with like.open("rb") as stream:
            model = nifti_header(stream.read(65536), like, like.name.lower().endswith(".nii.gz"))
        for field in (
            "sform_code", "qform_code", "srow_x", "srow_y", "srow_z", "quatern_b", "quatern_c", "quatern_d",
            "qoffset_x", "qoffset_y", "qoffset_z", "xyzt_units",
        ):  # fmt: skip
            image.header[field] = model[field]
        image.header["pixdim"][:4] = model["pixdim"][:4]
        # nibabel writes the header's own affine fields only when the image has none of its own to impose
        image._affine = image.header.get_best_affine()
    payload = image.to_bytes()
    if path.name.endswith(".gz"):
        # no time stamp: the same volume must hash the same
        payload = igzip.compress(payload, compresslevel=2, mtime=0)
    with atomic_path(path) as temporary:
        temporary.write_bytes(payload)


__all__ = [
    "MAX_CORNER_DRIFT",
    "MAX_VOXELS",
    "Volume",
    "check_same_grid",
    "corner_drift",
    "decode",
    "decode_mask",
    "read_bytes",
    "read_header",
    "read_image",
    "read_mask",
    "spacing_of",
    "write_nifti",
]
