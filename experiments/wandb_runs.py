"""How a run appears in Weights & Biases: offline unless configured otherwise, and without paths of this machine."""

from __future__ import annotations

import os
from typing import Any

from jsonargparse import Namespace

from callbacks.provenance import wandb_id
from callbacks.run_directory import Identity
from datamodules.errors import InputError


def is_wandb(class_path: str) -> bool:
    """Whether a logger's class is Lightning's W&B logger."""
    return class_path.rsplit(".", 1)[-1] == "WandbLogger"


def place_wandb(logger: Namespace, identity: Identity) -> None:
    """Give a W&B logger its run: group = study, job type = role, tag = arm, and an id that a restart keeps.

    Args:
        logger: The logger's parsed configuration; changed in place.
        identity: The cell.
    """
    import wandb

    # takes WANDB_SILENT in: Lightning sets an option that the client warns about at every start
    wandb.setup()
    logger.init_args.id = wandb_id(identity)
    logger.init_args.name = f"{identity.arm} fold {identity.fold} seed {identity.seed}"
    # the user's environment wins; 'dryrun' is what Lightning itself leaves there after an offline run
    chosen = os.environ.get("WANDB_MODE", "dryrun")
    mode = ("offline" if logger.init_args.offline else "online") if chosen == "dryrun" else chosen
    logger.dict_kwargs = {
        "group": identity.study,
        "job_type": identity.role,
        "tags": [identity.arm],
        "resume": "allow",
        "mode": mode,
        **dict(logger.get("dict_kwargs") or {}),
    }


def log_everywhere(loggers: list[Any], values: dict[str, Any]) -> None:
    """Give a run's configuration to all its loggers, before training starts.

    Args:
        loggers: The trainer's loggers.
        values: Configuration and identity as plain values.

    Raises:
        InputError: W&B is to be online, and nobody is logged in.
    """
    try:
        for logger in loggers:
            logger.log_hyperparams(values)
    except Exception as error:
        if type(error).__module__.startswith("wandb."):
            text = " ".join(str(error).split())
            raise InputError(f"W&B: {text} Or keep 'offline: true' for the WandbLogger") from error
        raise


def finish_wandb(loggers: list[Any]) -> None:
    """End the W&B run, so that the next cell of this process gets one of its own."""
    if any(is_wandb(type(logger).__name__) for logger in loggers):
        import wandb

        wandb.finish()
