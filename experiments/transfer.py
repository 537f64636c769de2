"""Weights from stage one: which segmenter of a fold gives them, and whether it saw patients it must not have seen."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from callbacks.run_directory import RunDirectory
from datamodules.cohort import Cohort
from datamodules.errors import InputError
from datamodules.files import sha256_of_file
from datamodules.splits import Fold, Splits

KEY = "weights_from"
"""Argument of a network that names a segmenter: its run directory, a folder with one of each fold, or a checkpoint."""
_SHOWN = 5


def settled(given: str, fold: int, seed: int) -> Path:
    """The checkpoint that is meant.

    Args:
        given: A checkpoint, a run directory, or a folder of segmenters' run directories (of an arm, say), of which
            that of the fold is taken, and of several seeds that of the seed.
        fold: The classifier's fold.
        seed: The classifier's seed.

    Raises:
        InputError: There is none, or there are several.
    """
    path = Path(given).absolute()
    if path.is_file():
        return path
    if (path / "config.yaml").is_file():
        return RunDirectory(path).checkpoint("best")
    found = []
    for config in sorted(path.rglob("config.yaml")) if path.is_dir() else ():
        run = RunDirectory(config.parent)
        if run.provenance.is_file() and "fit" in run.finished():
            identity = run.identity()
            if identity.role == "segmenter" and identity.fold == fold:
                found.append((identity, run))
    if not found:
        raise InputError(f"{KEY}: {given}: holds no trained segmenter of fold {fold}; train it first, or correct it")
    arms = sorted({identity.arm for identity, _ in found})
    own = [run for identity, run in found if identity.seed == seed] or [run for _, run in found]
    if len(arms) > 1 or len(own) > 1:
        raise InputError(
            f"{KEY}: {given}: holds several trained segmenters of fold {fold} (arms {', '.join(arms)}; none alone has "
            f"the seed {seed}); give the run directory of one"
        )
    return own[0].checkpoint("best")


def transfers(value: Any, key: str = "") -> Iterator[tuple[dict[str, Any], str]]:
    """Places of a plain configuration where a segmenter's weights are asked for: the mapping, and its whole name.

    Args:
        value: The configuration, or a part of it.
        key: Its dotted name.
    """
    if isinstance(value, dict):
        if value.get(KEY) is not None:
            yield value, f"{key}.{KEY}"
        for name, item in value.items():
            yield from transfers(item, f"{key}.{name}" if key else str(name))


def by_content(model: dict[str, Any], fold: int, seed: int) -> None:
    """Put the checkpoint's hash in the place of its path, for a cell's id; the mapping is changed.

    Args:
        model: The model part of a resolved configuration.
        fold: Of the cell.
        seed: Of the cell.
    """
    for place, _ in transfers(model):
        place[KEY] = sha256_of_file(settled(str(place[KEY]), fold, seed))


def transfer_faults(resolved: Mapping[str, Any]) -> list[str]:
    """Why weights from stage one would leak, one line each: the segmenter trained on patients that are held out here.

    Args:
        resolved: The whole configuration; paths are settled.
    """
    return [
        fault
        for place, key in transfers(resolved.get("model"), "model")
        if (fault := _fault(Path(str(place[KEY])), key, resolved["data"]["init_args"])) is not None
    ]


def _fault(checkpoint: Path, key: str, data: Mapping[str, Any]) -> str | None:
    run = RunDirectory(checkpoint.parent.parent)
    if not run.config.is_file() or not run.provenance.is_file():
        return (
            f"{key}: {checkpoint}: lies in no run directory, so nothing says on which patients it was trained; give "
            "one of a segmenter's run, or use weights_file for weights that saw none of yours"
        )
    identity = run.identity()
    if identity.role != "segmenter":
        return f"{key}: {run.path}: is a run of the role {identity.role}, not of a segmenter; give one that segments"
    run.require_trained()
    if data.get("splits") is None:
        return None
    own = Splits.load(Path(data["splits"]), Cohort.load(data["cohort"]))
    fold = own.folds[data.get("fold") or 0]
    if identity.split_sha256 == own.sha256 and identity.fold == (data.get("fold") or 0):
        return None
    theirs = _fold_of(run, identity.fold or 0)
    leaked = sorted(set(theirs.train) & {*fold.valid, *fold.test} | set(theirs.valid) & set(fold.test))
    if not leaked:
        return None
    shown = ", ".join(leaked[:_SHOWN]) + (f" and {len(leaked) - _SHOWN} more" if len(leaked) > _SHOWN else "")
    return (
        f"{key}: {run.path}: this segmenter (fold {identity.fold}) trained on {len(leaked)} patients that fold "
        f"{data.get('fold') or 0} holds out: {shown}; give the segmenter of the same fold"
    )


def _fold_of(run: RunDirectory, fold: int) -> Fold:
    """The fold that a segmenter was trained with, from the split that its configuration names."""
    settings = yaml.safe_load(run.config.read_text(encoding="utf-8"))["data"]["init_args"]
    return Splits.load(Path(settings["splits"]), Cohort.load(settings["cohort"])).folds[fold]
