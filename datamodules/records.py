"""The prediction record: one row per patient or scan, left behind by every ``test``; all that comparison reads."""

from __future__ import annotations

import difflib
import re
from pathlib import Path

import numpy as np
import pandas as pd

from datamodules.errors import InputError
from datamodules.files import atomic_path

TEXT_COLUMNS = (
    "patient_id", "scan_id", "source", "sequence", "study", "arm", "part", "split_sha256", "mask_source", "role", "sex",
)  # fmt: skip
INTEGER_COLUMNS = ("seed", "fold", "target", "quality")
NUMBER_COLUMNS = (
    "prob", "logit", "threshold", "mask_dice", "dice", "iou", "hd95_mm", "assd_mm", "nsd", "volume_ml",
    "reference_volume_ml", "age",
)  # fmt: skip
RECORD_COLUMNS = (
    "patient_id", "scan_id", "source", "sequence", "study", "arm", "seed", "fold", "part", "split_sha256",
    "target", "prob", "logit", "threshold", "mask_source", "quality", "mask_dice",
    "dice", "iou", "hd95_mm", "assd_mm", "nsd", "volume_ml", "reference_volume_ml",
    "role", "sex", "age",
)  # fmt: skip
"""Known columns, in the order written. Several classes have ``prob_0 … prob_k`` (and ``logit_0 … logit_k``) in place
of ``prob`` and ``logit``. ``mask_dice`` is the Dice of the scan's predicted mask, whose band ``quality`` is (``dice``
belongs to rows of a segmenter). ``role`` is ``probe`` for an arm that should fail where there is no shortcut."""
REQUIRED_COLUMNS = ("patient_id", "arm", "seed", "fold", "part", "split_sha256")
EXTRA_PREFIX = "x_"
"""Columns that begin so are the user's own: carried along, never validated."""
PARTS = ("train", "valid", "test")
_CLASS_COLUMN = re.compile(r"(prob|logit)_(\d+)")
_SUM_TOLERANCE = 1e-3  # half precision leaves about 1e-3 on a softmax
_SHOWN = 5


def read_records(path: str | Path) -> pd.DataFrame:
    """Read a prediction record from ``.parquet`` or ``.csv`` and check it.

    Args:
        path: A file as ``write_records`` makes it, or a table with the same columns.

    Returns:
        Rows in the file's order; the columns of ``RECORD_COLUMNS`` that the file has, then class columns in order,
        then the user's own ``x_`` columns. Text is ``string``, whole numbers ``Int64`` (``<NA>`` where empty),
        measurements ``float64`` (NaN where empty; mm, ml, probabilities in [0, 1]).

    Raises:
        InputError: The file is missing, unreadable, of another kind, or breaks the schema: all faults together.
    """
    path = Path(path)
    return validated(read_table(path), str(path))


