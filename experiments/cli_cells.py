"""Which cell the words mean, where that can be said before Lightning is imported: trained already, or another one."""

from __future__ import annotations

import copy
import importlib.metadata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from callbacks.run_directory import RunDirectory
from datamodules.errors import InputError
from datamodules.files import read_json, sha256_of_file, sha256_of_json
from datamodules.masks import RECORD
from experiments.cli_given import Given, flat

PARSED_BY = ("torch", "lightning", "jsonargparse", "torchmetrics", "monai", "timm")
"""Packages whose defaults a configuration may get."""
SOURCES = ("datamodules", "lightning_modules", "callbacks", "experiments")


def request_of(given: Sequence[Given]) -> str:
    """A hash of all that decides which cell the words mean: they, what the files hold, and the code.

    Two equal requests mean the same cell. Two that differ may do so too: only the parser can tell.

    Args:
        given: All that was given.
    """
    last = {item.key: item.value for item in given}
    files = {}
    for key, name in (("cohort", ""), ("splits", ""), ("masks", RECORD)):
        value = last.get(f"data.init_args.{key}")
        path = Path(str(value), name) if value is not None else None
        files[key] = sha256_of_file(path) if path is not None and path.is_file() else ""
    root = Path(__file__).resolve().parent.parent
    stats = {str(path.relative_to(root)): path.stat() for part in SOURCES for path in (root / part).rglob("*.py")}
    code = {name: [stat.st_size, stat.st_mtime_ns] for name, stat in sorted(stats.items())}
    values = [[item.key, repr(item.value), item.appended] for item in given]
    return sha256_of_json({"given": values, "files": files, "code": code, "versions": _versions()})


def refuse_trained(given: Sequence[Given]) -> None:
    """Refuse to train a cell again that the same request has trained.

    Args:
        given: All that was given to ``fit`` without ``--restart``.

    Raises:
        InputError: It is trained.
    """
    last = {item.key: item.value for item in given}
    folder = RunDirectory.of_cell(
        str(last.get("runs", "runs")), str(last.get("study", "study")), str(last.get("arm", "arm")), "cell"
    ).path.parent
    finished = [RunDirectory(path.parent) for path in sorted(folder.glob("*/done.json"))]
    wanted = request_of(given) if finished else ""
    for run in finished:
        if run.provenance.is_file() and read_json(run.provenance, "a run's provenance").get("request") == wanted:
            refuse_if_trained(run)


def refuse_if_trained(run: RunDirectory) -> None:
    """Refuse a run directory whose training has ended.

    Args:
        run: The run directory.

    Raises:
        InputError: It has.
    """
    if "fit" in run.finished():
        raise InputError(
            f"{run.path}: this cell is already trained; test it with 'hepastage test --run', "
            "or train it again with 'hepastage fit ... --restart'"
        )


def refuse_other_cell(run: RunDirectory, given: Sequence[Given]) -> None:
    """Refuse words beside ``--run`` that make another cell of it, as far as its saved configuration shows.

    Args:
        run: The run directory.
        given: All that was given, its configuration first.

    Raises:
        InputError: They mean another cell, or its cohort or split has changed.
    """
    from experiments.cell import PATH_KEYS, identity_of

    saved = yaml.safe_load(run.config.read_text(encoding="utf-8"))
    resolved = copy.deepcopy(saved)
    before = {item.key: item.value for item in flat(saved, "", "")}
    for item in given[len(before) :]:
        value = item.value
        if item.key == "runs" and not item.appended:
            continue
        old = before.get(item.key)
        if isinstance(old, float) and type(value) is int:
            value = float(value)
        if item.appended or item.key not in before or type(value) is not type(old):
            # of other values the parser says what they mean
            return
        if item.key.startswith("data.init_args.") and item.key.rsplit(".", 1)[-1] in PATH_KEYS:
            value = str(Path(str(value)).absolute())
        owner: Any = resolved
        *parts, name = item.key.split(".")
        for part in parts:
            owner = owner[part]
        owner[name] = value
    identity = identity_of(resolved)
    runs = run.path.parent.parent.parent
    require_cell(run, RunDirectory.of_cell(runs, identity.study, identity.arm, identity.cell))


def require_cell(run: RunDirectory, meant: RunDirectory) -> None:
    """Refuse a run directory that is not a cell's.

    Args:
        run: The run directory that was given.
        meant: The one that the configuration means now.

    Raises:
        InputError: They differ.
    """
    if run.path != meant.path:
        raise InputError(
            f"{run.path}: its configuration, with the arguments given, now means the cell {meant.path.name}; the "
            "cohort, the split or an argument differs from what it was trained with"
        )


def _versions() -> Mapping[str, str]:
    found = {}
    for name in PARSED_BY:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = ""
    return found
