"""The study file: arms, folds and seeds over one cohort, and the cells that follow from them."""

from __future__ import annotations

import dataclasses
import difflib
from pathlib import Path
from typing import Any

import yaml

from datamodules.errors import InputError

KEYS = ("study", "cohort", "splits", "folds", "seeds", "segmenter", "arms", "compare")
ARM_KEYS = ("config", "masks", "role", "set")
MASKS = ("none", "out_of_fold")


@dataclasses.dataclass(frozen=True, slots=True)
class Arm:
    """One configuration under test.

    Attributes:
        name: The arm's name.
        configs: Configurations, later ones over earlier ones: shipped names, or files relative to the study.
        masks: ``out_of_fold`` where the arm gets the study's out-of-fold masks, else ``none``.
        role: ``segmenter``, ``classifier``, ``staging`` or ``probe``.
        settings: Single keys over the configurations, such as ``model.init_args.network.init_args.backbone``.
    """

    name: str
    configs: tuple[str, ...]
    masks: str
    role: str
    settings: dict[str, Any]


@dataclasses.dataclass(frozen=True, slots=True)
class Study:
    """What is to be compared, on whom.

    Attributes:
        name: The study's name, its folder below the runs.
        cohort: The cohort table, or None where the command line gives it.
        splits: The split file, or None where the command line gives it.
        folds: Folds to run; None for all of the split.
        seeds: Seeds of the arms; segmenters run with the first alone.
        segmenter: The first stage, or None where no arm needs masks.
        arms: The arms, in the order they are run and shown.
        reference: The arm that the others are compared with, or None.
    """

    name: str
    cohort: Path | None
    splits: Path | None
    folds: tuple[int, ...] | None
    seeds: tuple[int, ...]
    segmenter: Arm | None
    arms: tuple[Arm, ...]
    reference: str | None

    @classmethod
    def load(cls, path: Path) -> Study:
        """Read and check a study file.

        Raises:
            InputError: The file is missing, is not YAML, or breaks the form: all faults, each naming its key.
        """
        try:
            value = yaml.safe_load(path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise InputError(f"{path}: no such study file; 'hepastage demo' writes one into its folder") from error
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise InputError(f"{path}: cannot be read as YAML ({' '.join(str(error).split())}); correct it") from error
        if not isinstance(value, dict):
            raise InputError(f"{path}: is not a mapping of keys; a study has {', '.join(KEYS)}")
        faults = [*_unknown(value, KEYS, ""), *_mistyped(value)]
        if faults:
            raise InputError(*(f"{path}: {fault}" for fault in faults))
        faults += [f"{key}: is missing; a study needs it" for key in ("study", "arms") if not value.get(key)]
        arms = value.get("arms") or {}
        stages = {f"arms.{name}": arm for name, arm in arms.items()}
        if value.get("segmenter"):
            stages["segmenter"] = value["segmenter"]
        for name, arm in stages.items():
            if not isinstance(arm, dict) or "config" not in arm:
                faults.append(f"{name}.config: is missing; name one or more configurations")
                continue
            faults += _unknown(arm, ARM_KEYS, f"{name}.")
            if not isinstance(arm.get("set") or {}, dict):
                faults.append(f"{name}.set: is not a mapping; write 'key: value' for each configuration key")
            if arm.get("masks", "none") not in MASKS:
                faults.append(f"{name}.masks: {arm['masks']!r} is not one of {', '.join(MASKS)}")
            if arm.get("masks") == "out_of_fold" and not value.get("segmenter"):
                faults.append(f"{name}.masks: out_of_fold masks need a segmenter; add the key 'segmenter'")
        reference = (value.get("compare") or {}).get("reference")
        if reference is not None and reference not in arms:
            faults.append(f"compare.reference: there is no arm {reference!r}; arms are {', '.join(arms)}")
        if faults:
            raise InputError(*(f"{path}: {fault}" for fault in faults))
        segmenter = value.get("segmenter")
        return cls(
            name=str(value["study"]),
            cohort=None if value.get("cohort") is None else path.parent / str(value["cohort"]),
            splits=None if value.get("splits") is None else path.parent / str(value["splits"]),
            folds=None if value.get("folds") is None else tuple(int(fold) for fold in value["folds"]),
            seeds=tuple(int(seed) for seed in value.get("seeds") or [0]),
            segmenter=None if segmenter is None else _arm("segmenter", segmenter, "segmenter", path.parent),
            arms=tuple(_arm(name, arm, "classifier", path.parent) for name, arm in arms.items()),
            reference=reference,
        )


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
    first = [] if study.segmenter is None else [Cell(study.segmenter, fold, study.seeds[0]) for fold in range(folds)]
    return first, [Cell(arm, fold, seed) for arm in study.arms for seed in study.seeds for fold in wanted]


def _mistyped(value: dict[str, Any]) -> list[str]:
    """Keys whose value has the wrong form; a missing or empty key is for others to judge."""
    faults = []
    for key in ("arms", "segmenter", "compare"):
        if value.get(key) is not None and not isinstance(value[key], dict):
            faults.append(f"{key}: is not a mapping; write its keys on indented lines")
    for key in ("folds", "seeds"):
        numbers = value.get(key)
        if numbers is None:
            continue
        if not isinstance(numbers, list) or not all(isinstance(n, int) and not isinstance(n, bool) for n in numbers):
            faults.append(f"{key}: {numbers!r} is not a list of whole numbers such as [0, 1, 2]")
    return faults


def _arm(name: str, value: dict[str, Any], role: str, folder: Path) -> Arm:
    configs = value["config"] if isinstance(value["config"], list) else [value["config"]]
    found = tuple(str(folder / config) if (folder / str(config)).is_file() else str(config) for config in configs)
    return Arm(name, found, value.get("masks", "none"), value.get("role", role), dict(value.get("set") or {}))


def _unknown(value: dict[str, Any], known: tuple[str, ...], prefix: str) -> list[str]:
    faults = []
    for key in value:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
            faults.append(f"{prefix}{key}: unknown key; {hint}")
    return faults
