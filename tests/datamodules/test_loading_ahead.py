"""Batches made ahead in a thread: the same ones, in order, and nothing left behind."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset

from datamodules.augmentation import BatchedAugmentation, segmentation_preset
from datamodules.augmentation_torchio import TorchIOAugmentation
from datamodules.loading_ahead import LoaderAhead, Waited
from datamodules.preprocessing import Preprocessing
from datamodules.segmentation import SegmentationDataModule
from tests.tiny import Tiny


class Numbers(Dataset[int]):
    def __len__(self) -> int:
        return 7

    def __getitem__(self, index: int) -> int:
        if index == 5:
            raise ValueError("item 5 is broken")
        return index


def loading_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("loading")]


def test_batches_and_their_order_are_the_plain_loaders() -> None:
    seen: list[str] = []
    told: list[Waited] = []

    def prepare(batch: Any) -> Any:
        seen.append(threading.current_thread().name)
        return batch * 10

    ahead = LoaderAhead(range(7), batch_size=2, prepare=prepare, waited=told.append)
    for _ in range(2):
        found = list(ahead)
        assert len(ahead) == len(found) == 4
        for batch, plain in zip(found, DataLoader(range(7), batch_size=2), strict=True):  # type: ignore[arg-type]
            assert torch.equal(batch, plain * 10)
    assert all(name.startswith("loading") for name in seen) and not loading_threads()
    assert len(told) == 8 and all(wait.seconds >= 0 and 0 <= wait.augmentation <= 1 for wait in told)


def test_no_more_than_one_batch_is_made_ahead() -> None:
    made = []

    class Stream(IterableDataset[int]):
        def __iter__(self) -> Iterator[int]:
            for number in range(9):
                made.append(number)
                yield number

    batches = iter(LoaderAhead(Stream(), batch_size=None, prepare=None, waited=lambda _: None))
    for number in range(4):
        assert next(batches) == number
        assert len(made) <= number + 2
    batches.close()  # type: ignore[attr-defined]  # a generator
    assert not loading_threads(), "leaving early ends the thread"


def test_an_error_is_raised_where_its_batch_is_due() -> None:
    batches = iter(LoaderAhead(Numbers(), batch_size=2, prepare=None, waited=lambda _: None))
    assert [next(batches).tolist() for _ in range(2)] == [[0, 1], [2, 3]]
    with pytest.raises(ValueError, match="item 5 is broken"):
        next(batches)
    assert not loading_threads()


def test_the_thread_computes_alone_and_the_network_as_before() -> None:
    threads: list[int] = []

    def prepare(batch: Any) -> Any:
        threads.append(torch.get_num_threads())
        return batch

    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        for _ in LoaderAhead(range(4), batch_size=2, prepare=prepare, waited=lambda _: None):
            assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    assert threads == [1, 1]


def patches(
    tiny: Tiny, device: str | None, workers: int = 0, kind: type = BatchedAugmentation
) -> SegmentationDataModule:
    """The module as a trainer on this device would have it."""
    data = SegmentationDataModule(
        cohort=str(tiny.cohort), splits=str(tiny.splits), store=str(tiny.folder / "store"),
        preprocessing=Preprocessing(spacing=(10.0, 10.0, 20.0)), patch=(16, 16, 8), patches_per_epoch=7, batch_size=2,
        workers=workers, augmentation=kind(segmentation_preset()),
    )  # fmt: skip
    if device is not None:
        strategy = SimpleNamespace(root_device=torch.device(device))
        data.trainer = SimpleNamespace(  # type: ignore[assignment]
            strategy=strategy, num_devices=1, distributed_sampler_kwargs=None, accumulate_grad_batches=1
        )
    return data


def test_a_processors_batches_are_those_of_any_other(tiny_cohort: Tiny) -> None:
    found = []
    for device in (None, "cpu"):
        data = patches(tiny_cohort, device)
        loader = data.train_dataloader()
        assert isinstance(loader, LoaderAhead) == (device == "cpu")
        found.append([data.on_after_batch_transfer(data.on_before_batch_transfer(b, 0), 0) for b in loader])
        assert data.augmentation_s > 0
    assert len(found[0]) == 4
    for plain, ahead in zip(*found, strict=True):
        assert plain.keys() == ahead.keys() and "seed" not in ahead
        assert torch.equal(plain["image"], ahead["image"]) and torch.equal(plain["mask"], ahead["mask"])


def test_accelerators_and_loader_processes_need_no_thread(tiny_cohort: Tiny) -> None:
    assert not isinstance(patches(tiny_cohort, "cuda").train_dataloader(), LoaderAhead)
    assert not isinstance(patches(tiny_cohort, "cpu", workers=1).train_dataloader(), LoaderAhead)
    assert not isinstance(patches(tiny_cohort, "cpu").val_dataloader(), LoaderAhead)


def test_torchio_keeps_its_hands_off_the_thread(tiny_cohort: Tiny) -> None:
    """It seeds torch's global generator, from which the network's dropout draws at the same time."""
    loader = patches(tiny_cohort, "cpu", kind=TorchIOAugmentation).train_dataloader()
    assert isinstance(loader, LoaderAhead) and loader.prepare is None
    assert "seed" in next(iter(loader))
