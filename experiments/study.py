"""The study file: arms, folds and seeds over one cohort, and the cells that follow from them."""

from __future__ import annotations

import dataclasses
import importlib.resources
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from datamodules.errors import InputError
from experiments.study_axes import expanded, merged
from experiments.study_schema import SCHEMA, form_faults

SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")
"""What may name a folder of runs."""

RESERVED = ("masks", "store", "cohort", "comparison")
"""Folders beside the arms'."""


@dataclasses.dataclass(frozen=True, slots=True)
class Resources:
    """What a cell may use; None is decided by the machine at hand.

    Attributes:
        cores: Processor cores, and threads.
        gpus: GPUs; below 1, the share of one that several cells have together.
        memory_gb: Main memory in GB.
        hours: Time limit in hours.
        nodes: Nodes, on a cluster.
        tasks: Processes over all nodes (DDP ranks), on a cluster.
    """

    cores: int | None = None
    gpus: float | None = None
    memory_gb: float | None = None
    hours: float | None = None
    nodes: int = 1
    tasks: int = 1


@dataclasses.dataclass(frozen=True, slots=True)
class Arm:
    """One configuration under test.

    Attributes:
        name: The arm's name.
        configs: Configurations, later ones over earlier ones: shipped names, or files relative to the study.
        masks: ``out_of_fold`` or ``reference`` where the arm gets masks, else ``none``.
        role: ``segmenter``, ``classifier``, ``staging`` or ``probe``.
        settings: Single keys over the configurations, such as ``model.init_args.network.init_args.backbone``.
        segmenter: Whose out-of-fold masks the arm gets, or None.
        resources: What its cells may use.
        axes: The value's name on each axis that the arm was made from.
    """

    name: str
    configs: tuple[str, ...]
    masks: str
    role: str
    settings: Mapping[str, Any]
    segmenter: str | None = None
    resources: Resources = Resources()
    axes: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, slots=True)