def read_table(path: Path) -> pd.DataFrame:
    """Read a ``.parquet`` or ``.csv`` file as it is, with CSV values left as text.

    Raises:
        InputError: The file is missing, unreadable or of another kind.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such prediction record; run 'hepastage test' to make one")
    if path.suffix not in (".parquet", ".csv"):
        raise InputError(f"{path}: a prediction record ends in .parquet or .csv, not {path.suffix or 'nothing'}")
    try:
        if path.suffix == ".parquet":
            return pd.read_parquet(path)
        # utf-8-sig: spreadsheets write a byte order mark
        return pd.read_csv(path, dtype=str, encoding="utf-8-sig", keep_default_na=False)
    except Exception as error:  # pandas and pyarrow raise many kinds for a broken file
        raise InputError(f"{path}: cannot be read as a table ({error}); write it again") from error


def write_records(frame: pd.DataFrame, path: str | Path) -> None:
    """Check a prediction record and write it as ``.parquet`` or ``.csv``, whole or not at all.

    Args:
        frame: Columns from ``RECORD_COLUMNS``, class columns and ``x_`` columns, in any order.
        path: The file to write; its folder is made.

    Raises:
        InputError: The rows break the schema, or the file cannot be written.
    """
    path = Path(path)
    if path.suffix not in (".parquet", ".csv"):
        raise InputError(f"{path}: a prediction record ends in .parquet or .csv; rename it")
    table = validated(frame, str(path))
    with atomic_path(path) as temporary:
        if path.suffix == ".parquet":
            table.to_parquet(temporary, index=False)
        else:
            table.to_csv(temporary, index=False)


def class_columns(frame: pd.DataFrame, kind: str = "prob") -> list[str]:
    """The columns ``prob_0 … prob_k`` (or ``logit_0 … logit_k``) of a record, by class."""
    found = [str(column) for column in frame.columns if re.fullmatch(rf"{kind}_\d+", str(column))]
    return sorted(found, key=lambda column: int(column.rsplit("_", 1)[1]))


def validated(frame: pd.DataFrame, name: str) -> pd.DataFrame:
    """Check rows against the schema and bring them to canonical columns and types.

    Args:
        frame: The table as made or read; values may be text.
        name: What errors call the table.

    Returns:
        A new frame, as ``read_records`` describes it.

    Raises:
        InputError: All faults together, naming columns and rows (counted from 1, the header not counted).
    """
    faults = _column_faults(frame, name)
    if faults:
        raise InputError(*faults)
    classes = [*class_columns(frame), *class_columns(frame, "logit")]
    extras = sorted(str(column) for column in frame.columns if str(column).startswith(EXTRA_PREFIX))
    known = [column for column in RECORD_COLUMNS if column in frame.columns]
    columns = {}
    for column in [*known, *classes]:
        columns[column], bad = _typed(column, frame[column].reset_index(drop=True))
        faults += [f"{name}: row {row + 1}: {column} {value!r} is not {kind}; correct it" for row, value, kind in bad]
    columns.update({column: frame[column].reset_index(drop=True) for column in extras})
    table = pd.DataFrame(columns)
    if not faults:
        faults = [*_value_faults(table, name), *_double_faults(table, name)]
    if faults:
        raise InputError(*faults)
    return table


def _column_faults(frame: pd.DataFrame, name: str) -> list[str]:
    faults = []
    columns = [str(column) for column in frame.columns]
    for column in columns:
        if column in RECORD_COLUMNS or column.startswith(EXTRA_PREFIX) or _CLASS_COLUMN.fullmatch(column):
            continue
        near = difflib.get_close_matches(column, RECORD_COLUMNS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else "your own columns begin with 'x_'"
        faults.append(f"{name}: unknown column {column!r}; {hint}")
    faults += [
        f"{name}: the column {column!r} is missing; every prediction needs one"
        for column in REQUIRED_COLUMNS
        if column not in columns
    ]
    classes = class_columns(frame)
    if classes and classes != [f"prob_{index}" for index in range(max(2, len(classes)))]:
        faults.append(f"{name}: {', '.join(classes)} are not prob_0 to prob_k without a gap; name the missing ones")
    if "prob" in columns and classes:
        faults.append(f"{name}: both prob and prob_0 are present; keep prob for two classes, prob_0 … for more")
    if "prob" not in columns and not classes and "dice" not in columns:
        faults.append(f"{name}: neither prob, prob_0 … nor dice is present; nothing was predicted")
    if ("prob" in columns or classes) and "target" not in columns:
        faults.append(f"{name}: the column 'target' is missing; probabilities cannot be judged without it")
    if frame.empty and not faults:
        faults.append(f"{name}: no rows; test the run again")
    return faults


def _typed(column: str, values: pd.Series) -> tuple[pd.Series, list[tuple[int, object, str]]]:
    """A column in its type, and (row, value, expected kind) of what does not fit."""
    if column in TEXT_COLUMNS:
        text = values.astype("string").str.strip()
        return text.mask(text == "", pd.NA), []
    if pd.api.types.is_numeric_dtype(values):  # the usual case, a Parquet file: nothing to parse
        numbers = values.astype("float64")
        wrong = pd.Series(False, index=values.index)
    else:
        blank = values.isna() | (values.astype("string").str.strip() == "").fillna(False)
        numbers = pd.to_numeric(values.where(~blank), errors="coerce").astype("float64")
        wrong = numbers.isna() & ~blank
    if column in INTEGER_COLUMNS:
        wrong |= numbers.notna() & (numbers != np.floor(numbers))
        kind = "a whole number"
    else:
        kind = "a number"
    bad: list[tuple[int, object, str]] = [(int(row), values.iloc[int(row)], kind) for row in np.flatnonzero(wrong)]
    if column in INTEGER_COLUMNS:
        return numbers.where(~wrong).astype("Int64"), bad
    return numbers, bad


def _rows(table: pd.DataFrame, wrong: pd.Series) -> str:
    """Rows and patients in words: ``rows 3, 4 (patients A, B) and 7 more``."""
    rows = np.flatnonzero(wrong.fillna(False).to_numpy(dtype=bool))
    shown = ", ".join(str(row + 1) for row in rows[:_SHOWN])
    who = ", ".join(str(value) for value in table["patient_id"].iloc[rows[:_SHOWN]])
    more = f" and {len(rows) - _SHOWN} more" if len(rows) > _SHOWN else ""
    return f"row{'s' if len(rows) > 1 else ''} {shown} (patient {who}){more}"


def _value_faults(table: pd.DataFrame, name: str) -> list[str]:
    checks: list[tuple[pd.Series, str]] = [
        (table[column].isna(), f"{column} is empty; every prediction needs one") for column in REQUIRED_COLUMNS
    ]
    checks.append((~table["part"].isin(PARTS) & table["part"].notna(), "part is not train, valid or test; correct it"))
    probabilities = ["prob"] if "prob" in table else class_columns(table)
    predicted = pd.Series(False, index=table.index)
    if probabilities:
        # segmentation rows may stand beside classification rows in one file
        predicted = ~table["dice"].notna() if "dice" in table else ~predicted
        for column in probabilities:
            checks.append(
                (predicted & table[column].isna(), f"{column} is NaN or empty; find out why the model did so")
            )
            outside = (table[column] < 0) | (table[column] > 1)
            checks.append((outside, f"{column} is not between 0 and 1; give probabilities, not logits"))
        checks.append((predicted & table["target"].isna(), "target is empty; a patient without truth cannot be scored"))
        highest = max(1, len(probabilities) - 1)
        off = ((table["target"] < 0) | (table["target"] > highest)).fillna(False)
        checks.append((predicted & off, f"target is not a class from 0 to {highest}; correct it"))
        if len(probabilities) > 1:
            total = table[probabilities].sum(axis=1)
            checks.append((predicted & ((total - 1).abs() > _SUM_TOLERANCE), "probabilities do not sum to 1; correct"))
    elif "dice" in table:
        # a scan without a reference mask has a volume but nothing to be scored against
        scored = table["reference_volume_ml"].notna() if "reference_volume_ml" in table else ~predicted
        checks.append((table["dice"].isna() & scored, "dice is NaN or empty; score an empty mask by a stated rule"))
    shares = tuple((column, 0.0, 1.0) for column in ("mask_dice", "dice", "iou", "nsd"))
    for column, low, high in (*shares, ("quality", 1, 3), ("age", 0, 120)):
        if column in table:
            off = ((table[column] < low) | (table[column] > high)).fillna(False)
            checks.append((off, f"{column} is not between {low:g} and {high:g}; correct it"))
    for column in ("hd95_mm", "assd_mm", "volume_ml", "reference_volume_ml"):
        if column in table:
            checks.append((table[column] < 0, f"{column} is negative; correct it"))
    return [f"{name}: {_rows(table, wrong)}: {what}" for wrong, what in checks if wrong.fillna(False).any()]


def _double_faults(table: pd.DataFrame, name: str) -> list[str]:
    keys = [
        key for key in ("study", "arm", "seed", "fold", "part", "patient_id", "scan_id", "sequence") if key in table
    ]
    doubled = table.duplicated(keys, keep=False)
    if not doubled.any():
        return []
    return [f"{name}: {_rows(table, doubled)}: the same prediction stands there more than once; keep one"]
