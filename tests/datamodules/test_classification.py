from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from datamodules.classification import ClassificationDataModule
from datamodules.errors import InputError
from datamodules.preprocessing import Preprocessing
from datamodules.splits import make_splits
from tests.tiny import TESTED, Tiny

GRID = Preprocessing(spacing=(10.0, 10.0, 20.0), shape=(24, 24, 8))


def module(tiny: Tiny, **options: Any) -> ClassificationDataModule:
    values = {"splits": str(tiny.splits), "store": str(tiny.folder / "store"), "preprocessing": GRID, **options}
    return ClassificationDataModule(cohort=str(tiny.cohort), **values)


def test_a_direct_arm_gets_no_mask(tiny_cohort: Tiny) -> None:
    data = module(tiny_cohort, mask_source="none", batch_size=3)
    for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader(), data.predict_dataloader()):
        for batch in loader:
            assert set(batch) - {"seed"} == {"image", "target", "patient_id", "scan_id"}
            assert "mask" not in batch


def test_a_masked_arm_gets_the_mask_on_the_images_grid(tiny_cohort: Tiny) -> None:
    batch = next(iter(module(tiny_cohort, mask_source="reference", batch_size=4).test_dataloader()))
    image, mask = batch["image"], batch["mask"]
    assert image.shape == mask.shape == (4, 1, 24, 24, 8)
    assert image.dtype == mask.dtype == torch.float32
    assert set(mask.unique().tolist()) == {0.0, 1.0}
    # the liver is the brightest: a mask that lies elsewhere (a flip, say) would not cover it, whatever the affine
    for item, inside in zip(image, mask > 0.5, strict=True):
        assert item[inside].mean() > item[~inside].mean() + 1.0
        assert item[inside].min() > item[~inside].median()


def test_targets_and_patients(tiny_cohort: Tiny) -> None:
    data = module(tiny_cohort)
    seen = {}
    for part in ("train", "valid", "test"):
        loader = {"train": data.train_dataloader, "valid": data.val_dataloader, "test": data.test_dataloader}[part]()
        patients = [patient for batch in loader for patient in batch["patient_id"]]
        # the one training batch of eight is filled up: each of the four patients twice
        assert sorted(patients) == sorted(getattr(data.fold, part) * (2 if part == "train" else 1))
        seen.update(
            {p: t for batch in loader for p, t in zip(batch["patient_id"], batch["target"].tolist(), strict=True)}
        )
    assert seen == {patient: int(patient[1:]) % 2 for patient in seen}
    assert len(seen) == 12


def test_training_is_shuffled_and_drops_nothing(tiny_cohort: Tiny) -> None:
    data = module(tiny_cohort, batch_size=3)
    loader = data.train_dataloader()
    orders = []
    for epoch in range(6):
        loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]  # ours, not torch's
        orders.append([scan for batch in loader for scan in batch["patient_id"]])
    assert len({tuple(order) for order in orders}) > 1
    for order in orders:
        assert sorted(order[:4]) == sorted(data.fold.train)
        assert order[4:] == order[:2], "the last batch is filled up from the beginning"


