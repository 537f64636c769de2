"""One-sequence classification of patients, with or without a mask."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.utils.data import Dataset

from datamodules.augmentation import BatchedAugmentation
from datamodules.base import Part, channel_first
from datamodules.cohort import Scan
from datamodules.loading import ResidentStore, Workers
from datamodules.masks import MaskSet, quality_band
from datamodules.patients import DEFAULT_GRID, MaskSource, PatientDataModule, Sampling, Target
from datamodules.perturbation import MaskPerturbation
from datamodules.perturbed_masks import PerturbedMasks
from datamodules.preprocessing import Preprocessing
from datamodules.store import Store


class ClassificationDataModule(PatientDataModule):
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
        mask_source: ``none``, ``reference``, ``out_of_fold``, ``external`` or ``perturbed``.
        masks: Folder of predicted masks; required for ``out_of_fold`` and ``external``; with ``perturbed``, the masks
            to make worse in place of the reference masks.
        quality_from: Folder of predicted masks from which only the quality bands are taken, into the
            prediction record; never into the batch. For direct arms.
        batch_size: See ``CohortDataModule``.
        workers: See ``CohortDataModule``.
        augmentation: See ``CohortDataModule``.
        sampling: See ``PatientDataModule``.
        perturbation: How masks are made worse, for ``perturbed``: ``{kind: dilate, mm: 5}``; see ``MaskPerturbation``.
        target: ``label``; for probes ``source`` or ``permuted``; see ``PatientDataModule``.
        resident: See ``CohortDataModule``.

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
        workers: Workers = "auto",
        augmentation: BatchedAugmentation | None = None,
        sampling: Sampling = "shuffled",
        perturbation: MaskPerturbation | None = None,
        target: Target = "label",
        resident: bool = False,
    ) -> None:
        preprocessing = preprocessing or DEFAULT_GRID
        super().__init__(
            cohort, splits, fold, store, preprocessing, [sequence], rule, test_rule, mask_source, masks,
            batch_size, workers, augmentation, sampling, perturbation, target, resident,
        )  # fmt: skip
        self.quality_set = self.mask_set if quality_from is None else MaskSet.load(quality_from)
        self._items: dict[Part, list[Scan]] = {}

    def items(self, part: Part) -> list[Scan]:
        """Scans of a part, all with a target and an honest mask.

        Raises:
            InputError: See ``PatientDataModule.honest_scans``.
        """
        if part not in self._items:
            self._items[part] = self.honest_scans(part)
        return self._items[part]

    def dataset(self, part: Part) -> Dataset[Any]:
        """The volumes of a part."""
        return VolumeDataset(self.items(part), self.targets(part), self.reading, self.mask_source, self.mask_files)

    def facts(self, scan_id: str, part: Part = "test") -> dict[str, Any]:
        """See ``CohortDataModule``; adds mask source, quality band, Dice of that mask and test target."""
        facts = super().facts(scan_id, part)
        # the band of the mask in use; without one, the reader's of the scan
        quality: dict[str, Any] = {"quality": self.cohort.scan(scan_id).quality}
        if self.quality_set is not None and scan_id in self.quality_set.masks:
            mask = self.quality_set.masks[scan_id]
            quality = {"quality": mask.quality, "mask_dice": mask.dice}
        if isinstance(self.mask_files, PerturbedMasks):
            dice = self.mask_files.dice(scan_id)
            quality = {"quality": quality_band(dice), "mask_dice": dice}
        target = self.targets(part).get(str(facts["patient_id"]))
        return {**facts, "target": target, "mask_source": self.mask_source, **quality}


class VolumeDataset(Dataset[dict[str, Any]]):
    """Preprocessed volumes read from the memory-mapped store.

    Args:
        scans: One item each.
        target: Class by patient id.
        store: Filled store.
        mask_source: Where the mask comes from; with ``none`` items hold no mask.
        mask_files: Predicted or perturbed masks; None for reference masks, or none.
    """

    def __init__(
        self,
        scans: list[Scan],
        target: Mapping[str, int],
        store: Store | ResidentStore,
        mask_source: MaskSource,
        mask_files: MaskSet | PerturbedMasks | None,
    ) -> None:
        self.scans = scans
        self.target = target
        self.store = store
        self.mask_source = mask_source
        self.mask_files = mask_files

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
        elif self.mask_files is not None:
            item["mask"] = channel_first(self.store.external_mask(scan, self.mask_files.path(scan.scan_id)))
        return item
