"""Read and write NIfTI, strictly: a file is right, or the error says what is wrong with it."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any, cast

import nibabel as nib
import numpy as np
import numpy.typing as npt
from isal import igzip, igzip_lib, isal_zlib
from nibabel.spatialimages import HeaderDataError

from datamodules.errors import InputError
from datamodules.files import atomic_path

MAX_VOXELS = 2**29
"""More voxels than any abdominal scan has (1024 × 1024 × 512): a larger claim is a broken header."""
MAX_DEFLATE_RATIO = 1100
"""Deflate cannot expand a byte to more than 1032, so a header that claims more is lying about its file."""
MAX_CORNER_DRIFT = 0.1
"""How far the corners of image and mask may lie apart, in voxels: rounding in headers, not another grid."""

# the library's type hints call the class an instance
_GZIP_ERROR = cast(type[Exception], igzip_lib.IsalError)
_MAX_SURPLUS = 2**24
"""Bytes behind the voxels that are read over on the way to the checksum."""
_UNIT_NAMES = {1: "metres", 3: "micrometres"}


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


def spacing_of(affine: npt.NDArray[np.float64]) -> tuple[float, float, float]:
    """Distance of neighbouring voxels along each axis in mm, from an affine of shape (4, 4)."""
    i, j, k = (float(value) for value in np.linalg.norm(np.asarray(affine, dtype=np.float64)[:3, :3], axis=0))
    return i, j, k


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
    header = _header(raw, path, zipped)
    shape = _shape(header, path)
    dtype = _dtype(header, path)
    affine = _affine(header, path)
    count = math.prod(shape)
    start = int(header["vox_offset"])
    end = start + count * dtype.itemsize
    available = len(raw) * MAX_DEFLATE_RATIO if zipped else len(raw)
    if end > available:
        raise InputError(
            f"{path}: the file is too short for the {_times(shape)} voxels that its header promises; copy it again"
        )
    plain = _inflate(raw, path, end) if zipped else raw
    if len(plain) < end:
        raise InputError(
            f"{path}: the file ends after {len(plain)} of {end} bytes (truncated); copy or convert it again"
        )
    stored = np.frombuffer(plain, dtype=dtype, count=count, offset=start)
    data = _scaled(stored, header, path).reshape(shape, order="F")
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
    header = _header(raw, path, path.name.lower().endswith(".nii.gz"))
    return _shape(header, path), _affine(header, path), _dtype(header, path)


def check_same_grid(image: Volume, mask: Volume, image_path: Path, mask_path: Path) -> None:
    """Refuse a mask that does not lie on its image's voxels.

    Raises:
        InputError: Shapes differ, or a corner of the grid lies more than ``MAX_CORNER_DRIFT`` voxels apart.
    """
    if image.data.shape != mask.data.shape:
        raise InputError(
            f"{mask_path}: the mask has {_times(mask.data.shape)} voxels, its image {image_path} has "
            f"{_times(image.data.shape)}; resample the mask to the image's grid"
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
            model = _header(stream.read(65536), like, like.name.lower().endswith(".nii.gz"))
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


def _header(raw: bytes, path: Path, zipped: bool) -> nib.Nifti1Header:
    head = _inflate(raw[:65536], path, 544, whole=False) if zipped else raw[:544]
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


def _shape(header: nib.Nifti1Header, path: Path) -> tuple[int, int, int]:
    dim = [int(value) for value in header["dim"]]
    if not 1 <= dim[0] <= 7:
        raise InputError(f"{path}: broken header: it claims {dim[0]} axes; convert it again")
    sizes = dim[1 : 1 + dim[0]]
    if any(size < 1 for size in sizes):
        raise InputError(f"{path}: broken header: it claims {_times(sizes)} voxels; convert it again")
    while len(sizes) > 3 and sizes[-1] == 1:
        sizes.pop()
    if len(sizes) != 3:
        raise InputError(
            f"{path}: a scan has 3 axes, this file has {len(sizes)} ({_times(sizes)}); split it into 3-D volumes"
        )
    if math.prod(sizes) > MAX_VOXELS:
        raise InputError(f"{path}: the header claims {_times(sizes)} voxels, more than any scan; convert it again")
    return sizes[0], sizes[1], sizes[2]


def _dtype(header: nib.Nifti1Header, path: Path) -> np.dtype[np.generic]:
    try:
        dtype: np.dtype[np.generic] = header.get_data_dtype()
    except (KeyError, HeaderDataError) as error:  # KeyError: a code nibabel does not list
        raise InputError(f"{path}: broken header: unknown data type; convert it again") from error
    if dtype.kind not in "iuf" or dtype.itemsize > 8:
        raise InputError(f"{path}: voxels of type {dtype} are not a grey-value image; convert it to numbers")
    return dtype


def _affine(header: nib.Nifti1Header, path: Path) -> npt.NDArray[np.float64]:
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


def _inflate(raw: bytes, path: Path, size: int, whole: bool = True) -> bytes:
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


def _scaled(stored: npt.NDArray[Any], header: nib.Nifti1Header, path: Path) -> npt.NDArray[Any]:
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


def _times(sizes: tuple[int, ...] | list[int]) -> str:
    return " × ".join(str(size) for size in sizes)
