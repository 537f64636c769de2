"""Going on where a killed run stopped: a checkpoint at the borders of epochs, whole at every moment."""

from __future__ import annotations

import dataclasses
import math
import os
import random
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from callbacks.checkpoint_file import fault_of
from callbacks.run_directory import RunDirectory
from callbacks.throughput import PREFIX
from datamodules.errors import InputError

STATE = "hepastage_resume"
"""Key of a checkpoint under which the state of the run's files is kept."""


@dataclasses.dataclass(frozen=True, slots=True)
class ResumePoint:
    """Where an unfinished run goes on.

    Attributes:
        path: The checkpoint.
        epoch: Finished epochs.
        metrics_bytes: Length of ``metrics.jsonl`` at that moment; what came later is done again.
        ended: Whether the training had ended and only the end's record was missing.
        reached: The metrics at that moment.
    """

    path: Path
    epoch: int
    metrics_bytes: int
    ended: bool
    reached: dict[str, float]


class LastCheckpoint(Callback):
    """Write ``checkpoints/last.ckpt`` between epochs, so that a killed run ends as if it had not been killed.

    The checkpoint is written when an epoch has been logged to its end, to a temporary name, and renamed; the one
    before is kept as ``previous.ckpt``. A copy of ``best.ckpt`` goes with each, because the best model may change
    in the epoch that is lost. A run that goes on does the interrupted epoch again from its start.

    All random numbers of an epoch (torch, NumPy, Python, on all devices) begin from the run's seed, the epoch and
    the process's rank. Nothing that was drawn before, in another epoch or another process, changes them.

    Args:
        every_s: Seconds between two checkpoints, at least; the last epoch has one always. At most that much and the
            interrupted epoch is done again.
    """

    def __init__(self, every_s: float = 10.0) -> None:
        self.every_s = every_s
        self._state: dict[str, Any] | None = None
        self._saved = 0.0
        self._last_is_whole = False
        self._best_copied: tuple[int, int] | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to count the seconds."""
        self._saved = time.monotonic()
        last = RunDirectory(trainer.default_root_dir).checkpoints / "last.ckpt"
        # a torn one is not to become the previous one
        self._last_is_whole = trainer.ckpt_path is not None and Path(trainer.ckpt_path) == last
        self._best_copied = None

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the finished epochs' checkpoint, and begin the epoch's random numbers."""
        epoch = trainer.current_epoch
        resumed = trainer.fit_loop.is_resuming
        due = time.monotonic() - self._saved >= self.every_s
        if epoch > 0 and not resumed and trainer.strategy.broadcast(due):
            self._save(trainer, ended=False)
        seed_epoch(int(os.environ.get("PL_GLOBAL_SEED", "0")), epoch, trainer.global_rank)
        if epoch > 0 and resumed and trainer.fit_loop._data_fetcher is not None:
            # a run that was not interrupted draws its loader's order here, after the epoch's random numbers have
            # begun; Lightning has done so too early, and does not do it again in the first epoch after a restart
            iter(trainer.fit_loop._data_fetcher)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the end's checkpoint."""
        self._save(trainer, ended=True)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add the state of the run's files, and let the loop's counters say that no epoch is under way."""
        if self._state is None:
            return
        checkpoint[STATE] = self._state
        if not self._state["ended"]:
            progress = checkpoint["loops"]["fit_loop"]["epoch_progress"]
            for counter in ("total", "current"):
                # Lightning has counted the coming epoch as made ready
                progress[counter]["ready"] -= 1

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Let a run directory that was moved keep its best checkpoint: Lightning compares absolute paths."""
        here = RunDirectory(trainer.default_root_dir).checkpoints
        for state in checkpoint.get("callbacks", {}).values():
            if isinstance(state, dict) and state.get("dirpath") and Path(state["dirpath"]) != here:
                moved = _moved(state, str(state["dirpath"]), str(here))
                state.update(moved)

    def _save(self, trainer: Trainer, ended: bool) -> None:
        run = RunDirectory(trainer.default_root_dir)
        self._state = {
            "epoch": trainer.current_epoch,
            "metrics_bytes": run.metrics.stat().st_size if run.metrics.is_file() else 0,
            "ended": ended,
            "reached": reached(trainer),
        }
        temporary = run.checkpoints / ".writing-last.ckpt"
        try:
            trainer.save_checkpoint(temporary)
        finally:
            self._state = None
        if trainer.is_global_zero:
            self._rotate(run.checkpoints, temporary)
        self._last_is_whole = True
        self._saved = time.monotonic()

    def _rotate(self, folder: Path, temporary: Path) -> None:
        """Make ``last`` the previous one and the new one ``last``; a kill between any two steps leaves a whole one."""
        last, best = folder / "last.ckpt", folder / "best.ckpt"
        if self._last_is_whole and last.exists():
            _share(folder / ".best-last.ckpt", folder / ".best-previous.ckpt")
            _move(last, folder / "previous.ckpt")
        if best.is_file():
            stat = best.stat()
            if self._best_copied != (stat.st_mtime_ns, stat.st_size):
                _copy(best, folder / ".best-last.ckpt")
                self._best_copied = (stat.st_mtime_ns, stat.st_size)
        _move(temporary, last)


