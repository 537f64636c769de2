"""Search files: what is wrong with them names its key; spaces mean what they say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml

from datamodules.cohort import Cohort
from datamodules.errors import InputError
from datamodules.splits import Splits
from experiments.search import check_keys
from experiments.search_file import Search
from experiments.search_folder import SearchFolder, seal
from experiments.search_schema import SCHEMA
from experiments.search_space import ask, nested, parameters_of, settings_of
from tests.experiments.searches import DECAY, LR, SPACE, write_search
from tests.tiny import TESTED, Tiny

SHIPPED = sorted((Path(__file__).parents[2] / "experiments" / "searches").glob("*.yaml"))
OPTIMIZER = "model.init_args.optimizer"


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_shipped_searches_are_right(path: Path) -> None:
    """Their form, and each key of their space by the configurations' own classes."""
    assert path.read_text(encoding="ascii").startswith("#")
    search = Search.load(path)
    assert search.name.replace("-", "_") == path.stem
    check_keys(search)


def test_there_are_shipped_searches() -> None:
    assert SHIPPED


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"objektive": {}}, "objektive: unknown key; did you mean 'objective'?"),
        ({"trials": 0}, "trials: 0 is less than the minimum of 1"),
        ({"trials": None}, "trials: is missing; a search needs it"),
        ({"space": {"lr": {"low": 1.0, "high": 2.0}}}, "space.lr.key: is missing"),
        ({"space": {LR: {"low": 1.0}}}, f"space.{LR}.high: is missing; give low and high, or choices"),
        ({"space": {LR: {"low": "1e-5", "high": 1.0}}}, "'1e-5' is not a number; YAML wants a point in it"),
        ({"space": {LR: {"low": 2.0, "high": 1.0}}}, f"space.{LR}.high: 1.0 is not above low, 2.0"),
        ({"space": {LR: {"low": 0, "high": 1.0, "log": True}}}, "0 has no logarithm"),
        ({"space": {LR: {"low": 1, "high": 9, "log": True, "step": 2}}}, "a logarithmic range has no steps"),
        ({"space": {LR: {"low": 0.5, "high": 9, "type": "int"}}}, ".type: is int, but a bound"),
        ({"space": {LR: {"choices": [1.0], "low": 3}}}, f"space.{LR}.low: is for a range"),
        ({"space": {LR: {"choices": [1.0, 1.0]}}}, "is there twice"),
        ({"space": {LR: {"lowest": 1.0}}}, f"space.{LR}.lowest: unknown key; did you mean 'low'?"),
        ({"space": {"a": {"choices": {"x": {"lr": 1}}}}}, "space.a.choices.x.lr: is not a configuration key"),
        ({"space": {**SPACE, DECAY: {"choices": [1, 2], "when": {"z": 1}}}}, ".when.z: there is no such other"),
        ({"space": {**SPACE, DECAY: {"choices": [1, 2], "when": {"x": 1}}}}, ".when.x: is a range"),
        (
            {"space": {"a": {"key": LR, "choices": [1]}, DECAY: {"choices": [1, 2], "when": {"a": 2}}}},
            ".when.a: there is no choice 2; there are 1",
        ),
        (
            {
                "space": {
                    "a": {"key": LR, "choices": [1], "when": {"b": 1}},
                    "b": {"key": DECAY, "choices": [1], "when": {"a": 1}},
                }
            },
            "go round in a circle",
        ),
        ({"objective": {"metric": "test/auc", "direction": "maximize"}}, "test patients are not read by a search"),
        ({"objective": {"metric": "valid/auc", "direction": "up"}}, "objective.direction: 'up' is not one of"),
        ({"objective": {"metric": "minutes", "direction": "minimize"}}, "the shortest training wins"),
        ({"pruner": "medium"}, "pruner: 'medium' is not one of median, hyperband, none"),
        ({"pruner": {"name": "median", "min_epochs": 3}}, "pruner.min_epochs: is not of the pruner median"),
        ({"sampler": "cmaes"}, "sampler: 'cmaes' is not one of tpe, random"),
        ({"storage": "host"}, "storage: 'host' is no URL"),
        ({"masks": "somewhere"}, "masks: 'somewhere' is neither none, reference, nor a folder"),
        ({"search": "a/b"}, "search: 'a/b' cannot name a folder"),
        (
            {
                "objective": [
                    {"metric": "valid/auc", "direction": "maximize"},
                    {"metric": "minutes", "direction": "minimize"},
                ],
                "pruner": "median",
            },
            "pruner: several objectives cannot be pruned on",
        ),
    ],
)
def test_faults_name_their_key(changes: dict[str, Any], fault: str, tiny_cohort: Tiny, tmp_path: Path) -> None:
    path = write_search(tmp_path, tiny_cohort, **changes)
    with pytest.raises(InputError) as caught:
        Search.load(path)
    assert fault in str(caught.value)
    assert all(line.startswith(f"{path}: ") for line in caught.value.faults)


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"config": "directt"}, "did you mean 'direct'"),
        ({"set": {"trainer.max_epoch": 3}}, "did you mean 'trainer.max_epochs'"),
        ({"space": {"lr": {"key": "trainer.gradient_clip", "low": 0.1, "high": 1.0}}}, "space.lr: "),
        (
            {"space": {"b": {"key": "model.init_args.network.init_args.backbon", "choices": ["resnet18"]}}},
            "did you mean 'backbone'",
        ),
    ],
)
def test_unknown_keys_are_found_before_training(
    changes: dict[str, Any], fault: str, tiny_cohort: Tiny, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=fault):
        check_keys(Search.load(write_search(tmp_path, tiny_cohort, **changes)))


