"""How batches are loaded: how many processes, how far ahead, or from data that stay on the device."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from datamodules.cohort import Scan
from datamodules.errors import InputError
from datamodules.store import Entry, Store

Workers = int | Literal["auto"]
_AHEAD_BYTES = 2**28
"""Batches that loader processes hold ready, each process: at most so much memory, and at least two batches."""


class Loading(NamedTuple):
    """How batches are loaded.

    Attributes:
        workers: Loader processes.
        ahead: Batches that each of them holds ready.
    """

    workers: int
    ahead: int

    def __str__(self) -> str:
        if not self.workers:
            return "batches are loaded in the training process"
        return f"batches are loaded by {self.workers} processes, {self.ahead} batches ahead each"


def chosen_loading(
    workers: Workers, *, accelerator: bool, processes: int = 1, batch_bytes: int = 0, cores: int | None = None
) -> Loading:
    """Choose from the machine.

    Cutting a patch from the memory map takes a millisecond, and augmentation runs on the device: few loaders feed an
    accelerator, and on a processor any would only take cores from the network.

    Args:
        workers: As configured; a number is kept.
        accelerator: Whether the network is on one.
        processes: Training processes on this machine, which share its cores.
        batch_bytes: Size of a batch.
        cores: Usable cores; None asks the machine.
    """
    if workers == "auto":
        own = (len(os.sched_getaffinity(0)) if cores is None else cores) // max(1, processes)
        chosen = max(0, min(8, own - 1)) if accelerator else 0
    else:
        chosen = workers
    return Loading(chosen, int(np.clip(_AHEAD_BYTES // max(1, batch_bytes), 2, 8)))


class ResidentStore:
    """A store whose scans stay on a device once they were read: patches are cut there, and nothing is transferred.

    Args:
        store: The filled store.
        device: Where scans stay; the processor's memory counts as one.
    """

    def __init__(self, store: Store, device: torch.device) -> None:
        self.store = store
        self.device = device
        self._entries: dict[str, ResidentEntry] = {}
        self._masks: dict[Path, Tensor] = {}

    def entry(self, scan: Scan) -> ResidentEntry:
        """The scan, brought to the device when it is first asked for.

        Raises:
            InputError: The device has no room for it.
        """
        if scan.scan_id not in self._entries:
            try:
                self._entries[scan.scan_id] = ResidentEntry(self.store.entry(scan), self.device)
            except torch.OutOfMemoryError as error:
                raise InputError(
                    f"data.init_args.resident: {self.device} has room for {len(self._entries)} scans only; set it to "
                    "false, and scans are read from the memory map"
                ) from error
        return self._entries[scan.scan_id]

    def external_mask(self, scan: Scan, path: Path) -> Tensor:
        """A predicted mask on the scan's grid, uint8 in {0, 1}."""
        if path not in self._masks:
            self._masks[path] = torch.from_numpy(self.store.external_mask(scan, path)).to(self.device)
        return self._masks[path]


class ResidentEntry:
    """A scan of the store on a device, in the store's own 16 bits.

    Args:
        entry: The scan.
        device: Where to.
    """

    def __init__(self, entry: Entry, device: torch.device) -> None:
        self.shape = entry.shape
        self.has_mask = entry.has_mask
        self.foreground: npt.NDArray[np.int32] = entry.foreground
        stored, self._scale, self._offset = entry.stored()
        self._image = torch.from_numpy(stored).to(device)
        self._mask = torch.from_numpy(entry.mask()).to(device) if entry.has_mask else None

    def image(self, window: tuple[slice, slice, slice] | None = None) -> Tensor:
        """Normalised intensities of a window, float32; see ``Entry``."""
        part = self._image if window is None else self._image[window]
        return part.to(torch.float32).mul_(self._scale).add_(self._offset)

    def mask(self, window: tuple[slice, slice, slice] | None = None) -> Tensor:
        """The reference mask of a window, uint8; see ``Entry``."""
        if self._mask is None:
            raise InputError("this scan has no reference mask; choose another mask source or scan")
        return self._mask if window is None else self._mask[window]


def channel_first(array: npt.NDArray[Any] | Tensor) -> Tensor:
    """A float32 tensor of shape (1, I, J, K) from an array or tensor of shape (I, J, K)."""
    if isinstance(array, Tensor):
        return array.to(torch.float32)[None]
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))[None]
