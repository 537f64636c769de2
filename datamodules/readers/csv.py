"""A CSV of the user's own, with the cohort table's columns; images are NIfTI files or folders of one DICOM series."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from datamodules.cohort import REQUIRED_COLUMNS, Cohort
from datamodules.errors import InputError
from datamodules.readers._common import NIFTI_ENDINGS, Notify, listed, read_rows, warn


def read(root: Path, nifti_dir: Path | None = None, *, notify: Notify = warn) -> Cohort:
    """Read a cohort from a CSV whose image and mask paths are relative to it (or absolute).

    Args:
        root: The CSV, or a folder that holds exactly one.
        nifti_dir: Folder for images that are converted from DICOM, as ``<scan_id>.nii.gz``; None
            refuses an image that is a folder.
        notify: Called with the scans that have no mask, and with files passed over in DICOM folders.

    Returns:
        The cohort, in the CSV's order.

    Raises:
        InputError: The CSV breaks the schema, or names an image or mask that is not there, is no
            NIfTI or is a folder without exactly one whole DICOM series: all faults together, by row
            (counted from 1, the header not counted).
    """
    path = _table(Path(root).absolute())
    rows = read_rows(path, REQUIRED_COLUMNS)
    if not rows:
        raise InputError(f"{path}: the table has no rows; write one for each scan")
    cohort = Cohort(pd.DataFrame(rows), path.parent, str(path))
    faults = []
    series: dict[str, Path] = {}
    for number, scan in enumerate(cohort.scans, start=1):
        for column, file in (("image", scan.image), ("mask", scan.mask)):
            if file is None:
                continue
            place = f"{path}: row {number}: {column} {file}"
            if file.is_dir() and column == "image" and nifti_dir is not None:
                series[scan.scan_id] = file
            elif file.is_dir():
                faults.append(f"{place} is a folder; turn DICOM into NIfTI first ('hepastage cohort dicom')")
            elif not file.is_file():
                faults.append(f"{place} does not exist; paths are relative to the table's folder")
            elif not file.name.endswith(NIFTI_ENDINGS):
                faults.append(f"{place} is not .nii or .nii.gz; convert it to NIfTI")
    if faults:
        raise InputError(*faults)
    if series and nifti_dir is not None:
        cohort = _converted(cohort, series, Path(nifti_dir).absolute(), notify)
    without_mask = [scan.scan_id for scan in cohort.scans if scan.mask is None]
    if without_mask:
        notify(f"{path}: {len(without_mask)} scans have no mask: {listed(without_mask, len(without_mask))}")
    return cohort


def _converted(cohort: Cohort, series: Mapping[str, Path], nifti_dir: Path, notify: Notify) -> Cohort:
    """The cohort with the NIfTI file of each DICOM folder in the folder's place."""
    # pydicom and SimpleITK take a while to import, and most tables name NIfTI files
    from datamodules.readers._dicom_convert import Volume, convert_all
    from datamodules.readers._dicom_masks import one_stack

    jobs: list[tuple[str, Volume]] = []
    faults: list[str] = []
    for scan_id, folder in series.items():
        try:
            slices, grid = one_stack(folder, notify)
        except InputError as error:
            faults += error.faults
            continue
        jobs.append((scan_id, Volume(slices, grid, str(folder), cohort.scan(scan_id).sequence, visit=1)))
    if faults:
        raise InputError(*faults)
    convert_all(jobs, Path(nifti_dir.anchor), nifti_dir)
    frame = cohort.frame.copy()
    frame["image"] = [
        str(nifti_dir / f"{scan.scan_id}.nii.gz") if scan.scan_id in series else image
        for scan, image in zip(cohort.scans, frame["image"], strict=True)
    ]
    return Cohort(frame, cohort.root, cohort.name)


def _table(path: Path) -> Path:
    """The CSV that a user meant by a file or a folder."""
    if not path.is_dir():
        if not path.exists():
            raise InputError(f"{path}: no such file; name the CSV of the cohort table's columns")
        return path
    found = sorted(entry for entry in path.glob("*.csv") if not entry.name.startswith("."))
    if len(found) != 1:
        there = listed(entry.name for entry in found) or "none"
        raise InputError(f"{path}: one CSV is expected in the folder, there is {there}; name the CSV itself")
    return found[0]
