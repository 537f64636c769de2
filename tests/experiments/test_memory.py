"""Freed memory stays in the process: asked of glibc itself, in a process of its own."""

from __future__ import annotations

import ctypes
import json
import os
import platform
import subprocess
import sys

import pytest

from experiments.memory import keep_memory

SCRIPT = """
import ctypes, json, sys
import torch
from experiments.memory import keep_memory

class Held(ctypes.Structure):  # glibc's mallinfo2
    _fields_ = [(name, ctypes.c_size_t) for name in
                "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()]

mallinfo2 = ctypes.CDLL(None).mallinfo2
mallinfo2.restype = Held
kept = keep_memory() if sys.argv[1] == "keep" else False
before = mallinfo2()
pieces = [torch.ones(2_000_000) for _ in range(5)]
mapped = mallinfo2().hblkhd - before.hblkhd
del pieces
print(json.dumps([kept, mapped, mallinfo2().fordblks - before.fordblks]))
"""
PIECES = 5 * 8_000_000
"""Bytes that the script asks for and frees."""


def held(word: str, **more: str) -> tuple[bool, int, int]:
    """Whether it was set, the bytes mapped anew for the pieces, and those kept of them when they were freed."""
    own = {key: value for key, value in os.environ.items() if not key.startswith("MALLOC_") and key != "GLIBC_TUNABLES"}
    own["PYTHONPATH"] = os.pathsep.join(sys.path)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, word], env={**own, **more}, capture_output=True, text=True, check=True
    )
    kept, mapped, free = json.loads(done.stdout)
    return kept, mapped, free


# not the page faults that this saves: some sandboxes count none
@pytest.mark.skipif(
    platform.system() != "Linux" or not hasattr(ctypes.CDLL(None), "mallinfo2"),
    reason="needs glibc 2.33, which tells what it holds; other C libraries keep memory by rules of their own",
)
def test_what_was_freed_is_held_for_the_next_layer() -> None:
    plain, kept = held("plain"), held("keep")
    assert not plain[0] and plain[1] >= PIECES, "what is mapped goes back as soon as it is free"
    assert kept[0] and kept[1] == 0 and kept[2] >= 0.9 * PIECES
    assert not held("keep", MALLOC_ARENA_MAX="1")[0], "what the user has set stays"


def test_elsewhere_nothing_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    assert not keep_memory()
