"""Freed memory stays in the process: counted in the system's own page faults, in a process of its own."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys

import pytest

from experiments.memory import keep_memory

SCRIPT = """
import json, resource, sys
import torch
from experiments.memory import keep_memory

kept = keep_memory() if sys.argv[1] == "keep" else False
def layer():
    return (torch.ones(2_000_000) + 1).sum()
for _ in range(10):
    layer()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(100):
    layer()
faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(json.dumps([kept, faults]))
"""


def faults(word: str, **more: str) -> tuple[bool, int]:
    own = {key: value for key, value in os.environ.items() if not key.startswith("MALLOC_") and key != "GLIBC_TUNABLES"}
    own["PYTHONPATH"] = os.pathsep.join(sys.path)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, word], env={**own, **more}, capture_output=True, text=True, check=True
    )
    kept, count = json.loads(done.stdout)
    return kept, count


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library keeps memory by rules of its own")
def test_layers_reuse_what_was_freed() -> None:
    plain, kept = faults("plain"), faults("keep")
    assert kept[0]
    # pieces of 8 MB are 2000 pages of 4 KB each; how often glibc gives them back by itself depends on where they lie
    assert kept[1] < 1000 < plain[1]
    assert not faults("keep", MALLOC_ARENA_MAX="1")[0], "what the user has set stays"


def test_elsewhere_nothing_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    assert not keep_memory()
