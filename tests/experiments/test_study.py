from __future__ import annotations

import importlib.resources
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from datamodules.errors import InputError
from experiments.study import Study, cells_of
from experiments.study_schema import SCHEMA, form_faults

GOOD: dict[str, Any] = {
    "study": "liver",
    "cohort": "cohort.parquet",
    "splits": "../splits.json",
    "seeds": [3, 4],
    "segmenter": {"config": "segmentation"},
    "arms": {
        "direct": {"config": ["direct", "own.yaml"], "set": {"trainer.max_epochs": 3}},
        "masked": {"config": "masked_attention_resnet", "masks": "out_of_fold"},
        "outside": {"config": "direct", "role": "probe"},
    },
    "compare": {"reference": "direct"},
}


def load(tmp_path: Path, **changes: Any) -> Study:
    path = tmp_path / "study.yaml"
    value = {key: item for key, item in {**GOOD, **changes}.items() if item is not None}
    path.write_text(yaml.safe_dump(value, sort_keys=False))
    return Study.load(path)


def test_a_study(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text("{}")
    study = load(tmp_path)
    assert (study.name, study.seeds, study.folds, study.reference) == ("liver", (3, 4), None, "direct")
    assert study.cohort == tmp_path / "cohort.parquet"
    assert study.splits is not None and study.splits.resolve() == tmp_path.parent / "splits.json"
    direct, masked, outside = study.arms
    assert direct.configs == ("direct", str(tmp_path / "own.yaml")), "files beside the study, else shipped names"
    assert direct.settings == {"trainer.max_epochs": 3}
    assert (direct.masks, masked.masks) == ("none", "out_of_fold")
    assert (direct.role, outside.role) == ("classifier", "probe")
    (segmenter,) = study.segmenters
    assert (segmenter.name, segmenter.role, masked.segmenter) == ("segmenter", "segmenter", "segmenter")


def test_cells(tmp_path: Path) -> None:
    segmenters, arms = cells_of(load(tmp_path, folds=[1]), 3)
    assert [(cell.fold, cell.seed) for cell in segmenters] == [(0, 3), (1, 3), (2, 3)], "masks need every fold"
    assert [(cell.arm.name, cell.fold, cell.seed) for cell in arms] == [
        (arm, 1, seed) for arm in ("direct", "masked", "outside") for seed in (3, 4)
    ]
    _, every = cells_of(load(tmp_path), 3)
    assert len(every) == 3 * 2 * 3
    assert "masked, fold 2, seed 4" in {cell.title for cell in every}
    with pytest.raises(InputError, match="folds: 3 is not in the split file, which has 0 to 2"):
        cells_of(load(tmp_path, folds=[0, 3]), 3)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"armz": {}}, "armz: unknown key; did you mean 'arms'?"),
        ({"study": None}, "study: is missing"),
        ({"arms": None, "compare": None}, "arms: is missing"),
        ({"arms": {"a": {"masks": "none"}}, "compare": None}, "arms.a.config: is missing"),
        ({"arms": {"a": {"config": "direct", "mask": 1}}, "compare": None}, "arms.a.mask: unknown key; did you mean"),
        ({"arms": {"a": {"config": "direct", "masks": "best"}}, "compare": None}, "arms.a.masks: 'best' is not one of"),
        ({"segmenter": None}, "arms.masked.masks: out_of_fold masks need a segmenter"),
        ({"compare": {"reference": "nobody"}}, "compare.reference: there is no arm 'nobody'"),
    ],
)
def test_faults_name_their_key(changes: dict[str, Any], expected: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        load(tmp_path, **changes)
    assert any(expected in fault for fault in caught.value.faults), caught.value.faults
    assert all(fault.startswith(str(tmp_path / "study.yaml")) for fault in caught.value.faults)


def test_files_that_are_no_study(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    for text, match in (("[", "cannot be read as YAML"), ("- a", "is not a mapping"), ("", "is not a mapping")):
        path.write_text(text)
        with pytest.raises(InputError, match=match):
            Study.load(path)
    with pytest.raises(InputError, match="no such study file"):
        Study.load(tmp_path / "nothing.yaml")


def test_the_smoke_variant_is_the_same_arms_in_small(tmp_path: Path) -> None:
    smoke = {
        "folds": [1],
        "arms": {"config": "trainer/quick", "set": {"trainer.max_epochs": 1}},
        "segmenters": {"set": {"trainer.max_epochs": 2}},
    }
    load(tmp_path, smoke=smoke)
    path = tmp_path / "study.yaml"
    full, small = Study.load(path), Study.load(path, smoke=True)
    assert (full.name, full.seeds, full.folds) == ("liver", (3, 4), None)
    assert (small.name, small.seeds, small.folds) == ("liver-smoke", (0,), (1,)), "runs of their own"
    assert [arm.name for arm in small.arms] == [arm.name for arm in full.arms]
    assert small.arms[0].configs == (*full.arms[0].configs, "trainer/quick")
    assert {arm.settings["trainer.max_epochs"] for arm in small.arms} == {1}, "over what an arm sets itself"
    assert small.segmenters[0].settings == {"trainer.max_epochs": 2}
    load(tmp_path)
    with pytest.raises(InputError, match="smoke: is not there"):
        Study.load(path, smoke=True)


def test_shipped_studies_go_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert Study.load(Path("demo")).name == "demo"
    (tmp_path / "demo").write_text("study: own\narms: {a: {config: direct}}")
    assert Study.load(Path("demo")).name == "own", "a file at hand comes first"
    with pytest.raises(InputError, match="no such study file, and none is shipped so; shipped are demo"):
        Study.load(Path("demi"))


@pytest.mark.parametrize(
    ("key", "value"),
    [("arms", "[direct]"), ("seeds", "1"), ("seeds", "[true]"), ("folds", "[x]"), ("compare", "direct")],
)
def test_a_key_of_the_wrong_form_is_named(tmp_path: Path, key: str, value: str) -> None:
    parts = {"study": "s", "arms": "{direct: {config: direct}}", key: value}
    path = tmp_path / "study.yaml"
    path.write_text("\n".join(f"{name}: {text}" for name, text in parts.items()))
    with pytest.raises(InputError, match=f"{key}: "):
        Study.load(path)


CROSSED: dict[str, Any] = {
    **GOOD,
    "base": {"config": "masked_attention_resnet", "set": {"trainer.max_epochs": 9, "trainer.devices": 1}},
    "arms": {"attention": {}, "mean": {"set": {"trainer.max_epochs": 5}}},
    "axes": {
        "lr": {"key": "model.lr", "values": [0.001, 0.01]},
        "masks": {"values": {"reference": {"masks": "reference"}, "predicted": {"masks": "out_of_fold"}}},
    },
    "compare": {"reference": "attention+lr-0.001+reference"},
}


def names(study: Study) -> list[str]:
    return [arm.name for arm in study.arms]


def test_arms_and_axes_are_crossed(tmp_path: Path) -> None:
    study = load(tmp_path, **CROSSED)
    expected = [f"{arm}+lr-{lr}+{masks}" for arm in ("attention", "mean") for lr in ("0.001", "0.01")
                for masks in ("reference", "predicted")]  # fmt: skip
    assert names(study) == expected
    last = study.arms[-1]
    assert last.configs == ("masked_attention_resnet",) and last.masks == "out_of_fold"
    assert last.settings == {"trainer.max_epochs": 5, "trainer.devices": 1, "model.lr": 0.01}, "the arm over the base"
    assert dict(last.axes) == {"arm": "mean", "lr": "0.01", "masks": "predicted"}


def test_an_axis_varies_only_where_its_condition_holds(tmp_path: Path) -> None:
    axes = {**CROSSED["axes"], "lr": {**CROSSED["axes"]["lr"], "when": {"arm": "mean", "masks": ["reference"]}}}
    study = load(tmp_path, **{**CROSSED, "axes": axes, "compare": None})
    assert names(study) == [
        "attention+reference", "attention+predicted", "mean+lr-0.001+reference", "mean+predicted",
        "mean+lr-0.01+reference",
    ]  # fmt: skip


def test_paired_rows_and_exclusions(tmp_path: Path) -> None:
    rows = [{"arm": "attention", "lr": 0.001}, {"arm": "mean", "lr": 0.01}]
    study = load(tmp_path, **{**CROSSED, "rows": rows, "compare": None})
    assert names(study) == [
        "attention+lr-0.001+reference", "attention+lr-0.001+predicted", "mean+lr-0.01+reference",
        "mean+lr-0.01+predicted",
    ]  # fmt: skip
    exclude = [{"arm": "mean", "masks": "predicted"}, {"lr": [0.01]}]
    study = load(tmp_path, **{**CROSSED, "exclude": exclude})
    assert names(study) == ["attention+lr-0.001+reference", "attention+lr-0.001+predicted", "mean+lr-0.001+reference"]


def test_several_segmenters_and_resources(tmp_path: Path) -> None:
    study = load(
        tmp_path, segmenter=None, segmenters={"small": {"config": "segmentation"}, "large": {"config": "segmentation"},
                                              "idle": {"config": "segmentation"}},
        arms={"a": {"config": "direct", "masks": "out_of_fold", "segmenter": "small", "resources": {"gpu": 0.5}},
              "b": {"config": "direct", "masks": "out_of_fold", "segmenter": "large"}},
        compare=None, resources={"hours": 2, "cores": 3},
    )  # fmt: skip
    assert [arm.name for arm in study.needed] == ["small", "large"], "nobody needs the third"
    assert (study.arms[0].resources.gpus, study.arms[0].resources.hours, study.arms[1].resources.gpus) == (0.5, 2, None)
    first, _ = cells_of(study, 2)
    assert len(first) == 4


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"axes": {"lr": {"values": [1, 2]}}}, "axes.lr: values: 1 is no mapping and no overlay's name; add 'key'"),
        ({"axes": {"lr": {"key": "a.b"}}}, "axes.lr.values: is missing"),
        ({"axes": {"arm": {"key": "a.b", "values": [1]}}}, "axes.arm: is the name of the arms themselves"),
        ({"axes": {"m": {"values": {"x": {"mask": "none"}}}}}, "axes.m.values.x.mask: unknown key; did you mean 'mask"),
        ({"exclude": [{"lr": 5}]}, "exclude.0.lr: there is no value 5; values are 0.001, 0.01"),
        ({"exclude": [{"width": 5}]}, "exclude.0.width: there is no such axis; axes are arm, lr, masks"),
        ({"rows": [{"lr": 0.01, "arm": "mean"}, {"lr": 0.01}]}, "rows.1: names no value of arm"),
        ({"retries": -1}, "retries: -1 is less than the minimum of 0"),
        ({"resources": {"gpu": 2}}, "resources.gpu: 2 is greater than the maximum of 1"),
        ({"study": "a/b"}, "study: 'a/b' cannot name a folder"),
        ({"arms": {"masks": {}}}, "arms.masks+lr"),
    ],
)
def test_faults_of_axes_name_their_key(changes: dict[str, Any], expected: str, tmp_path: Path) -> None:
    value = {**CROSSED, **changes}
    if "arms" in changes:
        value["axes"] = None
        expected = "arms.masks: is a folder's name"
    with pytest.raises(InputError) as caught:
        load(tmp_path, **value)
    assert any(expected in fault for fault in caught.value.faults), caught.value.faults


