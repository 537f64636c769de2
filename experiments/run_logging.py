"""What a run tells its loggers, whichever they are: checks, configuration, where its history goes on, results."""

from __future__ import annotations

import copy
import dataclasses
import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from callbacks.provenance import git_state, package_versions
from callbacks.run_directory import Identity, RunDirectory
from datamodules.errors import InputError
from datamodules.files import sha256_of_json
from experiments.wandb_lineage import note, used_by_cell
from experiments.wandb_runs import explained_failures, log_everywhere, wandb_runs

PACKAGES: dict[str, tuple[str, ...]] = {
    "WandbLogger": ("wandb",),
    "TensorBoardLogger": ("tensorboard", "tensorboardX"),
    "MLFlowLogger": ("mlflow",),
    "CometLogger": ("comet_ml",),
    "NeptuneLogger": ("neptune",),
}
"""What Lightning's loggers need, by class: one of these."""


def check_loggers(class_paths: Sequence[str]) -> None:
    """Refuse a logger whose package is missing, before anything is built.

    Args:
        class_paths: The classes under ``trainer.logger``.

    Raises:
        InputError: A package is missing; names it.
    """
    faults = []
    for class_path in class_paths:
        name = class_path.rsplit(".", 1)[-1]
        needed = PACKAGES.get(name, ())
        if needed and not any(importlib.util.find_spec(package) for package in needed):
            package = needed[0].replace("_", "-")
            faults.append(
                f"trainer.logger: {name} needs the package {package}; install it with 'pip install {package}'"
            )
    if faults:
        raise InputError(*faults)


def tell_configuration(
    loggers: list[Any],
    directory: RunDirectory,
    identity: Identity,
    resolved: Mapping[str, Any],
    path_keys: Sequence[str],
) -> None:
    """Give the resolved configuration, identity, hashes and code state to every logger; no paths of this machine.

    Args:
        loggers: The trainer's loggers.
        directory: The run directory.
        identity: The cell.
        resolved: The whole configuration as plain values.
        path_keys: Keys of ``data.init_args`` that say where something lies.

    Raises:
        InputError: W&B is to be online, and nobody is logged in.
    """
    shown = copy.deepcopy(dict(resolved))
    for key in path_keys:
        shown["data"]["init_args"].pop(key, None)
    shown.pop("runs", None)
    code = {
        "git": git_state(Path(__file__).resolve().parent.parent),
        "versions": package_versions(),
        "config_sha256": sha256_of_json(dict(resolved)),
    }
    shown = without_paths(shown)
    log_everywhere(loggers, {**shown, **dataclasses.asdict(identity), "provenance": code})
    uses = used_by_cell(resolved["data"]["init_args"])
    for run in wandb_runs(loggers):
        with explained_failures():
            note(run, directory.path, uses)


def without_paths(value: Any) -> Any:
    """Plain values with the file's name alone in the place of each absolute path, wherever one stands.

    Args:
        value: Mappings, lists and single values, as YAML holds them.
    """
    if isinstance(value, Mapping):
        return {key: without_paths(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_paths(item) for item in value]
    if isinstance(value, str) and (value.startswith("~") or PurePosixPath(value).is_absolute()):
        return PurePosixPath(value).name
    return value
