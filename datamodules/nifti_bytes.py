"""The bytes of a NIfTI file: what its header claims, checked, and its voxels."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, cast

import nibabel as nib
import numpy as np
import numpy.typing as npt
from isal import igzip_lib, isal_zlib
from nibabel.spatialimages import HeaderDataError

from datamodules.errors import InputError

MAX_VOXELS = 2**29
"""More voxels than any abdominal scan has (1024 × 1024 × 512): a larger claim is a broken header."""
MAX_DEFLATE_RATIO = 1100
"""Deflate cannot expand a byte to more than 1032, so a header that claims more is lying about its file."""
# the library's type hints call the class an instance
_GZIP_ERROR = cast(type[Exception], igzip_lib.IsalError)
_MAX_SURPLUS = 2**24
"""Bytes behind the voxels that are read over on the way to the checksum."""
_UNIT_NAMES = {1: "metres", 3: "micrometres"}


def spacing_of(affine: npt.NDArray[np.float64]) -> tuple[float, float, float]:
    """Distance of neighbouring voxels along each axis in mm, from an affine of shape (4, 4)."""
    i, j, k = (float(value) for value in np.linalg.norm(np.asarray(affine, dtype=np.float64)[:3, :3], axis=0))
    return i, j, k


def nifti_header(raw: bytes, path: Path, zipped: bool) -> nib.Nifti1Header:
    """The header of a file whose first bytes are ``raw``; InputError where it is none."""
    head = inflate(raw[:65536], path, 544, whole=False) if zipped else raw[:544]
    if len(head) < 348:
        raise InputError(f"{path}: too short to be a NIfTI file; copy or convert it again")
    sizes = {"<": int.from_bytes(head[:4], "little"), ">": int.from_bytes(head[:4], "big")}
    # the size also tells the byte order; nibabel would guess that from a field that may be broken
    order, kind = next(
        (
            (order, kind)
            for order, size in sizes.items()
            for kind, known in ((nib.Nifti1Header, 348), (nib.Nifti2Header, 540))
            if size == known
        ),
        ("<", None),
    )
    if kind is None or (kind is nib.Nifti2Header and len(head) < 540):
        raise InputError(f"{path}: not a NIfTI file (its first bytes are no NIfTI header); convert it again")
    size = 348 if kind is nib.Nifti1Header else 540
    header = kind(head[:size], endianness=order, check=False)
    magic = bytes(header["magic"].tobytes()).rstrip(b"\0")[:3]
    if magic not in (b"n+1", b"n+2"):
        raise InputError(f"{path}: not a single-file NIfTI (its magic is {magic!r}); convert it to .nii.gz")
    if not size <= float(header["vox_offset"]) <= 2**24:
        raise InputError(f"{path}: broken header: voxels cannot start at byte {header['vox_offset']}; convert it again")
    return header


def nifti_shape(header: nib.Nifti1Header, path: Path) -> tuple[int, int, int]:
    """Its three axes; InputError for more, for fewer, or for more than ``MAX_VOXELS``."""
    dim = [int(value) for value in header["dim"]]
    if not 1 <= dim[0] <= 7:
        raise InputError(f"{path}: broken header: it claims {dim[0]} axes; convert it again")
    sizes = dim[1 : 1 + dim[0]]
    if any(size < 1 for size in sizes):
        raise InputError(f"{path}: broken header: it claims {times(sizes)} voxels; convert it again")
    while len(sizes) > 3 and sizes[-1] == 1:
        sizes.pop()
    if len(sizes) != 3:
        raise InputError(
            f"{path}: a scan has 3 axes, this file has {len(sizes)} ({times(sizes)}); split it into 3-D volumes"
        )
    if math.prod(sizes) > MAX_VOXELS:
        raise InputError(f"{path}: the header claims {times(sizes)} voxels, more than any scan; convert it again")
    return sizes[0], sizes[1], sizes[2]


def nifti_dtype(header: nib.Nifti1Header, path: Path) -> np.dtype[np.generic]:
    """Its stored type; InputError for anything but real numbers."""
    try:
        dtype: np.dtype[np.generic] = header.get_data_dtype()
    except (KeyError, HeaderDataError) as error:  # KeyError: a code nibabel does not list
        raise InputError(f"{path}: broken header: unknown data type; convert it again") from error
    if dtype.kind not in "iuf" or dtype.itemsize > 8:
        raise InputError(f"{path}: voxels of type {dtype} are not a grey-value image; convert it to numbers")
    return dtype


def nifti_affine(header: nib.Nifti1Header, path: Path) -> npt.NDArray[np.float64]:
    """Its affine (4, 4), mm in RAS+: the sform, else the qform; InputError where there is none or it is degenerate."""
    unit = int(header["xyzt_units"]) & 7
    if unit in _UNIT_NAMES:
        raise InputError(f"{path}: its coordinates are in {_UNIT_NAMES[unit]}; convert the header to millimetres")
    if int(header["sform_code"]) > 0:
        affine = np.asarray(header.get_sform(), dtype=np.float64)
    elif int(header["qform_code"]) > 0:
        try:
            affine = np.asarray(header.get_qform(), dtype=np.float64)
        except (ValueError, HeaderDataError) as error:
            raise InputError(f"{path}: broken header: its qform is no rotation; convert it again") from error
    else:
        raise InputError(
            f"{path}: the header says nothing of the patient's position (sform and qform codes are 0), so spacing and "
            "sides would be guesses; convert it again from DICOM or set the sform"
        )
    if not bool(np.isfinite(affine).all()):
        raise InputError(f"{path}: broken header: its affine is not finite; convert it again")
    spacing = spacing_of(affine)
    if min(spacing) < 1e-3 or max(spacing) > 1e3:
        text = " × ".join(f"{value:g}" for value in spacing)
        raise InputError(f"{path}: broken header: its voxels measure {text} mm; convert it again")
    if abs(float(np.linalg.det(affine[:3, :3]))) < 1e-2 * math.prod(spacing):
        raise InputError(f"{path}: broken header: the axes of its affine lie in one plane; convert it again")
    return affine


def inflate(raw: bytes, path: Path, size: int, whole: bool = True) -> bytes:
    """At most ``size`` bytes of a gzip file, which may have several members."""
    parts: list[bytes] = []
    got = 0
    try:
        while raw and got < size:
            stream = isal_zlib.decompressobj(31)
            part = stream.decompress(raw, size - got)
            parts.append(part)
            got += len(part)
            if got < size and not stream.eof:
                break
            raw = stream.unused_data
        if whole and got == size:
            _read_to_checksum(stream, path)
    except _GZIP_ERROR as error:
        raise InputError(f"{path}: damaged gzip file ({error}); copy or convert it again") from error
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _read_to_checksum(stream: Any, path: Path) -> None:
    """Read a gzip stream to its end, where its checksum is: the library then compares it."""
    surplus = 0
    while not stream.eof:
        more = len(stream.decompress(stream.unconsumed_tail, 65536))
        surplus += more
        if not more and not stream.unconsumed_tail:
            raise InputError(f"{path}: the file ends before its checksum (truncated); copy or convert it again")
        if surplus > _MAX_SURPLUS:
            raise InputError(f"{path}: the file holds far more than its header promises; convert it again")


def scaled(stored: npt.NDArray[Any], header: nib.Nifti1Header, path: Path) -> npt.NDArray[Any]:
    """The voxels in native byte order, scaled as the header says; InputError for NaN and infinite ones."""
    data = stored if stored.dtype.isnative else stored.astype(stored.dtype.newbyteorder("="))
    slope, inter = float(header["scl_slope"]), float(header["scl_inter"])
    # the standard: a slope of 0 means that there is no scaling; NaN is how nibabel marks the same
    if math.isfinite(slope) and slope != 0 and (slope != 1 or inter != 0):
        if not math.isfinite(inter):
            raise InputError(f"{path}: broken header: its intensity offset is {inter}; convert it again")
        wide = np.float64 if data.dtype.itemsize > 2 else np.float32
        data = (data * wide(slope) + wide(inter)).astype(np.float32)
    if data.dtype.kind == "f" and not bool(np.isfinite(data).all()):
        bad = int(data.size - np.isfinite(data).sum())
        raise InputError(f"{path}: {bad} of {data.size} voxels are NaN or infinite; repair or leave out the scan")
    return data


def times(sizes: tuple[int, ...] | list[int]) -> str:
    """Sizes for people: 3 × 4 × 5."""
    return " × ".join(str(size) for size in sizes)
