"""Targets of probes: sources, and labels dealt anew."""

from __future__ import annotations

from pathlib import Path

import pytest

from datamodules.classification import ClassificationDataModule
from datamodules.cohort import Cohort
from datamodules.errors import InputError
from datamodules.preprocessing import Preprocessing
from datamodules.probe_targets import permuted_targets, source_targets
from tests.tiny import PATIENTS, TESTED, Tiny

GRID = Preprocessing(spacing=(10.0, 10.0, 20.0), shape=(24, 24, 8))


def module(tiny: Tiny, target: str, seed: int, monkeypatch: pytest.MonkeyPatch) -> ClassificationDataModule:
    monkeypatch.setenv("PL_GLOBAL_SEED", str(seed))
    return ClassificationDataModule(
        cohort=str(tiny.cohort), splits=str(tiny.splits), store=str(tiny.folder / "store"), preprocessing=GRID,
        target=target,  # type: ignore[arg-type]  # a literal, as text
    )  # fmt: skip


def test_the_source_is_the_target(tiny_cohort: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    data = module(tiny_cohort, "source", 0, monkeypatch)
    assert data.class_names == ("A", "B")
    expected = {patient: int(int(patient[1:]) > 6) for patient in PATIENTS}
    assert data.targets("train") == data.targets("test") == expected
    seen = {
        patient: target
        for batch in data.test_dataloader()
        for patient, target in zip(batch["patient_id"], batch["target"].tolist(), strict=True)
    }
    assert seen == {patient: expected[patient] for patient in TESTED}
    assert data.facts("P09_T2W")["target"] == 1


def test_permuted_within_the_part_and_true_in_the_test(tiny_cohort: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    truth = module(tiny_cohort, "label", 0, monkeypatch)
    dealt = [module(tiny_cohort, "permuted", seed, monkeypatch) for seed in range(8)]
    for data in dealt:
        assert dict(data.targets("test")) == dict(truth.targets("test"))
        for part in ("train", "valid"):
            assert sorted(data.targets(part)) == sorted(getattr(data.fold, part))
            true = [truth.targets(part)[patient] for patient in data.targets(part)]
            assert sorted(data.targets(part).values()) == sorted(true), "as many of each class as there are"
            held = data.items(part)[0]
            assert data.facts(held.scan_id, part)["target"] == data.targets(part)[held.patient_id]
    assert len({tuple(data.targets("train").values()) for data in dealt}) > 2, "each seed deals anew"
    again = module(tiny_cohort, "permuted", 3, monkeypatch)
    assert again.targets("train") == dealt[3].targets("train")


def test_permutation_breaks_what_the_label_goes_with() -> None:
    patients = [f"P{number}" for number in range(400)]
    target = {patient: number % 2 for number, patient in enumerate(patients)}
    dealt = permuted_targets(target, patients, "train", 0)
    agreement = sum(dealt[patient] == target[patient] for patient in patients) / 400
    assert 0.4 < agreement < 0.6
    assert dealt != permuted_targets(target, patients, "valid", 0)


def test_no_source_to_predict(tiny_cohort: Tiny, tmp_path: Path) -> None:
    table = tiny_cohort.table
    one = table.frame.assign(source="A")
    with pytest.raises(InputError, match="all scans come from 'A'"):
        source_targets(Cohort(one, tmp_path), PATIENTS)
    both = table.frame.copy()
    both.loc[both["scan_id"] == "P01_T2W", "source"] = "B"
    with pytest.raises(InputError, match=r"patient 'P01' has scans of several sources \(A, B\)"):
        source_targets(Cohort(both, tmp_path), PATIENTS)
    with pytest.raises(InputError, match="no training patient comes from the source 'B'"):
        source_targets(table, PATIENTS[:6])
