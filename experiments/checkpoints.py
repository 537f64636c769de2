"""Whether a checkpoint holds what was configured: its class, its tensors, and how its run was configured."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from callbacks.checkpoint_file import require_whole
from datamodules.errors import InputError
from experiments.cell import PATH_KEYS

SHOWN = 12
"""Differences of configuration that are listed one by one."""


def content_of(path: Path, model_class: str) -> dict[str, Any]:
    """What a checkpoint holds, if it is one of a class.

    Args:
        path: The checkpoint.
        model_class: The configured module's class with its module; empty where any will do.

    Raises:
        InputError: The file is torn or no checkpoint, or holds another class.
    """
    require_whole(path)
    try:
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        content["state_dict"].keys()
    except (OSError, RuntimeError, pickle.UnpicklingError, KeyError, TypeError, AttributeError) as error:
        cause = " ".join(str(error).split())[:120]
        raise InputError(f"{path}: is not a checkpoint of hepastage ({cause}); give one of a run directory") from error
    saved = content.get("model_class")
    if model_class and saved is not None and saved != model_class:
        raise InputError(
            f"{path}: holds a {saved.rsplit('.', 1)[-1]}, not the configured {model_class.rsplit('.', 1)[-1]}; "
            "give the configuration of its own run, or its folder with --run"
        )
    return content


def weights_of(path: Path, model: nn.Module) -> dict[str, Tensor]:
    """The weights of a checkpoint, if they are the model's.

    Args:
        path: The checkpoint.
        model: The configured module.

    Returns:
        Its ``state_dict``, on the processor.

    Raises:
        InputError: The file is torn or no checkpoint, or holds another class or other shapes.
    """
    own = f"{type(model).__module__}.{type(model).__qualname__}"
    weights: dict[str, Tensor] = content_of(path, own)["state_dict"]
    wanted = model.state_dict()
    other = [
        name
        for name in dict.fromkeys([*wanted, *weights])
        if name not in weights or name not in wanted or weights[name].shape != wanted[name].shape
    ]
    if other:
        first = other[0]
        shapes = [str(list(part[first].shape)) if first in part else "missing" for part in (weights, wanted)]
        raise InputError(
            f"{path}: does not fit the configured network: {len(other)} of {len(wanted)} tensors differ, first "
            f"{first} ({shapes[0]} in the checkpoint, {shapes[1]} configured); give the configuration of its own run"
        )
    return weights


def differences(path: Path, resolved: Mapping[str, Any]) -> list[str]:
    """How the configuration of a checkpoint's run differs from the one that is used, one line each.

    Args:
        path: A checkpoint; its run directory is two levels up.
        resolved: The configuration in use.
    """
    config = path.parent.parent / "config.yaml"
    if not config.is_file():
        return ["no configuration lies with it; that in use was not compared"]
    saved = yaml.safe_load(config.read_text(encoding="utf-8"))
    before, now = (_flat({part: values.get(part) for part in ("model", "data")}) for values in (saved, resolved))
    ignored = {f"data.init_args.{key}" for key in PATH_KEYS}
    lines = [
        f"its run had {key} {before.get(key)!r}, configured is {now.get(key)!r}, which is used"
        for key in sorted(before.keys() | now.keys())
        if key not in ignored and before.get(key) != now.get(key)
    ]
    return lines[:SHOWN] + ([f"and {len(lines) - SHOWN} differences more"] if len(lines) > SHOWN else [])


def _flat(value: Any, key: str = "") -> dict[str, Any]:
    if isinstance(value, Mapping) and value:
        parts = [_flat(item, f"{key}.{name}" if key else str(name)) for name, item in value.items()]
        return {name: item for part in parts for name, item in part.items()}
    return {key: value}
