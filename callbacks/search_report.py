"""A trial of a search reports each validation epoch to a file, and stops when the search says so."""

from __future__ import annotations

import json
import math
import os
import time
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from datamodules.errors import InputError
from datamodules.files import write_json

REPORT, ANSWER, ENDED = "report.jsonl", "answer.json", "ended.json"
"""Files of a trial's fold: one line a validation epoch; the search's answer to it; what was reached in the end."""

POLL_S = 0.02


class SearchReport(Callback):
    """Tell the search the validation metrics of each epoch, wait for its answer, and stop all processes on its word.

    Rank zero alone writes and reads; what it has read is broadcast, so that all processes end in the same epoch.
    The training ends as one that has converged does: its best checkpoint, logs and W&B run are complete.

    Args:
        folder: Where the files lie.
        metric: The validation metric that is searched for: checkpoints must be chosen by it.
        mode: ``max`` or ``min``.
        wait_s: How long an answer is waited for, in seconds, after each validation; 0 where nothing is pruned.
    """

    def __init__(self, folder: str, metric: str, mode: str, wait_s: float = 0.0) -> None:
        self.folder = Path(folder)
        self.metric, self.mode, self.wait_s = metric, mode, wait_s
        self._began = 0.0
        self._session = ""
        self._stopped = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse a search for one metric with checkpoints chosen by another.

        Raises:
            InputError: They differ.
        """
        checkpoint = trainer.checkpoint_callback
        found = (getattr(checkpoint, "monitor", None), getattr(checkpoint, "mode", None))
        if stage == "fit" and found != (self.metric, self.mode):
            raise InputError(
                f"objective.metric: is {self.metric} ({self.mode}), but the best checkpoint is chosen by "
                f"{found[0]} ({found[1]}); search for that, or set ModelCheckpoint's monitor and mode"
            )

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to count the time."""
        self._began = time.monotonic()
        self._session = f"{os.getpid()}-{time.time():.0f}"
        self._stopped = False
        if trainer.is_global_zero:
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / ENDED).unlink(missing_ok=True)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report, and stop where the search has decided so.

        Raises:
            InputError: The module does not log the metric.
        """
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        if self.metric not in trainer.callback_metrics:
            known = ", ".join(sorted(name for name in trainer.callback_metrics if name.startswith("valid/")))
            raise InputError(f"objective.metric: {self.metric} is not logged in validation; there are {known}")
        stop = self._report(trainer) if trainer.is_global_zero else False
        if trainer.strategy.broadcast(stop):
            self._stopped = True
            trainer.should_stop = True

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave what the best checkpoint's validation has given."""
        if not trainer.is_global_zero:
            return
        score = getattr(trainer.checkpoint_callback, "best_model_score", None)
        write_json(
            self.folder / ENDED,
            {
                "run": str(trainer.default_root_dir),
                "best": None if score is None else _finite(float(score)),
                "stopped": self._stopped,
                "epochs": trainer.current_epoch,
                "processes": trainer.world_size,
            },
        )

    def _report(self, trainer: Trainer) -> bool:
        """Write this epoch's line and wait for the answer: whether to stop."""
        metrics = {key: _finite(float(value)) for key, value in trainer.callback_metrics.items() if "valid/" in key}
        # a metric that is not a number is written as null, which JSON can hold
        line: dict[str, Any] = {
            "epoch": trainer.current_epoch,
            "of": trainer.max_epochs,
            "session": self._session,
            "seconds": round(time.monotonic() - self._began, 3),
            "processes": trainer.world_size,
            "metrics": metrics,
        }
        with (self.folder / REPORT).open("ab", buffering=0) as stream:
            stream.write(json.dumps(line).encode() + b"\n")
        end = time.monotonic() + self.wait_s
        while time.monotonic() < end:
            answer = self._answer()
            if answer.get("session") == self._session and answer.get("epoch", -1) >= trainer.current_epoch:
                return bool(answer.get("stop"))
            time.sleep(POLL_S)
        return False

    def _answer(self) -> dict[str, Any]:
        try:
            value = json.loads((self.folder / ANSWER).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            # none yet
            return {}
        return value if isinstance(value, dict) else {}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
