"""The split file: what it holds, and files that are refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from datamodules.cohort import Cohort
from datamodules.errors import InputError
from datamodules.splits import Splits, make_splits
from tests.datamodules.split_cohorts import cohort_of, hospital


def written(tmp_path: Path, change: Callable[[dict[str, Any]], object]) -> tuple[Path, Cohort]:
    """A valid split file of twelve patients (one of them excluded), changed."""
    cohort = cohort_of([*hospital(6, 6), {"patient_id": "nobody"}])
    value = make_splits(cohort, "lsm", 3, 0).as_json()
    change(value)
    path = tmp_path / "splits.json"
    path.write_text(json.dumps(value), encoding="utf-8")
    return path, cohort


def test_an_unchanged_file_loads_and_its_hash_does_not_depend_on_layout(tmp_path: Path) -> None:
    path, cohort = written(tmp_path, lambda value: None)
    splits = Splits.load(path, cohort)
    splits.save(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() != path.read_bytes()
    assert Splits.load(tmp_path / "again.json", cohort).sha256 == splits.sha256


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda v: v["folds"][1]["train"].append(v["folds"][1]["test"][0]),
            r"fold 1: patient '\w+' is in train and in test; a patient may be in one part",
        ),
        (lambda v: v["folds"][0]["train"].append("ghost"), r"patient 'ghost' is not in table.csv"),
        (lambda v: v["folds"][0]["valid"].pop(), r"fold 0: patient '\w+' is in no part"),
        (lambda v: v["excluded"].clear(), r"patient 'nobody' is in no part and not excluded"),
        (lambda v: v["folds"][0]["train"].append("nobody"), r"patient 'nobody' is excluded and in a part"),
        (
            lambda v: v.update(cohort_sha256="0" * 64),
            r"made for another table than table.csv \(cohort hash 000000000000",
        ),
        (lambda v: v["folds"].pop(), r"is in no part|not in test"),
        (lambda v: v["folds"].append(v["folds"][0]), r"is not in test 1 time, as in k-fold"),
        (lambda v: v["folds"][0]["train"].append(v["folds"][0]["train"][0]), r"train names '\w+' more than once"),
        (lambda v: v["folds"][0].update(test=[]), r"fold 0: test is empty"),
        (lambda v: v["folds"][0].update(test=[1, 2]), r"fold 0: test is not a list of patient ids"),
        (lambda v: v["folds"][0].pop("valid"), r"fold 0: valid is not a list"),
        (lambda v: v["folds"][0].update(holdout=[]), r"fold 0 is not train, valid, test and a name"),
        (lambda v: v.update(folds=[]), r"it has no fold"),
        (lambda v: v.pop("folds"), r"not a split file \(no folds\)"),
        (lambda v: v.update(format=99), r"format 99, this version reads 1"),
        (lambda v: v.update(seed="1"), r"seed is missing or not int"),
        (lambda v: v.update(rule="fibro"), r"label rule 'fibro': not a rule"),
        (lambda v: v.update(scheme="random"), r"unknown scheme 'random'"),
        (lambda v: v.update(sead=1), r"unknown key 'sead'"),
        (lambda v: v.update(repeats="2"), r"repeats is of the wrong type"),
        (lambda v: v.update(excluded={"nobody": 3}), r"excluded is not a reason"),
    ],
)
def test_a_file_that_does_not_hold_is_refused(
    tmp_path: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    path, cohort = written(tmp_path, change)
    with pytest.raises(InputError, match=message) as error:
        Splits.load(path, cohort)
    assert all(fault.startswith(str(path)) for fault in error.value.faults)


@pytest.mark.parametrize("text", ["", '{"format": 1, "folds": [', "[]", "null", "7", "\x00\xff"])
def test_a_torn_file_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "torn.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match=r"torn.json"):
        Splits.load(path, cohort_of(hospital(6, 6)))
    with pytest.raises(InputError, match="no such file"):
        Splits.read(tmp_path / "absent.json")


def test_a_split_for_another_cohort_names_some_and_counts_the_rest(tmp_path: Path) -> None:
    path, _ = written(tmp_path, lambda value: None)
    with pytest.raises(InputError) as error:
        Splits.load(path, cohort_of(hospital(8, 8, prefix="other")))
    assert "another table" in error.value.faults[0]
    assert any("3 more patients: each is not in table.csv" in fault for fault in error.value.faults)


def test_a_fold_that_does_not_exist_is_refused() -> None:
    splits = make_splits(cohort_of(hospital(6, 6)), "lsm", 3, 0)
    assert splits.fold(2) == splits.folds[2]
    with pytest.raises(InputError, match="fold 3: the split has folds 0 to 2"):
        splits.fold(3)
