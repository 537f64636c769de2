"""Training order and randomness as a function of seed and epoch alone: the same for any workers and processes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from torch.utils.data import Dataset, DistributedSampler


class Draw(int):
    """An index into a dataset that carries the seed of what is random about the item.

    Args:
        index: Which item.
        seed: For its patch, its augmentation; in [0, 2^63).
    """

    seed: int

    def __new__(cls, index: int, seed: int) -> Draw:
        """Make an index with a seed."""
        draw = super().__new__(cls, index)
        draw.seed = seed
        return draw

    def __getnewargs__(self) -> tuple[int, int]:  # type: ignore[override]  # int's own stub names one argument
        """What loader processes rebuild it from."""
        return int(self), self.seed


class TrainingSampler(DistributedSampler[Any]):
    """Shuffle anew in each epoch, and share the order out so that only the size of an optimiser's step counts.

    With n items, an epoch is a random order of them, continued from its own beginning until the last step is full.
    A step takes ``step_items`` = batch size × processes × accumulated batches of that order, one after the other;
    process r of R takes every R-th item, from the r-th on. So the same items, with the same randomness, make
    up each step of one process with a batch of 8, of two with 4, and of one that accumulates two batches of 4. Each
    batch is full: the mean over processes and accumulated batches is the mean over the step's items.

    With ``classes``, each class is drawn equally often: each run of as many places as there are classes holds each
    class once, and each class's items come in one random order after another. An epoch is as long as without, so that
    items of a large class wait for a later epoch and those of a small one come again.

    It derives from torch's distributed sampler so that Lightning does not wrap it in one of its own, and so that
    Lightning tells it the epoch.

    Args:
        items: Number n of items, at least 1.
        seed: Of the run.
        batch_size: Items in a batch of one process.
        ranks: Number R of processes.
        rank: This process, in [0, R).
        accumulated: Batches that are accumulated before the optimiser moves.
        classes: Class of each item, to draw all equally often; None draws each item once.
    """

    def __init__(
        self,
        items: int,
        seed: int,
        batch_size: int,
        ranks: int = 1,
        rank: int = 0,
        accumulated: int = 1,
        classes: Sequence[int] | None = None,
    ) -> None:
        super().__init__(range(items), num_replicas=ranks, rank=rank, shuffle=True, seed=seed)  # type: ignore[arg-type]  # only its length is asked for
        self.items = items
        self.step_items = batch_size * ranks * accumulated
        self.total_size = math.ceil(items / self.step_items) * self.step_items
        self.num_samples = self.total_size // ranks
        self.classes = None if classes is None else np.asarray(classes)

    def __iter__(self) -> Iterator[Draw]:
        """This process's share of the epoch's order."""
        if self.classes is None:
            order = np.random.default_rng([self.seed, self.epoch]).permutation(self.items)
        else:
            order = balanced_order(self.classes, self.total_size, [self.seed, self.epoch])
        for position in range(self.rank, self.total_size, self.num_replicas):
            # by place, not by item: an item that is drawn twice is not the same patch twice
            words = np.random.SeedSequence([self.seed, self.epoch, position]).generate_state(1, np.uint64)
            yield Draw(int(order[position % len(order)]), int(words[0] >> np.uint64(1)))


def balanced_order(classes: np.ndarray, length: int, seed: Sequence[int]) -> np.ndarray:
    """An order in which each class has every C-th place on average, C being the number of classes.

    Args:
        classes: Class of each item, shape (items,).
        length: Places to fill; a longer order begins with the shorter one.
        seed: Of the order.

    Returns:
        Index of the item at each place, shape (length,).
    """
    present = np.unique(classes)
    rng = np.random.default_rng([*seed, 0])
    wanted = np.concatenate([rng.permutation(present) for _ in range(math.ceil(length / len(present)))])[:length]
    order = np.empty(length, dtype=np.int64)
    for label in present:
        # each class draws from numbers of its own, so that the length changes nothing before it
        rng = np.random.default_rng([*seed, 1 + int(label)])
        places, items = np.flatnonzero(wanted == label), np.flatnonzero(classes == label)
        rounds = [rng.permutation(items) for _ in range(math.ceil(len(places) / len(items)))]
        order[places] = np.concatenate([*rounds, items[:0]])[: len(places)]
    return order


class SeededItems(Dataset[dict[str, Any]]):
    """A dataset whose items hold the seed that they were drawn with.

    Args:
        items: The dataset; it is indexed with a ``Draw``.
    """

    def __init__(self, items: Dataset[dict[str, Any]]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)  # type: ignore[arg-type]  # torch's class does not say that it has a length

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {**self.items[index], "seed": seed_of(index)}


def seed_of(index: int) -> int:
    """The seed that an index carries; a plain index, as ``overfit_batches`` gives, is its own."""
    return index.seed if isinstance(index, Draw) else index
