"""Slices as items: the protocol of published code that classifies whole 2-D slices, and its leak on request."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch.utils.data import Dataset

from datamodules.augmentation import BatchedAugmentation
from datamodules.base import Part
from datamodules.classification import ClassificationDataModule
from datamodules.cohort import Scan
from datamodules.errors import InputError
from datamodules.files import sha256_of_json
from datamodules.patients import PARTS
from datamodules.preprocessing import Preprocessing
from datamodules.splits import Splits
from datamodules.store import Store

SLICE_GRID = Preprocessing(spacing=None, shape=(256, 256, 64), normalisation="percentile")
LEAK = (
    "data.init_args.leak: slices of one patient are in training, validation and test. What this arm reaches is what a "
    "leak gives, never a result: compare shows it as a probe and takes it for no winner"
)


@dataclasses.dataclass(frozen=True, slots=True)
class Slice:
    """One axial slice of a scan.

    Attributes:
        scan: The scan.
        place: Its index K on the preprocessed grid.
    """

    scan: Scan
    place: int

    @property
    def slice_id(self) -> str:
        """The scan's id, ``#`` and the place."""
        return f"{self.scan.scan_id}#{self.place:03d}"


class SliceDataModule(ClassificationDataModule):
    """Single axial slices of a cohort's scans, each with its patient's target; without masks.

    Padding that preprocessing adds is no slice. With ``leak``, slices and not patients are dealt out, which is what
    must never be done: it is there to measure how much it flatters. The split file stays the honest one; each scan's
    slices are dealt to train, valid and test in the shares that the fold's patients have there. In k folds each slice
    is tested once; where the test patients are fixed, their slices alone are recorded.

    Args:
        cohort: See ``CohortDataModule``.
        splits: See ``CohortDataModule``.
        store: See ``CohortDataModule``.
        preprocessing: Must set a shape.
        sequence: See ``ClassificationDataModule``.
        rule: See ``ClassificationDataModule``.
        test_rule: See ``ClassificationDataModule``.
        fold: See ``CohortDataModule``.
        slices: ``all``, or ``liver``: only those where the reference mask has liver, which a new patient's scan would
            need a segmenter for.
        leak: Deal slices and not patients.
        centre: Subtracted from intensities after preprocessing.
        width: By which they are divided then; 0.5 and 0.5 bring 0 to 1 to -1 to 1.
        batch_size: Slices in a batch.
        workers: See ``CohortDataModule``.
        augmentation: See ``CohortDataModule``.

    Raises:
        InputError: See ``ClassificationDataModule``; or slices of the liver are asked of a scan without a mask.
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
        slices: Literal["all", "liver"] = "all",
        leak: bool = False,
        centre: float = 0.5,
        width: float = 0.5,
        batch_size: int = 32,
        workers: int = 0,
        augmentation: BatchedAugmentation | None = None,
    ) -> None:
        super().__init__(
            cohort,
            splits,
            store,
            preprocessing or SLICE_GRID,
            sequence,
            rule,
            test_rule,
            fold,
            batch_size=batch_size,
            workers=workers,
            augmentation=augmentation,
        )
        if width <= 0:
            raise InputError(f"data.init_args.width is {width}; give more than 0")
        self.kind = slices
        self.leaks = leak
        self.centre = centre
        self.width = width
        if leak:
            warnings.warn(LEAK, stacklevel=2)

    def items(self, part: Part) -> list[Scan]:
        """Scans whose slices are in a part; with ``leak`` those of all parts, and only tested patients' in a test.

        Raises:
            InputError: See the class.
        """
        if part in self._items:
            return self._items[part]
        scans = self.honest_scans(part)
        if self.leaks and not (part == "test" and self.splits is not None and self.splits.scheme != "kfold"):
            everyone = [scan for each in PARTS for scan in self.honest_scans(each)]
            scans = sorted({scan.scan_id: scan for scan in everyone}.values(), key=lambda scan: scan.scan_id)
        bare = [scan.scan_id for scan in scans if scan.mask is None] if self.kind == "liver" else []
        if bare:
            raise InputError(
                *(
                    f"{self.cohort.name}: scan {scan_id!r} has no reference mask, and data.init_args.slices is liver; "
                    "give one, or take all slices"
                    for scan_id in bare
                )
            )
        self._items[part] = scans
        return scans

    def slices(self, part: Part) -> list[Slice]:
        """The slices of a part, by scan and place; the store must be filled."""
        found = []
        for scan in self.items(part):
            places = slice_places(self.store, scan, self.kind)
            if self.leaks and self.splits is not None:
                places = dealt(places, scan.scan_id, self.splits, self.fold_number)[part]
            found += [Slice(scan, place) for place in places]
        if not found:
            raise InputError(f"{self.cohort.name}: fold {self.fold_number} has no slice in its {part} part")
        return found

    def dataset(self, part: Part) -> Dataset[Any]:
        """The slices of a part as tensors."""
        return SliceDataset(self.slices(part), self.targets(part), self.store, self.centre, self.width)

    def facts(self, scan_id: str, part: Part = "test") -> dict[str, Any]:
        """See ``ClassificationDataModule``; of the scan that a slice is of."""
        facts = super().facts(scan_id.rpartition("#")[0], part)
        return {**facts, "scan_id": scan_id, "x_leak": self.leaks}


def slice_places(store: Store, scan: Scan, kind: str) -> list[int]:
    """Places K of a scan's slices on the preprocessed grid: no padding, and only the liver's where asked.

    Raises:
        InputError: The scan has more slices than the grid.
    """
    entry = store.entry(scan)
    if any(entry.geometry.cropped[2]):
        raise InputError(
            f"{scan.image}: has more slices than the {entry.shape[2]} of data.init_args.preprocessing.shape, and some "
            "would be left out; give a larger shape"
        )
    inside = entry.geometry.content[2]
    places = range(*inside.indices(entry.shape[2]))
    if kind == "all":
        return list(places)
    there = np.asarray(entry.mask().any(axis=(0, 1)))
    return [place for place in places if there[place]]


def dealt(places: Sequence[int], scan_id: str, splits: Splits, number: int) -> dict[str, list[int]]:
    """Deal a scan's slices to the parts of a fold, as nobody should.

    Args:
        places: The scan's slices.
        scan_id: The scan.
        splits: The honest split: its seed, folds and shares.
        number: The fold.

    Returns:
        Places by part, sorted. In k folds each place is in the test part of one fold of a repeat.
    """
    fold = splits.fold(number)
    if splits.scheme == "kfold":
        parts = len(splits.folds) // splits.repeats
        repeat, index = divmod(number, parts)
    else:
        everyone = sum(len(patients) for patients in fold.parts.values())
        parts, repeat, index = max(2, round(everyone / len(fold.test))), 0, 0
    seed = int(sha256_of_json([splits.seed, repeat, scan_id])[:16], 16)
    order = [places[at] for at in np.random.default_rng(seed).permutation(len(places))]
    rest = [place for at, place in enumerate(order) if at % parts != index]
    held = math.ceil(len(rest) * len(fold.valid) / (len(fold.train) + len(fold.valid)))
    return {
        "train": sorted(rest[held:]),
        "valid": sorted(rest[:held]),
        "test": sorted(order[index::parts]),
    }


class SliceDataset(Dataset[dict[str, Any]]):
    """Slices read from the memory-mapped store.

    Args:
        slices: One item each.
        target: Class by patient id.
        store: Filled store.
        centre: See ``SliceDataModule``.
        width: See ``SliceDataModule``.
    """

    def __init__(
        self, slices: list[Slice], target: Mapping[str, int], store: Store, centre: float, width: float
    ) -> None:
        self.slices = slices
        self.target = target
        self.store = store
        self.centre = centre
        self.width = width

    def __len__(self) -> int:
        return len(self.slices)

    def __getitem__(self, index: int) -> dict[str, Any]:
        item = self.slices[index]
        whole = slice(None)
        # image of shape (1, I, J, 1): a volume of one slice
        plane = self.store.entry(item.scan).image((whole, whole, slice(item.place, item.place + 1)))
        return {
            "image": torch.from_numpy((plane - self.centre) / self.width)[None],
            "target": torch.tensor(self.target[item.scan.patient_id]),
            "patient_id": item.scan.patient_id,
            "scan_id": item.slice_id,
        }
