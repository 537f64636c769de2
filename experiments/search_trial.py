"""One trial: a training a fold, each a process of ``hepastage fit`` that reports to files. Light, torch-free."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from datamodules.files import write_json, write_text
from experiments.grid_folder import read_maybe
from experiments.grid_processes import end_with, ended_by
from experiments.search_file import Search
from experiments.search_folder import SearchFolder
from experiments.search_schema import MINUTES
from experiments.search_space import nested, plain

REPORT, ANSWER, ENDED = "report.jsonl", "answer.json", "ended.json"
"""Files of a trial's fold, as ``callbacks.search_report`` names them; that module imports torch."""

COMMAND = ("-m", "experiments.cli", "fit")
CALLBACK = "callbacks.search_report.SearchReport"
PATIENCE_S = 20.0
"""How long a training waits for the answer whether to go on."""
POLL_S = 0.05


@dataclasses.dataclass(frozen=True, slots=True)
class Setting:
    """What all trials of a search have in common.

    Attributes:
        search: The search.
        runs: Folder of all runs.
        store: Folder of preprocessed scans.
        folds: The folds of a trial, in order.
    """

    search: Search
    runs: Path
    store: Path
    folds: tuple[int, ...]

    @property
    def folder(self) -> SearchFolder:
        """The search's folder."""
        return SearchFolder(self.runs / self.search.name)


@dataclasses.dataclass(frozen=True, slots=True)
class Task:
    """One trial that is to be carried out.

    Attributes:
        setting: What all trials have in common.
        arm: Name of the trial's folder.
        values: Its parameters.
        settings: Configuration keys that they set.
        report: Takes a step and the objective so far; says whether the trial is to be pruned.
        note: Keeps a fact with the trial.
        environment: Variables for its processes.
        held: Descriptors of its lock, which its processes hold too.
    """

    setting: Setting
    arm: str
    values: Mapping[str, Any]
    settings: Mapping[str, Any]
    report: Callable[[int, float], bool]
    note: Callable[[str, Any], None] = lambda _key, _value: None
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)
    held: tuple[int, ...] = ()


Runner = Callable[[Task], list[float]]
"""Carries a task out and returns its objectives.

Raises ``PrunedError`` where ``report`` has said so, ``TrialError`` where it failed.
"""


class PrunedError(Exception):
    """A trial was stopped early, as it was asked to be."""


class TrialError(Exception):
    """A trial has failed.

    Args:
        reason: The last line that its process has left.
        wrong_request: Whether the process found that the request was wrong, as another one of the kind may be.
    """

    def __init__(self, reason: str, wrong_request: bool = False) -> None:
        super().__init__(reason)
        self.reason, self.wrong_request = reason, wrong_request


def train(task: Task) -> list[float]:
    """Train a cell for each fold; the objectives are means over the folds.

    Args:
        task: The trial.

    Returns:
        The objectives, in the search's order.

    Raises:
        PrunedError: The trial was pruned.
        TrialError: A training failed, or an objective is not a number.
    """
    search = task.setting.search
    overlay = task.setting.folder.trial(task.arm) / "overlay.yaml"
    text = yaml.safe_dump(nested(plain({**search.settings, **task.settings})), sort_keys=False)
    write_text(overlay, f"# {search.name}, {task.arm}: what the trial sets\n{text}")
    folds: list[Fold] = []
    for fold in task.setting.folds:
        folds.append(_Fold(task, fold, overlay, [done["monitor"] for done in folds]).train())
        task.note("folds", folds)
    objectives = []
    for objective in search.objectives:
        total = sum(fold[objective.metric] for fold in folds)
        # time is spent in all folds
        objectives.append(total if objective.metric == MINUTES else total / len(folds))
    return objectives


Fold = dict[str, float]
"""What a fold has given: each objective, and the monitored metric as ``monitor``."""


def words_of(task: Task, fold: int, overlay: Path) -> list[str]:
    """The command line of one training, as a person would type it after ``hepastage fit``.

    Args:
        task: The trial.
        fold: The fold.
        overlay: What the trial sets, as YAML.
    """
    setting, search = task.setting, task.setting.search
    cohort, splits = setting.folder.sealed(fold)
    words = [word for config in (*search.configs, str(overlay)) for word in ("-c", config)]
    words += ["--study", search.name, "--arm", task.arm, "--role", search.role, "--runs", str(setting.runs)]
    words += ["--seed_everything", str(search.seed), "--data.init_args.fold", str(fold)]
    words += ["--data.init_args.cohort", str(cohort), "--data.init_args.splits", str(splits)]
    words += ["--data.init_args.store", str(setting.store)]
    if search.masks == "reference":
        words += ["--data.init_args.mask_source", "reference"]
    elif search.masks != "none":
        words += ["--data.init_args.mask_source", "out_of_fold", "--data.init_args.masks", search.masks]
    monitor = search.monitor
    assert monitor is not None
    watcher = {
        "class_path": CALLBACK,
        "init_args": {
            "folder": str(fold_folder(task, fold)),
            "metric": monitor.metric,
            "mode": monitor.direction[:3],
            "wait_s": 0.0 if search.pruner["name"] == "none" else PATIENCE_S,
        },
    }
    # the parser takes what is added to a list as words alone
    for key, value in {**search.settings, **task.settings}.items():
        words += [f"--{key}", json.dumps(value)] if key.endswith("+") else []
    return [*words, "--trainer.callbacks+", json.dumps([watcher])]