class Study:
    """What is to be compared, on whom.

    Attributes:
        name: The study's name, its folder below the runs.
        cohort: The cohort table, or None where the command line gives it.
        splits: The split file, or None where the command line gives it.
        folds: Folds to run; None for all of the split.
        seeds: Seeds of the arms; segmenters run with the first alone.
        segmenters: The first stages; those whose masks no arm needs are not run.
        arms: The arms, in the order they are run and shown.
        compare: The comparison asked for (``reference``, ``metric``, ``out``), or None.
        retries: Further tries of a failed cell.
    """

    name: str
    cohort: Path | None
    splits: Path | None
    folds: tuple[int, ...] | None
    seeds: tuple[int, ...]
    segmenters: tuple[Arm, ...]
    arms: tuple[Arm, ...]
    compare: Mapping[str, str] | None = None
    retries: int = 1

    @property
    def reference(self) -> str | None:
        """The arm that the others are compared with, or None."""
        return (self.compare or {}).get("reference")

    @property
    def needed(self) -> tuple[Arm, ...]:
        """The segmenters whose masks an arm needs."""
        names = {arm.segmenter for arm in self.arms if arm.masks == "out_of_fold"}
        return tuple(arm for arm in self.segmenters if arm.name in names)

    @classmethod
    def load(cls, path: Path, smoke: bool = False) -> Study:
        """Read and check a study file.

        Args:
            path: The file, or a shipped study's name, such as ``demo``.
            smoke: Take the study's smoke variant, called ``<study>-smoke``.

        Raises:
            InputError: The file is missing, is not YAML, breaks the form, or has no smoke variant: all faults, each
                naming its key.
        """
        path = _shipped(path)
        try:
            value = yaml.safe_load(path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            names = ", ".join(shipped_studies())
            raise InputError(f"{path}: no such study file, and none is shipped so; shipped are {names}") from error
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise InputError(f"{path}: cannot be read as YAML ({' '.join(str(error).split())}); correct it") from error
        if not isinstance(value, dict):
            raise InputError(f"{path}: is not a mapping of keys; a study has {', '.join(SCHEMA['properties'])}")
        faults = form_faults(value)
        if smoke and not faults and "smoke" not in value:
            faults = ["smoke: is not there; a study has a smoke variant where this key says what it changes"]
        if not faults:
            study, faults = _study(_smoked(value) if smoke else value, path.parent)
        if faults:
            raise InputError(*(f"{path}: {fault}" for fault in faults))
        return study


@dataclasses.dataclass(frozen=True, slots=True)
class Cell:
    """One training: an arm on one fold with one seed."""

    arm: Arm
    fold: int
    seed: int

    @property
    def title(self) -> str:
        """What progress lines call it."""
        return f"{self.arm.name}, fold {self.fold}, seed {self.seed}"


def cells_of(study: Study, folds: int) -> tuple[list[Cell], list[Cell]]:
    """The segmenters' cells and the arms' cells.

    Args:
        study: The study.
        folds: Folds of the split file.

    Raises:
        InputError: The study names a fold that the split does not have.
    """
    wanted = tuple(range(folds)) if study.folds is None else study.folds
    beyond = [fold for fold in wanted if not 0 <= fold < folds]
    if beyond:
        raise InputError(f"study {study.name}: folds: {beyond[0]} is not in the split file, which has 0 to {folds - 1}")
    # out-of-fold masks need the segmenter of every fold, whichever folds the arms run on
    first = [Cell(segmenter, fold, study.seeds[0]) for segmenter in study.needed for fold in range(folds)]
    return first, [Cell(arm, fold, seed) for arm in study.arms for seed in study.seeds for fold in wanted]


def masks_folder(study: Path, segmenter: str) -> Path:
    """Where a segmenter's out-of-fold masks lie in a study's folder."""
    return study / ("masks" if segmenter == "segmenter" else f"masks-{segmenter}")


def shipped_studies() -> list[str]:
    """Names of the studies that come with hepastage."""
    found = importlib.resources.files("experiments.studies").iterdir()
    return sorted(file.name.removesuffix(".yaml") for file in found if file.name.endswith(".yaml"))


def _shipped(path: Path) -> Path:
    """A shipped study's file where a bare name is given and no such file is there."""
    if path.is_file() or path.parent != Path() or path.name.removesuffix(".yaml") not in shipped_studies():
        return path
    return Path(str(importlib.resources.files("experiments.studies").joinpath(f"{path.stem}.yaml")))


def _smoked(value: Mapping[str, Any]) -> dict[str, Any]:
    """A study's content with its smoke variant laid over it."""
    smoke = value["smoke"]
    return {
        **value,
        "study": f"{value['study']}-smoke",
        "seeds": smoke.get("seeds") or [0],
        "folds": smoke.get("folds") or value.get("folds"),
        "last": {kind: smoke.get(kind) or {} for kind in ("arms", "segmenters")},
    }


def _study(value: dict[str, Any], folder: Path) -> tuple[Study, list[str]]:
    """The study of a content whose form is right, and what is still wrong with it."""
    first = dict(value.get("segmenters") or {})
    if value.get("segmenter"):
        first = {"segmenter": value["segmenter"], **first}
    arms, faults = expanded(value)
    if not arms and not faults:
        faults.append("arms: is missing; a study needs arms, or a base with axes")
    common = {"set": value.get("set"), "resources": value.get("resources")}
    last = value.get("last") or {"arms": {}, "segmenters": {}}
    made = {
        "segmenters": [
            _arm(name, merged([common, arm, last["segmenters"]]), "segmenter", folder, {})
            for name, arm in first.items()
        ],
        "arms": [
            _arm(name, merged([common, arm, last["arms"]]), "classifier", folder, axes)
            for name, (arm, axes) in arms.items()
        ],
    }
    made["arms"] = [
        dataclasses.replace(arm, segmenter=next(iter(first)))
        if arm.masks == "out_of_fold" and arm.segmenter is None and len(first) == 1
        else arm
        for arm in made["arms"]
    ]
    for kind, found in made.items():
        for arm in found:
            place = "segmenter" if arm.name == "segmenter" and kind == "segmenters" else f"{kind}.{arm.name}"
            faults += [f"{place}{fault}" for fault in _arm_faults(arm, list(first))]
            if kind == "arms" and arm.name in first:
                faults.append(f"{place}: a segmenter has this name as well; rename one")
    reference = (value.get("compare") or {}).get("reference")
    if arms and reference is not None and reference not in arms:
        faults.append(f"compare.reference: there is no arm {reference!r}; arms are {', '.join(arms)}")
    study = Study(
        name=str(value["study"]),
        cohort=None if value.get("cohort") is None else folder / str(value["cohort"]),
        splits=None if value.get("splits") is None else folder / str(value["splits"]),
        folds=None if value.get("folds") is None else tuple(value["folds"]),
        seeds=tuple(value.get("seeds") or [0]),
        segmenters=tuple(made["segmenters"]),
        arms=tuple(made["arms"]),
        compare=value.get("compare"),
        retries=int(value.get("retries", 1)),
    )
    if not SAFE_NAME.fullmatch(study.name):
        faults.append(f"study: {study.name!r} cannot name a folder; use letters, digits, '.', '_', '+' and '-'")
    return study, faults


def _arm(name: str, value: Mapping[str, Any], role: str, folder: Path, axes: Mapping[str, str]) -> Arm:
    """An arm of a merged fragment; a configuration that is a file beside the study is meant, not a shipped one."""
    found = tuple(
        str((folder / config).absolute()) if (folder / config).is_file() else config for config in value["config"]
    )
    wish = dict(value["resources"])
    share = wish.pop("gpu", None)
    # said so: not even masks that a configuration would take by itself
    settings = {"data.init_args.mask_source": "none"} if value.get("masks") == "none" else {}
    resources = Resources(**{**wish, **({} if share is None else {"gpus": share})})
    return Arm(
        name=name,
        configs=found,
        masks=value.get("masks", "none"),
        role=value.get("role", role),
        settings={**settings, **value["set"]},
        segmenter=value.get("segmenter"),
        resources=resources,
        axes=axes,
    )


def _arm_faults(arm: Arm, segmenters: list[str]) -> list[str]:
    """What is wrong with an arm; each begins with the key below the arm."""
    faults = []
    if not SAFE_NAME.fullmatch(arm.name):
        faults.append(": cannot name a folder; use letters, digits, '.', '_', '+' and '-'")
    if arm.name in RESERVED:
        faults.append(": is a folder's name of the study's own; rename the arm")
    if not arm.configs:
        faults.append(".config: is missing; name one or more configurations, here or under 'base'")
    if arm.masks == "out_of_fold" and not segmenters:
        faults.append(".masks: out_of_fold masks need a segmenter; add the key 'segmenter'")
    elif arm.segmenter is not None and arm.segmenter not in segmenters:
        faults.append(
            f".segmenter: there is no segmenter {arm.segmenter!r}; there are {', '.join(segmenters) or 'none'}"
        )
    elif arm.masks == "out_of_fold" and arm.segmenter is None:
        faults.append(f".segmenter: is missing; say whose masks: {', '.join(segmenters)}")
    return faults
