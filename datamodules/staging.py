"""Several sequences of one patient side by side, any of which may be missing."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from datamodules.augmentation import BatchedAugmentation
from datamodules.base import Part
from datamodules.cohort import Cohort, Scan
from datamodules.covariates import Floats, covariate_table, examination_values, statistics
from datamodules.errors import InputError
from datamodules.examinations import Examination, examinations, examinations_having
from datamodules.loading import ResidentStore, Workers, channel_first
from datamodules.masks import MaskSet, quality_band
from datamodules.patients import DEFAULT_GRID, MaskSource, PatientDataModule, Sampling
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
        covariates: Clinical covariates of the batch: ``age``, ``sex``, numeric columns that begin with ``x_``.
        complete: Sequences that an examination must have to take part, whether the arm sees them or not. It gives
            arms of one and of several sequences the same patients.
        sampling: See ``PatientDataModule``.
        resident: See ``CohortDataModule``.

    Raises:
        InputError: Arguments that contradict each other, masks that leak, a patient without a label, two
            scans of one sequence in one visit, covariates that differ within one, or that say nothing.
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
        workers: Workers = "auto",
        augmentation: BatchedAugmentation | None = None,
        perturbation: MaskPerturbation | None = None,
        covariates: tuple[str, ...] = (),
        complete: tuple[str, ...] = (),
        sampling: Sampling = "shuffled",
        resident: bool = False,
    ) -> None:
        preprocessing = preprocessing or DEFAULT_GRID
        super().__init__(
            cohort, splits, fold, store, preprocessing, sequences, rule, None, mask_source, masks,
            batch_size, workers, augmentation, sampling, perturbation=perturbation, resident=resident,
        )  # fmt: skip
        self.covariates = tuple(covariates)
        self.complete = tuple(complete)
        self._known = covariate_table(self.cohort, self.covariates)
        if self.complete:
            self._having = examinations_having(self.complete, Cohort.load(cohort))
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
        items = self.items(part)
        covariates = self._values(part) if self.covariates else None
        return ExaminationDataset(items, target, self.reading, self.mask_source, self.mask_files, covariates)

    def scans_of(self, part: Part) -> list[Scan]:
        """See ``CohortDataModule``; examinations that are not complete are left out where that is asked for.

        Raises:
            InputError: None is complete.
        """
        scans = super().scans_of(part)
        if not self.complete:
            return scans
        kept = [scan for scan in scans if (scan.patient_id, scan.visit) in self._having]
        if not kept:
            raise InputError(
                f"{self.cohort.name}: no examination of the {part} part has all of data.init_args.complete, "
                f"{list(self.complete)}; name fewer"
            )
        if len(kept) < len(scans):
            warnings.warn(
                f"fold {self.fold_number}, {part} part: {len(scans) - len(kept)} scans left out, of examinations that "
                f"lack one of {'/'.join(self.complete)}",
                stacklevel=2,
            )
        return kept

    def covariate_statistics(self) -> tuple[Floats, Floats]:
        """Mean and standard deviation of the covariates, each of shape (F,), over the training examinations alone.

        Raises:
            InputError: A covariate that no training patient has, or that is the same in all.
        """
        return statistics(self._values("train"), self.covariates, self.cohort.name)

    def _values(self, part: Part) -> Floats:
        """Covariates of each examination of a part, shape (examinations, F)."""
        values: list[Floats] = []
        faults: list[str] = []
        for item in self.items(part):
            ids = [scan.scan_id for scan in item.present_scans]
            try:
                values.append(examination_values(self._known, ids, self.covariates, self.cohort.name))
            except InputError as error:
                faults += error.faults
        if faults:
            raise InputError(*faults)
        return np.stack(values)

    def prepare_data(self) -> None:
        """See ``PatientDataModule``; covariates are checked before anything is computed."""
        if self.covariates and self.splits is not None:
            self.covariate_statistics()
            for part in ("valid", "test") if self.fold.test else ("valid",):
                self._values(part)
        super().prepare_data()

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
        covariates: Covariates of each item, shape (items, F); None for none.
    """

    def __init__(
        self,
        items: list[Examination],
        target: dict[str, int],
        store: Store | ResidentStore,
        mask_source: MaskSource,
        mask_files: MaskSet | PerturbedMasks | None,
        covariates: Floats | None = None,
    ) -> None:
        self.covariates = covariates
        self.items = items
        self.target = target
        self.store = store
        self.mask_source = mask_source
        self.mask_files = mask_files

    def __len__(self) -> int:
        return len(self.items)

    def _mask(self, scan: Scan) -> torch.Tensor:
        if self.mask_files is None:
            return channel_first(self.store.entry(scan).mask())
        return channel_first(self.store.external_mask(scan, self.mask_files.path(scan.scan_id)))

    def __getitem__(self, index: int) -> dict[str, Any]:
        item = self.items[index]
        images = [None if scan is None else channel_first(self.store.entry(scan).image()) for scan in item.scans]
        # a missing sequence is zeros, on the device where the others are
        absent = torch.zeros_like(next(image for image in images if image is not None))
        values: dict[str, Any] = {
            "image": torch.cat([absent if image is None else image for image in images]),
            "present": torch.tensor([scan is not None for scan in item.scans]),
            "target": torch.tensor(self.target[item.patient_id]),
            "patient_id": item.patient_id,
            "scan_id": item.scan_id,
        }
        if self.mask_source != "none":
            values["mask"] = torch.cat([absent if scan is None else self._mask(scan) for scan in item.scans])
        if self.covariates is not None:
            values["covariates"] = torch.from_numpy(self.covariates[index].astype(np.float32))
        return values
