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


def is_preempted() -> bool:
    """Whether SLURM has this job make room for another one.

    A job that leaves within its time of grace has ended for SLURM, which then does not queue it again; one that was
    cancelled or has run out of time is not running any more.
    """
    answer = _scontrol("show", "--oneliner", "job", _job()) if _job() else None
    found = dict(re.findall(r"(JobState|PreemptTime)=(\S+)", answer or ""))
    return found.get("JobState") == "RUNNING" and found.get("PreemptTime", "None") not in ("None", "Unknown")


def queue_again() -> bool:
    """Have SLURM queue this job again.

    Returns:
        Whether it was done.
    """
    return bool(_job()) and _scontrol("requeue", _job()) is not None


def _job() -> str:
    """This job's id; empty where there is none."""
    job = os.environ.get("SLURM_JOB_ID", "")
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ.get('SLURM_ARRAY_TASK_ID', '')}"
    return job if re.fullmatch(r"\d+(_\d+)?", job) else ""


def _scontrol(*words: str) -> str | None:
    """What SLURM answers; None, and a line on stderr, where it refuses."""
    try:
        done = subprocess.run(["scontrol", *words], capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.SubprocessError) as error:
        sys.stderr.write(f"hepastage: scontrol {words[0]} failed ({error})\n")
        return None
    if done.returncode != 0:
        sys.stderr.write(f"hepastage: scontrol {words[0]} failed ({' '.join(done.stderr.split())})\n")
        return None
    return done.stdout
