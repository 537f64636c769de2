"""What every data module shares: cohort, split, store, and the facts that go into a prediction record."""

from __future__ import annotations

import math
import os
import time
import warnings
from collections.abc import Sequence
from typing import Any, Literal

import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, Dataset

from datamodules.augmentation import BatchedAugmentation
from datamodules.batch import Batch
from datamodules.cohort import Scan
from datamodules.errors import InputError
from datamodules.loading import Loading, ResidentStore, Workers, channel_first, chosen_loading
from datamodules.loading_ahead import LoaderAhead, Waited
from datamodules.opening import check_loading, opened
from datamodules.preprocessing import Preprocessing
from datamodules.sampling import SeededItems, TrainingSampler
from datamodules.saying import say
from datamodules.splits import Fold
from datamodules.store import Store

__all__ = ["CohortDataModule", "Part", "channel_first"]

Part = Literal["train", "valid", "test"]


class CohortDataModule(LightningDataModule):
    """Base of the data modules.

    Args:
        cohort: The cohort table.
        splits: The split file; required for training and testing.
        fold: Fold of the split file, counted from 0.
        store: Folder of preprocessed scans, shared by all runs.
        preprocessing: Grid and normalisation.
        sequences: Sequences to use; for one-sequence modules exactly one.
        batch_size: Scans (or patches) in a batch on each device; every training batch is full.
        workers: Loader processes; 0 loads in the training process (on a processor in a thread of it, which augments
            as well), which is fastest on a processor because the store is memory-mapped; ``auto`` chooses from the
            machine, and says what.
        resident: Keep each scan on the device once it was read, 2 bytes a voxel: nothing is loaded any more.
        augmentation: Batched augmentation of training batches on the device; None for none.

    Raises:
        InputError: The fold does not exist.
    """

    def __init__(
        self,
        cohort: str,
        splits: str | None,
        fold: int,
        store: str,
        preprocessing: Preprocessing,
        sequences: Sequence[str],
        batch_size: int,
        workers: Workers,
        augmentation: BatchedAugmentation | None,
        resident: bool = False,
    ) -> None:
        super().__init__()
        check_loading(batch_size, workers)
        self.cohort, self.splits = opened(cohort, splits, fold, sequences)
        self.fold_number = fold
        self.sequences = tuple(sequences)
        self.store = Store(store, preprocessing)
        self.batch_size = batch_size
        if resident and workers not in ("auto", 0):
            raise InputError(
                f"data.init_args.workers is {workers}, but resident data are cut in the training process; set it to 0"
            )
        self.workers: Workers = workers
        self.resident = resident
        self._resident_store: ResidentStore | None = None
        self.augmentation = augmentation
        self.augmentation_s = 0.0  # seconds for which training waited for it so far
        # seed_everything leaves the run's seed there: other seeds must shuffle, cut and augment otherwise
        self.seed = int(os.environ.get("PL_GLOBAL_SEED", "0"))

    @property
    def fold(self) -> Fold:
        """The fold in use.

        Raises:
            InputError: No split file was given.
        """
        if self.splits is None:
            raise InputError("data.init_args.splits is not set; make a split with 'hepastage split make' and give it")
        return self.splits.folds[self.fold_number]

    def scans_of(self, part: Part) -> list[Scan]:
        """The selected scans of one part of the fold, in the cohort's order.

        Raises:
            InputError: The part has no scan of the selected sequences.
        """
        patients = set(getattr(self.fold, part))
        scans = [scan for scan in self.cohort.scans if scan.patient_id in patients]
        without = sorted(patients - {scan.patient_id for scan in scans})
        if without and scans:
            names = ", ".join(without[:10]) + (f" and {len(without) - 10} more" if len(without) > 10 else "")
            warnings.warn(
                f"fold {self.fold_number}, {part} part: {len(without)} patient{'s' * (len(without) > 1)} of the split "
                f"with no {'/'.join(self.sequences)} scan left out: {names}",
                stacklevel=2,
            )
        if not scans:
            raise InputError(
                f"{self.cohort.name}: fold {self.fold_number} has no {'/'.join(self.sequences)} scan in its {part} part"
            )
        return scans

    def facts(self, scan_id: str, part: Part = "test") -> dict[str, Any]:
        """Columns of the prediction record that are known without a prediction.

        Args:
            scan_id: A scan's id as in the batch.
            part: The part it was predicted in; its label rule gives the target.
        """
        scan = self.cohort.scan(scan_id)
        return {
            "patient_id": scan.patient_id,
            "scan_id": scan_id,
            "source": scan.source,
            "sequence": scan.sequence,
            "sex": scan.sex,
            "age": scan.age,
            "split_sha256": "" if self.splits is None else self.splits.sha256,
        }

    def on_before_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Take the items' seeds out of their tensor while it is in main memory: later, that would halt the device."""
        if "seed" in batch:
            batch["seed"] = [int(seed) for seed in batch["seed"]]
        return batch

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Augment training batches on the device, unless the loader has; parameters depend on an item's seed alone."""
        if "seed" not in batch:
            return batch
        began = time.monotonic()
        batch = self._augmented(batch)
        self.augmentation_s += time.monotonic() - began
        return batch

    def _augmented(self, batch: Batch) -> Batch:
        seeds = batch.pop("seed")
        if self.augmentation is None:
            return batch
        image, mask = self.augmentation(batch["image"], batch.get("mask"), seeds, self.known_spacing)
        batch["image"] = image
        if mask is not None:
            batch["mask"] = mask
        return batch

    def _augmented_ahead(self, batch: Batch) -> Batch:
        return self._augmented(self.on_before_batch_transfer(batch, 0))

    def _note_waited(self, waited: Waited) -> None:
        self.augmentation_s += waited.seconds * waited.augmentation

    @property
    def known_spacing(self) -> tuple[float, float, float] | None:
        """Spacing in mm of all volumes, or None where preprocessing keeps a native axis."""
        spacing = self.store.preprocessing.spacing
        if spacing is None:
            return None
        i, j, k = spacing
        return None if i is None or j is None or k is None else (i, j, k)

    def loader(
        self, dataset: Dataset[dict[str, Any]], *, train: bool, batch_size: int | None = None
    ) -> DataLoader[Any]:
        """A loader; training shuffles, drops nothing and fills the last step up, as ``TrainingSampler`` says."""
        size = self.batch_size if batch_size is None else batch_size
        loading = self._loading(size, train)
        items = SeededItems(dataset) if train else dataset
        options: dict[str, Any] = {
            "batch_size": size,
            "sampler": self.training_sampler(dataset, size) if train else None,
            "num_workers": loading.workers,
            "prefetch_factor": loading.ahead if loading.workers else None,
            "persistent_workers": loading.workers > 0,
            "pin_memory": torch.cuda.is_available() and not self.resident,
            # a loader draws a number for its processes: not from the generator that dropout draws from
            "generator": torch.Generator().manual_seed(self.seed),
        }
        on_processor = self.trainer is not None and self.trainer.strategy.root_device.type == "cpu"
        if train and on_processor and not loading.workers:
            # TorchIO draws from torch's global generator, as dropout does: it stays in the training's own thread
            prepare = self._augmented_ahead if type(self.augmentation) is BatchedAugmentation else None
            return LoaderAhead(items, prepare=prepare, waited=self._note_waited, **options)
        return DataLoader(items, **options)

    def _loading(self, batch_size: int, train: bool) -> Loading:
        """How this loader loads; said once where it was chosen and an accelerator is fed."""
        if self.resident:
            return Loading(0, 2)
        trainer = self.trainer
        on_accelerator = trainer is not None and trainer.strategy.root_device.type != "cpu"
        processes = 1 if trainer is None else trainer.num_devices
        # image and mask of a batch: the patch where there is one, else the shape of all volumes
        edges = getattr(self, "patch", None) or self.store.preprocessing.shape or (1, 1, 1)
        size = batch_size * 8 * math.prod(edges)
        loading = chosen_loading(self.workers, accelerator=on_accelerator, processes=processes, batch_bytes=size)
        if self.workers == "auto" and on_accelerator and train:
            say(f"{loading} (data.init_args.workers: auto)")
        return loading

    @property
    def reading(self) -> Store | ResidentStore:
        """What datasets read scans from."""
        if not self.resident:
            return self.store
        if self._resident_store is None:
            device = torch.device("cpu") if self.trainer is None else self.trainer.strategy.root_device
            self._resident_store = ResidentStore(self.store, device)
        return self._resident_store

    def training_sampler(self, dataset: Dataset[Any], batch_size: int) -> TrainingSampler:
        """The order of training items, shared out among the trainer's processes."""
        share: dict[str, int] = {}
        accumulated = 1
        if self.trainer is not None:
            # None on a single device; counts the groups of processes that see different data
            share = self.trainer.distributed_sampler_kwargs or {}
            accumulated = self.trainer.accumulate_grad_batches
        items = len(dataset)  # type: ignore[arg-type]  # torch's class does not say that it has a length
        return TrainingSampler(
            items, self.seed, batch_size, share.get("num_replicas", 1), share.get("rank", 0), accumulated,
            self.balanced_classes(),
        )  # fmt: skip

    def balanced_classes(self) -> Sequence[int] | None:
        """Class of each training item, where training draws all classes equally often; None for each item once."""
        return None
