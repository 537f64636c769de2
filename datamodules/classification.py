"""One-sequence classification of patients, with or without a mask."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from datamodules.augmentation import BatchedAugmentation
from datamodules.base import CohortDataModule, MaskSource, Part, channel_first
from datamodules.cohort import Scan
from datamodules.errors import InputError
from datamodules.masks import MaskSet
from datamodules.preprocessing import Preprocessing
from datamodules.store import Store

DEFAULT_GRID = Preprocessing(spacing=(2.0, 2.0, 6.0), shape=(160, 128, 24))
"""Where the configuration names no grid: volumes of one size at a body's usual extent."""


class ClassificationDataModule(CohortDataModule):
    """Whole preprocessed volumes with a target.

    A direct arm (``mask_source: none``) gets batches without a mask. Out-of-fold masks are refused
    where a segmenter trained on the patient, or, for a test patient, on any test patient.

    Args:
        cohort: See ``CohortDataModule``.
        splits: See ``CohortDataModule``.
        store: See ``CohortDataModule``.
        preprocessing: Must set a shape: volumes of one batch have one size.
        sequence: The sequence to classify.
        rule: Label rule for training and validation, such as ``lsm>12``; None takes the split's. Another rule than
            the split was made with is refused.
        test_rule: Label rule for the test part, such as ``metavir>=3``; None takes the split's.
        fold: See ``CohortDataModule``.
        mask_source: ``none``, ``reference``, ``out_of_fold`` or ``external``.
        masks: Folder of predicted masks; required for ``out_of_fold`` and ``external``.
        quality_from: Folder of predicted masks from which only the quality bands are taken, into the
            prediction record; never into the batch. For direct arms.
        batch_size: See ``CohortDataModule``.
        workers: See ``CohortDataModule``.
        augmentation: See ``CohortDataModule``.

    Raises:
        InputError: Arguments that contradict each other, masks that leak, or a patient without a label.
    """

    def __init__(
        self,
        cohort: str,
        splits: str | None = None,
        store: str = "runs/store",
        preprocessing: Preprocessing | None = None,
        sequence: str = "T2W",
        rule: str | None = None,
        test_rule: str | None = None,
        fold: int = 0,
        mask_source: MaskSource = "none",
        masks: str | None = None,
        quality_from: str | None = None,
        batch_size: int = 8,
        workers: int = 0,
        augmentation: BatchedAugmentation | None = None,
    ) -> None:
        preprocessing = preprocessing or DEFAULT_GRID
        super().__init__(cohort, splits, fold, store, preprocessing, [sequence], batch_size, workers, augmentation)
        if preprocessing.shape is None:
            raise InputError("data.init_args.preprocessing.shape is not set; classification needs volumes of one size")
        self.rule, self.test_rule = self.label_rules(rule, test_rule)
        self.mask_source = mask_source
        self.mask_set = self._mask_set(mask_source, masks)
        self.quality_set = self.mask_set if quality_from is None else MaskSet.load(quality_from)
        self._items: dict[Part, list[Scan]] = {}

    @staticmethod
    def _mask_set(mask_source: MaskSource, masks: str | None) -> MaskSet | None:
        if mask_source in ("none", "reference"):
            if masks is not None:
                raise InputError(
                    f"data.init_args.masks={masks} would be ignored with mask_source {mask_source}; "
                    "remove it or set mask_source to out_of_fold"
                )
            return None
        if masks is None:
            raise InputError(f"data.init_args.masks is not set, and mask_source {mask_source} needs a folder of masks")
        return MaskSet.load(masks)

    def items(self, part: Part) -> list[Scan]:
        """Scans of a part, all with a target and an honest mask.

        Raises:
            InputError: A patient of the part has no target, a reference mask is missing, or masks leak.
        """
        if part in self._items:
            return self._items[part]
        scans = self.scans_of(part)
        target = self.targets(part)
        rule = self.test_rule if part == "test" else self.rule
        faults = [
            f"{self.cohort.name}: patient {patient!r} is in the {part} part but has no label for the rule {rule}; "
            "make the split with this rule"
            for patient in sorted({scan.patient_id for scan in scans} - set(target))
        ]
        if self.mask_source == "reference":
            faults += [
                f"{self.cohort.name}: scan {scan.scan_id!r} has no reference mask, and mask_source is reference"
                for scan in scans
                if scan.mask is None
            ]
        if self.mask_set is not None:
            faults += [*self.mask_set.leaks(scans, self.fold.test), *self.mask_set.damaged(scans)]
        if faults:
            raise InputError(*faults)
        self._items[part] = scans
        return scans

    def prepare_data(self) -> None:
        """Fill the store, once a node; all masks are checked before anything is computed."""
        for part in ("train", "valid", "test"):
            self.items(part)
        self.store.fill(self.cohort)

    def dataset(self, part: Part) -> Dataset[Any]:
        """The volumes of a part."""
        return VolumeDataset(self.items(part), self.targets(part), self.store, self.mask_source, self.mask_set)

    def train_dataloader(self) -> DataLoader[Any]:
        """Shuffled training volumes."""
        return self.loader(self.dataset("train"), train=True)

    def val_dataloader(self) -> DataLoader[Any]:
        """Validation volumes."""
        return self.loader(self.dataset("valid"), train=False)

    def test_dataloader(self) -> DataLoader[Any]:
        """Test volumes."""
        return self.loader(self.dataset("test"), train=False)

    def predict_dataloader(self) -> DataLoader[Any]:
        """The same as the test volumes."""
        return self.test_dataloader()

    def facts(self, scan_id: str) -> dict[str, Any]:
        """See ``CohortDataModule``; adds mask source, quality band and test target."""
        facts = super().facts(scan_id)
        quality = None
        if self.quality_set is not None and scan_id in self.quality_set.masks:
            quality = self.quality_set.masks[scan_id].quality
        target = self.targets("test").get(str(facts["patient_id"]))
        return {**facts, "target": target, "mask_source": self.mask_source, "quality": quality}


class VolumeDataset(Dataset[dict[str, Any]]):
    """Preprocessed volumes read from the memory-mapped store.

    Args:
        scans: One item each.
        target: Class by patient id.
        store: Filled store.
        mask_source: Where the mask comes from; with ``none`` items hold no mask.
        mask_set: Predicted masks, for ``out_of_fold`` and ``external``.
    """

    def __init__(
        self,
        scans: list[Scan],
        target: Mapping[str, int],
        store: Store,
        mask_source: MaskSource,
        mask_set: MaskSet | None,
    ) -> None:
        self.scans = scans
        self.target = target
        self.store = store
        self.mask_source = mask_source
        self.mask_set = mask_set

    def __len__(self) -> int:
        return len(self.scans)

    def __getitem__(self, index: int) -> dict[str, Any]:
        scan = self.scans[index]
        entry = self.store.entry(scan)
        item: dict[str, Any] = {
            "image": channel_first(entry.image()),
            "target": torch.tensor(self.target[scan.patient_id]),
            "patient_id": scan.patient_id,
            "scan_id": scan.scan_id,
        }
        if self.mask_source == "reference":
            item["mask"] = channel_first(entry.mask())
        elif self.mask_set is not None:
            item["mask"] = channel_first(self.store.external_mask(scan, Path(self.mask_set.path(scan.scan_id))))
        return item
