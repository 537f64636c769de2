from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from datamodules.errors import InputError
from experiments.study import Study, cells_of

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
    assert study.segmenter is not None and study.segmenter.role == "segmenter"


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
