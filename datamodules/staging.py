"""Several sequences of one patient side by side, any of which may be missing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from datamodules.augmentation import BatchedAugmentation
from datamodules.base import Part
from datamodules.cohort import Scan
from datamodules.examinations import Examination, examinations
from datamodules.masks import MaskSet, quality_band
from datamodules.patients import DEFAULT_GRID, MaskSource, PatientDataModule
from datamodules.perturbation import MaskPerturbation
from datamodules.perturbed_masks import PerturbedMasks
from datamodules.preprocessing import Preprocessing
from datamodules.store import Store


class StagingDataModule(PatientDataModule):
    """Volumes of several sequences, stacked as channels; a missing sequence is zeros and not ``present``.

    The sequences lie on one preprocessed grid size but are not registered to each other.

    Args:
        cohort: See ``CohortDataModule``.
        splits: See ``CohortDataModule``.
        store: See ``CohortDataModule``.
        preprocessing: Must set a shape.
        sequences: Channels of the batch, in this order. A patient needs at least one of them.
        rule: Label rule; ``stage`` gives the three radiological stages as 0, 1, 2; None takes the split's.
        fold: See ``CohortDataModule``.
        mask_source: See ``ClassificationDataModule``.
        masks: See ``ClassificationDataModule``.
        batch_size: Patients in a batch.
        workers: See ``CohortDataModule``.
        augmentation: See ``CohortDataModule``.
        perturbation: See ``ClassificationDataModule``.

    Raises:
        InputError: Arguments that contradict each other, masks that leak, a patient without a label, or
            two scans of one sequence in one visit.
    """

    def __init__(
        self,
        cohort: str,
        splits: str | None = None,
        store: str = "runs/store",
        preprocessing: Preprocessing | None = None,
        sequences: tuple[str, ...] = ("T1W", "T2W"),
        rule: str | None = None,
        fold: int = 0,
        mask_source: MaskSource = "none",
        masks: str | None = None,
        batch_size: int = 8,
        workers: int = 0,
        augmentation: BatchedAugmentation | None = None,
        perturbation: MaskPerturbation | None = None,
    ) -> None:
        preprocessing = preprocessing or DEFAULT_GRID
        super().__init__(
            cohort, splits, fold, store, preprocessing, sequences, rule, None, mask_source, masks,
            batch_size, workers, augmentation, perturbation=perturbation,
        )  # fmt: skip
        self._items: dict[Part, list[Examination]] = {}
        self._by_scan_id: dict[str, Examination] = {}

    def items(self, part: Part) -> list[Examination]:
        """The examinations of a part, all with a target and honest masks.

        Raises:
            InputError: See the class.
        """
        if part not in self._items:
            self._items[part] = examinations(self.honest_scans(part), self.sequences, self.cohort.name)
            self._by_scan_id.update({item.scan_id: item for item in self._items[part]})
        return self._items[part]

    def dataset(self, part: Part) -> Dataset[Any]:
        """The examinations of a part."""
        target = dict(self.targets(part))
        return ExaminationDataset(self.items(part), target, self.store, self.mask_source, self.mask_files)

    def facts(self, scan_id: str, part: Part = "test") -> dict[str, Any]:
        """See ``CohortDataModule``; ``scan_id`` joins the sequences' ids by ``+``, which an id may hold itself."""
        scans = self._by_scan_id[scan_id].present_scans
        facts = super().facts(scans[0].scan_id, part)
        sequences = [scan.sequence for scan in scans]
        target = self.targets(part).get(str(facts["patient_id"]))
        return {
            **facts,
            "scan_id": scan_id,
            "sequence": "+".join(sequences),
            "target": target,
            "mask_source": self.mask_source,
            **self._quality(scans),
        }

    def _quality(self, scans: Sequence[Scan]) -> dict[str, Any]:
        """Mean Dice of the sequences' masks and its band; nothing where an arm has no masks but the reference's."""
        if isinstance(self.mask_files, PerturbedMasks):
            found = [self.mask_files.dice(scan.scan_id) for scan in scans]
        elif self.mask_set is not None:
            found = [self.mask_set.masks[scan.scan_id].dice for scan in scans]
        else:
            return {}
        known = [dice for dice in found if dice is not None]
        mean = sum(known) / len(known) if known else None
        return {"quality": quality_band(mean), "mask_dice": mean}


class ExaminationDataset(Dataset[dict[str, Any]]):
    """Stacked volumes of one patient, read from the memory-mapped store.

    Args:
        items: Examinations.
        target: Class by patient id.
        store: Filled store.
        mask_source: Where masks come from.
        mask_files: Predicted or perturbed masks; None for reference masks, or none.
    """

    def __init__(
        self,
        items: list[Examination],
        target: dict[str, int],
        store: Store,
        mask_source: MaskSource,
        mask_files: MaskSet | PerturbedMasks | None,
    ) -> None:
        self.items = items
        self.target = target
        self.store = store
        self.mask_source = mask_source
        self.mask_files = mask_files

    def __len__(self) -> int:
        return len(self.items)

    def _mask(self, scan: Scan) -> np.ndarray:
        if self.mask_files is None:
            return np.asarray(self.store.entry(scan).mask())
        return np.asarray(self.store.external_mask(scan, self.mask_files.path(scan.scan_id)))

    def __getitem__(self, index: int) -> dict[str, Any]:
        item = self.items[index]
        shape = self.store.entry(item.present_scans[0]).shape
        image = np.zeros((len(item.scans), *shape), dtype=np.float32)
        mask = np.zeros_like(image)
        for channel, scan in enumerate(item.scans):
            if scan is None:
                continue
            image[channel] = self.store.entry(scan).image()
            if self.mask_source != "none":
                mask[channel] = self._mask(scan)
        values: dict[str, Any] = {
            "image": torch.from_numpy(image),
            "present": torch.tensor([scan is not None for scan in item.scans]),
            "target": torch.tensor(self.target[item.patient_id]),
            "patient_id": item.patient_id,
            "scan_id": item.scan_id,
        }
        if self.mask_source != "none":
            values["mask"] = torch.from_numpy(mask)
        return values
