"""The store when things go wrong around it: killed processes, many at once, a full disk."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from datamodules.errors import InputError
from datamodules.store import Store, StoreFullError
from tests.datamodules.store_scans import PARAMS, make_cohort

ROOT = Path(__file__).parents[2]


def start(cohort: Path, store: Path, workers: int = 1) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "tests.datamodules.store_scans", str(cohort), str(store), str(workers)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def finished(store: Path) -> dict[str, int]:
    # an entry that is still being written has a hidden name, which pathlib's star takes as well
    whole = [path for path in sorted(store.glob("??/*/meta.json")) if not path.parent.name.startswith(".")]
    return {str(path): path.stat().st_mtime_ns for path in whole}


def running(process: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("workers", [1, 2])
def test_kill_minus_nine_leaves_whole_entries_only(tmp_path: Path, workers: int) -> None:
    cohort = make_cohort(tmp_path, 10, (160, 160, 40))
    store = tmp_path / "store"
    process = start(tmp_path / "cohort.csv", store, workers)
    deadline = time.monotonic() + 60
    while len(finished(store)) < 2 and time.monotonic() < deadline:
        time.sleep(0.002)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    # workers end with their parent
    while any(running(int(child)) for child in children) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not any(running(int(child)) for child in children)
    done = finished(store)
    assert 2 <= len(done) < 10
    keys = Store(store, PARAMS).fill(cohort, workers=1, progress=False)
    after = finished(store)
    assert len(after) == 10
    assert {path: after[path] for path in done} == done
    assert not list(store.glob("??/.writing-*"))
    expected = Store(tmp_path / "other", PARAMS)
    expected.fill(cohort, workers=1, progress=False)
    filled = Store(store, PARAMS)
    for scan in cohort:
        assert filled.entry(scan).key == keys[scan.scan_id]
        np.testing.assert_array_equal(filled.entry(scan).image(), expected.entry(scan).image())


def test_a_process_killed_while_writing_leaves_nothing_that_is_read(tmp_path: Path) -> None:
    cohort = make_cohort(tmp_path, 1)
    store = Store(tmp_path / "store", PARAMS)
    key = store._request(cohort.scans[0]).key
    torn = tmp_path / "store" / key[:2] / f".writing-{key}"
    torn.mkdir(parents=True)
    (torn / "image.npy").write_bytes(b"half")
    assert store.entry(cohort.scans[0]).image().shape == store.entry(cohort.scans[0]).shape
    assert not torn.exists()


def test_eight_processes_write_each_entry_once(tmp_path: Path) -> None:
    make_cohort(tmp_path, 6, (64, 64, 20))
    store = tmp_path / "store"
    # an entry's place is renamed to once: a second writing would show as another inode
    processes = [start(tmp_path / "cohort.csv", store) for _ in range(8)]
    seen: dict[str, set[int]] = {}
    while any(process.poll() is None for process in processes):
        for path in store.glob("??/*/meta.json"):
            try:
                seen.setdefault(path.parent.name, set()).add(path.stat().st_ino)
            except FileNotFoundError:
                seen.setdefault(path.parent.name, set()).add(-1)
    errors = [process.communicate()[1] for process in processes]
    assert [process.returncode for process in processes] == [0] * 8, errors
    assert len(finished(store)) == 6
    assert all(len(inodes) == 1 and -1 not in inodes for inodes in seen.values())
    assert not list(store.glob("??/.writing-*"))


def test_a_full_disk_while_writing_stops_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cohort = make_cohort(tmp_path, 3)
    calls: list[Path] = []

    def full(path: Path, array: object) -> int:
        calls.append(path)
        path.write_bytes(b"part")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("datamodules.store_entry._write_array", full)
    with pytest.raises(StoreFullError, match=r"the disk is full.*finished entries are kept"):
        Store(tmp_path / "store", PARAMS).fill(cohort, workers=1, progress=False)
    assert len(calls) == 1
    assert not [path for path in (tmp_path / "store").rglob("*") if path.is_file() and path.parent.name != "locks"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MB in memory."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("mounting a small file system needs root")
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True).returncode:
        pytest.skip("this machine lets nobody mount a file system")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_small_disk_fills_up_without_a_torn_entry(tmp_path: Path, small_disk: Path, workers: int) -> None:
    cohort = make_cohort(tmp_path, 8, (64, 64, 20))
    with pytest.raises(InputError, match="the disk is full"):
        Store(small_disk / "store", PARAMS).fill(cohort, workers=workers, progress=False)
    done = finished(small_disk / "store")
    assert 0 < len(done) < 8
    assert not list((small_disk / "store").glob("??/.writing-*"))
    store = Store(small_disk / "store", PARAMS)
    whole = [scan for scan in cohort if store._opened(store._request(scan).key) is not None]
    assert len(whole) == len(done)
    for scan in whole:
        assert store.entry(scan).image().shape == store.entry(scan).shape


def test_a_store_that_cannot_be_written_to_is_named(tmp_path: Path) -> None:
    cohort = make_cohort(tmp_path, 1)
    (tmp_path / "store").write_text("a file, not a folder")
    with pytest.raises(InputError, match=f"{tmp_path / 'store'}: cannot be written"):
        Store(tmp_path / "store", PARAMS).fill(cohort, workers=1, progress=False)
