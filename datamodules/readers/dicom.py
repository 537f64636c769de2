"""Folders of DICOM files: every MR volume becomes a NIfTI file and a row.

pydicom reads headers and pixels (SimpleITK unpacks what pydicom cannot); sorting, geometry and the
refusal of holes are in :mod:`datamodules.readers._dicom_series`, the naming of sequences in
:mod:`datamodules.readers._dicom_sequence`. From a header, only PatientID reaches any output (as the
patient's id), beside numbers of geometry, the series number and the b-value. Study dates only number
the visits. PatientID is copied as it is: pseudonymise the files first where it names a person.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from datamodules.cohort import Cohort
from datamodules.errors import InputError
from datamodules.readers._common import Notify, Row, cohort_of, existing_folder, files_below, listed, warn
from datamodules.readers._dicom_convert import Volume, convert_all
from datamodules.readers._dicom_header import Slice, is_dicom, read_slices
from datamodules.readers._dicom_sequence import reason_to_skip, sequence_of
from datamodules.readers._dicom_series import geometry, stacks

ORIENTATIONS = ("axial", "coronal", "sagittal")


def read(
    root: Path,
    nifti_dir: Path,
    *,
    source: str,
    sequence: str | None = None,
    select: str | None = None,
    exclude: str | None = None,
    orientation: str | None = None,
    min_slices: int = 3,
    notify: Notify = warn,
) -> Cohort:
    """Convert every MR volume below a folder to NIfTI, and list them as a cohort.

    A volume is a SeriesInstanceUID, one orientation, one b-value and one kind of image. Spacing
    comes from ImagePositionPatient. A volume that was converted before is not converted again
    unless its files changed.

    Args:
        root: Folder with DICOM files in any arrangement.
        nifti_dir: Folder for ``<scan_id>.nii.gz`` and the record ``conversion.json``.
        source: Cohort, site or vendor, for every row.
        sequence: Sequence of every series that is taken; by default by rules from each header.
        select: Take only series whose description matches this regular expression (no matter the case).
        exclude: Leave out series whose ``PatientID/series number/description`` matches it: so a damaged
            series of one patient can be named.
        orientation: Take only ``axial``, ``coronal`` or ``sagittal`` volumes.
        min_slices: Fewer slices make no volume.
        notify: Called with one line for each series or file that is left out, with the reason.

    Returns:
        The cohort; ``x_series_number``, ``x_b_value`` (s/mm²) and ``x_orientation`` say where a row
        comes from. One patient's studies are visits 1, 2, … by date; the dates are not kept.

    Raises:
        InputError: A slice is missing (its position is named in mm), geometries are mixed, a file
            cannot be read, a PatientID is empty, or nothing is left: all faults found together.
    """
    root = existing_folder(root, "DICOM files")
    chosen, excluded = _expression(select, "--select"), _expression(exclude, "--exclude")
    if orientation not in (None, *ORIENTATIONS):
        raise InputError(f"--orientation {orientation}: unknown; choose {', '.join(ORIENTATIONS)}")
    faults: list[str] = []
    slices = read_folder(root, notify, faults)
    volumes: list[Volume] = []
    skipped = 0
    visits = _visits(slices)
    for series in _by_series(slices):
        for number, stack in enumerate(parts := stacks_of(series), start=1):
            name = series_name(stack[0], root, f", volume {number} of {len(parts)}" if len(parts) > 1 else "")
            text = stack[0].description
            reason = reason_to_skip(stack, min_slices)
            if reason is None and chosen is not None and not chosen.search(text):
                reason = f"--select {select!r} does not match its description"
            if reason is None and excluded is not None and excluded.search(_address(stack[0])):
                reason = f"--exclude {exclude!r} matches {_address(stack[0])!r}"
            own = sequence_of(stack, diffusion=any(item.b_value for item in series))
            if reason is None and sequence is None and own is None:
                reason = "no rule knows its sequence; give --sequence NAME with --select"
            if reason is not None:
                notify(f"{name}: left out: {reason}")
                skipped += 1
                continue
            if not stack[0].patient_id:
                faults.append(f"{name}: PatientID is empty; every series needs a patient, so give each one an id")
                continue
            try:
                grid = geometry(stack, name)
            except InputError as error:
                faults += error.faults
                continue
            if orientation not in (None, grid.orientation):
                notify(f"{name}: left out: {grid.orientation}, not {orientation}")
                skipped += 1
                continue
            taken = _sequence_name(sequence, own, stack[0], len({item.b_value for item in series}) > 1, name, notify)
            _note_ends(stack, name, notify)
            volumes.append(Volume(stack, grid, name, taken, visits[stack[0].patient_id, stack[0].study_uid]))
    faults += _shorter_siblings(volumes)
    _note_namesakes(volumes, notify)
    if not volumes and not faults:
        raise InputError(f"{root}: no MR volume found ({skipped} series left out, see the notices); check --select")
    if faults:
        raise InputError(*faults)
    rows = [_row(volume, scan_id, source) for volume, scan_id in zip(volumes, _scan_ids(volumes), strict=True)]
    convert_all([(row["scan_id"], volume) for row, volume in zip(rows, volumes, strict=True)], root, nifti_dir)
    for row in rows:
        row["image"] = str(Path(nifti_dir).absolute() / f"{row['scan_id']}.nii.gz")
    return cohort_of(rows, root, str(root))


def read_folder(root: Path, notify: Notify, faults: list[str]) -> list[Slice]:
    """The images of all DICOM files below a folder; faults are added to ``faults``, others notified."""
    slices: list[Slice] = []
    other: list[str] = []
    empty: list[str] = []
    copies: list[str] = []
    seen: set[tuple[str, int | None]] = set()
    for name in files_below(root):
        path = root / name
        if not is_dicom(path):
            other.append(name)
            continue
        try:
            found = read_slices(path)
        except InputError as error:
            faults += error.faults
            continue
        if not found:
            empty.append(name)
        for item in found:
            if item.sop_uid and (item.sop_uid, item.frame) in seen:
                copies.append(name)
                continue
            seen.add((item.sop_uid, item.frame))
            slices.append(item)
    for what, names in (
        ("is no DICOM file", other),
        ("is DICOM without an image", empty),
        ("is a second copy of an image (same SOPInstanceUID)", copies),
    ):
        if names:
            notify(f"{root}: left out {len(names)} file{'s' * (len(names) > 1)} that {what}: {listed(names, 3)}")
    return slices


def stacks_of(series: Sequence[Slice]) -> list[list[Slice]]:
    """The volumes of one series; images without a place stay together, to be reported."""
    placed = [item for item in series if item.placed]
    lost = [item for item in series if not item.placed]
    return [*stacks(placed), *([lost] if lost else [])]


def series_name(first: Slice, root: Path, suffix: str = "") -> str:
    """What messages call a series: folder, number and description."""
    folder = first.path.parent
    return f"{folder if folder != root else first.path}: series {first.series_number} {first.description!r}{suffix}"


def _by_series(slices: Iterable[Slice]) -> list[list[Slice]]:
    found: dict[tuple[str, str, str], list[Slice]] = {}
    for item in slices:
        found.setdefault((item.patient_id, item.study_uid, item.series_uid), []).append(item)
    return sorted(found.values(), key=lambda items: (items[0].patient_id, items[0].study_time,
                                                     items[0].series_number or 0, str(items[0].path)))  # fmt: skip


def _visits(slices: Iterable[Slice]) -> dict[tuple[str, str], int]:
    """The number of each patient's study, by date and time."""
    times: dict[str, dict[str, str]] = {}
    for item in slices:
        studies = times.setdefault(item.patient_id, {})
        studies[item.study_uid] = min(studies.get(item.study_uid, item.study_time), item.study_time)
    return {
        (patient, study): number
        for patient, studies in times.items()
        for number, study in enumerate(sorted(studies, key=lambda uid: (studies[uid], uid)), start=1)
    }


