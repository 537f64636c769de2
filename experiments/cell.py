"""Which cell a configuration is, and where it keeps its files: id, run directory, callbacks that each run has."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from jsonargparse import Namespace, dict_to_namespace

from callbacks.run_directory import Identity, RunDirectory
from datamodules.cohort import Cohort
from datamodules.errors import InputError
from datamodules.files import sha256_of_file, sha256_of_json
from datamodules.masks import RECORD
from datamodules.splits import Splits
from experiments.cli_hints import SEED
from experiments.run_logging import check_loggers
from experiments.transfer import by_content
from experiments.wandb_runs import is_wandb, place_wandb

PATH_KEYS = ("cohort", "splits", "store", "masks", "quality_from")
"""Data arguments that say where something lies, not what it is; a cell's id does not depend on them."""

MACHINE_KEYS = ("logger", "default_root_dir", "accelerator", "enable_progress_bar", "enable_model_summary")
"""Trainer arguments that say where and how visibly a cell runs, not what it is."""

WATCHERS: dict[str, dict[str, Any]] = {
    "callbacks.last_checkpoint.LastCheckpoint": {"every_s": 10.0},
    "callbacks.throughput.Throughput": {},
    "callbacks.preemption.Preemption": {},
}
"""Callbacks that each run has, with their arguments; a cell's id does not depend on them."""

UNNAMED = (
    *WATCHERS,
    "callbacks.search_report.SearchReport",
    "callbacks.attention.AttentionWriter",
    "callbacks.grad_cam.GradCamWriter",
    "callbacks.keep_features.KeepFeatures",
)
"""Callbacks that a cell's id does not depend on: they watch, or read what would else be computed."""


def identity_of(resolved: dict[str, Any]) -> Identity:
    """Which cell a resolved configuration is.

    The id is a hash of the configuration without paths, loggers, names and the kind of machine; cohort, split,
    masks and a segmenter whose weights are taken enter by their content.

    Args:
        resolved: The whole configuration as plain values.

    Raises:
        InputError: Cohort or split cannot be read.
    """
    data = resolved["data"]["init_args"]
    cohort = Cohort.load(data["cohort"])
    splits = None if data.get("splits") is None else Splits.load(Path(data["splits"]), cohort)
    split_sha256 = "" if splits is None else splits.sha256
    content = copy.deepcopy(resolved)
    for key in ("runs", "study", "arm", "role", "config", "wandb"):
        content.pop(key, None)
    for key in PATH_KEYS:
        content["data"]["init_args"].pop(key, None)
    for key in MACHINE_KEYS:
        content["trainer"].pop(key, None)
    content["trainer"]["callbacks"] = [
        callback for callback in content["trainer"].get("callbacks") or [] if callback["class_path"] not in UNNAMED
    ]
    for key in ("workers", "resident"):
        content["data"]["init_args"].pop(key, None)
    by_content(content["model"], data.get("fold") or 0, int(resolved["seed_everything"]))
    record = None if data.get("masks") is None else Path(data["masks"]) / RECORD
    masks_sha256 = "" if record is None or not record.is_file() else sha256_of_file(record)
    contents = {"cohort": cohort.sha256, "split": split_sha256, "masks": masks_sha256}
    cell = sha256_of_json({"config": content, **contents})[:12]
    seed = resolved["seed_everything"]
    if isinstance(seed, bool):
        raise InputError(SEED)
    return Identity(
        study=resolved["study"],
        arm=resolved["arm"],
        role=resolved["role"],
        seed=int(seed),
        fold=data.get("fold") if splits is not None else None,
        cell=cell,
        split_sha256=split_sha256,
        cohort_sha256=cohort.sha256,
    )


def add_watchers(config: Namespace) -> None:
    """Add the callbacks that each run has where a configuration does not name them, so that it can be resumed.

    Args:
        config: The parsed configuration; changed in place.
    """
    callbacks = _as_list(config.trainer.get("callbacks"))
    present = {callback.class_path for callback in callbacks}
    for class_path, arguments in WATCHERS.items():
        if class_path not in present:
            callbacks.append(dict_to_namespace({"class_path": class_path, "init_args": arguments}))
    config.trainer.callbacks = callbacks


def place(trainer: Namespace, directory: RunDirectory, identity: Identity) -> None:
    """Point checkpoints and loggers of a trainer's configuration at the run directory.

    Args:
        trainer: The ``trainer`` part of the parsed configuration; changed in place.
        directory: The run directory.
        identity: The cell, for W&B's group, job type, tags and id.
    """
    trainer.default_root_dir = str(directory.path)
    for callback in _as_list(trainer.callbacks):
        if callback.class_path.endswith("ModelCheckpoint"):
            callback.init_args.dirpath = str(directory.checkpoints)
            # LastCheckpoint writes it, in a way that survives a kill at any moment
            callback.init_args.save_last = False
    check_loggers([logger.class_path for logger in _as_list(trainer.logger)])
    for logger in _as_list(trainer.logger):
        settings = logger.init_args
        if "save_dir" in settings:
            settings.save_dir = str(directory.path)
        if is_wandb(logger.class_path):
            place_wandb(logger, identity)


def _as_list(value: Any) -> list[Any]:
    if value is None or isinstance(value, bool):
        return []
    return list(value) if isinstance(value, list) else [value]
