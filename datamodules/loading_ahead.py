"""A loader that makes the next batch while the network computes on the present one."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import torch
from torch.utils.data import DataLoader


class Waited(NamedTuple):
    """How long a batch was waited for.

    Attributes:
        seconds: By the clock, in the thread that trains.
        augmentation: The part of the batch's making that was augmentation, in [0, 1].
    """

    seconds: float
    augmentation: float


class LoaderAhead(DataLoader[Any]):
    """Load one batch ahead, and augment it if asked, in a thread of the training process.

    torch computes without Python's lock, so the thread runs beside the network. Batches are those of the plain loader,
    in its order; an error in the thread is raised where its batch is due. At most one batch more is held.

    Args:
        *args: Of ``DataLoader``.
        prepare: Makes an augmented batch of a loaded one, and draws nothing from torch's global generator; None leaves
            the batch as it was loaded.
        waited: Told of each batch what was waited for it.
        **kwargs: Of ``DataLoader``; without loader processes, which do the same in another way.
    """

    def __init__(
        self, *args: Any, prepare: Callable[[Any], Any] | None, waited: Callable[[Waited], None], **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        # Lightning builds a loader anew from attributes named like its arguments, for 'overfit_batches'
        self.prepare = prepare
        self.waited = waited

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]  # torch's own iterator has a type of its own
        """Batches in order."""
        batches = super().__iter__()

        def following() -> tuple[Any, float] | None:
            began = time.monotonic()
            loaded = next(batches, None)
            if loaded is None:
                return None
            between = time.monotonic()
            prepared = loaded if self.prepare is None else self.prepare(loaded)
            ended = time.monotonic()
            return prepared, (ended - between) / max(ended - began, 1e-9)

        with ThreadPoolExecutor(1, thread_name_prefix="loading") as pool:
            _compute_alone(pool)
            coming = pool.submit(following)
            while True:
                began = time.monotonic()
                found = coming.result()
                if found is None:
                    return
                batch, share = found
                self.waited(Waited(time.monotonic() - began, share))
                coming = pool.submit(following)
                yield batch


def _compute_alone(pool: ThreadPoolExecutor) -> None:
    """Let a pool's one thread compute by itself, and this one as before.

    A second team of OpenMP's threads would be more than there are cores; GNU's library then lets all of them sleep at
    the end of every loop, those of the network as well, and a training step takes a quarter longer.
    """
    threads = torch.get_num_threads()

    def alone() -> None:
        # the first call takes the process's number over, and only then the thread's own is kept
        torch.get_num_threads()
        torch.set_num_threads(1)

    pool.submit(alone).result()
    # some of torch's libraries have one number for all threads
    torch.set_num_threads(threads)
