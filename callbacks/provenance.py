"""Where a run came from: commit, versions, hardware, hashes and command."""

from __future__ import annotations

import dataclasses
import datetime
import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

from callbacks.run_directory import Identity

PACKAGES = ("hepastage", "torch", "torchvision", "lightning", "torchio", "timm", "monai", "torchmetrics", "wandb")


def provenance_record(
    identity: Identity, config_sha256: str, arguments: list[str], *, accelerators: bool = True
) -> dict[str, Any]:
    """All that a reader needs to know about how a run came to be, as JSON values.

    Args:
        identity: The cell.
        config_sha256: Hash of the resolved configuration as saved.
        arguments: The command's arguments; paths below the home folder are shortened to ``~``.
        accelerators: Name the accelerators, which imports torch; False for work that uses none.

    Returns:
        identity, config hash, git state of the code, versions, hardware, command and start time.
    """
    home = str(Path.home())
    return {
        "identity": dataclasses.asdict(identity),
        "config_sha256": config_sha256,
        "git": git_state(Path(__file__).resolve().parent.parent),
        "versions": {"python": platform.python_version(), **package_versions()},
        "hardware": hardware(accelerators),
        "command": shlex.join(["hepastage", *(argument.replace(home, "~") for argument in arguments)]),
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "wandb_id": wandb_id(identity),
    }


def wandb_id(identity: Identity) -> str:
    """The run's id in W&B: the same whenever the same cell is started, so that a resumed run goes on."""
    stem = f"{identity.study}-{identity.arm}"
    # W&B takes 128 characters and puts the id into the names of tables; the cell must not be cut off
    return f"{stem[:83]}-{identity.cell}"


def git_state(folder: Path) -> dict[str, Any]:
    """Commit and dirty flag of the code's repository; both None for an installed package."""

    def git(*words: str) -> str | None:
        try:
            answer = subprocess.run(
                ["git", "-C", str(folder), *words], capture_output=True, text=True, timeout=20, check=True
            )
        except (OSError, subprocess.SubprocessError):
            return None
        return answer.stdout.strip()

    top = git("rev-parse", "--show-toplevel")
    # an installed package may lie inside somebody else's repository (a virtual environment, say)
    if top is None or not (Path(top) / "lightning_modules").is_dir():
        return {"sha": None, "dirty": None}
    status = git("status", "--porcelain", "--untracked-files=no")
    return {"sha": git("rev-parse", "HEAD"), "dirty": None if status is None else bool(status)}


def package_versions() -> dict[str, str]:
    """Versions of the packages that a result depends on."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return versions


def hardware(accelerators: bool = True) -> dict[str, Any]:
    """Processor, cores, memory in GiB, accelerators (where they are asked for), and the job's id on a cluster."""
    devices: list[str] = []
    if accelerators:
        import torch

        devices = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]

    pages = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0
    return {
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "memory_gib": round(pages / 2**30, 1),
        "accelerators": devices,
        "slurm_job": os.environ.get("SLURM_JOB_ID"),
        "python": sys.implementation.name,
    }
