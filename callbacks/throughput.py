"""How fast a training goes and what it waits for, once an epoch."""

from __future__ import annotations

import resource
import sys
import time
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

PREFIX = "speed/"
"""Begins the names of these metrics: they say nothing of the model, and differ from run to run."""


class Throughput(Callback):
    """Log ``speed/...`` with each epoch's metrics, of this process (rank zero writes).

    ``steps_per_s`` and ``scans_per_s`` (or patches) over the epoch's training time, validation left out;
    ``data_wait``, the share of that time in which the network waited for its batch (loading, transfer and
    augmentation on the device), in [0, 1]; ``peak_memory_gib``, the accelerator's since the epoch began, without
    one the process's own since it began.
    """

    def __init__(self) -> None:
        self._began = self._idle_since = self._waited = self._validated = self._validation_began = 0.0
        self._steps = self._scans = 0

    @property
    def data_wait(self) -> float:
        """Share of this epoch's training time so far that was spent waiting for batches, in [0, 1]."""
        spent = time.monotonic() - self._began - self._validated
        return min(1.0, self._waited / spent) if self._steps and spent > 0 else 0.0

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to count."""
        self._began = self._idle_since = time.monotonic()
        self._waited = self._validated = 0.0
        self._steps = self._scans = 0
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """The batch is there."""
        self._waited += time.monotonic() - self._idle_since

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """The next one is waited for."""
        self._steps += 1
        self._scans += len(batch["image"]) if isinstance(batch, dict) and "image" in batch else 0
        self._idle_since = time.monotonic()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Validation is no training."""
        self._validation_began = time.monotonic()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave its time out."""
        now = time.monotonic()
        self._validated += now - self._validation_began
        self._idle_since = now

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the epoch."""
        seconds = max(time.monotonic() - self._began - self._validated, 1e-9)
        values = {
            "steps_per_s": self._steps / seconds,
            "scans_per_s": self._scans / seconds,
            "data_wait": self.data_wait,
            "peak_memory_gib": peak_memory_gib(),
        }
        for name, value in values.items():
            pl_module.log(f"{PREFIX}{name}", value, rank_zero_only=True)


def peak_memory_gib() -> float:
    """Highest memory in GiB: of the accelerator since its counter was reset, else of this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    # macOS counts bytes, Linux KiB
    unit = 1 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
