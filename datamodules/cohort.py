"""The cohort table: one validated row per scan."""

from __future__ import annotations

import dataclasses
import difflib
import os
from collections.abc import Hashable, Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

import pandas as pd

from datamodules.errors import InputError
from datamodules.files import atomic_path, sha256_of_json

TEXT_COLUMNS = (
    "scan_id",
    "patient_id",
    "sequence",
    "image",
    "mask",
    "mask_labels",
    "source",
    "visit",
    "sex",
    "official_split",
    "origin",
)
INTEGER_COLUMNS = ("stage", "metavir", "quality")
NUMBER_COLUMNS = ("lsm_kpa", "age")
FLAG_COLUMNS = ("healthy",)
REQUIRED_COLUMNS = ("scan_id", "patient_id", "sequence", "image", "source")
COLUMNS = (
    "scan_id", "patient_id", "sequence", "image", "mask", "mask_labels", "source", "visit",
    "stage", "lsm_kpa", "metavir", "healthy", "age", "sex", "official_split", "quality", "origin",
)  # fmt: skip
EXTRA_PREFIX = "x_"
"""Columns that begin so are the user's own (laboratory values, say): carried along, never validated."""


@dataclasses.dataclass(frozen=True, slots=True)
class Scan:
    """One row of the cohort table.

    Attributes:
        scan_id: Unique in the cohort; safe as a file name.
        patient_id: One person, across sequences, visits and sources.
        sequence: ``T1W``, ``T2W``, …
        image: NIfTI file, absolute.
        mask: Reference mask on the image's grid, absolute, or None.
        mask_labels: Values in the mask file that count as liver; empty where there is no mask.
        source: Cohort, site or vendor.
        visit: Free text, empty where unknown.
        stage: Radiological stage 1 (mild) to 3 (severe), or None.
        lsm_kpa: Liver stiffness in kPa, or None.
        metavir: Histological stage 0–4, or None.
        healthy: A healthy volunteer, or None where unknown.
        age: Years, or None.
        sex: ``F``, ``M``, or None.
        official_split: ``train``, ``valid``, ``test``, or None.
        quality: A reader's band of the liver's segmentation, 1 (poor) to 3 (good), or None.
        origin: The person from whom this patient was derived (semi-synthetic data), or None. All patients of one
            origin belong into one part of a split.
    """

    scan_id: str
    patient_id: str
    sequence: str
    image: Path
    mask: Path | None
    mask_labels: tuple[int, ...]
    source: str
    visit: str
    stage: int | None
    lsm_kpa: float | None
    metavir: int | None
    healthy: bool | None
    age: float | None
    sex: str | None
    official_split: str | None
    quality: int | None = None
    origin: str | None = None


