"""CirrMRI600+ as PNG slices, ``Cirrhosis_T2_2D``: each patient's slices stacked to one volume.

::

    Cirrhosis_T2_2D/{train,valid,test}/{patient_id}/{images,masks}/*.png

The slices hold no voxel spacing: the volumes get 1 × 1 × 1 mm, in which no size, volume or distance means anything.
A slice's row runs along the patient's back, as it is shown (our reading): columns to the left, rows to the back.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from datamodules.cohort import Cohort
from datamodules.errors import InputError
from datamodules.images import write_nifti
from datamodules.readers._cirrmri_metadata import canonical_id, read_metadata
from datamodules.readers._common import (
    Notify,
    Row,
    cohort_of,
    existing_folder,
    files_below,
    listed,
    natural_key,
    warn,
)

_PLACE = re.compile(r"Cirrhosis_T2_2D/(?:.*/)?(train|valid|test)/([^/]+)/(images|masks)/[^/]+\.png", re.IGNORECASE)
PAIRED = "t1&t2_paired_age_gender_evaluation.csv"
MAX_PNG_PIXELS = 2048 * 2048


def read(root: Path, nifti_dir: Path, *, size: int = 256, paired: bool = False, notify: Notify = warn) -> Cohort:
    """Stack the PNG slices of each patient.

    Args:
        root: A folder that holds the unpacked ``Cirrhosis_T2_2D``, in any nesting, and the metadata CSVs.
        nifti_dir: Folder for the volumes and masks.
        size: Edge in pixels that slices are resized to, aspect ignored as the published code does; 0 keeps them.
        paired: Only patients of the CSV of paired examinations, as the published code takes them.
        notify: Called with notices: nominal spacing, patients left out or without a stage.

    Returns:
        One row a patient, ``47_T2W``, with ``official_split`` from the folders.

    Raises:
        InputError: No slices, a patient in two parts or folders, images and masks that do not pair, slices of
            different sizes, unreadable files, or no CSV of paired examinations where it is asked for.
    """
    root = existing_folder(root, "the unpacked Cirrhosis_T2_2D of CirrMRI600+")
    nifti_dir = Path(nifti_dir).absolute()
    if size != 0 and not 16 <= size <= 2048:
        raise InputError(f"--size {size}: give 16 to 2048 pixels, or 0 to keep the slices' own size")
    paths = files_below(root)
    folders = _folders(root, paths)
    metadata = read_metadata([root / path for path in paths if path.lower().endswith(".csv")], root, notify)
    if paired:
        known = metadata.patients_of(PAIRED)
        if known is None:
            raise InputError(f"{root}: no 'T1&T2_Paired_age_gender_evaluation.csv' below it; --paired needs it")
        left = sorted(set(folders) - known, key=natural_key)
        if left:
            notify(f"{root}: {len(left)} patients are not in the CSV of paired examinations: {listed(left, len(left))}")
        folders = {patient: place for patient, place in folders.items() if patient in known}
    rows: list[Row] = []
    faults: list[str] = []
    for patient, (part, place) in sorted(folders.items(), key=lambda item: natural_key(item[0])):
        try:
            rows.append(_patient(patient, part, place, nifti_dir, size) | metadata.values(patient, "T2W"))
        except InputError as error:
            faults += error.faults
    if faults:
        raise InputError(*faults)
    if not rows:
        raise InputError(f"{root}: no patient is left; check the ids of folders and CSV")
    bare = [str(row["patient_id"]) for row in rows if row.get("stage") is None]
    if bare:
        notify(f"{root}: {len(bare)} patients have no radiological evaluation: {listed(bare, len(bare))}")
    notify(
        f"{root}: slices hold no voxel spacing; the volumes of {len(rows)} patients say 1 mm, and sizes, volumes and "
        "distances in mm mean nothing for them"
    )
    return cohort_of(rows, root, str(root))


def _folders(root: Path, paths: Iterable[str]) -> dict[str, tuple[str, Path]]:
    """Official part and folder of each patient.

    Raises:
        InputError: There is none, or a patient has two.
    """
    found: dict[str, set[tuple[str, Path]]] = {}
    for path in paths:
        match = _PLACE.search(f"{root.name}/{path}")
        if match:
            place = (root / path).parent.parent
            found.setdefault(canonical_id(match[2]), set()).add((match[1].lower(), place))
    if not found:
        raise InputError(
            f"{root}: no slices, such as Cirrhosis_T2_2D/train/47/images/1.png, below it; unpack Cirrhosis_T2_2D.zip"
        )
    faults = [
        f"patient {patient} has slices in {' and in '.join(str(place) for _, place in sorted(places))}; keep one"
        for patient, places in sorted(found.items(), key=lambda item: natural_key(item[0]))
        if len(places) > 1
    ]
    if faults:
        raise InputError(*faults)
    return {patient: next(iter(places)) for patient, places in found.items()}


def _patient(patient: str, part: str, place: Path, nifti_dir: Path, size: int) -> Row:
    images, masks = (_stack(place / kind, size, kind == "masks") for kind in ("images", "masks"))
    if images is None:
        raise InputError(f"{place}: masks without images; add the images or remove the folder")
    scan_id = f"{patient}_T2W"
    row: Row = {
        "scan_id": scan_id,
        "patient_id": patient,
        "sequence": "T2W",
        "image": str(nifti_dir / f"{scan_id}.nii.gz"),
        "source": "cirrmri",
        "healthy": False,
        "official_split": part,
    }
    # columns run to the patient's left, rows to the back
    affine = np.diag([-1.0, -1.0, 1.0, 1.0])
    if masks is not None:
        absent = sorted(images[0].keys() ^ masks[0].keys(), key=natural_key)
        if absent:
            raise InputError(f"{place}: images and masks do not pair: {listed(absent)}; complete them")
        row |= {"mask": str(nifti_dir / f"{scan_id}_mask.nii.gz"), "mask_labels": "1"}
        write_nifti(Path(row["mask"]), (masks[1] > 0).astype(np.uint8), affine)
    write_nifti(Path(row["image"]), images[1], affine)
    return row


def _stack(folder: Path, size: int, is_mask: bool) -> tuple[dict[str, Path], NDArray[np.uint8]] | None:
    """Slices of a folder by name, and stacked in natural order, shape (columns, rows, slices); None for no slice."""
    files = {path.name: path for path in sorted(folder.glob("*.png")) if path.name[0] != "."} if folder.is_dir() else {}
    if not files:
        return None
    planes = [_grey(files[name], size, is_mask) for name in sorted(files, key=natural_key)]
    if len({plane.shape for plane in planes}) > 1:
        shapes = listed(sorted({f"{plane.shape[1]}x{plane.shape[0]}" for plane in planes}))
        raise InputError(f"{folder}: slices of different sizes ({shapes}); give --size to resize them")
    return files, np.stack(planes, axis=-1).transpose(1, 0, 2)


def _grey(path: Path, size: int, is_mask: bool) -> NDArray[np.uint8]:
    """One slice, 8 bits, shape (rows, columns).

    Raises:
        InputError: No PNG, or neither grey nor three equal channels of 8 bits.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            if image.width * image.height > MAX_PNG_PIXELS:
                raise ValueError(f"{image.width} x {image.height} pixels are too many for a slice")
            plane = np.asarray(image.convert("L") if image.mode in ("1", "P") else image)
    except (OSError, UnidentifiedImageError, SyntaxError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as a PNG ({error}); unpack it again") from error
    if plane.ndim == 3 and plane.shape[2] in (3, 4) and (plane[..., :1] == plane[..., :3]).all():
        plane = plane[..., 0]
    if plane.ndim != 2 or plane.dtype != np.uint8:
        raise InputError(f"{path}: is not a grey image of 8 bits; export the slice again")
    if size and plane.shape != (size, size):
        method = Image.Resampling.NEAREST if is_mask else Image.Resampling.BILINEAR
        plane = np.asarray(Image.fromarray(plane).resize((size, size), method))
    return plane
