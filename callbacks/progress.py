"""One quiet line for a run: where it is, the loss, the metric it is judged by, what it waits for, the time left."""

from __future__ import annotations

import sys
import time
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from callbacks.throughput import Throughput

METRICS = ("train/loss", "valid/loss", "valid/dice", "valid/auc")
"""Shown, beside the one that the best checkpoint is chosen by."""


class RunProgress(ProgressBar):
    """A bar over the epochs of ``fit`` on a terminal; elsewhere, a line every few seconds.

    Args:
        every_s: Seconds between lines where there is no terminal.
    """

    def __init__(self, every_s: float = 20.0) -> None:
        super().__init__()
        self.every_s = every_s
        self._enabled = True
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._started = self._printed = 0.0
        self._first = 0

    def disable(self) -> None:
        """Show nothing (Lightning calls it on every rank but zero)."""
        self._enabled = False

    def enable(self) -> None:
        """Show again."""
        self._enabled = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the bar."""
        self._started = self._printed = time.monotonic()
        # a resumed run has not spent its time on the epochs before
        self._first = trainer.current_epoch
        if not self._enabled:
            return
        console = Console(file=sys.stderr)
        if console.is_terminal:
            self._progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.completed:.0f}/{task.total:.0f}"),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                console=console,
                transient=True,
            )
            self._progress.start()
            self._task = self._progress.add_task("epochs", total=trainer.max_epochs, completed=self._first)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Move on within an epoch: one of a large cohort takes minutes."""
        if self._enabled:
            self._show(trainer, trainer.current_epoch + (batch_idx + 1) / max(1.0, float(trainer.num_training_batches)))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the epoch's metrics."""
        if self._enabled:
            self._show(trainer, trainer.current_epoch + 1)

    def _show(self, trainer: Trainer, epochs: float) -> None:
        """Move the bar, or print a line when it is time.

        Args:
            trainer: The trainer.
            epochs: Epochs done since the training's beginning, with the part of the one under way.
        """
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, completed=epochs, description=self._text(trainer))
            return
        now = time.monotonic()
        if now - self._printed >= self.every_s:
            self._printed = now
            done = max(epochs - self._first, 1e-9)
            left = (now - self._started) / done * ((trainer.max_epochs or epochs) - epochs)
            shown = f"{epochs:.0f}" if epochs == int(epochs) else f"{epochs:.1f}"
            text = f"  epoch {shown}/{trainer.max_epochs}  {self._text(trainer)}  about {left:.0f} s left"
            sys.stderr.write(text + "\n")
            sys.stderr.flush()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the bar and leave one line with what was reached."""
        self._close()
        if self._enabled:
            seconds = time.monotonic() - self._started
            epochs = trainer.current_epoch - self._first
            sys.stderr.write(f"  {epochs} epochs in {seconds:.0f} s  {self._text(trainer)}\n")
            sys.stderr.flush()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave the terminal as it was."""
        self._close()

    def _close(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = self._task = None

    @staticmethod
    def _text(trainer: Trainer) -> str:
        metrics: dict[str, Any] = trainer.callback_metrics
        chosen_by = getattr(getattr(trainer, "checkpoint_callback", None), "monitor", None)
        names = dict.fromkeys([*METRICS, *([chosen_by] if chosen_by else [])])
        parts = [f"{key} {float(metrics[key]):.3f}" for key in names if key in metrics]
        meters = [callback for callback in getattr(trainer, "callbacks", []) if isinstance(callback, Throughput)]
        return "  ".join([*parts, *(f"data wait {meter.data_wait:.0%}" for meter in meters)])
