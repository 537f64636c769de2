"""Optuna's journal file under a lock that dies with its holder, and the repair of a journal that a kill has torn."""

from __future__ import annotations

import fcntl
import json
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from optuna.storages.journal import JournalFileBackend

from datamodules.errors import InputError

OPERATION = b'{"op_code":'
"""How each line of a journal begins."""

Note = Callable[[str], None]


class FileLock:
    """A lock by ``flock``: the kernel frees it when its holder ends, however it ends.

    Optuna's own locks are links that a killed process leaves behind for half a minute.

    Args:
        path: The lock file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._threads = threading.Lock()
        self._descriptor = -1

    def acquire(self) -> None:
        """Wait for the lock."""
        self._threads.acquire()
        try:
            self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
            fcntl.flock(self._descriptor, fcntl.LOCK_EX)
        except BaseException:
            self._threads.release()
            raise

    def release(self) -> None:
        """Free it."""
        os.close(self._descriptor)
        self._threads.release()

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold it for a block."""
        self.acquire()
        try:
            yield
        finally:
            self.release()


class Journal(JournalFileBackend):
    """Optuna's journal file; a torn line is repaired under the lock, before anything is written after it.

    Args:
        path: The file; made where it is missing.
        note: Gets a line for each repair.

    Raises:
        InputError: A line within the file is damaged.
    """

    def __init__(self, path: Path, note: Note) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path, self._note = path, note
        self._file_lock = FileLock(path.with_name(f"{path.name}.flock"))
        super().__init__(str(path))
        with self._file_lock.held():
            repair(path, note)

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Append operations whole; what a killed process has left half-written goes first."""
        data = b"".join(json.dumps(log, separators=(",", ":")).encode() + b"\n" for log in logs)
        with self._file_lock.held():
            cut_tail(self._path, self._note)
            with self._path.open("ab") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())


def repair(path: Path, note: Note) -> None:
    """Bring a journal to whole lines; its lock is held.

    A last line without its end is cut off and kept beside the journal. Where another program has written on after
    such a line, its first part is blanked, so that no other line moves.

    Args:
        path: The journal.
        note: Gets a line for each repair.

    Raises:
        InputError: A line can be read neither whole nor in its last part.
    """
    cut_tail(path, note)
    place = 0
    with path.open("r+b") as stream:
        for number, line in enumerate(stream.read().splitlines(keepends=True), start=1):
            if not _whole(line):
                begin = line.rfind(OPERATION)
                if begin <= 0 or not _whole(line[begin:]):
                    raise InputError(
                        f"{path}: line {number} is damaged; put a copy of the file back, or rename the search"
                    )
                _keep(path, line[:begin])
                stream.seek(place)
                stream.write(b" " * begin)
                note(f"{path}: line {number} began with a torn operation of {begin} bytes, which was blanked")
            place += len(line)


def cut_tail(path: Path, note: Note) -> None:
    """Cut a last line off that has no end; its lock is held.

    Args:
        path: The journal.
        note: Gets a line where something was cut.
    """
    with path.open("r+b") as stream:
        size = stream.seek(0, os.SEEK_END)
        if size == 0:
            return
        stream.seek(size - 1)
        if stream.read(1) == b"\n":
            return
        # a line is far shorter; the whole file where it is not
        for reach in (1 << 16, size):
            start = max(0, size - reach)
            stream.seek(start)
            tail = stream.read()
            if b"\n" in tail or start == 0:
                break
        torn = tail[tail.rfind(b"\n") + 1 :]
        _keep(path, torn)
        stream.truncate(size - len(torn))
    note(f"{path}: the last line was torn; its {len(torn)} bytes were moved to {path.name}.torn")


def _keep(path: Path, torn: bytes) -> None:
    with path.with_name(f"{path.name}.torn").open("ab") as stream:
        stream.write(torn + b"\n")


def _whole(line: bytes) -> bool:
    try:
        value = json.loads(line)
    except ValueError:
        return False
    return isinstance(value, dict) and "op_code" in value
