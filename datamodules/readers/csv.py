"""A CSV of the user's own, with the cohort table's columns."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from datamodules.cohort import REQUIRED_COLUMNS, Cohort
from datamodules.errors import InputError
from datamodules.readers._common import Notify, listed, read_rows, warn


def read(root: Path, *, notify: Notify = warn) -> Cohort:
    """Read a cohort from a CSV whose image and mask paths are relative to it (or absolute).

    Args:
        root: The CSV, or a folder that holds exactly one.
        notify: Called with the scans that have no mask.

    Returns:
        The cohort, in the CSV's order.

    Raises:
        InputError: The CSV breaks the schema, or names an image or mask that is not there or is
            no NIfTI: all faults together, by row (counted from 1, the header not counted).
    """
    path = _table(Path(root).absolute())
    rows = read_rows(path, REQUIRED_COLUMNS)
    if not rows:
        raise InputError(f"{path}: the table has no rows; write one for each scan")
    cohort = Cohort(pd.DataFrame(rows), path.parent, str(path))
    faults = []
    for number, scan in enumerate(cohort.scans, start=1):
        for column, file in (("image", scan.image), ("mask", scan.mask)):
            if file is None:
                continue
            if file.is_dir():
                faults.append(
                    f"{path}: row {number}: {column} {file} is a folder; "
                    "turn DICOM into NIfTI with 'hepastage cohort dicom' first"
                )
            elif not file.is_file():
                faults.append(
                    f"{path}: row {number}: {column} {file} does not exist; paths are relative to the table's folder"
                )
            elif not file.name.endswith((".nii", ".nii.gz")):
                faults.append(f"{path}: row {number}: {column} {file} is not .nii or .nii.gz; convert it to NIfTI")
    if faults:
        raise InputError(*faults)
    without_mask = [scan.scan_id for scan in cohort.scans if scan.mask is None]
    if without_mask:
        notify(f"{path}: {len(without_mask)} scans have no mask: {listed(without_mask, len(without_mask))}")
    return cohort


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
