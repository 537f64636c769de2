"""What Snakemake starts for each job: take the lock and a GPU, have the job done, and say how it ended. Light.

The work itself is done by a process of the warm worker, or by one of its own where there is no worker (a cluster).
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from experiments.grid_folder import GridFolder, locked, read_maybe
from experiments.grid_lease import lease
from experiments.grid_processes import WORKER, end_with, ended_by, receive, send
from experiments.grid_work import fail

FORWARDED = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT)
"""A cluster's signals: the training decides what it does with them."""


def main(argv: Sequence[str] | None = None) -> int:
    """Do one job of a study.

    Args:
        argv: Words of the process; ``STUDY_FOLDER KEY`` and options.

    Returns:
        0 where it is done, now or before.
    """
    parser = argparse.ArgumentParser(prog="experiments.grid_job", allow_abbrev=False)
    parser.add_argument("study", type=Path)
    parser.add_argument("key")
    parser.add_argument("--gpus", type=float, default=0.0)
    parser.add_argument("--devices", default="", help="GPUs that may be leased, by number, joined by commas")
    parser.add_argument("--local", action="store_true", help="this machine's GPUs are leased, not given by a cluster")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--launcher", default="", help="srun and its options, for a job of several processes")
    options = parser.parse_args(argv)
    folder = GridFolder(options.study)
    devices = [int(part) for part in options.devices.split(",") if part]
    with ExitStack() as stack:
        lock = stack.enter_context(_waited(folder, options.key))
        if _done(folder, options.key):
            # another driver's job has done it meanwhile
            return _ended(folder, options.key)
        if _refused(folder, options.key):
            return 1
        # what a cluster has given
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        environment = {"OMP_NUM_THREADS": str(options.threads)}
        held = [lock]
        if options.gpus and devices:
            leased, descriptors = stack.enter_context(lease(devices, options.gpus))
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, leased))
            held += descriptors
        elif options.local:
            # a job without a GPU must not take the first one
            environment["CUDA_VISIBLE_DEVICES"] = ""
        folder.log_event("started", options.key, gpus=environment.get("CUDA_VISIBLE_DEVICES", visible))
        started = time.time()
        folder.log(options.key).parent.mkdir(parents=True, exist_ok=True)
        with folder.log(options.key).open("ab") as log:
            address = os.environ.get(WORKER) if not options.launcher else None
            if address:
                status = ask_worker(address, folder, options.key, environment, [log.fileno(), *held])
            else:
                status = _start(folder, options.key, environment, log.fileno(), held, options.launcher)
        seconds = round(time.time() - started, 3)
        if status == 0:
            folder.log_event("finished", options.key, seconds=seconds)
            return _ended(folder, options.key)
        if not folder.failed(options.key).is_file():
            fail(folder, options.key, "Ended", ended_by(status))
        folder.log_event("failed", options.key, seconds=seconds, status=status)
        return 1


@contextmanager
def _waited(folder: GridFolder, key: str) -> Iterator[int]:
    """The job's lock; a job that another driver has started is waited for."""
    told = False
    while True:
        with locked(folder.lock(key)) as descriptor:
            if descriptor is not None:
                yield descriptor
                return
        if not told:
            folder.log_event("waiting", key)
            told = True
        time.sleep(0.3)


def ask_worker(
    address: str,
    folder: GridFolder,
    key: str,
    environment: dict[str, str],
    files: Sequence[int],
    *,
    forward: bool = True,
) -> int:
    """Have a job done by the warm worker and wait for it.

    Args:
        address: The worker's socket.
        folder: The study's grid folder.
        key: The job.
        environment: What is set for it.
        files: Its output, and locks: its process holds them too, so that they are not free before it has ended.
        forward: Whether signals are passed on to it; else they end the waiting, and with that the job.

    Returns:
        Its return code; negative where a signal has ended it.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as channel:
        channel.connect(address)
        send(channel, {"study": str(folder.study), "key": key, "environment": environment}, files)
        with _forwarding(lambda number: send(channel, {"signal": number})) if forward else nullcontext():
            answer, _ = receive(channel)
    return -signal.SIGKILL if answer is None else int(answer["status"])


def _start(
    folder: GridFolder, key: str, environment: dict[str, str], log: int, held: Sequence[int], launcher: str
) -> int:
    """Have a job done by a process of its own, or by several that a launcher starts, and wait for it."""
    words = [*launcher.split(), sys.executable, "-m", "experiments.grid_work", str(folder.study), key]
    process = subprocess.Popen(
        words,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        env={**os.environ, **environment},
        pass_fds=held,
        preexec_fn=end_with(os.getpid()),
    )
    with _forwarding(process.send_signal):
        return process.wait()


@contextmanager
def _forwarding(forward: Any) -> Iterator[None]:
    """Pass a cluster's signals on to the job while it runs."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(number: int, _frame: Any) -> None:
        with contextlib.suppress(OSError):
            forward(number)

    before = {number: signal.signal(number, handle) for number in FORWARDED}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _done(folder: GridFolder, key: str) -> bool:
    cells = [cell for cell in folder.plan()["cells"] if cell["key"] == key]
    # our own lock does not count: a cell that is done is so whoever holds it
    return bool(cells) and folder.conditions(cells)[key].state == "done"


def _refused(folder: GridFolder, key: str) -> bool:
    """Whether it has failed in this run in a way that trying again cannot change."""
    failure = read_maybe(folder.failed(key))
    return bool(failure.get("wrong_request") or failure.get("out_of_memory"))


def _ended(folder: GridFolder, key: str) -> int:
    """Tell Snakemake."""
    marker = folder.marker(key)
    marker.parent.mkdir(parents=True, exist_ok=True)
    marker.touch()
    return 0


if __name__ == "__main__":
    sys.exit(main())
