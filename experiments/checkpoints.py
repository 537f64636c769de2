"""Whether a checkpoint holds what was configured: its class, its tensors, and how its run was configured."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from callbacks.last_checkpoint import fault_of
from datamodules.errors import InputError
from experiments.cell import PATH_KEYS

SHOWN = 12
"""Differences of configuration that are listed one by one."""


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
    if path.is_file() and fault_of(path) is not None:
        raise InputError(f"{path}: {fault_of(path)}; give another checkpoint, or train the cell again")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        weights: dict[str, Tensor] = content["state_dict"]
    except (OSError, RuntimeError, pickle.UnpicklingError, KeyError, TypeError) as error:
        cause = " ".join(str(error).split())[:120]
        raise InputError(f"{path}: is not a checkpoint of hepastage ({cause}); give one of a run directory") from error
    saved, own = content.get("model_class"), f"{type(model).__module__}.{type(model).__qualname__}"
    if saved is not None and saved != own:
        raise InputError(
            f"{path}: holds a {saved.rsplit('.', 1)[-1]}, not the configured {type(model).__name__}; "
            "give the configuration of its own run, or its folder with --run"
        )
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
