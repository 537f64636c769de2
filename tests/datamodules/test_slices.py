"""Slices as items: whose they are, how they are dealt when asked to leak, and what a batch holds."""

from __future__ import annotations

import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from datamodules.base import Part
from datamodules.errors import InputError
from datamodules.preprocessing import Preprocessing
from datamodules.slices import SliceDataModule, dealt
from datamodules.splits import Splits, make_splits
from tests.tiny import TESTED, Tiny

GRID = Preprocessing(spacing=(10.0, 10.0, 20.0), shape=(16, 16, 12), normalisation="percentile")
PARTS: tuple[Part, ...] = ("train", "valid", "test")


def module(tiny: Tiny, splits: Path, **more: Any) -> SliceDataModule:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = SliceDataModule(
            str(tiny.cohort), str(splits), str(tiny.folder / "slices-store"), GRID, batch_size=5, **more
        )
        made.prepare_data()
    return made


@pytest.fixture(scope="module")
def kfold(tiny_cohort: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("kfold") / "splits.json"
    make_splits(tiny_cohort.table, "stage", folds=3, seed=1, repeats=2).save(path)
    return path


def test_slices_are_the_scans_and_no_padding(tiny_cohort: Tiny, kfold: Path) -> None:
    data = module(tiny_cohort, kfold)
    slices = data.slices("test")
    # 8 slices of 20 mm lie in the middle of 12
    assert Counter(item.scan.patient_id for item in slices) == dict.fromkeys(data.fold.test, 8)
    assert {item.place for item in slices} == set(range(2, 10))
    liver = module(tiny_cohort, kfold, slices="liver").slices("test")
    assert {item.slice_id for item in liver} < {item.slice_id for item in slices}
    for item in liver:
        assert data.store.entry(item.scan).mask()[..., item.place].any()


def test_a_batch_is_of_single_slices_from_minus_one_to_one(tiny_cohort: Tiny, kfold: Path) -> None:
    data = module(tiny_cohort, kfold)
    batch = next(iter(data.test_dataloader()))
    assert batch["image"].shape == (5, 1, 16, 16, 1) and batch["image"].dtype == torch.float32
    scan, place = data.slices("test")[3].scan, data.slices("test")[3].place
    expected = (data.store.entry(scan).image()[..., place] - 0.5) / 0.5
    np.testing.assert_allclose(batch["image"][3, 0, :, :, 0], expected, atol=1e-6)
    assert batch["scan_id"][3] == f"{scan.scan_id}#{place:03d}" and "mask" not in batch
    facts = data.facts(batch["scan_id"][3])
    assert facts["patient_id"] == scan.patient_id and facts["x_leak"] is False


def test_by_patients_nobody_is_in_two_parts(tiny_cohort: Tiny, kfold: Path) -> None:
    data = module(tiny_cohort, kfold)
    people = [{item.scan.patient_id for item in data.slices(part)} for part in PARTS]
    assert not people[0] & people[1] and not people[0] & people[2] and not people[1] & people[2]


def test_the_leak_tests_each_slice_once_as_the_folds_do(tiny_cohort: Tiny, kfold: Path) -> None:
    honest, leaky = [[module(tiny_cohort, kfold, fold=fold, leak=leak) for fold in range(6)] for leak in (False, True)]
    for repeat in (slice(0, 3), slice(3, 6)):
        by_patient = Counter(item.slice_id for data in honest[repeat] for item in data.slices("test"))
        by_slice = Counter(item.slice_id for data in leaky[repeat] for item in data.slices("test"))
        assert by_patient == by_slice and set(by_slice.values()) == {1}
    for data, fair in zip(leaky, honest, strict=True):
        ids = {part: {item.slice_id for item in data.slices(part)} for part in PARTS}
        assert sum(map(len, ids.values())) == len(set.union(*ids.values())) == 12 * 8, "no slice is in two parts"
        trained = {item.scan.patient_id for item in data.slices("train")}
        assert {item.scan.patient_id for item in data.slices("test")} <= trained, "its patients are: that is the leak"
        # as many slices to learn from, so that the leak alone differs
        assert abs(len(ids["train"]) - len(fair.slices("train"))) <= 12
    first, second = ({item.slice_id for item in leaky[fold].slices("test")} for fold in (0, 3))
    assert first != second, "a repeat deals anew"


def test_fixed_test_patients_keep_the_record_to_themselves(tiny_cohort: Tiny) -> None:
    data = module(tiny_cohort, tiny_cohort.splits, leak=True)
    assert {item.scan.patient_id for item in data.slices("test")} == set(TESTED)
    assert {item.scan.patient_id for item in data.slices("train")} == set(tiny_cohort.table.patients)
    assert not {i.slice_id for i in data.slices("test")} & {i.slice_id for i in data.slices("train")}


def test_dealing_depends_on_seed_and_scan_alone(tiny_cohort: Tiny, kfold: Path) -> None:
    splits = Splits.load(kfold, tiny_cohort.table)
    places = list(range(3, 30))
    assert dealt(places, "a", splits, 0) == dealt(places, "a", splits, 0)
    assert dealt(places, "a", splits, 0) != dealt(places, "b", splits, 0)
    parts = dealt(places, "a", splits, 0)
    assert sorted(place for part in parts.values() for place in part) == places and len(parts["test"]) == 9


def test_what_it_says_and_refuses(tiny_cohort: Tiny, kfold: Path) -> None:
    with pytest.warns(UserWarning, match="never a result"):
        SliceDataModule(str(tiny_cohort.cohort), str(kfold), str(tiny_cohort.folder / "s"), GRID, leak=True)
    flat = Preprocessing(spacing=(10.0, 10.0, 20.0), shape=(16, 16, 4), normalisation="percentile")
    data = SliceDataModule(str(tiny_cohort.cohort), str(kfold), str(tiny_cohort.folder / "slices-store"), flat)
    with pytest.raises(InputError, match="more slices than the 4"):
        data.slices("test")
