from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from datamodules.cohort import Cohort, Scan
from datamodules.errors import InputError
from datamodules.examinations import examinations
from datamodules.preprocessing import Preprocessing
from datamodules.splits import make_splits
from datamodules.staging import StagingDataModule
from datamodules.store import Store
from tests.tiny import Tiny

GRID = Preprocessing(spacing=(10.0, 10.0, 20.0), shape=(24, 24, 8))


@pytest.fixture
def staged(tiny_cohort: Tiny, tmp_path: Path) -> Tiny:
    """The tiny cohort without the T2W of P03: P03 has T1W alone, P05 has T2W alone. A scan id holds a plus."""
    table = tiny_cohort.table
    frame = table.frame[table.frame["scan_id"] != "P03_T2W"].reset_index(drop=True)
    frame["scan_id"] = frame["scan_id"].replace({"P04_T1W": "P04+contrast_T1W"})
    Cohort(frame, table.root, "staged").save(tmp_path / "c.parquet")
    splits = make_splits(Cohort.load(tmp_path / "c.parquet"), "lsm>12", folds=2, official=True)
    splits.save(tmp_path / "s.json")
    return Tiny(tmp_path, tmp_path / "c.parquet", tmp_path / "s.json")


def module(tiny: Tiny, **options: Any) -> StagingDataModule:
    values = {"splits": str(tiny.splits), "store": str(tiny.folder / "store"), "preprocessing": GRID, **options}
    return StagingDataModule(cohort=str(tiny.cohort), **values)


def items(data: StagingDataModule) -> dict[str, dict[str, Any]]:
    """Every examination of all parts as it reaches the batch, by patient."""
    found = {}
    for part in ("train", "valid", "test"):
        dataset = data.dataset(part)
        for index in range(len(data.items(part))):
            item = dataset[index]
            found[item["patient_id"]] = item
    return found


@pytest.mark.parametrize("order", [("T1W", "T2W"), ("T2W", "T1W")])
def test_channels_stand_in_the_modules_order(order: tuple[str, ...], staged: Tiny) -> None:
    data = module(staged, sequences=order)
    store = Store(staged.folder / "store", GRID)
    for patient, item in items(data).items():
        for channel, sequence in enumerate(order):
            scans = [s for s in staged.table.scans if (s.patient_id, s.sequence) == (patient, sequence)]
            assert bool(item["present"][channel]) == bool(scans)
            if scans:
                np.testing.assert_array_equal(item["image"][channel].numpy(), store.entry(scans[0]).image())


def test_a_missing_sequence_is_zeros_and_not_present(staged: Tiny) -> None:
    found = items(module(staged, mask_source="reference"))
    only_t1, only_t2, both = found["P03"], found["P05"], found["P01"]
    assert only_t1["present"].tolist() == [True, False]
    assert only_t2["present"].tolist() == [False, True]
    assert both["present"].tolist() == [True, True]
    assert not only_t1["image"][1].any() and only_t1["image"][0].any()
    assert not only_t1["mask"][1].any() and only_t1["mask"][0].any()
    assert only_t1["scan_id"] == "P03_T1W" and both["scan_id"] == "P01_T1W+P01_T2W"
    assert both["image"].shape == both["mask"].shape == (2, 24, 24, 8)


def test_batches(staged: Tiny) -> None:
    batch = next(iter(module(staged, batch_size=4).test_dataloader()))
    assert set(batch) == {"image", "present", "target", "patient_id", "scan_id"}, "no mask unless asked for"
    assert batch["image"].shape == (4, 2, 24, 24, 8)
    assert batch["present"].dtype == torch.bool and batch["present"].shape == (4, 2)


def test_facts_name_all_sequences_even_of_ids_with_a_plus(staged: Tiny) -> None:
    data = module(staged)
    for item in items(data).values():
        facts = data.facts(item["scan_id"])
        assert facts["patient_id"] == item["patient_id"]
        assert facts["sequence"].split("+") == [s for s, there in zip(("T1W", "T2W"), item["present"]) if there]  # noqa: B905 (a tensor has no static length)
        assert facts["target"] == int(item["target"])
    assert data.facts("P04+contrast_T1W+P04_T2W")["sequence"] == "T1W+T2W"


def rewritten(tiny: Tiny, change: Any, **options: Any) -> StagingDataModule:
    """The data module over a table that ``change`` has changed in place, under a split of its own."""
    table = tiny.table
    frame = table.frame.copy()
    change(frame)
    path = tiny.folder / "changed.parquet"
    Cohort(frame, table.root, "changed").save(path)
    splits = make_splits(Cohort.load(path), "lsm>12", folds=2, official=True)
    splits.save(tiny.folder / "changed.json")
    return module(Tiny(tiny.folder, path, tiny.folder / "changed.json"), **options)


