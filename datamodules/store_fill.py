"""Filling the store by many processes, with a progress bar and all faults together."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import random
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from datamodules.errors import InputError

if TYPE_CHECKING:
    from datamodules.store import Request, Store

_store: Store | None = None


def usable_cores() -> int:
    """Cores that this process may use: a cluster's job often has fewer than the machine."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def make_all(store: Store, requests: list[Request], workers: int, progress: bool) -> list[str]:
    """Make the given entries.

    Args:
        store: The store.
        requests: Entries to make, each key once.
        workers: Processes. With 1, this process does the work.
        progress: Show a progress bar on stderr.

    Returns:
        All faults, one line each, in the order of ``requests``.

    Raises:
        StoreFullError: The disk is full; what was begun is finished or removed.
        InputError: A process was killed.
    """
    if not requests:
        return []
    requests = list(requests)
    order = {request.key: place for place, request in enumerate(requests)}
    # several commands may fill one store: each begins elsewhere, so that they share the work and do not queue
    random.Random(os.getpid()).shuffle(requests)
    faults: dict[int, tuple[str, ...]] = {}
    results = _in_turn(store, requests) if workers == 1 or len(requests) == 1 else _pooled(store, requests, workers)
    console = Console(stderr=True)
    columns = (TextColumn("preprocessing"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not progress) as bar:
        task = bar.add_task("preprocessing", total=len(requests))
        for key, lines in results:
            if lines:
                faults[order[key]] = lines
            bar.advance(task)
    return [line for place in sorted(faults) for line in faults[place]]


def _in_turn(store: Store, requests: list[Request]) -> Iterator[tuple[str, tuple[str, ...]]]:
    for request in requests:
        yield request.key, _made(store, request)


def _pooled(store: Store, requests: list[Request], workers: int) -> Iterator[tuple[str, tuple[str, ...]]]:
    from datamodules.store import StoreFullError

    # spawn: forking a process whose libraries run threads can hang the child
    pool = ProcessPoolExecutor(
        min(workers, len(requests)), multiprocessing.get_context("spawn"), initializer=_begin, initargs=(store,)
    )
    try:
        with one_thread_each():
            futures = {pool.submit(_made_by_worker, request): request for request in requests}
        for future in as_completed(futures):
            full, lines = future.result()
            if full:
                raise StoreFullError(*lines)
            yield futures[future].key, lines
    except BrokenProcessPool as error:
        raise InputError(
            f"{store.root}: a preprocessing process was killed, perhaps for want of memory; run again with fewer "
            "--workers: finished entries are kept"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def one_thread_each() -> Iterator[None]:
    """Processes started here run BLAS on one thread: as many threads as cores in each would fight for the cores."""
    names = ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _begin(store: Store) -> None:
    global _store
    _store = store
    follow_parent()


def follow_parent() -> None:
    """In a worker: end with the parent, since a killed parent would otherwise leave its workers waiting for ever."""
    threading.Thread(target=_wait_for_parent, daemon=True).start()


def _wait_for_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)


def _made_by_worker(request: Request) -> tuple[bool, tuple[str, ...]]:
    from datamodules.store import StoreFullError

    if _store is None:
        raise RuntimeError("the worker was not begun")
    try:
        return False, _made(_store, request)
    except StoreFullError as error:
        return True, error.faults


def _made(store: Store, request: Request) -> tuple[str, ...]:
    from datamodules.store import StoreFullError

    try:
        store.make(request)
    except StoreFullError:
        raise
    except InputError as error:
        return error.faults
    except MemoryError:
        return (f"{request.image}: not enough memory to preprocess it; use fewer --workers or a coarser spacing",)
    return ()
