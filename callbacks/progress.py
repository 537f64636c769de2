"""One quiet line for a run: where it is, the loss, the metric it is judged by, the time left."""

from __future__ import annotations

import sys
import time
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn


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

    def disable(self) -> None:
        """Show nothing (Lightning calls it on every rank but zero)."""
        self._enabled = False

    def enable(self) -> None:
        """Show again."""
        self._enabled = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the bar."""
        self._started = self._printed = time.monotonic()
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
            self._task = self._progress.add_task("epochs", total=trainer.max_epochs)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Move the bar, or print a line when it is time."""
        if not self._enabled:
            return
        text = self._text(trainer)
        epoch = trainer.current_epoch + 1
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, completed=epoch, description=text)
            return
        now = time.monotonic()
        if now - self._printed >= self.every_s:
            self._printed = now
            left = (now - self._started) / epoch * ((trainer.max_epochs or epoch) - epoch)
            sys.stderr.write(f"  epoch {epoch}/{trainer.max_epochs}  {text}  about {left:.0f} s left\n")
            sys.stderr.flush()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the bar and leave one line with what was reached."""
        self._close()
        if self._enabled:
            seconds = time.monotonic() - self._started
            sys.stderr.write(f"  {trainer.current_epoch} epochs in {seconds:.0f} s  {self._text(trainer)}\n")
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
        shown = [key for key in ("train/loss", "valid/loss", "valid/dice", "valid/auc") if key in metrics]
        return "  ".join(f"{key} {float(metrics[key]):.3f}" for key in shown)