def test_the_schema_is_one_and_says_what_the_validator_says() -> None:
    """Editors get the very object that files are checked by; it is a valid schema, and shipped studies pass it."""
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    folder = Path(str(importlib.resources.files("experiments.studies")))
    for path in sorted(folder.glob("*.yaml")):
        jsonschema.validate(yaml.safe_load(path.read_text()), SCHEMA)
        Study.load(path)
    assert not list(jsonschema.Draft202012Validator(SCHEMA).iter_errors(CROSSED))
    faulty: tuple[dict[str, Any], ...] = (
        {"armz": {}},
        {"seeds": "1"},
        {"arms": {"a": {"masks": "best"}}},
        {"axes": {"a": {}}},
    )
    for wrong in faulty:
        assert not jsonschema.Draft202012Validator(SCHEMA).is_valid({"study": "s", **wrong})
        assert form_faults({"study": "s", **wrong})


def test_the_documented_study_is_one(tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "docs" / "grids.md").read_text(encoding="utf-8")
    path = tmp_path / "study.yaml"
    path.write_text(text.split("```yaml\n")[1].split("```")[0], encoding="utf-8")
    study = Study.load(path)
    assert names(study) == [
        "direct+lr-0.0003", "direct+lr-0.001", "masked+lr-0.0003+attention", "masked+lr-0.0003+mean",
        "masked+lr-0.001+attention",
    ]  # fmt: skip
