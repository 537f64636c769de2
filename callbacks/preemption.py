"""Leaving when a scheduler asks for it: all processes together, after the batch that they are at."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from types import FrameType
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer


class Preemption(Callback):
    """End the training after the current batch at SIGTERM or SIGUSR1; the same command goes on from its checkpoint.

    Schedulers send SIGTERM before they kill a preempted or cancelled job, and SIGUSR1 where the job asked for a
    warning (``#SBATCH --signal=USR1@120``): then the job is queued again by ``scontrol requeue``. Lightning's own
    requeueing, which this takes the place of, would write a checkpoint in the middle of an epoch.

    With several processes, Lightning's handler for SIGTERM sends a message to the others from within whatever the
    process is doing, which may be waiting for the very same processes. Here a signal is noted, and all agree on it
    between two batches.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the place of Lightning's handlers, which have been set by now and are put back by it in the end."""
        if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "SIGUSR1"):
            return

        def note(number: int, _frame: FrameType | None) -> None:
            self.signal = self.signal or signal.Signals(number)
            launcher = trainer.strategy.launcher
            if trainer.world_size == 1:
                trainer._signal_connector.received_sigterm = True
            elif launcher is not None and trainer.is_global_zero:
                # processes that this one has started
                launcher.kill(signal.SIGTERM)

        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, note)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Let all processes leave where one of them was asked to."""
        if trainer.world_size == 1:
            return
        asked = torch.tensor([self.signal is not None], dtype=torch.int32, device=trainer.strategy.root_device)
        torch.distributed.all_reduce(asked, torch.distributed.ReduceOp.MAX)
        if bool(asked):
            trainer._signal_connector.received_sigterm = True


def queue_again() -> bool:
    """Have SLURM queue this job again.

    Returns:
        Whether it was done.
    """
    job = os.environ.get("SLURM_JOB_ID", "")
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ.get('SLURM_ARRAY_TASK_ID', '')}"
    if not re.fullmatch(r"\d+(_\d+)?", job):
        return False
    try:
        done = subprocess.run(
            ["scontrol", "requeue", job], capture_output=True, text=True, timeout=60, check=False
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError) as error:
        sys.stderr.write(f"hepastage: job {job} could not be queued again ({error})\n")
        return False
    if done.returncode != 0:
        sys.stderr.write(f"hepastage: job {job} could not be queued again ({' '.join(done.stderr.split())})\n")
    return done.returncode == 0
