"""Perturbed masks as a classifier gets them: measured, kept, under the same rules as the masks that they come from."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from datamodules.classification import ClassificationDataModule
from datamodules.errors import InputError
from datamodules.masks import quality_band
from datamodules.perturbation import MaskPerturbation
from datamodules.perturbed_masks import PerturbedMasks
from datamodules.preprocessing import Preprocessing
from datamodules.staging import StagingDataModule
from tests.datamodules.test_masks import mask_set
from tests.tiny import TESTED, Tiny

GRID = Preprocessing(spacing=(10.0, 10.0, 20.0), shape=(24, 24, 8))


def module(tiny: Tiny, store: Path, **options: Any) -> ClassificationDataModule:
    values = {"splits": str(tiny.splits), "store": str(store), "preprocessing": GRID, **options}
    return ClassificationDataModule(cohort=str(tiny.cohort), mask_source="perturbed", **values)


def test_the_record_holds_the_dice_of_the_mask_in_use(tiny_cohort: Tiny, tmp_path: Path) -> None:
    data = module(tiny_cohort, tmp_path, perturbation=MaskPerturbation("dilate", mm=10))
    data.prepare_data()
    files = sorted((tmp_path / "perturbed").glob("*/*.nii.gz"))
    assert len(files) == 12, "one a patient, made ahead"
    for scan_id in (f"{patient}_T2W" for patient in TESTED):
        reference = np.asanyarray(nib.load(tiny_cohort.folder / "masks" / f"{scan_id}.nii.gz").dataobj) > 0
        assert isinstance(data.mask_files, PerturbedMasks)
        kept = nib.load(data.mask_files.path(scan_id))
        mask = np.asanyarray(kept.dataobj) > 0
        assert np.allclose(kept.affine, nib.load(tiny_cohort.folder / "masks" / f"{scan_id}.nii.gz").affine)
        assert (mask & reference).sum() == reference.sum() < mask.sum()
        dice = 2 * (mask & reference).sum() / (mask.sum() + reference.sum())
        facts = data.facts(scan_id)
        assert facts["mask_dice"] == pytest.approx(dice)
        assert facts["quality"] == quality_band(dice)
        assert facts["mask_source"] == "perturbed"
    stamps = {path: path.stat().st_mtime_ns for path in files}
    module(tiny_cohort, tmp_path, perturbation=MaskPerturbation("dilate", mm=10)).prepare_data()
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "perturbed").glob("*/*.nii.gz")} == stamps


def test_the_batch_holds_the_worse_mask(tiny_cohort: Tiny, tmp_path: Path) -> None:
    def masks(source: Any, **options: Any) -> Any:
        data = ClassificationDataModule(
            cohort=str(tiny_cohort.cohort), splits=str(tiny_cohort.splits), store=str(tmp_path), preprocessing=GRID,
            mask_source=source, batch_size=4, **options,
        )  # fmt: skip
        return next(iter(data.test_dataloader()))["mask"]

    reference = masks("reference")
    assert masks("perturbed", perturbation=MaskPerturbation("dilate", mm=0)).equal(reference)
    larger = masks("perturbed", perturbation=MaskPerturbation("dilate", mm=10))
    assert ((larger >= reference).all() and (larger > reference).flatten(1).any(1)).all()


def test_another_patient_of_the_same_part(tiny_cohort: Tiny, tmp_path: Path) -> None:
    data = module(tiny_cohort, tmp_path, perturbation=MaskPerturbation("swap"))
    data.prepare_data()
    masks = data.mask_files
    assert isinstance(masks, PerturbedMasks)
    donors = {scan.patient_id: masks._donor(scan) for part in ("train", "valid", "test") for scan in data.items(part)}
    for part in (data.fold.train, data.fold.valid, data.fold.test):
        for patient in part:
            donor = donors[patient]
            assert donor is not None
            assert donor.patient_id != patient
            assert donor.patient_id in part


def test_one_patient_alone_has_no_other(tiny_cohort: Tiny, tmp_path: Path) -> None:
    masks = PerturbedMasks(MaskPerturbation("swap"), tmp_path, None)
    (fault,) = masks.add_part([tiny_cohort.table.scan("P03_T2W")])
    assert "scan 'P03_T2W' is alone in its part" in fault


def test_predicted_masks_keep_their_rules(tiny_cohort: Tiny, tmp_path: Path) -> None:
    made = mask_set(tiny_cohort, tmp_path / "masks")
    shift = MaskPerturbation("shift", mm=15)
    honest = module(tiny_cohort, tmp_path, perturbation=shift, masks=str(made.folder))
    honest.prepare_data()
    assert honest.facts("P03_T2W")["mask_dice"] < 1
    trained = tuple(fold.train for fold in tiny_cohort.split.folds)
    leaky = mask_set(tiny_cohort, tmp_path / "leaky", (trained[0] + ("P03",), trained[1]))
    with pytest.raises(InputError, match=r"P03.*trained on this patient"):
        module(tiny_cohort, tmp_path, perturbation=shift, masks=str(leaky.folder)).prepare_data()


def test_staging_takes_them_too(tiny_cohort: Tiny, tmp_path: Path) -> None:
    data = StagingDataModule(
        cohort=str(tiny_cohort.cohort), splits=str(tiny_cohort.splits), store=str(tmp_path), preprocessing=GRID,
        mask_source="perturbed", perturbation=MaskPerturbation("erode", mm=10),
    )  # fmt: skip
    data.prepare_data()
    facts = data.facts(data.items("test")[0].scan_id)
    assert 0 < facts["mask_dice"] < 1
    assert facts["quality"] == quality_band(facts["mask_dice"])


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({}, "mask_source perturbed needs one"),
        (
            {"mask_source": "reference", "perturbation": MaskPerturbation("swap")},
            "is ignored with mask_source reference",
        ),
    ],
)
def test_source_and_perturbation_go_together(
    options: dict[str, Any], match: str, tiny_cohort: Tiny, tmp_path: Path
) -> None:
    values: dict[str, Any] = {"mask_source": "perturbed", "splits": str(tiny_cohort.splits), "preprocessing": GRID}
    with pytest.raises(InputError, match=match):
        ClassificationDataModule(cohort=str(tiny_cohort.cohort), store=str(tmp_path), **{**values, **options})


def test_without_a_reference_mask(tiny_cohort: Tiny, tmp_path: Path) -> None:
    masks = PerturbedMasks(MaskPerturbation("erode", mm=3), tmp_path, None)
    scan = dataclasses.replace(tiny_cohort.table.scan("P03_T2W"), mask=None, mask_labels=())
    masks.add_part([scan])
    with pytest.raises(InputError, match="no reference mask to perturb"):
        masks.path("P03_T2W")
