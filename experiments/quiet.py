"""Silence what cannot matter to a user, each with its reason. Light: the front door calls it before anything else."""

from __future__ import annotations

import logging
import os
import warnings


def quieten() -> None:
    """Filter warnings that nobody here can act on; all others are kept."""
    # a program that uses W&B hands the address of its service down: there the id of a run that was killed stays in
    # use until that program ends, and the run could not go on. Each command has a service of its own.
    os.environ.pop("WANDB_SERVICE", None)
    os.environ.setdefault("WANDB_SILENT", "true")
    # the client would note command words, folders and printed text, and with them paths and perhaps patients
    os.environ.setdefault("WANDB_X_DISABLE_META", "true")
    os.environ.setdefault("WANDB_CONSOLE", "off")
    # nor the machine's name, nor a list of all packages: the versions that matter stand in the configuration
    os.environ.setdefault("WANDB_HOST", "not-recorded")
    os.environ.setdefault("WANDB_X_SAVE_REQUIREMENTS", "false")
    # a thread that waits spins for long by default: where another process has its core, small layers crawl at a
    # tenth of their speed; this bound costs a tenth on an idle machine
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    # Lightning and MONAI call functions that PyTorch has deprecated; nothing a user can change
    warnings.filterwarnings("ignore", message=r".*isinstance\(treespec, LeafSpec\).*")
    warnings.filterwarnings("ignore", message=r".*torch\.jit\.interface.*")
    # Lightning warns when both its args and sys.argv are there, which is always so behind the front door
    warnings.filterwarnings("ignore", message=r"LightningCLI's args parameter")
    # loader processes are a choice: the store is memory-mapped, and small volumes load faster in-process
    warnings.filterwarnings("ignore", message=r".*does not have many workers.*")
    # a run directory is begun by writing its configuration, so its checkpoint folder may exist
    warnings.filterwarnings("ignore", message=r".*Checkpoint directory .* exists and is not empty.*")
    # a computer may have SLURM's client and run outside a job
    warnings.filterwarnings("ignore", message=r"The `srun` command is available on your system but is not used")
    # small cohorts have fewer batches than Lightning's logging interval; metrics are logged by epoch
    warnings.filterwarnings("ignore", message=r".*The number of training batches .* is smaller than the logging.*")
    # repeated scans of a distributed sampler are counted once: metrics and records are gathered by scan
    warnings.filterwarnings("ignore", message=r".*Using `DistributedSampler` with the dataloaders.*")
    # metrics over all patients are computed from what was gathered, alike in each process: no mean over processes
    warnings.filterwarnings("ignore", message=r"It is recommended to use `self\.log\('(valid|test)/.*sync_dist=True.*")
    # speed is that of the first process, said to be so; a mean over processes would hide the slowest
    warnings.filterwarnings("ignore", message=r"It is recommended to use `self\.log\('speed/.*sync_dist=True.*")
    # the gradients of one-channel kernels lie in another order than DDP's buckets: a copy more, the same numbers
    warnings.filterwarnings("ignore", message=r"Grad strides do not match bucket view strides.*")
    # the batch Dice's sum over processes: PyTorch's newer function has no gradient on processors
    warnings.filterwarnings("ignore", message=r".*torch\.distributed\.nn\.functional\.all_reduce is deprecated.*")


def quieten_lightning() -> None:
    """Keep Lightning's own talk off the screen; to be called after it is imported, which sets its levels."""
    # devices and seed stand in the run's provenance; the progress line says the rest
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
