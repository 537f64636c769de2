"""Patches with foreground oversampling for training; whole volumes for validation and test."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from datamodules.augmentation import BatchedAugmentation
from datamodules.base import CohortDataModule, Part, channel_first
from datamodules.cohort import Scan
from datamodules.errors import InputError
from datamodules.loading import ResidentEntry, ResidentStore, Workers
from datamodules.preprocessing import Preprocessing
from datamodules.sampling import Draw, TrainingSampler, seed_of
from datamodules.store import Entry, Store

ForegroundRule = Literal["probability", "last_of_step"]
DEFAULT_GRID = Preprocessing(spacing=(2.0, 2.0, 6.0))
"""Where the configuration names no grid: spacing alone: patches need no common size."""


class SegmentationDataModule(CohortDataModule):
    """Scans with reference masks.

    Args:
        cohort: See ``CohortDataModule``.
        splits: See ``CohortDataModule``.
        store: See ``CohortDataModule``.
        preprocessing: Grid and normalisation.
        sequence: The sequence to segment, or several: each scan is then an item of its own, so that one
            segmenter serves all of them.
        fold: See ``CohortDataModule``.
        patch: Size of training patches in voxels (I, J, K); an axis of the volume that is shorter is
            zero-padded. None trains on whole volumes, which then need ``preprocessing.shape``.
        patches_per_epoch: Patches drawn in an epoch; None draws one for each scan.
        foreground: Share of patches centred on a liver voxel, in [0, 1]; nnU-Net's is a third.
        foreground_rule: Which patches these are. ``probability``: each with the probability ``foreground``.
            ``last_of_step``: the last ones of each optimiser's step, as nnU-Net takes them; of n patches the first
            ``round(n * (1 - foreground))`` lie anywhere, so of two one is centred on liver.
        batch_size: See ``CohortDataModule``; validation and test run scan by scan.
        workers: See ``CohortDataModule``.
        resident: See ``CohortDataModule``.
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
        sequence: tuple[str, ...] | str = "T2W",
        fold: int = 0,
        patch: tuple[int, int, int] | None = None,
        patches_per_epoch: int | None = None,
        foreground: float = 0.33,
        batch_size: int = 2,
        workers: Workers = "auto",
        augmentation: BatchedAugmentation | None = None,
        foreground_rule: ForegroundRule = "probability",
        resident: bool = False,
    ) -> None:
        preprocessing = preprocessing or DEFAULT_GRID
        sequences = [sequence] if isinstance(sequence, str) else list(sequence)
        super().__init__(
            cohort, splits, fold, store, preprocessing, sequences, batch_size, workers, augmentation, resident
        )
        if patch is None and preprocessing.shape is None:
            raise InputError(
                "data.init_args.patch and preprocessing.shape are both unset; give a patch size, or one shape to all"
            )
        if patch is not None and min(patch) < 1:
            raise InputError(f"data.init_args.patch is {patch}; give three whole numbers of voxels from 1 on")
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
        self.foreground_rule = foreground_rule

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
            return self.loader(WholeVolumes(scans, self.reading), train=True)
        count = self.patches_per_epoch or len(scans)
        share = self.foreground if self.foreground_rule == "probability" else None
        return self.loader(PatchDataset(scans, self.reading, self.patch, count, share), train=True)

    def training_sampler(self, dataset: Dataset[Any], batch_size: int) -> TrainingSampler:
        """See ``CohortDataModule``; says which patches are to be centred on liver, where that goes by their place."""
        sampler = super().training_sampler(dataset, batch_size)
        if self.foreground_rule == "last_of_step" and self.patch is not None:
            return LastOfStep(sampler, self.foreground)
        return sampler

    def val_dataloader(self) -> DataLoader[Any]:
        """Whole validation volumes."""
        return self.loader(WholeVolumes(self.items("valid"), self.reading), train=False, batch_size=1)

    def test_dataloader(self) -> DataLoader[Any]:
        """Whole test volumes; a reference mask is not needed to be segmented."""
        return self.loader(WholeVolumes(self.scans_of("test"), self.reading), train=False, batch_size=1)

    def predict_dataloader(self) -> DataLoader[Any]:
        """The same as the test volumes."""
        return self.test_dataloader()


class WholeVolumes(Dataset[dict[str, Any]]):
    """Whole preprocessed volumes with their reference masks, where there are.

    Args:
        scans: One item each.
        store: Filled store.
    """

    def __init__(self, scans: list[Scan], store: Store | ResidentStore) -> None:
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


class LastOfStep(TrainingSampler):
    """The order of another sampler, in which the last patches of each step are marked to be centred on liver.

    A marked index is the item's plus the number of items.

    Args:
        order: The sampler whose order it is.
        foreground: Share of marked patches; of a step of n items the first ``round(n * (1 - foreground))`` are not.

    Source: nnU-Net v2, ``nnUNetDataLoader._oversample_last_XX_percent``.
    """

    def __init__(self, order: TrainingSampler, foreground: float) -> None:
        batch_size = order.step_items // order.num_replicas
        super().__init__(order.items, order.seed, batch_size, order.num_replicas, order.rank)
        self.anywhere = round(self.step_items * (1 - foreground))

    def __iter__(self) -> Iterator[Draw]:
        """This process's share of the epoch's order."""
        for number, draw in enumerate(super().__iter__()):
            place = (number * self.num_replicas + self.rank) % self.step_items
            yield draw if place < self.anywhere else Draw(int(draw) + self.items, draw.seed)


class PatchDataset(Dataset[dict[str, Any]]):
    """Random patches, cut from the memory map without reading the rest.

    Every scan is drawn equally often; a patch is centred on a liver voxel with the given probability, or where its
    index says so.
    What is random about a patch comes from the seed that its index carries.

    Args:
        scans: Scans to draw from.
        store: Filled store.
        patch: Size in voxels (I, J, K).
        count: Patches in an epoch.
        foreground: Probability of centring on a liver voxel; None centres the patches of indices from ``count`` on,
            as ``LastOfStep`` gives them.
    """

    def __init__(
        self,
        scans: list[Scan],
        store: Store | ResidentStore,
        patch: tuple[int, int, int],
        count: int,
        foreground: float | None,
    ) -> None:
        self.scans = scans
        self.store = store
        self.patch = patch
        self.count = count
        self.foreground = foreground

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Any]:
        scan = self.scans[index % self.count % len(self.scans)]
        entry = self.store.entry(scan)
        rng = np.random.default_rng(seed_of(index))
        centred = float(index >= self.count) if self.foreground is None else self.foreground
        window = random_window(entry, self.patch, centred, rng)
        return {
            "image": channel_first(padded(entry.image(window), self.patch)),
            "mask": channel_first(padded(entry.mask(window), self.patch)),
            "patient_id": scan.patient_id,
            "scan_id": scan.scan_id,
        }


def random_window(
    entry: Entry | ResidentEntry, patch: tuple[int, int, int], foreground: float, rng: np.random.Generator
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


def padded(array: np.ndarray | Tensor, size: tuple[int, int, int]) -> np.ndarray | Tensor:
    """Zero-pad at the upper end of each axis to ``size``; zero is the mean after normalisation."""
    missing = [(0, wanted - extent) for wanted, extent in zip(size, array.shape, strict=True)]
    if not any(after for _, after in missing):
        return array
    if isinstance(array, Tensor):
        return nn.functional.pad(array, [end for axis in reversed(missing) for end in axis])
    return np.pad(array, missing)
