"""Patches with foreground oversampling for training; whole volumes for validation and test."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch.utils.data import DataLoader, Dataset

from datamodules.augmentation import BatchedAugmentation
from datamodules.base import CohortDataModule, Part, channel_first
from datamodules.cohort import Scan
from datamodules.errors import InputError
from datamodules.preprocessing import Preprocessing
from datamodules.sampling import seed_of
from datamodules.store import Entry, Store

DEFAULT_GRID = Preprocessing(spacing=(2.0, 2.0, 6.0))
"""Where the configuration names no grid: spacing alone: patches need no common size."""


class SegmentationDataModule(CohortDataModule):
    """Scans with reference masks.

    Args:
        cohort: See ``CohortDataModule``.
        splits: See ``CohortDataModule``.
        store: See ``CohortDataModule``.
        preprocessing: Grid and normalisation.
        sequence: The sequence to segment.
        fold: See ``CohortDataModule``.
        patch: Size of training patches in voxels (I, J, K); an axis of the volume that is shorter is
            zero-padded. None trains on whole volumes, which then need ``preprocessing.shape``.
        patches_per_epoch: Patches drawn in an epoch; None draws one for each scan.
        foreground: Share of patches centred on a liver voxel, in [0, 1]; nnU-Net's is a third.
        batch_size: See ``CohortDataModule``; validation and test run scan by scan.
        workers: See ``CohortDataModule``.
        augmentation: See ``CohortDataModule``.

    Raises:
        InputError: A scan without a reference mask in the training or validation part, or arguments
            that contradict each other.
    """

    def __init__(
        self,
        cohort: str,
        splits: str | None = None,
        store: str = "runs/store",
        preprocessing: Preprocessing | None = None,
        sequence: str = "T2W",
        fold: int = 0,
        patch: tuple[int, int, int] | None = None,
        patches_per_epoch: int | None = None,
        foreground: float = 0.33,
        batch_size: int = 2,
        workers: int = 0,
        augmentation: BatchedAugmentation | None = None,
    ) -> None:
        preprocessing = preprocessing or DEFAULT_GRID
        super().__init__(cohort, splits, fold, store, preprocessing, [sequence], batch_size, workers, augmentation)
        if patch is None and preprocessing.shape is None:
            raise InputError(
                "data.init_args.patch and preprocessing.shape are both unset; give a patch size, or one shape to all"
            )
        if patch is None and patches_per_epoch is not None:
            raise InputError(
                "data.init_args.patches_per_epoch would be ignored without a patch; set patch or remove it"
            )
        if not 0.0 <= foreground <= 1.0:
            raise InputError(f"data.init_args.foreground is {foreground}; give a share between 0 and 1")
        if patches_per_epoch is not None and patches_per_epoch < 1:
            raise InputError(f"data.init_args.patches_per_epoch is {patches_per_epoch}; give 1 or more")
        self.patch = patch
        self.patches_per_epoch = patches_per_epoch
        self.foreground = foreground

    def items(self, part: Part) -> list[Scan]:
        """Scans of a part, all with a reference mask.

        Raises:
            InputError: A scan has none.
        """
        scans = self.scans_of(part)
        without = [scan.scan_id for scan in scans if scan.mask is None]
        if without:
            raise InputError(
                *(
                    f"{self.cohort.name}: scan {scan_id!r} is in the {part} part but has no reference mask; "
                    "give it one or leave its patient out of the split"
                    for scan_id in without
                )
            )
        return scans

    def prepare_data(self) -> None:
        """Fill the store, once a node; that all masks are there is checked before anything is computed."""
        if self.splits is not None:
            self.items("train")
            self.items("valid")
        self.store.fill(self.cohort)

    def train_dataloader(self) -> DataLoader[Any]:
        """Random patches, or whole volumes in random order."""
        scans = self.items("train")
        if self.patch is None:
            return self.loader(WholeVolumes(scans, self.store), train=True)
        count = self.patches_per_epoch or len(scans)
        return self.loader(PatchDataset(scans, self.store, self.patch, count, self.foreground), train=True)

    def val_dataloader(self) -> DataLoader[Any]:
        """Whole validation volumes."""
        return self.loader(WholeVolumes(self.items("valid"), self.store), train=False, batch_size=1)

    def test_dataloader(self) -> DataLoader[Any]:
        """Whole test volumes; a reference mask is not needed to be segmented."""
        return self.loader(WholeVolumes(self.scans_of("test"), self.store), train=False, batch_size=1)

    def predict_dataloader(self) -> DataLoader[Any]:
        """The same as the test volumes."""
        return self.test_dataloader()


class WholeVolumes(Dataset[dict[str, Any]]):
    """Whole preprocessed volumes with their reference masks, where there are.

    Args:
        scans: One item each.
        store: Filled store.
    """

    def __init__(self, scans: list[Scan], store: Store) -> None:
        self.scans = scans
        self.store = store

    def __len__(self) -> int:
        return len(self.scans)

    def __getitem__(self, index: int) -> dict[str, Any]:
        scan = self.scans[index]
        entry = self.store.entry(scan)
        item = {"image": channel_first(entry.image()), "patient_id": scan.patient_id, "scan_id": scan.scan_id}
        if entry.has_mask:
            item["mask"] = channel_first(entry.mask())
        return item


class PatchDataset(Dataset[dict[str, Any]]):
    """Random patches, cut from the memory map without reading the rest.

    Every scan is drawn equally often; a patch is centred on a liver voxel with the given probability.
    What is random about a patch comes from the seed that its index carries.

    Args:
        scans: Scans to draw from.
        store: Filled store.
        patch: Size in voxels (I, J, K).
        count: Patches in an epoch.
        foreground: Probability of centring on a liver voxel.
    """

    def __init__(
        self, scans: list[Scan], store: Store, patch: tuple[int, int, int], count: int, foreground: float
    ) -> None:
        self.scans = scans
        self.store = store
        self.patch = patch
        self.count = count
        self.foreground = foreground

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Any]:
        scan = self.scans[index % len(self.scans)]
        entry = self.store.entry(scan)
        rng = np.random.default_rng(seed_of(index))
        window = random_window(entry, self.patch, self.foreground, rng)
        return {
            "image": channel_first(padded(entry.image(window), self.patch)),
            "mask": channel_first(padded(entry.mask(window), self.patch)),
            "patient_id": scan.patient_id,
            "scan_id": scan.scan_id,
        }


def random_window(
    entry: Entry, patch: tuple[int, int, int], foreground: float, rng: np.random.Generator
) -> tuple[slice, slice, slice]:
    """A window of at most ``patch`` voxels inside the volume.

    Args:
        entry: The scan.
        patch: Wanted size in voxels.
        foreground: Probability of centring on a liver voxel.
        rng: Source of randomness.

    Returns:
        Slices for I, J, K; an axis shorter than the patch is taken whole.
    """
    centre = None
    if len(entry.foreground) and rng.random() < foreground:
        centre = entry.foreground[rng.integers(len(entry.foreground))]
    slices = []
    for axis in range(3):
        extent, size = entry.shape[axis], patch[axis]
        room = max(0, extent - size)
        start = rng.integers(room + 1) if centre is None else np.clip(int(centre[axis]) - size // 2, 0, room)
        slices.append(slice(int(start), min(extent, int(start) + size)))
    return slices[0], slices[1], slices[2]


def padded(array: np.ndarray, size: tuple[int, int, int]) -> np.ndarray:
    """Zero-pad at the upper end of each axis to ``size``; zero is the mean after normalisation."""
    missing = [(0, wanted - extent) for wanted, extent in zip(size, array.shape, strict=True)]
    return np.pad(array, missing) if any(after for _, after in missing) else array