class Cohort:
    """A validated cohort table and the folder that its paths are relative to.

    Args:
        frame: A table with columns from ``COLUMNS`` (missing optional ones are added as empty).
        root: The folder that relative image and mask paths start from.
        name: What errors call the table, usually its path.

    Raises:
        InputError: The table breaks the schema: all faults, one line each.
    """

    def __init__(self, frame: pd.DataFrame, root: Path, name: str = "cohort") -> None:
        self.root = Path(root).absolute()
        self.name = name
        self.frame = validated(frame, name)

    @classmethod
    def load(cls, path: str | Path) -> Cohort:
        """Read a cohort table from ``.parquet`` or ``.csv``.

        Raises:
            InputError: The file is missing, of another kind, unreadable, or breaks the schema.
        """
        path = Path(path)
        if not path.is_file():
            raise InputError(f"{path}: no such cohort table; make one with 'hepastage cohort …'")
        try:
            if path.suffix == ".parquet":
                frame = pd.read_parquet(path)
            elif path.suffix == ".csv":
                # utf-8-sig: spreadsheets write a byte order mark; everything is text until validated
                frame = pd.read_csv(path, dtype=str, encoding="utf-8-sig", keep_default_na=False)
            else:
                raise InputError(f"{path}: a cohort table ends in .parquet or .csv, not {path.suffix or 'nothing'}")
        except InputError:
            raise
        except Exception as error:  # pandas and pyarrow raise many kinds for a broken file
            raise InputError(f"{path}: cannot be read as a table ({error}); write it again") from error
        return cls(frame, path.parent, str(path))

    def save(self, path: str | Path) -> None:
        """Write the table as ``.parquet`` or ``.csv``, atomically, with paths relative to its folder."""
        path = Path(path).absolute()
        if path.suffix not in (".parquet", ".csv"):
            raise InputError(f"{path}: a cohort table ends in .parquet or .csv; rename --out")
        frame = self.frame.copy()
        for column in ("image", "mask"):
            frame[column] = pd.array([self._relative_to(value, path.parent) for value in frame[column]], dtype="string")
        with atomic_path(path) as temporary:
            if path.suffix == ".parquet":
                frame.to_parquet(temporary, index=False)
            else:
                frame.to_csv(temporary, index=False)

    def _relative_to(self, value: object, folder: Path) -> str | None:
        if not isinstance(value, str):
            return None
        return PurePosixPath(os.path.relpath(self.root / value, folder)).as_posix()

    @cached_property
    def sha256(self) -> str:
        """Hash of the table's content (64 hexadecimal digits).

        It depends neither on the order of rows nor on the file's format or place: images enter by
        scan id, not by path, so that moving a cohort does not make its splits invalid.
        """
        left_out = ["image", "mask"]
        # cohorts without these hash as they did before the columns were known
        left_out += [column for column in ("quality", "origin") if self.frame[column].isna().all()]
        columns = [column for column in self.frame.columns if column not in left_out]
        ordered = self.frame.sort_values("scan_id")
        rows = [
            [None if pd.isna(value) else value for value in row]
            for row in ordered[columns].astype(object).to_numpy().tolist()
        ]
        return sha256_of_json({"columns": columns, "rows": rows})

    def __len__(self) -> int:
        return len(self.frame)

    @cached_property
    def origins(self) -> Mapping[str, str]:
        """Of each derived patient the origin; empty for real patients alone."""
        rows = self.frame[["patient_id", "origin"]].dropna()
        return dict(zip(rows["patient_id"], rows["origin"], strict=True))

    @cached_property
    def patients(self) -> tuple[str, ...]:
        """All patient ids, sorted."""
        return tuple(sorted(self.frame["patient_id"].unique()))

    @cached_property
    def scans(self) -> tuple[Scan, ...]:
        """All rows, in the table's order."""
        return tuple(self._scan(row) for row in self.frame.to_dict("records"))

    def scan(self, scan_id: str) -> Scan:
        """The row of one scan.

        Raises:
            InputError: No such scan.
        """
        for scan in self.scans:
            if scan.scan_id == scan_id:
                return scan
        raise InputError(f"{self.name}: no scan {scan_id!r}")

    def select(self, *, sequences: Iterable[str] | None = None, patients: Iterable[str] | None = None) -> Cohort:
        """The rows of the given sequences and patients, as a cohort.

        Raises:
            InputError: A sequence or patient does not occur, or nothing is left.
        """
        frame = self.frame
        for column, wanted in (("sequence", sequences), ("patient_id", patients)):
            if wanted is None:
                continue
            values = set(wanted)
            unknown = sorted(values - set(self.frame[column]))
            if unknown:
                known = ", ".join(sorted(set(self.frame[column]))[:12])
                raise InputError(f"{self.name}: no {column} {', '.join(unknown)}; it has {known}")
            frame = frame[frame[column].isin(values)]
        if frame.empty:
            raise InputError(f"{self.name}: no scan is left after selecting sequences and patients")
        return Cohort(frame.reset_index(drop=True), self.root, self.name)

    def __iter__(self) -> Iterator[Scan]:
        return iter(self.scans)

    def _scan(self, row: Mapping[Hashable, Any]) -> Scan:
        values = {name: None if pd.isna(row[name]) else row[name] for name in COLUMNS}
        labels = str(values["mask_labels"] or "")
        return Scan(
            scan_id=str(values["scan_id"]),
            patient_id=str(values["patient_id"]),
            sequence=str(values["sequence"]),
            image=self.root / str(values["image"]),
            mask=None if values["mask"] is None else self.root / str(values["mask"]),
            mask_labels=tuple(int(part) for part in labels.split(",") if part),
            source=str(values["source"]),
            visit=str(values["visit"] or ""),
            stage=None if values["stage"] is None else int(str(values["stage"])),
            lsm_kpa=None if values["lsm_kpa"] is None else float(str(values["lsm_kpa"])),
            metavir=None if values["metavir"] is None else int(str(values["metavir"])),
            healthy=None if values["healthy"] is None else bool(values["healthy"]),
            age=None if values["age"] is None else float(str(values["age"])),
            sex=None if values["sex"] is None else str(values["sex"]),
            official_split=None if values["official_split"] is None else str(values["official_split"]),
            quality=None if values["quality"] is None else int(str(values["quality"])),
            origin=None if values["origin"] is None else str(values["origin"]),
        )