def fold_folder(task: Task, fold: int) -> Path:
    """Reports and log of a trial's fold."""
    return task.setting.folder.trial(task.arm) / f"fold-{fold}"


class _Fold:
    """One training of a trial, and what is read of its reports."""

    def __init__(self, task: Task, fold: int, overlay: Path, before: list[float]) -> None:
        self.task, self.fold, self.overlay, self.before = task, fold, overlay, before
        self.folder = fold_folder(task, fold)
        monitor = task.setting.search.monitor
        assert monitor is not None
        self.metric = monitor.metric
        self.better = max if monitor.direction == "maximize" else min
        self.lines: dict[int, dict[str, Any]] = {}
        self.decided: dict[int, bool] = {}
        self.spent: dict[str, float] = {}
        self.read = 0
        self.best: float | None = None

    def train(self) -> Fold:
        """Train, unless an earlier try of the trial has done so."""
        self.folder.mkdir(parents=True, exist_ok=True)
        ended = read_maybe(self.folder / ENDED)
        if not (ended and "fit" in read_maybe(Path(ended["run"]) / "done.json")):
            status = self._process()
            if status != 0:
                raise TrialError(last_line(self.folder / "log") or ended_by(status), wrong_request=status == 2)
            ended = read_maybe(self.folder / ENDED)
        self._follow()
        if ended.get("stopped"):
            raise PrunedError
        return self._reached(ended)

    def _process(self) -> int:
        words = [sys.executable, *COMMAND, *words_of(self.task, self.fold, self.overlay)]
        (self.folder / ANSWER).unlink(missing_ok=True)
        with (self.folder / "log").open("ab") as log:
            process = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **self.task.environment},
                pass_fds=self.task.held,
                start_new_session=True,
                preexec_fn=end_with(os.getpid()),
            )
        try:
            while process.poll() is None:
                self._follow()
                time.sleep(POLL_S)
        finally:
            if process.poll() is None:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    # with it go the other processes of a DDP training
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        return process.returncode

    def _follow(self) -> None:
        """Take in what the training has reported, and answer it."""
        path = self.folder / REPORT
        if not path.is_file():
            return
        with path.open("rb") as stream:
            stream.seek(self.read)
            data = stream.read()
        whole = data[: data.rfind(b"\n") + 1]
        self.read += len(whole)
        for text in whole.splitlines():
            line = json.loads(text)
            self.spent[line["session"]] = line["seconds"] * line["processes"]
            self.lines[line["epoch"]] = line
            value = line["metrics"].get(self.metric)
            if value is not None:
                self.best = value if self.best is None else self.better(self.best, value)
            # an epoch that a second try does again has been decided on
            stop = self.decided.get(line["epoch"], False)
            if self.best is not None and line["epoch"] not in self.decided:
                so_far = [*self.before, self.best]
                step = len(self.before) * max(1, line["of"] or 1) + line["epoch"] + 1
                stop = self.task.report(step, sum(so_far) / len(so_far))
                self.decided[line["epoch"]] = stop
            answer = {"session": line["session"], "epoch": line["epoch"], "stop": stop}
            write_json(self.folder / ANSWER, answer)

    def _reached(self, ended: Mapping[str, Any]) -> Fold:
        best = ended.get("best")
        if best is None:
            raise TrialError(f"fold {self.fold}: {self.metric} is not a number; see {self.folder / 'log'}")
        # the first epoch with the best value is the one whose checkpoint was kept
        line = min(self.lines.values(), key=lambda found: (found["metrics"].get(self.metric) != best, found["epoch"]))
        result: Fold = {"monitor": best, MINUTES: round(sum(self.spent.values()) / 60, 6)}
        for objective in self.task.setting.search.objectives:
            if objective.metric not in (self.metric, MINUTES):
                value = line["metrics"].get(objective.metric)
                if value is None:
                    known = ", ".join(sorted(line["metrics"]))
                    raise TrialError(f"objective.metric: {objective.metric} is not logged; there are {known}", True)
                result[objective.metric] = value
        result[self.metric] = best
        return result


def last_line(log: Path) -> str:
    """What a process has said last: our own line where there is one."""
    if not log.is_file():
        return ""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    own = [line.removeprefix("hepastage: ") for line in lines[-20:] if line.startswith("hepastage: ")]
    found = own[-1] if own else (lines[-1] if lines else "")
    return found if len(found) <= 500 else f"{found[:497]}..."
