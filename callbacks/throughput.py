"""How fast a training goes, how near the device's limit, and what it waits for, once an epoch."""

from __future__ import annotations

import resource
import sys
import time
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from callbacks.arithmetic import number_format, peak_flops, step_flops
from datamodules.saying import say

PREFIX = "speed/"
"""Begins the names of these metrics: they say nothing of the model, and differ from run to run."""


WAIT_SHARE, WAIT_SECONDS = 0.1, 5.0
"""From which share of an epoch's time, and from how many seconds in it, waiting for batches is worth a line."""


class Throughput(Callback):
    """Log ``speed/...`` with each epoch's metrics, of this process (rank zero writes).

    ``steps_per_s`` and ``scans_per_s`` (or patches) over the epoch's training time, validation left out; ``step_s``,
    mean seconds of a step without waiting; ``data_wait``, the share of the training time in which the network waited
    for its batch (loading, transfer and augmentation on the device), in [0, 1], and ``augmentation``, the part of it
    that was augmentation (on an accelerator: of starting it); ``peak_memory_gib``, the accelerator's since the epoch
    began, without one the process's own since it began. ``tflops``, the arithmetic of the steps in 10^12 operations a
    second over the training time, and ``share_of_peak``, against a matrix product on the same device in the same
    number format, measured at the start: see ``callbacks/arithmetic.py``.

    From the second epoch on, one line says what is waited for where that takes more than a tenth of the time.

    Args:
        arithmetic: Whether to count operations, which costs one forward pass, and to measure the device's peak.
    """

    def __init__(self, arithmetic: bool = True) -> None:
        self._began = self._idle_since = self._waited = self._validated = self._validation_began = 0.0
        self._augmented = 0.0
        self._steps = self._scans = 0
        self._arithmetic = arithmetic
        self._flops = self._peak = 0.0
        self._warned = False

    @property
    def data_wait(self) -> float:
        """Share of this epoch's training time so far that was spent waiting for batches, in [0, 1]."""
        spent = time.monotonic() - self._began - self._validated
        return min(1.0, self._waited / spent) if self._steps and spent > 0 else 0.0

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure the device."""
        self._flops, self._warned = 0.0, False
        if self._arithmetic:
            self._peak = peak_flops(trainer.strategy.root_device, number_format(str(trainer.precision)))

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to count."""
        self._began = self._idle_since = time.monotonic()
        self._waited = self._validated = 0.0
        self._steps = self._scans = 0
        self._augmented = _augmentation_s(trainer)
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """The batch is there."""
        now = time.monotonic()
        self._waited += now - self._idle_since
        if self._peak and not self._flops:
            self._flops = step_flops(pl_module, batch)
            # measuring is no part of the epoch
            self._validated += time.monotonic() - now

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
        augmentation = min(1.0, (_augmentation_s(trainer) - self._augmented) / seconds)
        values = {
            "steps_per_s": self._steps / seconds,
            "scans_per_s": self._scans / seconds,
            "step_s": max(0.0, seconds - self._waited) / max(1, self._steps),
            "data_wait": self.data_wait,
            "augmentation": augmentation,
            "peak_memory_gib": peak_memory_gib(),
        }
        if self._flops:
            achieved = self._flops * self._steps / seconds
            values |= {"tflops": achieved / 1e12, "share_of_peak": achieved / self._peak}
        for name, value in values.items():
            pl_module.log(f"{PREFIX}{name}", value, rank_zero_only=True)
        if trainer.current_epoch and not self._warned and self._waited > WAIT_SECONDS and self.data_wait > WAIT_SHARE:
            self._warned = True
            say(waiting(trainer.current_epoch + 1, self.data_wait, augmentation))


def waiting(epoch: int, data_wait: float, augmentation: float) -> str:
    """One line that names what the network waits for, and what helps.

    Args:
        epoch: The epoch's number, from 1.
        data_wait: Share of its time, in [0, 1].
        augmentation: The part of it that was augmentation.
    """
    loading = max(0.0, data_wait - augmentation)
    if augmentation > loading:
        cause = "augmentation is the bottleneck: fewer transforms, or lower probabilities"
    else:
        cause = "loading is the bottleneck: data.init_args.workers, resident: true, or a store on a local disk"
    return (
        f"epoch {epoch}: the network waited {100 * data_wait:.0f} % of the time for its batches "
        f"(loading {100 * loading:.0f} %, augmentation {100 * augmentation:.0f} %): {cause}"
    )


def _augmentation_s(trainer: Trainer) -> float:
    """Seconds that the data module has spent in augmentation so far."""
    return float(getattr(getattr(trainer, "datamodule", None), "augmentation_s", 0.0))


def peak_memory_gib() -> float:
    """Highest memory in GiB: of the accelerator since its counter was reset, else of this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    # macOS counts bytes, Linux KiB
    unit = 1 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
