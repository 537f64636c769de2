"""AMOS22: the MRI part of its abdominal CT and MRI scans; the liver is label 6."""

from __future__ import annotations

import re
from pathlib import Path

from datamodules.cohort import Cohort
from datamodules.errors import InputError
from datamodules.readers._common import Notify, cohort_of, existing_folder, listed, warn
from datamodules.readers._folders import labelled_images

FIRST_MRI = 500
LIVER = "6"
_PARTS = {"Tr": "train", "Va": "valid", "Ts": "test"}


def read(root: Path, *, notify: Notify = warn) -> Cohort:
    """Read the MRI scans (ids from 500 on) of AMOS22.

    Args:
        root: The folder with ``imagesTr``, ``labelsTr`` and so on, or one above it.
        notify: Called with the number of CT scans left out, and with images without a mask.

    Returns:
        One row a scan, sequence ``MR`` (the data set does not tell its sequences apart).

    Raises:
        InputError: There is no MRI scan, a file's name holds no id, a mask has no image, or two
            folders could be the same one and differ.
    """
    root = existing_folder(root, "AMOS22")
    found = labelled_images(root, _PARTS, _case, lambda text: None)
    scans = [entry for entry in found if int(entry.case) >= FIRST_MRI]
    skipped = len(found) - len(scans)
    if not scans:
        raise InputError(f"{root}: {skipped} CT scans and no MRI (ids from {FIRST_MRI} on); unpack the whole of AMOS22")
    if skipped:
        notify(f"{root}: {skipped} CT scans (ids below {FIRST_MRI}) are left out")
    bare = [entry.case for entry in scans if entry.mask is None]
    if bare:
        notify(f"{root}: {len(bare)} MRI scans have no mask: {listed(bare, len(bare))}")
    rows = [
        {
            "scan_id": f"amos_{entry.case}",
            "patient_id": f"amos_{entry.case}",
            "sequence": "MR",
            "image": str(entry.image),
            "mask": None if entry.mask is None else str(entry.mask),
            "mask_labels": None if entry.mask is None else LIVER,
            "source": "amos22",
            "official_split": entry.split,
        }
        for entry in scans
    ]
    return cohort_of(rows, root, str(root))


def _case(stem: str) -> str | None:
    """The case's number in four digits: ``0507`` for ``amos_0507``."""
    found = re.fullmatch(r"(?:amos_)?(\d+)", stem, re.IGNORECASE)
    return None if found is None else f"{int(found[1]):04d}"
