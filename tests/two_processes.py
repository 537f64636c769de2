"""Two real processes joined by gloo: what one process computes, two must compute as well."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from torch.multiprocessing.spawn import spawn


def in_two_processes(function: Callable[[int, Any], object], argument: object, folder: Path) -> list[Any]:
    """Run ``function(rank, argument)`` in two spawned processes of one gloo group.

    Args:
        function: Of a module's top level.
        argument: Handed to both; must pickle.
        folder: For the results.

    Returns:
        What each rank returned, rank 0 first.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    spawn(_member, (function, argument, port, str(folder)), nprocs=2)  # type: ignore[no-untyped-call]  # torch's own
    return [torch.load(folder / f"rank{rank}.pt", weights_only=False) for rank in range(2)]


def _member(rank: int, function: Callable[[int, Any], object], argument: object, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    try:
        torch.save(function(rank, argument), Path(folder) / f"rank{rank}.pt")
    finally:
        torch.distributed.destroy_process_group()