def test_the_space_of_all_kinds() -> None:
    """Kinds, conditions and order: a condition is asked for first, wherever it stands."""
    momentum = f"{OPTIMIZER}.init_args.momentum"
    space, faults = parameters_of(
        {
            "momentum": {"key": momentum, "low": 0.0, "high": 0.9, "when": {"optimizer": "sgd"}},
            "optimizer": {
                "choices": {
                    "sgd": {f"{OPTIMIZER}.class_path": "torch.optim.SGD"},
                    "adamw": {f"{OPTIMIZER}.class_path": "torch.optim.AdamW"},
                }
            },
            LR: {"low": 1.0e-5, "high": 1.0e-1, "log": True},
            "data.init_args.batch_size": {"low": 4, "high": 16, "step": 4},
            "data.init_args.patch": {"choices": [[16, 16, 8], None]},
        }
    )
    assert not faults
    assert [p.name for p in space].index("optimizer") < [p.name for p in space].index("momentum")
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    seen = []
    for _ in range(60):
        trial = study.ask()
        values = ask(trial, space)
        settings = settings_of(values, space)
        assert ("momentum" in values) == (values["optimizer"] == "sgd") == (momentum in settings)
        assert settings["data.init_args.batch_size"] in (4, 8, 12, 16)
        assert settings["data.init_args.patch"] in ([16, 16, 8], None)
        seen.append(settings[LR])
        study.tell(trial, 0.0)
    # on the logarithm's scale half of them lie below the geometric mean
    assert 20 <= sum(value < 1.0e-3 for value in seen) <= 40


def test_nested_keys_do_not_change_what_choices_set() -> None:
    choice = {"class_path": "A", "init_args": {"lr": 1}}
    made = nested({"model.optimizer": choice, "model.optimizer.init_args.lr": 2, "trainer.max_epochs": 3})
    assert made == {
        "model": {"optimizer": {"class_path": "A", "init_args": {"lr": 2}}},
        "trainer": {"max_epochs": 3},
    }
    assert choice == {"class_path": "A", "init_args": {"lr": 1}}
    assert yaml.safe_load(yaml.safe_dump(nested({"a.b": 1.0e-5})))["a"]["b"] == 1.0e-5


def test_sealed_folds_have_no_test_patients(tiny_cohort: Tiny, tmp_path: Path) -> None:
    folder = SearchFolder(tmp_path / "runs" / "tiny")
    whole = tiny_cohort.split
    sealed = seal(folder, tiny_cohort.cohort, tiny_cohort.splits, None)
    assert sealed.folds == (0, 1) and sealed.tuned_on == 0
    for fold in sealed.folds:
        table, splits = folder.sealed(fold)
        cohort = Cohort.load(table)
        part = Splits.load(splits, cohort).fold(fold)
        assert (part.train, part.valid, part.test) == (whole.folds[fold].train, whole.folds[fold].valid, ())
        assert not set(TESTED) & set(cohort.patients)
        assert all(Path(scan.image).is_file() for scan in cohort.scans)
    with pytest.raises(InputError, match="folds: 7 is not in"):
        seal(folder, tiny_cohort.cohort, tiny_cohort.splits, (7,))


def test_patients_that_are_tested_in_another_fold_are_counted(tiny_cohort: Tiny, tmp_path: Path) -> None:
    from datamodules.splits import make_splits

    splits = tmp_path / "kfold.json"
    make_splits(tiny_cohort.table, "lsm>12", folds=3, seed=0).save(splits)
    folder = SearchFolder(tmp_path / "runs" / "tiny")
    assert seal(folder, tiny_cohort.cohort, splits, None).tuned_on == 12
    assert seal(folder, tiny_cohort.cohort, splits, (1,)).tuned_on == 0


def test_the_schema_is_one() -> None:
    from jsonschema import Draft202012Validator

    Draft202012Validator.check_schema(SCHEMA)
