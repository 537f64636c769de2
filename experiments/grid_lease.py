"""Leases of GPUs: locks of files, so that the kernel frees them however their holder ends. Light, torch-free."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from datamodules.errors import InputError

SLOTS = 12
"""Parts of a GPU that are leased: halves, thirds, quarters and sixths come out even."""

COUNT = "HEPASTAGE_GPU_COUNT"
"""Environment variable that says how many GPUs there are, in place of asking the driver; for tests."""

FOLDER = "HEPASTAGE_LEASES"
"""Environment variable with the folder of leases; all studies and users of a machine should have the same."""


def device_count() -> int:
    """GPUs of this machine, as its driver lists them; 0 without one."""
    stated = os.environ.get(COUNT)
    if stated is not None:
        return int(stated)
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return 0
    try:
        listed = subprocess.run([tool, "-L"], capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return 0
    return sum(line.startswith("GPU ") for line in listed.splitlines())


def devices_of(text: str | None) -> list[int]:
    """The GPUs that ``--gpus`` names.

    Args:
        text: ``0-3``, ``0,2``, ``none``; None for all that this process may see.

    Raises:
        InputError: The text is no list of numbers, or the machine has no such GPU.
    """
    count = device_count()
    if text is None:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        if visible is None:
            return list(range(count))
        return [int(part) for part in visible.split(",") if part.strip().isdigit()] if count else []
    if text in ("none", ""):
        return []
    found: list[int] = []
    for part in text.split(","):
        first, sign, last = part.partition("-")
        if not first.strip().isdigit() or (sign and not last.strip().isdigit()):
            raise InputError(f"--gpus {text}: is no list of GPUs; write for example 0-3 or 0,2, or none")
        found += range(int(first), int(last or first) + 1)
    beyond = [number for number in found if number >= count]
    if beyond:
        raise InputError(f"--gpus {text}: there is no GPU {beyond[0]}; this machine has {count}, counted from 0")
    return sorted(set(found))


def slots_of(gpus: float) -> int:
    """Parts that a cell leases, out of ``SLOTS`` a GPU.

    Args:
        gpus: Whole GPUs, or a share below 1, which is rounded up to the next part.
    """
    return int(gpus) * SLOTS if gpus >= 1 else -int(-gpus * SLOTS // 1)


@contextmanager
def lease(devices: Sequence[int], gpus: float, poll: float = 0.2) -> Iterator[tuple[list[int], list[int]]]:
    """Hold GPUs, or a share of one; waits until they are free.

    Args:
        devices: GPUs that may be taken.
        gpus: How many, or a share below 1.
        poll: Seconds between two attempts.

    Yields:
        The GPUs, and the descriptors whose locks are the lease: a process that inherits them holds it too.
    """
    wanted = slots_of(gpus)
    folder = _folder()
    taken: list[tuple[int, int]] = []
    try:
        while not taken:
            with _locked(folder / "guard", wait=True):
                # under the guard, so that two cells never wait for each other's halves
                taken = _take(folder, devices, wanted)
            if not taken:
                time.sleep(poll)
        yield sorted({device for device, _ in taken}), [descriptor for _, descriptor in taken]
    finally:
        for _, descriptor in taken:
            os.close(descriptor)


def _take(folder: Path, devices: Sequence[int], wanted: int) -> list[tuple[int, int]]:
    """The slots of whole GPUs, or of one that has enough left; empty where there is not enough."""
    free = {device: _free(folder, device) for device in devices}
    chosen: list[tuple[int, int]] = []
    if wanted >= SLOTS:
        whole = [device for device in devices if len(free[device]) == SLOTS][: wanted // SLOTS]
        if len(whole) == wanted // SLOTS:
            chosen = [(device, descriptor) for device in whole for descriptor in free[device]]
    else:
        # the fullest that still fits, so that whole GPUs stay whole
        fitting = sorted((device for device in devices if len(free[device]) >= wanted), key=lambda d: len(free[d]))
        if fitting:
            chosen = [(fitting[0], descriptor) for descriptor in free[fitting[0]][:wanted]]
    kept = {descriptor for _, descriptor in chosen}
    for descriptors in free.values():
        for descriptor in descriptors:
            if descriptor not in kept:
                os.close(descriptor)
    return chosen


def _free(folder: Path, device: int) -> list[int]:
    """Descriptors of a GPU's slots that nobody holds; they are held now."""
    found = []
    for slot in range(SLOTS):
        descriptor = _open(folder / f"gpu{device}.{slot}")
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise
            continue
        found.append(descriptor)
    return found


def _folder() -> Path:
    """The folder of leases, shared by all users of the machine."""
    named = os.environ.get(FOLDER)
    folder = Path(named) if named else Path(tempfile.gettempdir()) / "hepastage-leases"
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(PermissionError):
        # like the temporary folder itself: everybody may add, nobody may remove another's
        folder.chmod(0o1777)
    return folder


def _open(path: Path) -> int:
    """A lock file; kernels refuse O_CREAT on another user's file in a folder for all, so it comes second."""
    try:
        return os.open(path, os.O_RDWR)
    except FileNotFoundError:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        with contextlib.suppress(PermissionError):
            os.fchmod(descriptor, 0o666)
        return descriptor


@contextmanager
def _locked(path: Path, *, wait: bool) -> Iterator[None]:
    descriptor = _open(path)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield
    finally:
        os.close(descriptor)
