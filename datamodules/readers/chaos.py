"""CHAOS MR: DICOM in ``T1DUAL`` (two phases) and ``T2SPIR``, truth as grey-coded PNG slices.

::

    Train_Sets/MR/{id}/T1DUAL/DICOM_anon/{InPhase,OutPhase}/*.dcm    T1DUAL/Ground/*.png
    Train_Sets/MR/{id}/T2SPIR/DICOM_anon/*.dcm                       T2SPIR/Ground/*.png
    Test_Sets/MR/…                                                   without Ground

A mask slice belongs to the image of the same name; where names differ (the out-phase of T1DUAL has
other numbers than the truth), to the image at the same place in the order of file names, and only if
that order is the order of positions. Both phases share one grid and one truth.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from datamodules.cohort import Cohort
from datamodules.errors import InputError
from datamodules.images import check_same_grid, read_image
from datamodules.readers._common import Notify, Row, cohort_of, existing_folder, listed, natural_key, warn
from datamodules.readers._dicom_convert import Volume, convert_all
from datamodules.readers._dicom_masks import one_stack, paired, write_mask

LIVER_GREY = (55, 70)
"""Liver in the truth's grey values, both included; kidneys and spleen have others."""
PHASES = (("InPhase", "T1W_IN"), ("OutPhase", "T1W_OUT"))
SOURCE = "CHAOS"
MAX_PNG_PIXELS = 2048 * 2048


def read(root: Path, nifti_dir: Path, *, notify: Notify = warn) -> Cohort:
    """Read the MR part of CHAOS.

    Args:
        root: The folder with ``Train_Sets`` and perhaps ``Test_Sets``, one of these, or any folder above.
        nifti_dir: Folder for the converted images and masks.
        notify: Called with notices: a missing sequence, patients without truth.

    Returns:
        The cohort: sequences ``T1W_IN``, ``T1W_OUT`` and ``T2W``; patients ``CHAOS-{id}``; the official
        split is ``train`` or ``test``.

    Raises:
        InputError: No CHAOS tree, an id twice, unreadable files, truth and image that do not fit.
    """
    root = existing_folder(root, "the CHAOS data set")
    nifti_dir = Path(nifti_dir).absolute()
    rows: list[Row] = []
    jobs: list[tuple[str, Volume]] = []
    faults: list[str] = []
    without: list[str] = []
    patients = _patients(root)
    for number, (folder, split) in sorted(patients.items(), key=lambda item: natural_key(item[0])):
        try:
            found = _patient(number, folder, split, nifti_dir, jobs, notify)
        except InputError as error:
            faults += error.faults
            continue
        if not any("mask" in row for row in found):
            without.append(number)
        rows += found
    if faults:
        raise InputError(*faults)
    convert_all(jobs, root, nifti_dir)
    for row in rows:
        if row["sequence"] == "T1W_OUT" and "mask" in row:
            image, mask = Path(row["image"]), Path(row["mask"])
            check_same_grid(read_image(image), read_image(mask), image, mask)
    if without:
        notify(f"{root}: {len(without)} patients have no truth (no Ground folder): {listed(without)}")
    return cohort_of(rows, root, str(root))


def _patients(root: Path) -> dict[str, tuple[Path, str]]:
    """Every patient's folder and official split by id.

    Raises:
        InputError: None found, or an id found twice.
    """
    found: dict[str, tuple[Path, str]] = {}
    faults = []
    for kind in ("T1DUAL", "T2SPIR"):
        for place in sorted(path for path in root.rglob(kind) if path.is_dir()):
            folder = place.parent
            parts = [part.lower() for part in folder.parts]
            split = "test" if any(part.startswith(("test_set", "chaos_test")) for part in parts) else "train"
            known = found.setdefault(folder.name, (folder, split))
            if known[0] != folder:
                faults.append(f"{known[0]} and {folder}: two folders for the patient {folder.name}; remove one of them")
    if faults:
        raise InputError(*dict.fromkeys(faults))
    if not found:
        raise InputError(f"{root}: no folder T1DUAL or T2SPIR below it; name the folder that holds Train_Sets/MR")
    return found


def _patient(
    number: str, folder: Path, split: str, nifti_dir: Path, jobs: list[tuple[str, Volume]], notify: Notify
) -> list[Row]:
    rows: list[Row] = []
    places = [("T1DUAL", f"DICOM_anon/{phase}", name) for phase, name in PHASES]
    for kind, inner, sequence in [*places, ("T2SPIR", "DICOM_anon", "T2W")]:
        images = folder / kind / inner
        if not images.is_dir():
            notify(f"{images}: no such folder; the patient has no {sequence}")
            continue
        slices, grid = one_stack(images, notify)
        scan_id = f"CHAOS-{number}_{sequence}"
        row: Row = {
            "scan_id": scan_id,
            "patient_id": f"CHAOS-{number}",
            "sequence": sequence,
            "image": str(nifti_dir / f"{scan_id}.nii.gz"),
            "source": SOURCE,
            "official_split": split,
        }
        ground = folder / kind / "Ground"
        if ground.is_dir():
            mask = nifti_dir / f"CHAOS-{number}_{kind}_mask.nii.gz"
            if sequence != "T1W_OUT" or not any(other.get("mask") == str(mask) for other in rows):
                pairs = paired(slices, [path for path in ground.glob("*.png") if path.name[0] != "."], ground)
                planes = {image: _liver(png) for image, png in pairs.items()}
                write_mask(mask, slices, grid, planes, str(ground))
            row |= {"mask": str(mask), "mask_labels": "1"}
        rows.append(row)
        jobs.append((scan_id, Volume(slices, grid, str(images), sequence, 1)))
    return rows


def _liver(path: Path) -> NDArray[np.bool_]:
    """Where a truth slice shows liver, shape (rows, columns).

    Raises:
        InputError: No PNG, or not one channel of 8 bits.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as picture:
            if picture.width * picture.height > MAX_PNG_PIXELS or picture.mode not in ("L", "P"):
                raise InputError(
                    f"{path}: {picture.width} × {picture.height} pixels of mode {picture.mode} are not an 8-bit truth "
                    "slice; copy it again"
                )
            grey = np.asarray(picture)
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: cannot be read as PNG; copy it again") from error
    return (grey >= LIVER_GREY[0]) & (grey <= LIVER_GREY[1])
