"""What all readers share: listing files, notices, small tables, and the way from rows to a cohort."""

from __future__ import annotations

import csv
import io
import os
import re
import unicodedata
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from datamodules.cohort import Cohort
from datamodules.errors import InputError
from datamodules.readers._patterns import Pattern

NIFTI_ENDINGS = (".nii.gz", ".nii")
Notify = Callable[[str], None]
Row = dict[str, Any]


class ReaderNotice(UserWarning):
    """Something about a data set that does not stop its reader but that its user must know."""


def warn(text: str) -> None:
    """Say a notice as a Python warning: what readers do when the caller gives no other way."""
    warnings.warn(text, ReaderNotice, stacklevel=3)


def natural_key(text: str) -> list[tuple[int, int, str]]:
    """Sort key that puts ``2`` before ``10``."""
    # isdecimal and not isdigit: "²" is a digit that int() refuses
    return [
        (0, int(part), "") if part.isdecimal() else (1, 0, part.casefold()) for part in re.split(r"(\d+)", text) if part
    ]


def listed(values: Iterable[object], limit: int = 12) -> str:
    """Join values for a message: the first ``limit``, and how many more."""
    texts = [str(value) for value in values]
    more = f" and {len(texts) - limit} more" if len(texts) > limit else ""
    return ", ".join(texts[:limit]) + more


def existing_folder(root: Path, what: str) -> Path:
    """The absolute path of a folder that a user named.

    Args:
        root: The folder.
        what: What it should hold, for the error ("the CirrMRI600+ data set").

    Raises:
        InputError: There is no such folder.
    """
    folder = Path(root).absolute()
    if not folder.is_dir():
        is_what = "is a file" if folder.exists() else "no such folder"
        raise InputError(f"{folder}: {is_what}; name the folder that holds {what}")
    return folder


def files_below(root: Path, depth: int | None = None) -> list[str]:
    """All files below a folder, hidden ones left out, and what macOS adds (``._x``, ``__MACOSX``).

    Args:
        root: Where to start.
        depth: Only files in this depth, 1 being the folder itself; None for every depth.

    Returns:
        Paths relative to ``root`` with ``/`` between folders, in natural order.

    Raises:
        InputError: A file name is not valid Unicode text, so that no table can hold it, or a folder
            cannot be listed.
    """
    found: list[str] = []
    faults: list[str] = []

    def failed(error: OSError) -> None:
        faults.append(f"{error.filename}: cannot be listed ({error.strerror}); check your permission to read it")

    seen: set[Path] = set()
    for folder, folders, files in os.walk(root, onerror=failed, followlinks=True):
        place = Path(folder)
        real = place.resolve()
        if real in seen and place.is_symlink():
            folders.clear()  # a link back up the tree would be walked for ever
            continue
        seen.add(real)
        level = len(place.relative_to(root).parts) + 1
        folders[:] = [] if level == depth else sorted(name for name in folders if not _hidden(name))
        if depth is None or level == depth:
            found += [(place / name).relative_to(root).as_posix() for name in files if not _hidden(name)]
    for path in found:
        try:
            path.encode("utf-8")
        except UnicodeEncodeError:
            faults.append(f"{root}: the file name {path!a} is not valid UTF-8; rename the file")
    if faults:
        raise InputError(*faults)
    return sorted(found, key=natural_key)


def _hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def pattern_or_same(case: str, pattern: Pattern | None, place: Path) -> dict[str, str]:
    """The patient (and visit) that a pattern finds in a case's name; the case itself without a pattern.

    Raises:
        InputError: The case does not match.
    """
    if pattern is None:
        return {"patient": case}
    found = pattern.match(case)
    if found is None:
        raise InputError(f"{place}: {case!r} does not match {pattern.option} {pattern.text!r}; correct the pattern")
    return found


def nifti_stem(name: str) -> str | None:
    """A file's name without ``.nii.gz`` or ``.nii`` (Unicode composed), or None for another kind of file."""
    for ending in NIFTI_ENDINGS:
        if name.endswith(ending) and len(name) > len(ending):
            return unicodedata.normalize("NFC", name[: -len(ending)])
    return None


def niftis_in(folder: Path) -> dict[str, Path]:
    """The NIfTI files of one folder by stem, in natural order.

    Raises:
        InputError: Two files share a stem (``x.nii`` beside ``x.nii.gz``).
    """
    found: dict[str, Path] = {}
    faults = []
    for name in files_below(folder, depth=1):
        stem = nifti_stem(name)
        if stem is None:
            continue
        if stem in found:
            faults.append(f"{found[stem]} and {folder / name} are two files for one scan; remove one of them")
        found[stem] = folder / name
    if faults:
        raise InputError(*faults)
    return found


def read_rows(path: Path, required: Sequence[str]) -> list[dict[str, str]]:
    """The rows of a CSV file as text.

    A byte order mark is dropped, and so is white space around names and values. Rows without any
    value are left out. A header that has ``;`` and no ``,`` is read with ``;`` as separator.

    Args:
        path: The file.
        required: Columns that must be there.

    Returns:
        One dictionary a row, from column to text (empty where missing).

    Raises:
        InputError: The file is missing, is not UTF-8 text, or lacks a column; a row has more
            values than the header, or the header names a column twice.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not UTF-8 text; save it as 'CSV UTF-8'") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    first = text.partition("\n")[0]
    separator = ";" if ";" in first and "," not in first else ","
    try:
        parsed = list(csv.reader(io.StringIO(text, newline=""), delimiter=separator))
    except csv.Error as error:
        raise InputError(f"{path}: cannot be read as CSV ({error}); write it again") from error
    header = [name.strip() for name in parsed[0]] if parsed else []
    while header and not header[-1]:  # spreadsheets leave empty columns behind
        header.pop()
    faults = [
        f"{path}: the column {name!r} is missing; it has {listed(header) or 'no columns'}"
        for name in required
        if name not in header
    ]
    faults += [
        f"{path}: the column {name!r} occurs twice; remove one"
        for name in dict.fromkeys(header)
        if header.count(name) > 1
    ]
    rows = []
    for number, values in enumerate(parsed[1:], start=1):
        stripped = [value.strip() for value in values]
        if any(stripped[len(header) :]):
            faults.append(f"{path}: row {number} has more values than the header; quote values that hold {separator!r}")
        if any(stripped):
            rows.append({name: stripped[at] if at < len(stripped) else "" for at, name in enumerate(header)})
    if faults:
        raise InputError(*faults)
    return rows


def cohort_of(rows: Sequence[Mapping[str, Any]], root: Path, name: str) -> Cohort:
    """A cohort of rows whose paths are absolute or relative to ``root``, sorted naturally by scan id."""
    ordered = sorted(rows, key=lambda row: natural_key(str(row["scan_id"])))
    frame = pd.DataFrame(ordered)
    return Cohort(frame, root, name)
