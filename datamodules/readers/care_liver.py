"""CARE-Liver / LiFS 2025 (LiQA): fibrosis S1–S4 by histology, several contrast phases a patient."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from datamodules.cohort import Cohort
from datamodules.errors import InputError
from datamodules.readers._common import (
    Notify,
    Row,
    cohort_of,
    existing_folder,
    files_below,
    listed,
    nifti_stem,
    niftis_in,
    warn,
)
from datamodules.readers._folders import agreed_folder

PHASES = {
    "T1": "T1W",
    "T2": "T2W",
    "DWI_800": "DWI",
    "GED1": "GED1",
    "GED2": "GED2",
    "GED3": "GED3",
    "GED4": "GED4",
}
"""File name without its ending -> sequence of the cohort table."""
REQUIRED_PHASE = "GED4"

# without its stage, the name of an unlabelled case of the validation and test phases
_CASE = re.compile(r"(?P<id>.+?)-(?P<vendor>A|B1|B2)(?:-S(?P<stage>[1-4]))?")
_VENDOR = re.compile(r"Vendor_(.+)", re.IGNORECASE)


def read(root: Path, *, notify: Notify = warn) -> Cohort:
    """Read the data of CARE-Liver.

    The histological stage S1–S4 of the case folder's name becomes ``metavir`` 1–4 (empty where the
    name has none, as in the validation phase), the vendor becomes ``source``. Phases of one patient
    are not registered to each other. Every phase but GED4 may be missing.

    Args:
        root: ``LiQA_training_data``, a folder above it, one ``Vendor_*`` folder or one case.
        notify: Called with each notice: images without a mask, files that are no phase.

    Returns:
        One row a phase: scan ``1001-A_GED4`` of patient ``1001-A``, source ``A``.

    Raises:
        InputError: No case is found, a case has no GED4, a folder's name is not understood, a
            patient has two stages, or two folders could be the same case and differ: all together.
    """
    root = existing_folder(root, "LiQA_training_data")
    paths = files_below(root)
    folders, faults = _cases(root, paths)
    rows: list[Row] = []
    bare: list[str] = []
    stages: dict[str, tuple[int | None, Path]] = {}
    for name in sorted(folders):
        try:
            folder = agreed_folder(folders[name], f"case {name}")
            files = niftis_in(folder)
        except InputError as error:
            faults += error.faults
            continue
        case = _CASE.fullmatch(name)
        if case is None:  # _cases let only such names through
            raise AssertionError(name)
        patient = f"{case['id']}-{case['vendor']}"
        stage = None if case["stage"] is None else int(case["stage"])
        other_stage, other = stages.setdefault(patient, (stage, folder))
        if other_stage != stage:
            faults.append(f"{other} and {folder} give patient {patient} two stages; keep the right one")
        faults += _case_faults(folder, set(files))
        strangers = [stem for stem in files if stem.removeprefix("mask_") not in PHASES]
        if strangers:
            notify(f"{folder}: no phase of CARE-Liver, left out: {listed(files[stem].name for stem in strangers)}")
        for phase, sequence in PHASES.items():
            if phase not in files:
                continue
            mask = files.get(f"mask_{phase}")
            scan_id = f"{patient}_{sequence}"
            if mask is None and phase == REQUIRED_PHASE:
                bare.append(scan_id)
            rows.append(
                {
                    "scan_id": scan_id,
                    "patient_id": patient,
                    "sequence": sequence,
                    "image": str(files[phase]),
                    "mask": None if mask is None else str(mask),
                    "mask_labels": None if mask is None else "1",
                    "source": case["vendor"],
                    "metavir": stage,
                }
            )
    if faults:
        raise InputError(*faults)
    if bare:
        notify(f"{root}: {len(bare)} GED4 scans have no mask (only a few have one): {listed(bare, len(bare))}")
    return cohort_of(rows, root, str(root))


def _cases(root: Path, paths: Iterable[str]) -> tuple[dict[str, set[Path]], list[str]]:
    """The case folders by name, and the faults of folders' names."""
    folders: dict[str, set[Path]] = {}
    faults: list[str] = []
    holding = dict.fromkeys((root / path).parent for path in paths if nifti_stem(Path(path).name) is not None)
    for folder in holding:
        case = _CASE.fullmatch(folder.name)
        if case is None:
            faults.append(f"{folder}: is not named like a case, such as 1001-A-S4; rename or remove the folder")
            continue
        vendor = _VENDOR.fullmatch(folder.parent.name)
        if vendor and vendor[1] != case["vendor"]:
            faults.append(f"{folder}: the vendor {case['vendor']} stands in {folder.parent.name}; move the folder")
            continue
        folders.setdefault(folder.name, set()).add(folder)
    if not holding:
        there = listed(list(paths)[:5]) or "none"
        raise InputError(
            f"{root}: no case such as Vendor_A/1001-A-S4/GED4.nii.gz was found; the first files there are {there}"
        )
    return folders, faults


def _case_faults(folder: Path, stems: set[str]) -> list[str]:
    """What is missing in one case."""
    faults = []
    if REQUIRED_PHASE not in stems:
        faults.append(f"{folder}: {REQUIRED_PHASE}.nii.gz is missing; every case has it, so unpack the archive again")
    faults += [
        f"{folder}: mask_{phase} has no image {phase}.nii.gz; add the image or remove the mask"
        for phase in PHASES
        if phase != REQUIRED_PHASE and f"mask_{phase}" in stems and phase not in stems
    ]
    return faults