def _expression(text: str | None, option: str) -> re.Pattern[str] | None:
    try:
        return None if text is None else re.compile(text, re.IGNORECASE)
    except re.error as error:
        raise InputError(f"{option} {text!r}: not a regular expression ({error}); correct it") from error


def _sequence_name(asked: str | None, own: str | None, first: Slice, several_b: bool, name: str, notify: Notify) -> str:
    if asked is None:
        assert own is not None
        return own
    if own is not None and own != asked:
        notify(f"{name}: its header says {own}; taken as {asked}, as asked")
    return f"{asked}_b{first.b_value:g}" if several_b and first.b_value is not None else asked


def _note_ends(stack: Sequence[Slice], name: str, notify: Notify) -> None:
    """A hole shows in the positions, a lost first or last slice only in the instance numbers."""
    numbers = sorted({item.instance for item in stack if item.instance is not None and item.frame is None})
    if len(numbers) == len(stack) and numbers[-1] - numbers[0] == len(stack) - 1 and 1 < numbers[0] <= 3:
        notify(f"{name}: instance numbers begin at {numbers[0]}: perhaps the first slices are missing; check")


def _shorter_siblings(volumes: Sequence[Volume]) -> list[str]:
    """A lost first or last slice leaves no hole, but it shows beside the other b-values of the series."""
    groups: dict[tuple[str, str, str], list[Volume]] = {}
    for volume in volumes:
        first = volume.slices[0]
        groups.setdefault((first.patient_id, first.series_uid, volume.grid.orientation), []).append(volume)
    faults = []
    for members in groups.values():
        longest = max(members, key=lambda member: len(member.slices))
        for member in members:
            lost = len(longest.slices) - len(member.slices)
            if lost and abs(member.grid.spacing[2] - longest.grid.spacing[2]) < 0.01:
                faults.append(
                    f"{member.name}: {lost} {'slice is' if lost == 1 else 'slices are'} missing at its end: it has "
                    f"{len(member.slices)}, {longest.sequence} of the same series {len(longest.slices)}; fetch the "
                    "missing images, or leave the series out (--exclude)"
                )
    return faults


