"""A study's ``.grid`` folder: the plan, one record a cell, locks, and the log of what happened. Light, torch-free."""

from __future__ import annotations

import dataclasses
import datetime
import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TypedDict

from datamodules.errors import InputError
from datamodules.files import read_json, sha256_of_file, write_json

RECORD = "masks.json"
"""The record of a folder of masks; ``datamodules.masks`` has it too, but takes a second to import."""

State = Literal["done", "running", "failed", "unfinished", "waiting"]
STATES: tuple[State, ...] = ("done", "running", "failed", "unfinished", "waiting")


class Planned(TypedDict):
    """One cell of a plan.

    ``key`` names the cell in this folder, whatever the masks will be; ``run`` is its run directory, or None until
    its masks are made. ``words`` are those of ``hepastage fit``; ``masks`` names the segmenter whose out-of-fold
    masks it trains on, ``bands`` the one whose masks give its bands of quality, for which it does not wait.
    ``differs`` holds the configuration keys that are not the base's: ``[its value, the base's]``.
    """

    key: str
    arm: str
    axes: dict[str, str]
    fold: int
    seed: int
    role: str
    run: str | None
    words: list[str]
    masks: str | None
    bands: str | None
    differs: dict[str, list[Any]]
    resources: dict[str, Any]


class Plan(TypedDict):
    """All that is to be run for a study."""

    study: str
    reason: str
    cwd: str
    runs: str
    code: dict[str, Any]
    cells: list[Planned]
    masks: dict[str, list[str]]
    compare: dict[str, str] | None
    retries: int


@dataclasses.dataclass(frozen=True, slots=True)
class Condition:
    """Where a cell stands.

    Attributes:
        state: Its state.
        record: What its last start has left: run directory, seconds, code.
        failure: Why it failed: ``error``, ``line``, ``out_of_memory``; empty where it did not.
    """

    state: State
    record: Mapping[str, Any]
    failure: Mapping[str, Any]


class GridFolder:
    """Paths and records below ``runs/<study>/.grid``.

    Args:
        study: The study's folder, ``runs/<study>``.
    """

    def __init__(self, study: Path) -> None:
        self.study = study.absolute()
        self.path = self.study / ".grid"

    @property
    def plan_file(self) -> Path:
        """The plan."""
        return self.path / "plan.json"

    @property
    def events(self) -> Path:
        """One JSON object a line for each start, end and failure of a job, never rewritten."""
        return self.path / "events.jsonl"

    @property
    def workflow(self) -> Path:
        """Folder of the generated Snakemake workflow; made anew by each run."""
        return self.path / "workflow"

    def record(self, key: str) -> Path:
        """What a job's last start has left."""
        return self.path / "cells" / f"{key}.json"

    def failed(self, key: str) -> Path:
        """Why a job failed; absent where it did not."""
        return self.path / "failed" / f"{key}.json"

    def override(self, key: str) -> Path:
        """What ``retry --set`` has set for a cell."""
        return self.path / "retry" / f"{key}.json"

    def log(self, key: str) -> Path:
        """All that a job has printed."""
        return self.path / "logs" / f"{key}.log"

    def lock(self, key: str) -> Path:
        """The file whose ``flock`` a job holds while it runs."""
        return self.path / "locks" / key

    def marker(self, key: str) -> Path:
        """What tells Snakemake that a job has ended well."""
        return self.workflow / "ended" / key

    def plan(self) -> Plan:
        """The plan.

        Raises:
            InputError: There is none.
        """
        plan: Plan = read_json(self.plan_file, "a study's plan, as 'hepastage grid plan' writes it,")
        return plan

    def log_event(self, event: str, key: str, **facts: Any) -> None:
        """Append to the events in one write, which does not mix with those of others."""
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
        line = json.dumps({"time": now, "event": event, "key": key, "pid": os.getpid(), **facts}) + "\n"
        self.path.mkdir(parents=True, exist_ok=True)
        with self.events.open("ab", buffering=0) as stream:
            stream.write(line.encode())

    def masks_sha256(self, segmenter: str) -> str | None:
        """Hash of a segmenter's finished masks; None until all are made."""
        made = read_maybe(self.record(masks_key(segmenter)))
        folder = made.get("folder")
        if folder is None or not (Path(folder) / RECORD).is_file():
            return None
        found = sha256_of_file(Path(folder) / RECORD)
        return found if found == made.get("masks_sha256") else None

    def conditions(self, cells: list[Planned]) -> dict[str, Condition]:
        """Where each cell stands, by key; reads small files only."""
        names = {cell["masks"] for cell in cells} - {None}
        masks = {name: self.masks_sha256(name) for name in names if name is not None}
        return {cell["key"]: self.condition(cell, masks) for cell in cells}

    def condition(self, cell: Planned, masks: Mapping[str, str | None]) -> Condition:
        """Where a cell stands.

        Args:
            cell: The planned cell.
            masks: Hash of each segmenter's finished masks, None where they are not made.
        """
        record = read_maybe(self.record(cell["key"]))
        # masks that were made anew make another cell of it
        known = cell["masks"] is None or record.get("masks_sha256") == masks.get(cell["masks"])
        run = (record.get("run") if known else None) or cell["run"]
        done = read_maybe(Path(run) / "done.json") if run is not None else {}
        if {"fit", "test"} <= done.keys():
            return Condition("done", record or {"run": run}, {})
        if held(self.lock(cell["key"])):
            return Condition("running", record, {})
        failure = read_maybe(self.failed(cell["key"]))
        if failure:
            return Condition("failed", record, failure)
        begun = known and run is not None and (Path(run) / "config.yaml").is_file()
        return Condition("unfinished" if begun else "waiting", record, {})


def masks_key(segmenter: str) -> str:
    """The job that makes a segmenter's out-of-fold masks."""
    return f"masks.{segmenter}"


COMPARE_KEY = "compare"


@contextmanager
def locked(path: Path) -> Iterator[int | None]:
    """Hold a file's lock; yields its descriptor, or None where another process holds it.

    The kernel frees it when the process ends, however it ends. The descriptor is not inherited by programs that
    are started, unless it is passed on.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
            return
        yield descriptor
    finally:
        os.close(descriptor)


def held(path: Path) -> bool:
    """Whether another process holds a file's lock."""
    try:
        descriptor = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def write_record(path: Path, value: Mapping[str, Any]) -> None:
    """Write a record whole."""
    write_json(path, dict(value))


def read_maybe(path: Path) -> dict[str, Any]:
    """A record, or nothing where there is none; one that is torn counts as none, its cell is done again."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError):
        return {}
    return value if isinstance(value, dict) else {}


def study_folder(runs: Path, name: str) -> GridFolder:
    """The grid folder of a study.

    Raises:
        InputError: The study has no folder and none can be made.
    """
    folder = GridFolder(runs / name)
    try:
        folder.path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder.path}: cannot be made ({error.strerror}); choose another --runs") from error
    return folder