def test_balanced_sampling_shows_both_classes_alike(tiny_cohort: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    data = module(tiny_cohort, batch_size=4, sampling="balanced")
    assert sum(data.class_counts()) == len(data.fold.train)
    rare = {patient: int(patient == data.fold.train[0]) for patient in data.cohort.patients}
    monkeypatch.setattr(data, "targets", lambda part: rare)
    (batch,) = list(data.train_dataloader())
    assert batch["target"].tolist().count(1) == 2, "the one patient comes twice"
    assert data.class_counts() == [3, 1]
    plain = module(tiny_cohort, batch_size=4)
    assert plain.balanced_classes() is None


def test_facts_of_the_record(tiny_cohort: Tiny) -> None:
    facts = module(tiny_cohort).facts("P03_T2W")
    assert facts == {
        "patient_id": "P03", "scan_id": "P03_T2W", "source": "A", "sequence": "T2W", "sex": "M", "age": 43.0,
        "split_sha256": tiny_cohort.split.sha256, "target": 1, "mask_source": "none", "quality": None,
    }  # fmt: skip


def test_a_patient_in_two_parts(tiny_cohort: Tiny, tmp_path: Path) -> None:
    value = json.loads(tiny_cohort.splits.read_text())
    value["folds"][1]["valid"].append(TESTED[2])
    path = tmp_path / "splits.json"
    path.write_text(json.dumps(value))
    with pytest.raises(InputError) as caught:
        module(tiny_cohort, splits=str(path))
    (fault,) = caught.value.faults
    for word in (str(path), "fold 1", repr(TESTED[2]), "valid", "test"):
        assert word in fault


def test_a_split_of_another_cohort(tiny_cohort: Tiny, tmp_path: Path) -> None:
    table = tiny_cohort.table
    part = table.select(patients=table.patients[:8])
    part.save(tmp_path / "part.parquet")
    with pytest.raises(InputError, match="made for another table"):
        ClassificationDataModule(cohort=str(tmp_path / "part.parquet"), splits=str(tiny_cohort.splits))


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"fold": 2}, "no fold 2; it has folds 0 to 1"),
        ({"fold": -1}, "no fold -1"),
        ({"preprocessing": Preprocessing()}, "preprocessing.shape is not set"),
        ({"mask_source": "out_of_fold"}, "masks is not set"),
        ({"mask_source": "reference", "masks": "x"}, "masks=x would be ignored"),
        ({"rule": "stage>=2"}, "rule is stage>=2, but the split was made with"),
        ({"test_rule": "metavir"}, "test_rule is metavir"),
        ({"splits": None}, "rule is not set, and there is no split"),
        ({"sequence": "PD"}, "no sequence PD"),
    ],
)
def test_arguments_that_contradict_each_other(options: dict[str, Any], match: str, tiny_cohort: Tiny) -> None:
    with pytest.raises(InputError, match=match):
        module(tiny_cohort, **options)


def test_a_rule_in_other_words_is_the_same_rule(tiny_cohort: Tiny) -> None:
    assert module(tiny_cohort, rule="lsm_kpa>12").rule == module(tiny_cohort).rule


def test_a_split_without_a_rule_cannot_classify(tiny_cohort: Tiny, tmp_path: Path) -> None:
    make_splits(tiny_cohort.table, "none", folds=2, official=True).save(tmp_path / "s.json")
    data = module(tiny_cohort, splits=str(tmp_path / "s.json"))
    with pytest.raises(InputError, match="the rule none gives no target") as caught:
        data.prepare_data()
    assert len(caught.value.faults) == 1


def test_without_a_split_nothing_can_be_trained(tiny_cohort: Tiny) -> None:
    data = module(tiny_cohort, splits=None, rule="lsm>12")
    with pytest.raises(InputError, match=r"splits is not set.*split make"):
        data.train_dataloader()


def test_reference_masks_that_are_not_there(tiny_cohort: Tiny, tmp_path: Path) -> None:
    table = tiny_cohort.table
    frame = table.frame.copy()
    frame.loc[frame["scan_id"] == "P01_T2W", ["mask", "mask_labels"]] = None
    from datamodules.cohort import Cohort

    changed = Cohort(frame, table.root, "changed")
    changed.save(tmp_path / "c.parquet")
    make_splits(Cohort.load(tmp_path / "c.parquet"), "lsm>12", folds=2, official=True).save(tmp_path / "s.json")
    data = ClassificationDataModule(
        cohort=str(tmp_path / "c.parquet"), splits=str(tmp_path / "s.json"), store=str(tmp_path / "store"),
        preprocessing=GRID, mask_source="reference",
    )  # fmt: skip
    with pytest.raises(InputError, match="scan 'P01_T2W' has no reference mask"):
        data.prepare_data()
    assert not (tmp_path / "store").exists()


def test_patients_without_the_sequence_are_said(tiny_cohort: Tiny) -> None:
    data = module(tiny_cohort, sequence="T1W")
    part = next(part for part in ("train", "valid") if "P05" in getattr(data.fold, part))
    with pytest.warns(UserWarning, match=rf"fold 0, {part} part: 1 patient.* no T1W scan.*P05"):
        scans = data.scans_of(part)  # type: ignore[arg-type]  # next() over literals gives a str
    assert "P05" not in {scan.patient_id for scan in scans}
