"""Who may give a mask to whom."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from datamodules.classification import ClassificationDataModule
from datamodules.errors import InputError
from datamodules.files import sha256_of_file
from datamodules.masks import MaskRecord, MaskSet, Segmenter, quality_band
from datamodules.preprocessing import Preprocessing
from tests.tiny import PATIENTS, TESTED, Tiny

KEYS = ("a" * 64, "b" * 64)
GRID = Preprocessing(spacing=(10.0, 10.0, 20.0), shape=(24, 24, 8))


def mask_set(tiny: Tiny, folder: Path, trained_on: tuple[tuple[str, ...], ...] | None = None) -> MaskSet:
    """Masks of all scans by two segmenters; each patient's comes from the one that did not train on them."""
    import shutil

    split = tiny.split
    trained = trained_on or tuple(fold.train for fold in split.folds)
    makers = {
        key: Segmenter("tiny", "segmenter", fold, split.sha256, tuple(patients))
        for fold, (key, patients) in enumerate(zip(KEYS, trained, strict=True))
    }
    masks = {}
    for scan in tiny.table.scans:
        keys = tuple(key for key, fold in zip(KEYS, split.folds, strict=True) if scan.patient_id not in fold.train)
        folder.mkdir(parents=True, exist_ok=True)
        assert scan.mask is not None
        file = Path(shutil.copy(scan.mask, folder / f"{scan.scan_id}.nii.gz"))
        masks[scan.scan_id] = MaskRecord(file.name, sha256_of_file(file), keys, 0.9, 2)
    made = MaskSet(folder, makers, masks)
    made.save()
    return made


def module(tiny: Tiny, masks: Path, fold: int = 0) -> ClassificationDataModule:
    return ClassificationDataModule(
        cohort=str(tiny.cohort), splits=str(tiny.splits), store=str(masks.parent / "store"), preprocessing=GRID,
        fold=fold, mask_source="out_of_fold", masks=str(masks),
    )  # fmt: skip


def test_a_record_comes_back(tiny_cohort: Tiny, tmp_path: Path) -> None:
    made = mask_set(tiny_cohort, tmp_path)
    assert MaskSet.load(tmp_path) == made


def test_honest_masks_pass(tiny_cohort: Tiny, tmp_path: Path) -> None:
    masks = tmp_path / "masks"
    mask_set(tiny_cohort, masks)
    for fold in range(2):
        data = module(tiny_cohort, masks, fold)
        for part in ("train", "valid", "test"):
            assert data.items(part)


def test_a_mask_by_a_segmenter_that_knew_the_patient(tiny_cohort: Tiny, tmp_path: Path) -> None:
    masks = tmp_path / "masks"
    made = mask_set(tiny_cohort, masks)
    patient = tiny_cohort.split.folds[0].train[0]
    scan_id = f"{patient}_T2W"
    spoiled = {**made.masks, scan_id: dataclasses.replace(made.masks[scan_id], segmenters=(KEYS[0],))}
    MaskSet(masks, made.segmenters, spoiled).save()
    data = module(tiny_cohort, masks)
    with pytest.raises(InputError) as caught:
        data.prepare_data()
    (fault,) = caught.value.faults
    for word in (
        f"patient {patient!r}",
        scan_id,
        "tiny/segmenter",
        KEYS[0][:12],
        "of fold 0",
        "trained on this patient",
    ):
        assert word in fault
    assert not (tmp_path / "store").exists(), "refused before anything is computed"


def test_one_of_two_averaged_segmenters_is_enough_to_refuse(tiny_cohort: Tiny, tmp_path: Path) -> None:
    masks = tmp_path / "masks"
    made = mask_set(tiny_cohort, masks)
    patient = tiny_cohort.split.folds[1].valid[0]
    scan_id = f"{patient}_T2W"
    spoiled = {**made.masks, scan_id: dataclasses.replace(made.masks[scan_id], segmenters=KEYS)}
    MaskSet(masks, made.segmenters, spoiled).save()
    for fold in range(2):
        with pytest.raises(InputError, match="trained on this patient"):
            module(tiny_cohort, masks, fold).prepare_data()


def test_a_test_mask_by_a_segmenter_that_saw_another_test_patient(tiny_cohort: Tiny, tmp_path: Path) -> None:
    masks = tmp_path / "masks"
    first, second = (fold.train for fold in tiny_cohort.split.folds)
    mask_set(tiny_cohort, masks, trained_on=((*first, TESTED[0]), second))
    with pytest.raises(InputError) as caught:
        module(tiny_cohort, masks).prepare_data()
    faults = caught.value.faults
    assert any(f"patient {TESTED[0]!r}" in fault and "trained on this patient" in fault for fault in faults) or any(
        f"test patient {TESTED[1]!r}" in fault for fault in faults
    )
    data = module(tiny_cohort, masks)
    assert data.items("train"), "training patients are not the ones who were leaked"
    others = [fault for fault in MaskSet.load(masks).leaks(data.scans_of("test"), TESTED) if TESTED[1] in fault]
    assert others and f"trained on the test patient {TESTED[0]!r}" in others[0] and "of fold 0" in others[0]


def test_a_mask_that_is_not_the_recorded_one(tiny_cohort: Tiny, tmp_path: Path) -> None:
    masks = tmp_path / "masks"
    mask_set(tiny_cohort, masks)
    (masks / "P03_T2W.nii.gz").unlink()
    (masks / "P04_T2W.nii.gz").write_bytes((masks / "P09_T2W.nii.gz").read_bytes())
    with pytest.raises(InputError) as caught:
        module(tiny_cohort, masks).prepare_data()
    gone, changed = caught.value.faults
    assert "P03_T2W.nii.gz: no such file" in gone
    assert "P04_T2W.nii.gz: is not the mask that masks.json vouches for" in changed


def test_a_scan_without_a_mask(tiny_cohort: Tiny, tmp_path: Path) -> None:
    masks = tmp_path / "masks"
    made = mask_set(tiny_cohort, masks)
    MaskSet(masks, made.segmenters, {k: v for k, v in made.masks.items() if k != "P03_T2W"}).save()
    with pytest.raises(InputError, match="no mask for scan 'P03_T2W'; run 'hepastage masks'"):
        module(tiny_cohort, masks).prepare_data()
    with pytest.raises(InputError, match="no mask for scan 'P03_T2W'"):
        MaskSet.load(masks).path("P03_T2W")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda record: record.update(format=2), "format 2 is not 1"),
        (lambda record: record.pop("segmenters"), "is not a record of masks"),
        (lambda record: record["segmenters"].pop(KEYS[0]), "without saying whom they trained on"),
        (lambda record: record["segmenters"][KEYS[0]].pop("trained_on"), "is not a record of masks"),
        (lambda record: record["masks"].update(x=3), "is not a record of masks"),
    ],
)
def test_a_spoiled_record(change: object, match: str, tiny_cohort: Tiny, tmp_path: Path) -> None:
    mask_set(tiny_cohort, tmp_path)
    path = tmp_path / "masks.json"
    record = json.loads(path.read_text())
    change(record)  # type: ignore[operator]  # a lambda of the table above
    path.write_text(json.dumps(record))
    with pytest.raises(InputError, match=match):
        MaskSet.load(tmp_path)


def test_no_record(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"masks\.json: no such file"):
        MaskSet.load(tmp_path)


def test_quality_bands() -> None:
    assert [quality_band(dice) for dice in (0.0, 0.849, 0.85, 0.929, 0.93, 1.0, None)] == [1, 1, 2, 2, 3, 3, None]
    assert len(PATIENTS) == 12
