"""The metadata CSVs of CirrMRI600+: age, sex and radiological evaluation, from up to five files."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from datamodules.errors import InputError
from datamodules.readers._common import Notify, Row, listed, natural_key, read_rows

_ENDING = "age_gender_evaluation.csv"
_HEALTHY = "healthy_demographics.csv"
_SEX = {"1": "F", "2": "M", "F": "F", "M": "M"}
_STAGE = {"1": 1, "2": 2, "3": 3}


def canonical_id(text: str) -> str:
    """A patient's number as the data set writes it: ``47`` for ``47.0`` and ``047`` too."""
    whole = text.strip().removesuffix(".0")
    return str(int(whole)) if whole.isascii() and whole.isdecimal() else text.strip()


@dataclasses.dataclass(frozen=True)
class _Entry:
    """One row of one file."""

    patient: str
    values: Mapping[str, object]


class Metadata:
    """What the files say of each patient.

    Args:
        files: The entries of each file, in the order of trust.
    """

    def __init__(self, files: Mapping[Path, list[_Entry]]) -> None:
        self._files = {path: {entry.patient: entry.values for entry in entries} for path, entries in files.items()}

    def values(self, patient: str, sequence: str) -> dict[str, object]:
        """Age, sex and stage of a patient for the scan of one sequence: the sequence's own file comes first."""
        own = f"{sequence[:2]}_{_ENDING}"
        order = sorted(self._files, key=lambda path: path.name != own)
        found: dict[str, object] = {}
        for path in order:
            for name, value in self._files[path].get(patient, {}).items():
                if value is not None:
                    found.setdefault(name, value)
        return found

    def patients_of(self, name: str) -> set[str] | None:
        """Patients in the file of a name (case does not matter), or None where there is no such file."""
        found = [entries for path, entries in self._files.items() if path.name.lower() == name]
        return {patient for entries in found for patient in entries} if found else None

    def report_missing(self, rows: Iterable[Row], root: Path, notify: Notify) -> None:
        """Name the scans that have no metadata, and the metadata that has no scan."""
        rows = list(rows)
        known = {patient for entries in self._files.values() for patient in entries}
        if not known:
            notify(f"{root}: no metadata CSV (…{_ENDING}) was found: stage, age and sex are empty")
            return
        bare = sorted((row["scan_id"] for row in rows if row["patient_id"] not in known), key=natural_key)
        if bare:
            notify(f"{root}: {len(bare)} scans have no row in the metadata: {listed(bare, len(bare))}")
        for path, entries in self._files.items():
            sequence = {f"T1_{_ENDING}": "T1W", f"T2_{_ENDING}": "T2W"}.get(path.name)
            there = {row["patient_id"] for row in rows if sequence in (None, row["sequence"])}
            unused = sorted(set(entries) - there, key=natural_key)
            if unused:
                notify(
                    f"{path}: {len(unused)} rows have no {sequence or 'T1W or T2W'} scan: {listed(unused, len(unused))}"
                )


def read_metadata(paths: Iterable[Path], root: Path, notify: Notify) -> Metadata:
    """Read every metadata CSV among the given files.

    The same file may be in the root and in ``Metadata/``, if both copies say the same.

    Args:
        paths: All CSV files of the data set; others than its metadata are ignored.
        root: The data set, for notices.
        notify: Called with the patients on whom the files disagree.

    Raises:
        InputError: A file cannot be read, a value has no meaning, one file says two things of one
            patient, or two copies of a file differ (both are named).
    """
    files: dict[Path, list[_Entry]] = {}
    copies: dict[str, Path] = {}
    faults: list[str] = []
    for path in sorted(paths, key=lambda path: (len(path.parts), str(path))):
        name = path.name.lower()
        if not name.endswith((_ENDING, _HEALTHY)):
            continue
        try:
            entries = _healthy_entries(path) if name.endswith(_HEALTHY) else _patient_entries(path)
        except InputError as error:
            faults += error.faults
            continue
        first = copies.setdefault(name, path)
        if first is path:
            files[path] = entries
        elif files.get(first) != entries:
            faults.append(f"{first} and {path} are two copies of one file and differ; keep only one of them")
    if faults:
        raise InputError(*faults)
    _report_disagreements(files, root, notify)
    return Metadata(files)


def _patient_entries(path: Path) -> list[_Entry]:
    return _entries(path, "Patient ID", {"Age": _age, "Gender": _sex, "Radiological Evaluation": _stage}, "")


def _healthy_entries(path: Path) -> list[_Entry]:
    return _entries(path, "ID", {"Age": _age, "Gender": _sex}, "H")


def _entries(path: Path, key: str, columns: Mapping[str, Callable[[str], object]], prefix: str) -> list[_Entry]:
    """The rows of one file; rows that repeat another are left out."""
    names = {"Age": "age", "Gender": "sex", "Radiological Evaluation": "stage"}
    entries: dict[str, _Entry] = {}
    faults = []
    for number, row in enumerate(read_rows(path, (key, *columns)), start=1):
        if not row[key]:
            faults.append(f"{path}: row {number}: {key} is empty; fill it in or remove the row")
            continue
        values: dict[str, object] = {}
        for column, parse in columns.items():
            try:
                values[names[column]] = parse(row[column].removesuffix(".0")) if row[column] else None
            except (KeyError, ValueError):
                faults.append(f"{path}: row {number}: {column} {row[column]!r} has no meaning here; correct it")
        patient = prefix + canonical_id(row[key])
        entry = _Entry(patient, values)
        if entries.setdefault(patient, entry) != entry:
            faults.append(f"{path}: row {number}: {key} {row[key]} occurs twice with different values; keep one row")
    if faults:
        raise InputError(*faults)
    return list(entries.values())


def _age(text: str) -> float:
    return float(text)


def _sex(text: str) -> str:
    return _SEX[text.upper()]


def _stage(text: str) -> int:
    return _STAGE[text]


def _report_disagreements(files: Mapping[Path, list[_Entry]], root: Path, notify: Notify) -> None:
    """Name the patients of whom two files say different things."""
    said: dict[tuple[str, str], dict[object, list[str]]] = {}
    for path, entries in files.items():
        for entry in entries:
            for name, value in entry.values.items():
                if value is not None:
                    said.setdefault((entry.patient, name), {}).setdefault(value, []).append(path.name)
    for (patient, name), values in sorted(said.items(), key=lambda item: (natural_key(item[0][0]), item[0][1])):
        if len(values) > 1:
            versions = "; ".join(f"{value} in {', '.join(sorted(places))}" for value, places in values.items())
            notify(
                f"{root}: patient {patient}: the metadata disagree on {name}: {versions}; "
                "the sequence's own file was taken where there is one"
            )
