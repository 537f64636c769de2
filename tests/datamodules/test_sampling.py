"""The training order: laws that hold for any number of items, processes and accumulated batches."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from datamodules.augmentation import BatchedAugmentation, segmentation_preset
from datamodules.preprocessing import Preprocessing
from datamodules.sampling import Draw, TrainingSampler, seed_of
from datamodules.segmentation import SegmentationDataModule
from tests.tiny import Tiny

SMALL = Preprocessing(spacing=(10.0, 10.0, 20.0))
Key = tuple[int, int]


def drawn(sampler: TrainingSampler, epoch: int = 0) -> list[Key]:
    sampler.set_epoch(epoch)
    keys = [(int(draw), draw.seed) for draw in sampler]
    assert len(keys) == len(sampler)
    return keys


@settings(max_examples=60, deadline=None)
@given(
    items=st.integers(1, 40),
    seed=st.integers(0, 2**32 - 1),
    epoch=st.integers(0, 500),
    ranks=st.integers(1, 4),
    batch=st.integers(1, 5),
    accumulated=st.integers(1, 3),
)
def test_a_step_is_the_same_however_it_is_shared_out(
    items: int, seed: int, epoch: int, ranks: int, batch: int, accumulated: int
) -> None:
    step = ranks * batch * accumulated
    whole = drawn(TrainingSampler(items, seed, step), epoch)
    shares = [drawn(TrainingSampler(items, seed, batch, ranks, rank, accumulated), epoch) for rank in range(ranks)]
    assert {len(share) for share in shares} == {len(whole) // ranks}
    assert len(whole) % step == 0 and len(whole) - items < step, "full steps, and not one more than needed"
    size = batch * accumulated
    for place in range(len(whole) // step):
        union = sorted(key for share in shares for key in share[size * place : size * (place + 1)])
        assert union == sorted(whole[step * place : step * (place + 1)])
    first = [index for index, _ in whole[:items]]
    assert sorted(first) == list(range(items)), "each item once before any twice"
    assert len({key for _, key in whole}) == len(whole), "an item drawn twice gets other random numbers"
    assert all(0 <= key < 2**63 for _, key in whole)


@settings(max_examples=40, deadline=None)
@given(
    classes=st.lists(st.integers(0, 2), min_size=1, max_size=30),
    seed=st.integers(0, 2**32 - 1),
    epoch=st.integers(0, 500),
    ranks=st.integers(1, 3),
    batch=st.integers(1, 4),
)
def test_balanced_sampling_draws_classes_alike_however_it_is_shared_out(
    classes: list[int], seed: int, epoch: int, ranks: int, batch: int
) -> None:
    items, present = len(classes), len(set(classes))
    whole = drawn(TrainingSampler(items, seed, ranks * batch, classes=classes), epoch)
    shares = [drawn(TrainingSampler(items, seed, batch, ranks, rank, classes=classes), epoch) for rank in range(ranks)]
    for place in range(len(whole) // (ranks * batch)):
        union = sorted(key for share in shares for key in share[batch * place : batch * (place + 1)])
        assert union == sorted(whole[ranks * batch * place : ranks * batch * (place + 1)])
    assert len(whole) == len(drawn(TrainingSampler(items, seed, ranks * batch), epoch)), (
        "an epoch is as long as without"
    )
    labels = [classes[index] for index, _ in whole]
    for place in range(0, len(whole) - present + 1, present):
        assert sorted(labels[place : place + present]) == sorted(set(classes)), "each class once in each run of places"
    for label in set(classes):
        own = [index for index, _ in whole if classes[index] == label]
        size = classes.count(label)
        for place in range(0, len(own), size):
            turn = own[place : place + size]
            assert len(set(turn)) == len(turn), "each of a class's items once before any twice"
    longer = drawn(TrainingSampler(items, seed, len(whole) + 7, classes=classes), epoch)
    assert [index for index, _ in longer[: len(whole)]] == [index for index, _ in whole], "the place alone counts"


def test_seed_and_epoch_each_count_and_nothing_else_does() -> None:
    sampler = TrainingSampler(20, 5, 4)
    third = drawn(sampler, 3)
    assert third != drawn(sampler, 4)
    assert third != drawn(TrainingSampler(20, 6, 4), 3)
    torch.manual_seed(99)
    state = torch.get_rng_state()
    assert third == drawn(sampler, 3), "an epoch can be drawn again, in any order of epochs"
    assert third == drawn(TrainingSampler(20, 5, 4), 3), "and by a fresh process"
    assert torch.equal(torch.get_rng_state(), state), "the process's own generator is left alone"


def test_a_draw_is_an_index_that_travels() -> None:
    draw = Draw(3, 2**62 + 1)
    assert ["a", "b", "c", "d"][draw] == "d"
    for copied in (pickle.loads(pickle.dumps(draw)), copy.copy(draw)):
        assert copied == 3 and seed_of(copied) == 2**62 + 1
    assert seed_of(7) == 7


def test_shares_do_not_depend_on_where_a_run_was_resumed(tiny_cohort: Tiny) -> None:
    data = patches(tiny_cohort)
    loader = data.train_dataloader()
    epochs = []
    for epoch in range(3):
        loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]  # ours, not torch's
        epochs.append(list(loader))
    fresh = patches(tiny_cohort).train_dataloader()
    fresh.sampler.set_epoch(2)  # type: ignore[attr-defined]  # as above
    for batch, again in zip(epochs[2], fresh, strict=True):
        assert torch.equal(batch["image"], again["image"])
    assert not torch.equal(epochs[0][0]["image"], epochs[1][0]["image"])


def patches(tiny: Tiny, workers: int = 0, **options: Any) -> SegmentationDataModule:
    return SegmentationDataModule(
        cohort=str(tiny.cohort), splits=str(tiny.splits), store=str(tiny.folder / "store"), preprocessing=SMALL,
        patch=(16, 16, 8), patches_per_epoch=7, batch_size=2, workers=workers,
        augmentation=BatchedAugmentation(segmentation_preset()), **options,
    )  # fmt: skip


def test_patches_and_augmentation_are_the_same_for_any_number_of_workers(tiny_cohort: Tiny) -> None:
    def batches(workers: int) -> list[Tensor]:
        data = patches(tiny_cohort, workers)
        found = []
        for batch in data.train_dataloader():
            moved = data.on_after_batch_transfer(data.on_before_batch_transfer(batch, 0), 0)
            assert "seed" not in moved
            found.append(moved["image"])
        return found

    alone = batches(0)
    assert len(alone) == 4
    for first, second in zip(alone, batches(2), strict=True):
        assert torch.equal(first, second)


@pytest.mark.parametrize("seed", ["0", "1"])
def test_the_runs_seed_decides(seed: str, tiny_cohort: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")
    first = next(iter(patches(tiny_cohort).train_dataloader()))
    monkeypatch.setenv("PL_GLOBAL_SEED", seed)
    second = next(iter(patches(tiny_cohort).train_dataloader()))
    assert torch.equal(first["image"], second["image"]) == (seed == "0")


def test_one_order_of_patients_for_all_arms_of_a_seed(tiny_cohort: Tiny) -> None:
    """Arms that are compared see their patients in one order: it depends on nothing of the arm."""
    small = patches(tiny_cohort)
    other = SegmentationDataModule(
        cohort=str(tiny_cohort.cohort), splits=str(tiny_cohort.splits), store=str(tiny_cohort.folder / "store"),
        preprocessing=dataclasses.replace(SMALL, shape=(24, 24, 8)), batch_size=2,
    )  # fmt: skip
    assert list(small.training_sampler(range(6), 2)) == list(other.training_sampler(range(6), 2))  # type: ignore[arg-type]  # only the length counts
