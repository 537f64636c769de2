"""Radiomics features of a cohort, kept by content: a second run computes nothing."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import pandas as pd
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from datamodules.cohort import Scan
from datamodules.errors import InputError
from datamodules.files import atomic_path, sha256_of_file, sha256_of_json
from datamodules.masks import MaskSet
from datamodules.store_fill import follow_parent, one_thread_each
from experiments.radiomics_features import FeatureSettings, features_of, require_mirp, versions

TABLE, KEY = "features.parquet", "key"


@dataclasses.dataclass(frozen=True, slots=True)
class Wanted:
    """What one row of features is made from.

    Attributes:
        scan_id: The scan.
        image: Its file.
        mask: The liver's file, on the scan's grid.
        labels: Values of it that count; empty for any but zero.
        key: Hash of the files' contents, the labels, the settings and the versions.
    """

    scan_id: str
    image: Path
    mask: Path
    labels: tuple[int, ...]
    key: str


def wanted_rows(scans: Sequence[Scan], masks: MaskSet | None, settings: FeatureSettings) -> list[Wanted]:
    """What is to be computed for some scans.

    Args:
        scans: The scans; without ``masks``, each with a reference mask.
        masks: Predicted masks, or None for the reference.
        settings: How features are computed.

    Raises:
        InputError: A file is missing: all of them.
    """
    common = {"settings": settings.as_json(), **versions()}
    rows = []
    faults: list[str] = []
    for scan in scans:
        mask, labels = (scan.mask, scan.mask_labels) if masks is None else (masks.path(scan.scan_id), ())
        if mask is None:
            faults.append(f"scan {scan.scan_id!r} has no reference mask; give predicted ones by --masks")
            continue
        try:
            contents = {"image": sha256_of_file(scan.image), "mask": sha256_of_file(mask), "labels": sorted(labels)}
        except InputError as error:
            faults += error.faults
            continue
        rows.append(Wanted(scan.scan_id, scan.image, mask, labels, sha256_of_json({**contents, **common})))
    if faults:
        raise InputError(*faults)
    return rows


def feature_table(
    rows: Sequence[Wanted], folder: Path, settings: FeatureSettings, workers: int, progress: bool = True
) -> tuple[pd.DataFrame, int]:
    """The features of some scans, of which those that are missing are computed.

    The folder holds one table, ``features.parquet`` with the column ``key``, and what a killed run has finished as
    ``parts/<key>.json``; parts enter the table when it is next written.

    Args:
        rows: What is wanted.
        folder: Where features are kept.
        settings: How they are computed.
        workers: Processes.
        progress: Show a progress bar on stderr.

    Returns:
        One row a scan, indexed by scan id, in the order of ``rows``; columns are features, NaN where one does not
        exist; a scan whose mask is empty has NaN everywhere. And how many scans were computed now.

    Raises:
        InputError: Scans that cannot be computed, all together; what could be is kept.
    """
    known = _kept(folder)
    missing = {row.key: row for row in rows if row.key not in known}
    faults: list[str] = []
    if missing:
        require_mirp()
    for key, outcome in _computed(list(missing.values()), folder, settings, workers, progress):
        if isinstance(outcome, dict):
            known[key] = outcome
        else:
            faults += outcome
    if any((folder / "parts").glob("*.json")):
        _gather(folder)
    if faults:
        raise InputError(*faults)
    columns = sorted({name for row in rows for name in known[row.key]})
    values = [[known[row.key].get(name, float("nan")) for name in columns] for row in rows]
    return pd.DataFrame(values, index=[row.scan_id for row in rows], columns=columns, dtype=float), len(missing)


def _kept(folder: Path) -> dict[str, dict[str, float]]:
    """Features by key, of the table and of parts; a feature that does not exist for a key is left out."""
    path = folder / TABLE
    known: dict[str, dict[str, float]] = {}
    if path.is_file():
        try:
            frame = pd.read_parquet(path).set_index(KEY)
        except Exception as error:  # pandas and pyarrow raise many kinds for a broken file
            raise InputError(
                f"{path}: cannot be read as kept features ({error}); remove it to compute them anew"
            ) from error
        for key, row in frame.iterrows():
            known[str(key)] = {str(name): float(value) for name, value in row.items() if value == value}
    for part in sorted((folder / "parts").glob("*.json")):
        # another process may have gathered it meanwhile
        with contextlib.suppress(FileNotFoundError):
            known[part.stem] = dict(json.loads(part.read_text(encoding="utf-8")))
    return known


def _gather(folder: Path) -> None:
    """Write table and parts together as the new table; one process at a time."""
    with (folder / ".lock").open("ab") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        parts = sorted((folder / "parts").glob("*.json"))
        frame = pd.DataFrame.from_dict(_kept(folder), orient="index").rename_axis(KEY).sort_index()
        with atomic_path(folder / TABLE) as temporary:
            frame.reset_index().to_parquet(temporary, index=False)
        for part in parts:
            part.unlink(missing_ok=True)


def _computed(
    rows: list[Wanted], folder: Path, settings: FeatureSettings, workers: int, progress: bool
) -> Iterator[tuple[str, dict[str, float] | tuple[str, ...]]]:
    if not rows:
        return
    results: Iterator[tuple[str, dict[str, float] | tuple[str, ...]]]
    if workers == 1 or len(rows) == 1:
        results = ((row.key, _compute(row, folder, settings)) for row in rows)
    else:
        results = _pooled(rows, folder, settings, workers)
    columns = (TextColumn("radiomics"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not progress) as bar:
        task = bar.add_task("radiomics", total=len(rows))
        for item in results:
            yield item
            bar.advance(task)


def _pooled(
    rows: list[Wanted], folder: Path, settings: FeatureSettings, workers: int
) -> Iterator[tuple[str, dict[str, float] | tuple[str, ...]]]:
    # spawn: forking a process whose libraries run threads can hang the child
    pool = ProcessPoolExecutor(min(workers, len(rows)), multiprocessing.get_context("spawn"), initializer=follow_parent)
    try:
        with one_thread_each():
            futures = {pool.submit(_compute, row, folder, settings): row.key for row in rows}
        for future in as_completed(futures):
            yield futures[future], future.result()
    except BrokenProcessPool as error:
        raise InputError(
            f"{folder}: a process was killed, perhaps for want of memory; run again with fewer --workers: finished "
            "scans are kept"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _compute(row: Wanted, folder: Path, settings: FeatureSettings) -> dict[str, float] | tuple[str, ...]:
    """Compute one scan and keep it at once; faults in place of features."""
    try:
        found = features_of(row.image, row.mask, row.labels, settings)
    except InputError as error:
        return error.faults
    # JSON has no NaN: what does not exist is left out
    found = {name: value for name, value in found.items() if value == value}
    with atomic_path(folder / "parts" / f"{row.key}.json") as temporary:
        temporary.write_text(json.dumps(found), encoding="utf-8")
    return found
