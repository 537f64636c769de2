"""The run's own log of metrics: one JSON object a line, flushed at once, readable after any crash."""

from __future__ import annotations

import json
import math
import time
from argparse import Namespace
from pathlib import Path
from typing import IO, Any

from lightning.pytorch.loggers.logger import Logger, rank_zero_experiment
from lightning.pytorch.utilities import rank_zero_only


class MetricsLog(Logger):
    """Append every logged metric to ``metrics.jsonl``.

    W&B's offline files lose the last seconds of a killed run and need its client to be read. This file
    is the source of truth: each line is whole, holds ``step``, ``time`` (seconds since 1970) and the
    metrics, and is flushed before training goes on.

    Args:
        save_dir: The run directory; the command line fills it in.
    """

    def __init__(self, save_dir: str | Path | None = None) -> None:
        super().__init__()
        self._folder = None if save_dir is None else Path(save_dir)
        self._stream: IO[str] | None = None

    @property
    def name(self) -> str:
        """Empty: the file lies in the run directory itself."""
        return ""

    @property
    def version(self) -> str:
        """Empty: one run directory holds one run."""
        return ""

    @property
    def save_dir(self) -> str | None:
        """The run directory."""
        return None if self._folder is None else str(self._folder)

    @property
    @rank_zero_experiment
    def experiment(self) -> IO[str]:
        """The open file."""
        if self._stream is None:
            if self._folder is None:
                raise ValueError("MetricsLog has no save_dir; start runs with 'hepastage fit', or give it one")
            self._folder.mkdir(parents=True, exist_ok=True)
            self._stream = (self._folder / "metrics.jsonl").open("a", encoding="utf-8")
        return self._stream

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Write one line; a value that is not finite is written as null, which JSON can hold."""
        values = {key: float(value) if math.isfinite(float(value)) else None for key, value in metrics.items()}
        line = {"step": step, "time": round(time.time(), 3), **values}
        self.experiment.write(json.dumps(line) + "\n")
        self.experiment.flush()

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Nothing: the run directory's ``config.yaml`` holds them."""

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Close the file."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None
