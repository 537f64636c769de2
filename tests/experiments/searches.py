"""Searches whose trials are functions in place of trainings; run as a module: a driver in a process of its own."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import optuna
import yaml

from experiments.search import run_search
from experiments.search_file import Search
from experiments.search_folder import SearchFolder
from experiments.search_storage import open_study
from experiments.search_trial import PrunedError, Setting, Task, TrialError
from experiments.search_worker import Job, work
from tests.tiny import Tiny

LR = "model.init_args.optimizer.init_args.lr"
DECAY = "model.init_args.optimizer.init_args.weight_decay"
SPACE: dict[str, Any] = {"x": {"key": LR, "low": -5.0, "high": 10.0}, "y": {"key": DECAY, "low": 0.0, "high": 15.0}}
BEST = 0.397887
"""The lowest value of Branin's function."""


def write_search(folder: Path, tiny: Tiny, **changes: Any) -> Path:
    """Write ``search.yaml``."""
    value: dict[str, Any] = {
        "search": "tiny", "cohort": str(tiny.cohort), "splits": str(tiny.splits), "folds": [0], "config": "direct",
        "space": SPACE, "objective": {"metric": "valid/loss", "direction": "minimize"}, "trials": 6, **changes,
    }  # fmt: skip
    path = folder / "search.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump({key: item for key, item in value.items() if item is not None}, sort_keys=False))
    return path


def start(search: Path, runner: str, workers: int = 1) -> subprocess.Popen[str]:
    """Start a driver whose trials are a function of this module."""
    return subprocess.Popen(
        [sys.executable, "-m", "tests.experiments.searches", str(search), runner, str(workers)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def run(search: Path, runner: str, workers: int = 1) -> tuple[int, str]:
    """Run a driver to its end."""
    output, _ = (process := start(search, runner, workers)).communicate(timeout=300)
    return process.returncode, output


def run_here(path: Path, runner: str) -> int:
    """Be the only worker of a search, without a driver, in this process; its code."""
    search = Search.load(path)
    assert search.cohort is not None and search.splits is not None
    folder_of(path).make()
    setting = Setting(search, path.parent / "runs", path.parent / "store", (0,))
    facts = search.facts(search.cohort, search.splits)
    return work(Job(setting, facts, runner=f"tests.experiments.searches:{runner}"))


def folder_of(search: Path) -> SearchFolder:
    return SearchFolder(search.parent / "runs" / str(yaml.safe_load(search.read_text())["search"]))


def study_of(search: Path, notes: list[str] | None = None) -> optuna.Study:
    note = (lambda _: None) if notes is None else notes.append
    return open_study(Search.load(search), folder_of(search), None, note)


def states(search: Path) -> list[str]:
    return [trial.state.name for trial in study_of(search).trials]


def branin(task: Task) -> list[float]:
    """Branin's function, after a moment."""
    time.sleep(0.01)
    return [branin_at(task.values["x"], task.values["y"])]


def branin_at(x: float, y: float) -> float:
    """Branin's function."""
    bend = y - 5.1 / (4 * math.pi**2) * x**2 + 5 / math.pi * x - 6
    return bend**2 + 10 * (1 - 1 / (8 * math.pi)) * math.cos(x) + 10


def slow(task: Task) -> list[float]:
    """Branin's function, in a second; says who computes it."""
    folder = task.setting.folder.trial(task.arm)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "tries.jsonl").open("a") as stream:
        stream.write(json.dumps({"pid": os.getpid(), "values": dict(task.values)}) + "\n")
    time.sleep(1.0)
    return branin(task)


def failing(task: Task) -> list[float]:
    """Every second trial fails."""
    if int(task.arm[-1]) % 2:
        raise TrialError("the sky is falling")
    return branin(task)


def raising(task: Task) -> list[float]:
    """Something that nobody has thought of."""
    raise ZeroDivisionError("by nothing")


def refused(task: Task) -> list[float]:
    """What ``hepastage fit`` gives for a wrong request."""
    raise TrialError("valid/loss is not logged", wrong_request=True)


def endless(task: Task) -> list[float]:
    """A value that is not a number."""
    return [math.nan]


def curves(task: Task) -> list[float]:
    """Ten epochs that come down to Branin's value."""
    (value,) = branin(task)
    for epoch in range(10):
        if task.report(epoch + 1, value + 10 - epoch):
            raise PrunedError
    return [value]


def two(task: Task) -> list[float]:
    """Two objectives that pull apart."""
    return [task.values["x"], -task.values["x"] + 0.1 * task.values["y"]]


def main() -> int:
    """Drive a search beside which its runs lie."""
    path, runner, workers = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    search = Search.load(path)
    assert search.cohort is not None and search.splits is not None
    code, _ = run_search(
        search,
        search.cohort,
        search.splits,
        path.parent / "runs",
        workers=workers,
        gpus="none",
        runner=f"tests.experiments.searches:{runner}",
    )
    return code


if __name__ == "__main__":
    sys.exit(main())