def _note_namesakes(volumes: Sequence[Volume], notify: Notify) -> None:
    """Volumes of one series with one name are echoes, time points or directions; the user must choose."""
    groups: dict[tuple[str, str, str, str], list[Volume]] = {}
    for volume in volumes:
        first = volume.slices[0]
        groups.setdefault((first.patient_id, first.series_uid, volume.sequence, volume.grid.orientation), []).append(
            volume
        )
    for (_, _, sequence, _), members in groups.items():
        values = [dict(member.slices[0].discriminators) for member in members]
        differing = [name for name in values[0] if len({found[name] for found in values}) > 1]
        if len(members) > 1:
            notify(
                f"{members[0].name}: {len(members)} volumes of this series are all called {sequence}; they differ in "
                f"{', '.join(differing) or 'kind of image'}; keep the right ones in the table"
            )


def _address(first: Slice) -> str:
    return f"{first.patient_id}/{first.series_number}/{first.description}"


def slug(text: str) -> str:
    """Text as part of a file name; what had to change gets a hash, so that no two become one."""
    safe = re.sub(r"[^A-Za-z0-9.-]+", "-", text).strip(".-")[:40]
    return safe if safe == text else f"{safe}-{hashlib.sha256(text.encode()).hexdigest()[:6]}".lstrip("-")


def _scan_ids(volumes: Sequence[Volume]) -> list[str]:
    ids: list[str] = []
    counts: dict[str, int] = {}
    for volume in volumes:
        first = volume.slices[0]
        number = f"s{first.series_number or 0:03d}"
        base = f"{slug(first.patient_id)}_v{volume.visit}_{number}_{slug(volume.sequence.replace('_', '-'))}"
        counts[base] = counts.get(base, 0) + 1
        ids.append(base if counts[base] == 1 else f"{base}_{counts[base]}")
    return ids


def _row(volume: Volume, scan_id: str, source: str) -> Row:
    first = volume.slices[0]
    return {
        "scan_id": scan_id,
        "patient_id": first.patient_id,
        "sequence": volume.sequence,
        "source": source,
        "visit": str(volume.visit),
        "x_series_number": str(first.series_number if first.series_number is not None else ""),
        "x_b_value": f"{first.b_value:g}" if first.b_value is not None and volume.sequence != "ADC" else "",
        "x_orientation": volume.grid.orientation,
    }