def reached(trainer: Trainer) -> dict[str, float]:
    """The metrics that a training has reached: finite ones, without those of speed."""
    values = {key: float(value) for key, value in trainer.callback_metrics.items() if not key.startswith(PREFIX)}
    return {key: value for key, value in values.items() if math.isfinite(value)}


def seed_epoch(seed: int, epoch: int, rank: int) -> None:
    """Begin the random numbers of torch (all devices), NumPy and Python from the run's seed, the epoch and the rank.

    Args:
        seed: Of the run.
        epoch: Counted from 0.
        rank: Of the process among all.
    """
    first, second, third = np.random.SeedSequence([seed, epoch, rank]).generate_state(3)
    torch.manual_seed(int(first))
    # libraries that know nothing of generators draw from the global ones
    np.random.seed(int(second))  # noqa: NPY002 (that global state is meant)
    random.seed(int(third))


def resume_point(run: RunDirectory) -> tuple[ResumePoint | None, list[str]]:
    """The newest whole checkpoint that an unfinished run can go on from.

    Args:
        run: The run directory.

    Returns:
        The checkpoint, or None where there is none; and a line for each that cannot be used.
    """
    notes: list[str] = []
    for name in ("last.ckpt", "previous.ckpt"):
        path = run.checkpoints / name
        if not path.exists():
            continue
        fault = fault_of(path)
        if fault is None:
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=True).get(STATE)
            if state is not None:
                return ResumePoint(path, **state), notes
            fault = "does not say where the run's files stood"
        notes.append(f"{path} {fault}; it is not used")
    return None, notes


def prepare(run: RunDirectory, point: ResumePoint) -> None:
    """Bring the run's files to the moment of the checkpoint: what was logged later is cut off, the best put back.

    Args:
        run: The run directory.
        point: Where it goes on.

    Raises:
        InputError: A file cannot be written.
    """
    try:
        if run.metrics.is_file() and run.metrics.stat().st_size > point.metrics_bytes:
            os.truncate(run.metrics, point.metrics_bytes)
        best = run.checkpoints / f".best-{point.path.stem}.ckpt"
        if best.is_file():
            _copy(best, run.checkpoints / "best.ckpt")
    except OSError as error:
        raise InputError(f"{run.path}: cannot be prepared to go on ({error}); check space and permissions") from error


def tidy(run: RunDirectory) -> None:
    """Remove what only an unfinished run needs: the previous checkpoint, and the copies of the best."""
    for name in ("previous.ckpt", ".best-last.ckpt", ".best-previous.ckpt", ".writing-last.ckpt"):
        _remove(run.checkpoints / name)


def _moved(value: Any, old: str, new: str) -> Any:
    """A callback's state with one folder's name put for another's, in values and keys."""
    if isinstance(value, dict):
        return {_moved(key, old, new): _moved(item, old, new) for key, item in value.items()}
    if isinstance(value, str) and (value == old or value.startswith(old + os.sep)):
        return new + value[len(old) :]
    return value


def _move(source: Path, target: Path) -> None:
    if target.is_dir():
        # sharded checkpoints are folders, which a rename does not replace
        shutil.rmtree(target)
    source.replace(target)


def _copy(source: Path, target: Path) -> None:
    """Copy by a temporary name; nothing where there is no source."""
    if source.is_file():
        temporary = target.with_name(f".writing-{target.name}")
        shutil.copyfile(source, temporary)
        temporary.replace(target)


def _share(source: Path, target: Path) -> None:
    """A second name for a file that is only ever replaced, never written into."""
    if source.is_file():
        _remove(target)
        try:
            target.hardlink_to(source)
        except OSError:
            # a file system without links
            _copy(source, target)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
