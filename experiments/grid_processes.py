"""Processes that end with whoever started them, and messages with open files between them. Light, torch-free."""

from __future__ import annotations

import array
import ctypes
import json
import os
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from typing import Any

WORKER = "HEPASTAGE_WORKER"
"""Environment variable with the socket of the warm worker that jobs are handed to."""

_PR_SET_PDEATHSIG = 1
_LIMIT = 1 << 16


def end_with(parent: int) -> Callable[[], None]:
    """A function for a new process: the kernel ends it (SIGKILL) once its parent has ended, however it ended.

    Only Linux can do this; elsewhere whoever waits for the process must end it.

    Args:
        parent: The parent's process id.
    """

    def arrange() -> None:
        if not sys.platform.startswith("linux"):
            return
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            # it ended in between
            os.kill(os.getpid(), signal.SIGKILL)

    return arrange


def send(channel: socket.socket, message: dict[str, Any], files: Sequence[int] = ()) -> None:
    """Send a message of one line, and open files with it."""
    data = json.dumps(message).encode() + b"\n"
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", files))] if files else []
    sent = channel.sendmsg([data], ancillary)
    channel.sendall(data[sent:])


def receive(channel: socket.socket) -> tuple[dict[str, Any] | None, list[int]]:
    """Wait for a message and the files that come with it; None where the other side has ended."""
    data, files = b"", array.array("i")
    while not data.endswith(b"\n"):
        part, ancillary, _, _ = channel.recvmsg(_LIMIT, socket.CMSG_SPACE(64 * files.itemsize))
        for level, kind, content in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                files.frombytes(content[: len(content) - len(content) % files.itemsize])
        if not part:
            return None, list(files)
        data += part
    return json.loads(data), list(files)


def ended_by(status: int) -> str:
    """How a process ended, from its return code as ``subprocess`` gives it (negative: the signal)."""
    if status >= 0:
        return f"exit code {status}"
    try:
        name = signal.Signals(-status).name
    except ValueError:
        name = f"signal {-status}"
    hint = "; the system ends processes so when memory runs out" if -status == signal.SIGKILL else ""
    return f"ended by {name}{hint}"
