"""Keep freed memory in the process instead of giving it back to the system after every layer. Torch-free."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
"""glibc's names for mallopt's parameters (malloc.h)."""
ASIDE = 32 << 20
"""Largest piece in bytes that may come from the heap: the most that glibc takes (64 bit). Larger ones stay mapped."""


def keep_memory() -> bool:
    """Let glibc keep what was freed, for processors that train and predict.

    A feature map of a volume is some megabytes large. By default glibc gives such pieces back as soon as they are
    free, and the system clears each of their pages anew for the next layer: a twentieth of a step of the nnU-Net
    topology in a profile, and within the noise of a whole training. What is kept is reused by the next layer; the most
    memory that a process holds stays what its largest step needs, but is given back only at its end. Numbers do not
    change. On a GPU torch has an allocator of its own.

    Returns:
        Whether it was set; not with another C library, nor where the user has set glibc's own variables.
    """
    if platform.system() != "Linux" or platform.libc_ver()[0] != "glibc":
        return False
    if any(name.startswith("MALLOC_") for name in os.environ) or "GLIBC_TUNABLES" in os.environ:
        return False
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        largest = 2**31 - 1
        return all(mallopt(name, value) == 1 for name, value in ((MMAP_THRESHOLD, ASIDE), (TRIM_THRESHOLD, largest)))
    return False
