"""Processes of one run end together: a wrong request found by one is said once, and all exit with 2."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from datamodules.errors import InputError

FAULT, HEARD, SAID = "hepastage/fault", "hepastage/heard", "hepastage/said"
PERIOD_S = 0.3
PATIENCE_S = 20.0


def together(work: Callable[[], int]) -> int:
    """Do this process's part of a run; a wrong request met by any process ends all of them.

    A process that stops in the middle of a training leaves the others waiting for it, for minutes or for ever. So
    each process watches the store over which they found each other: the first ``InputError`` is written there, rank
    zero says it, and all exit with 2.

    Args:
        work: What to do.

    Returns:
        What ``work`` returns.

    Raises:
        InputError: In rank zero, or where there is but one process: for the front door to print.
        SystemExit: With 2, in all other processes.
    """
    stop = threading.Event()
    threading.Thread(target=_watch, args=(stop,), daemon=True, name="shared-fate").start()
    try:
        return work()
    except InputError as error:
        stop.set()
        if _tell(error):
            raise
        raise SystemExit(2) from error
    except Exception:
        if _store() is not None:
            # another's end reaches this process as a broken connection: the watching thread knows the reason
            time.sleep(4 * PERIOD_S)
        raise
    finally:
        stop.set()


def _rank() -> int:
    import torch.distributed

    return torch.distributed.get_rank()


def _store() -> Any:
    """The processes' common store, a connection of its own; None where there is no group of processes."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return None
    return torch.distributed.distributed_c10d._get_default_store()


def _tell(error: InputError) -> bool:
    """Hand a fault to the other processes.

    Returns:
        Whether this process is to say it.
    """
    store = _store()
    if store is None:
        # torchrun and srun start every process with the same words: the first of a node speaks for them
        return not _silent_copy()
    rank, others = _rank(), sys.modules["torch"].distributed.get_world_size() - 1
    with contextlib.suppress(RuntimeError):
        store.set(FAULT, json.dumps(error.faults))
        # whoever says it waits until the others have heard, whoever does not until it was said
        end = time.monotonic() + PATIENCE_S
        while time.monotonic() < end:
            if store.add(HEARD, 0) >= others if rank == 0 else store.check([SAID]):
                return rank == 0
            time.sleep(PERIOD_S)
    return True


def _silent_copy() -> bool:
    external = "TORCHELASTIC_RUN_ID" in os.environ or "SLURM_LOCALID" in os.environ
    local = os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", "0"))
    return external and local != "0"


def _watch(stop: threading.Event) -> None:
    """End this process when another one has met a fault; rank zero says it."""
    store: Any = None
    while not stop.wait(PERIOD_S):
        try:
            if store is None:
                shared = _store()
                store = None if shared is None else shared.clone()
                continue
            if not store.check([FAULT]):
                continue
            faults = json.loads(store.get(FAULT))
            store.add(HEARD, 1)
        except (RuntimeError, ValueError, AttributeError):
            # the group of processes is beginning or ending
            store = None
            continue
        if stop.is_set():
            return
        if _rank() == 0:
            for fault in faults:
                sys.stderr.write(f"hepastage: {fault}\n")
            sys.stderr.flush()
            store.set(SAID, "yes")
            # rank zero holds the store: the others must have read it
            time.sleep(2 * PERIOD_S)
        # the main thread may hang in a call that only the lost process could end
        os._exit(2)