def validated(frame: pd.DataFrame, name: str) -> pd.DataFrame:
    """Check a table against the schema and bring it to canonical columns and types.

    Args:
        frame: The table as read, every value possibly text.
        name: What errors call the table.

    Returns:
        A new frame: ``COLUMNS`` in order, then the user's own ``x_`` columns; pandas' nullable types,
        a missing value is ``<NA>``.

    Raises:
        InputError: All faults together, each naming the column and, where there is one, the row
            (counted from 1, the header not counted).
    """
    # pandera takes a second to import, and most commands never validate a table
    from datamodules.cohort_schema import schema_faults

    faults = []
    for column in frame.columns:
        if column not in COLUMNS and not str(column).startswith(EXTRA_PREFIX):
            near = difflib.get_close_matches(str(column), COLUMNS, n=1)
            hint = f"did you mean {near[0]!r}?" if near else "your own columns begin with 'x_'"
            faults.append(f"{name}: unknown column {column!r}; {hint}")
    for column in REQUIRED_COLUMNS:
        if column not in frame.columns:
            faults.append(f"{name}: the column {column!r} is missing; every scan needs one")
    if frame.empty:
        raise InputError(*faults, f"{name}: the table has no rows; check the folder or pattern it was made from")
    extras = sorted(column for column in frame.columns if str(column).startswith(EXTRA_PREFIX))
    table = pd.DataFrame(index=range(len(frame)))
    for column in COLUMNS:
        values = frame[column].tolist() if column in frame.columns else [None] * len(frame)
        table[column], bad = _typed(column, values)
        faults += [
            f"{name}: row {row + 1}: {column} {value!r} is not {kind}; correct it or leave it empty"
            for row, value, kind in bad
        ]
    for column in extras:
        table[column] = frame[column].tolist()
    faults += schema_faults(table, name, absent=[column for column in REQUIRED_COLUMNS if column not in frame.columns])
    if faults:
        raise InputError(*faults)
    return table


def _typed(column: str, values: list[object]) -> tuple[pd.Series, list[tuple[int, object, str]]]:
    """One column in its type, and (row, value, expected kind) of what does not fit."""
    out: list[object] = []
    bad: list[tuple[int, object, str]] = []
    for row, value in enumerate(values):
        text = "" if value is None or value is pd.NA or value != value else str(value).strip()
        if text == "":
            out.append(None)
            continue
        try:
            out.append(_parsed(column, text))
        except ValueError:
            kind = (
                "a whole number"
                if column in INTEGER_COLUMNS
                else "true or false"
                if column in FLAG_COLUMNS
                else "a number"
            )
            bad.append((row, value, kind))
            out.append(None)
    dtype = (
        "Int64"
        if column in INTEGER_COLUMNS
        else "Float64"
        if column in NUMBER_COLUMNS
        else "boolean"
        if column in FLAG_COLUMNS
        else "string"
    )
    return pd.Series(out, dtype=dtype), bad


def _parsed(column: str, text: str) -> object:
    if column in INTEGER_COLUMNS:
        number = float(text)
        if number != int(number):
            raise ValueError(text)
        return int(number)
    if column in NUMBER_COLUMNS:
        return float(text)
    if column in FLAG_COLUMNS:
        flags = {
            "true": True,
            "1": True,
            "1.0": True,
            "yes": True,
            "false": False,
            "0": False,
            "0.0": False,
            "no": False,
        }
        if text.lower() not in flags:
            raise ValueError(text)
        return flags[text.lower()]
    return text
