"""Volumes found in DICOM, written once as NIfTI."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datamodules.errors import InputError
from datamodules.files import sha256_of_file, sha256_of_json, write_json
from datamodules.images import write_nifti
from datamodules.readers._dicom_header import Slice
from datamodules.readers._dicom_pixels import read_volume
from datamodules.readers._dicom_series import Geometry

RECORD = "conversion.json"
VERSION = 1


@dataclasses.dataclass(frozen=True)
class Volume:
    """One volume to convert.

    Attributes:
        slices: Its images, in any order.
        grid: Their order and geometry.
        name: What errors and notices call it.
        sequence: ``T1W``, ``T2W``, ``DWI_b800`` …
        visit: Number of the patient's study by date, from 1.
    """

    slices: Sequence[Slice]
    grid: Geometry
    name: str
    sequence: str
    visit: int


def convert_all(jobs: Sequence[tuple[str, Volume]], root: Path, nifti_dir: Path) -> None:
    """Write ``<scan_id>.nii.gz`` for each volume that is not there yet, and the record of all.

    Raises:
        InputError: Pixels cannot be read; faults of all volumes together, the good ones written.
    """
    from rich.progress import track

    nifti_dir = Path(nifti_dir)
    record = _load_record(nifti_dir / RECORD)
    faults: list[str] = []
    for scan_id, volume in track(jobs, description="DICOM to NIfTI", transient=True, disable=len(jobs) < 2):
        target = nifti_dir / f"{scan_id}.nii.gz"
        digest = _digest(volume, root)
        known = record.get(scan_id)
        if (
            known
            and known["slices_sha256"] == digest
            and target.is_file()
            and sha256_of_file(target) == known["sha256"]
        ):
            continue
        try:
            data = read_volume(volume.slices, volume.grid, volume.name)
        except InputError as error:
            faults += error.faults
            continue
        write_nifti(target, data, volume.grid.affine)
        record[scan_id] = {
            "slices_sha256": digest,
            "sha256": sha256_of_file(target),
            "slices": len(volume.slices),
            "spacing_mm": [round(value, 6) for value in volume.grid.spacing],
        }
        write_json(nifti_dir / RECORD, {"version": VERSION, "volumes": dict(sorted(record.items()))})
    if faults:
        raise InputError(*faults)


def _load_record(path: Path) -> dict[str, Any]:
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
        return dict(read["volumes"]) if read["version"] == VERSION else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}  # absent, or of an older version: everything is converted again


def _digest(volume: Volume, root: Path) -> str:
    """Changes when a file is added, removed, resized or touched; one way, so it names nobody."""
    files = []
    for item in volume.slices:
        about = item.path.stat()
        files.append([item.path.relative_to(root).as_posix(), item.frame, about.st_size, about.st_mtime_ns])
    return sha256_of_json([VERSION, sorted(files, key=str)])
