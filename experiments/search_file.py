"""The search file: a space of configurations over one cohort, and what is to be best. Light, torch-free."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from datamodules.errors import InputError
from datamodules.files import sha256_of_file
from experiments.search_schema import MINUTES, PRUNERS, SAMPLERS, SCHEMA
from experiments.search_space import Parameter, parameters_of
from experiments.study import SAFE_NAME
from experiments.study_schema import form_faults

DEFAULT_OBJECTIVE = {"metric": "valid/auc", "direction": "maximize"}


@dataclasses.dataclass(frozen=True, slots=True)
class Objective:
    """One thing that is to be best.

    Attributes:
        metric: A validation metric, or ``minutes``.
        direction: ``maximize`` or ``minimize``.
    """

    metric: str
    direction: str


@dataclasses.dataclass(frozen=True, slots=True)
class Search:
    """What is searched, and how.

    Attributes:
        name: The search's name, its folder below the runs.
        cohort: The cohort table, or None where the command line gives it.
        splits: The split file, or None where the command line gives it.
        folds: Folds whose mean is the objective; None for all of the split.
        seed: Seed of all trainings and of the sampler.
        configs: Configurations, later ones over earlier ones: shipped names, or files.
        masks: ``none``, ``reference``, or a folder of out-of-fold masks.
        role: ``segmenter``, ``classifier``, ``staging`` or ``probe``.
        settings: Single keys over the configurations; the space's lie over them.
        space: The parameters, each after those that its condition names.
        objectives: What is to be best; the first is what checkpoints are chosen by, and what is pruned on.
        sampler: ``name`` and its options.
        pruner: ``name`` and its options.
        trials: Trials that end well or are pruned.
        max_failures: Failed trials that are put up with.
        storage: A database's URL, or None for a journal file.
        keep_checkpoints: ``best`` or ``all``.
        cores: Threads of a trial, or None for a fair share.
        gpus: GPUs of a trial; below 1 a share of one; None for one where there are any.
    """

    name: str
    cohort: Path | None
    splits: Path | None
    folds: tuple[int, ...] | None
    seed: int
    configs: tuple[str, ...]
    masks: str
    role: str
    settings: Mapping[str, Any]
    space: tuple[Parameter, ...]
    objectives: tuple[Objective, ...]
    sampler: Mapping[str, Any]
    pruner: Mapping[str, Any]
    trials: int
    max_failures: int
    storage: str | None
    keep_checkpoints: str
    cores: int | None
    gpus: float | None

    @property
    def monitor(self) -> Objective | None:
        """The validation metric that checkpoints are chosen by, and what is pruned on."""
        return next((objective for objective in self.objectives if objective.metric != MINUTES), None)

    @classmethod
    def load(cls, path: Path) -> Search:
        """Read and check a search file.

        Raises:
            InputError: The file is missing, is not YAML, or breaks the form: all faults, each naming its key.
        """
        try:
            value = yaml.safe_load(path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise InputError(f"{path}: no such search file; docs/searches.md shows one") from error
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise InputError(f"{path}: cannot be read as YAML ({' '.join(str(error).split())}); correct it") from error
        if not isinstance(value, dict):
            raise InputError(f"{path}: is not a mapping of keys; a search has {', '.join(SCHEMA['properties'])}")
        faults = form_faults(value, SCHEMA, "search")
        if not faults:
            search, faults = _search(value, path.parent)
        if faults:
            raise InputError(*(f"{path}: {fault}" for fault in faults))
        return search

    def facts(self, cohort: Path, splits: Path) -> dict[str, str]:
        """What all trials of a search must have in common, as text by the file's key.

        Bounds, sampler, pruner and numbers of trials may change between two runs of a search: values stay comparable.

        Raises:
            InputError: Cohort or split cannot be read.
        """
        from experiments.cli_words import with_shipped

        configs = with_shipped([word for config in self.configs for word in ("-c", config)])[1::2]
        # optuna cannot mix choices of two kinds
        choices = {p.name: list(p.choices) for p in self.space if p.kind == "choice"}
        contents: dict[str, Any] = {
            "cohort": sha256_of_file(cohort),
            "splits": sha256_of_file(splits),
            "config": [sha256_of_file(Path(config)) for config in configs],
            "objective": [[objective.metric, objective.direction] for objective in self.objectives],
            "folds": self.folds,
            "seed": self.seed,
            "masks": self.masks,
            "set": dict(self.settings),
            "space": {p.name: choices.get(p.name, [p.key, p.kind, p.log]) for p in self.space},
        }
        return {key: json.dumps(item, sort_keys=True, default=str) for key, item in contents.items()}


def _search(value: dict[str, Any], folder: Path) -> tuple[Search, list[str]]:
    """The search of a content whose form is right, and what is still wrong with it."""
    space, faults = parameters_of(value["space"])
    given = value.get("objective", DEFAULT_OBJECTIVE)
    objectives = tuple(Objective(**item) for item in (given if isinstance(given, list) else [given]))
    metrics = [objective.metric for objective in objectives]
    faults += [
        f"objective.metric: {metric!r} is no validation metric; write {MINUTES}, or one such as valid/auc"
        + (", for test patients are not read by a search" if metric.startswith("test/") else "")
        for metric in metrics
        if metric != MINUTES and not metric.startswith("valid/")
    ]
    faults += [
        f"objective: {metric!r} is there twice; remove one" for metric in {m for m in metrics if metrics.count(m) > 1}
    ]
    if all(metric == MINUTES for metric in metrics):
        faults.append(f"objective: is {MINUTES} alone, so the shortest training wins; add a validation metric")
    sampler, wrong = _named("sampler", value.get("sampler", "tpe"), SAMPLERS)
    faults += wrong
    pruner, wrong = _named("pruner", value.get("pruner", "none" if len(objectives) > 1 else "median"), PRUNERS)
    faults += wrong
    if len(objectives) > 1 and pruner["name"] != "none":
        faults.append("pruner: several objectives cannot be pruned on; remove the key, or all objectives but one")
    others = {
        "median": {"min_epochs", "max_epochs", "reduction_factor"},
        "hyperband": {"startup_trials", "warmup_epochs"},
    }
    for key in sorted(others.get(str(pruner["name"]), set(pruner) - {"name"}) & set(pruner)):
        faults.append(f"pruner.{key}: is not of the pruner {pruner['name']}; remove it")
    if not SAFE_NAME.fullmatch(value["search"]):
        faults.append(f"search: {value['search']!r} cannot name a folder; use letters, digits, '.', '_', '+' and '-'")
    config = value["config"]
    masks = value.get("masks", "none")
    if masks not in ("none", "reference"):
        if not (folder / masks / "masks.json").is_file():
            faults.append(f"masks: {masks!r} is neither none, reference, nor a folder that 'hepastage masks' made")
        masks = str((folder / masks).absolute())
    wish = value.get("resources") or {}
    search = Search(
        name=value["search"],
        cohort=None if value.get("cohort") is None else folder / value["cohort"],
        splits=None if value.get("splits") is None else folder / value["splits"],
        folds=None if value.get("folds") is None else tuple(value["folds"]),
        seed=int(value.get("seed", 0)),
        # a configuration that is a file beside the search is meant, not a shipped one
        configs=tuple(
            str((folder / name).absolute()) if (folder / name).is_file() else name
            for name in (config if isinstance(config, list) else [config])
        ),
        masks=masks,
        role=value.get("role", "classifier"),
        settings=dict(value.get("set") or {}),
        space=space,
        objectives=objectives,
        sampler=sampler,
        pruner=pruner,
        trials=int(value["trials"]),
        max_failures=int(value.get("max_failures", 5)),
        storage=value.get("storage"),
        keep_checkpoints=value.get("keep_checkpoints", "best"),
        cores=wish.get("cores"),
        gpus=wish.get("gpu", wish.get("gpus")),
    )
    if search.storage is not None and "://" not in search.storage:
        faults.append(f"storage: {search.storage!r} is no URL; write postgresql://USER@HOST/DATABASE, or remove it")
    return search, faults


def _named(key: str, value: Any, known: tuple[str, ...]) -> tuple[dict[str, Any], list[str]]:
    """A sampler or pruner that is given by its name, or with options."""
    options = {"name": value} if isinstance(value, str) else dict(value)
    if "name" not in options:
        return {"name": known[0], **options}, []
    if options["name"] not in known:
        return {"name": known[0]}, [f"{key}: {options['name']!r} is not one of {', '.join(known)}"]
    return options, []