def test_arms_of_one_and_of_two_sequences_have_the_same_patients_where_asked_for(staged: Tiny) -> None:
    arms = [("T1W",), ("T2W",), ("T1W", "T2W")]
    loose = [set(items(module(staged, sequences=arm))) for arm in arms]
    assert loose[0] != loose[1] != loose[2]
    with pytest.warns(UserWarning, match="of examinations that lack one of T1W/T2W"):
        strict = [set(items(module(staged, sequences=arm, complete=("T1W", "T2W")))) for arm in arms]
    assert strict[0] == strict[1] == strict[2] == loose[2] - {"P03", "P05"}
    with pytest.raises(InputError, match="no sequence DWI"):
        module(staged, complete=("T1W", "DWI"))


def test_covariates_come_as_measured_and_unknown_ones_as_nan(staged: Tiny) -> None:
    def change(frame: pd.DataFrame) -> None:
        frame["x_alt"] = [number * 10.0 for number in range(len(frame))]
        frame.loc[frame["sequence"] == "T1W", "x_alt"] = None
        frame.loc[frame["patient_id"] == "P01", "age"] = None

    data = rewritten(staged, change, covariates=("sex", "age", "x_alt"))
    found = items(data)
    rows = {row["patient_id"]: row for row in data.cohort.frame.to_dict("records") if row["sequence"] == "T2W"}
    for patient, item in found.items():
        sex, age, alt = item["covariates"].tolist()
        assert item["covariates"].dtype == torch.float32
        if patient == "P03":  # T1W alone
            assert np.isnan(alt)
            continue
        assert sex == {"F": 0, "M": 1}[rows[patient]["sex"]]
        assert np.isnan(age) if patient == "P01" else age == rows[patient]["age"]
        assert alt == rows[patient]["x_alt"]
    assert next(iter(data.test_dataloader()))["covariates"].shape[1] == 3


def test_covariates_are_standardised_by_training_patients_alone(staged: Tiny) -> None:
    data = module(staged, covariates=("age",))
    mean, spread = data.covariate_statistics()
    ages = [
        found["covariates"].item() for found in map(data.dataset("train").__getitem__, range(len(data.items("train"))))
    ]
    assert mean.tolist() == [pytest.approx(np.mean(ages))]
    assert spread.tolist() == [pytest.approx(np.std(ages))]

    def older(frame: pd.DataFrame) -> None:
        frame.loc[~frame["patient_id"].isin(data.fold.train), "age"] = 119.0

    assert rewritten(staged, older, covariates=("age",)).covariate_statistics()[0] == mean


def test_covariates_that_say_nothing_are_refused_before_anything_is_computed(staged: Tiny) -> None:
    def same(frame: pd.DataFrame) -> None:
        frame["age"] = 50.0

    with pytest.raises(InputError, match="age is 50 in all training patients"):
        rewritten(staged, same, covariates=("age",)).prepare_data()

    def differ(frame: pd.DataFrame) -> None:
        frame.loc[frame["scan_id"] == "P01_T1W", "age"] = 12.0

    with pytest.raises(InputError, match="age differs within one examination: P01_T1W has 12, P01_T2W has 41"):
        rewritten(staged, differ, covariates=("age",)).prepare_data()


def scan(patient: str, sequence: str, visit: str = "", number: int = 0) -> Scan:
    row = {"scan_id": f"{patient}{sequence}{visit}{number}", "patient_id": patient, "sequence": sequence}
    frame = pd.DataFrame([{**row, "image": "x.nii", "source": "s", "visit": visit}])
    return Cohort(frame, Path("/"), "t").scans[0]


def test_visits_are_examinations_of_their_own() -> None:
    scans = [scan("p", "T1W", "1"), scan("p", "T2W", "1"), scan("p", "T2W", "2"), scan("q", "T2W")]
    made = examinations(scans, ("T1W", "T2W"), "t")
    assert [[s is not None for s in item.scans] for item in made] == [[True, True], [False, True], [False, True]]
    with pytest.raises(InputError, match="patient 'p' has two T2W scans in one visit"):
        examinations([scan("p", "T2W", number=1), scan("p", "T2W", number=2)], ("T2W",), "t")


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"preprocessing": Preprocessing()}, "preprocessing.shape is not set"),
        ({"mask_source": "out_of_fold"}, "masks is not set, and mask_source out_of_fold"),
        ({"masks": "x"}, "masks=x would be ignored with mask_source none"),
        ({"rule": "stage"}, "rule is stage, but the split was made with"),
    ],
)
def test_arguments_that_contradict_each_other(options: dict[str, Any], match: str, staged: Tiny) -> None:
    with pytest.raises(InputError, match=match):
        module(staged, **options)
