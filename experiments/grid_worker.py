"""The warm worker: imports everything once, then forks a process for each job, which starts at once.

Started by the driver of a grid and ended with it. A job's process ends with the job's client and with the worker.
It never computes anything itself, and has a single thread and no accelerator: only such a process may be forked.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import selectors
import signal
import socket
import sys
from pathlib import Path
from typing import Any, NoReturn

from experiments.grid_processes import end_with, receive, send

IMPORTS = (
    "experiments.grid_resolve",
    "experiments.masks",
    "experiments.grid_work",
    "datamodules.classification",
    "datamodules.staging",
    "datamodules.augmentation",
    "lightning_modules.networks.volume_classifier",
    "lightning_modules.networks.unet",
    "lightning_modules.direct_classification",
    "lightning_modules.masked_classification",
    "lightning_modules.staging",
    "callbacks.metrics_log",
    "callbacks.prediction_writer",
    "callbacks.segmentation_writer",
    "callbacks.progress",
    "callbacks.attention",
    "lightning.pytorch.loggers",
    # parsing a configuration, reading a table and building a network bring these in: 1.5 s of each job
    "wandb",
    "datamodules.cohort_schema",
    "timm",
)
"""What nearly every job needs."""

ENVIRONMENT = {
    # without these, a library would start threads or ask the driver for devices while it is imported
    "ARROW_DEFAULT_MEMORY_POOL": "system",
    "OPENBLAS_NUM_THREADS": "1",
    "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
}


def serve(address: str) -> NoReturn:
    """Fork a process for each request until the driver ends.

    Args:
        address: Path of the socket to listen on.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(address)
    for name in IMPORTS:
        importlib.import_module(name)
    wake, wakened = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wakened)
    selector = selectors.DefaultSelector()
    selector.register(listener, selectors.EVENT_READ)
    selector.register(wake, selectors.EVENT_READ)
    jobs: dict[int, socket.socket] = {}
    # from now on, so that who connects is served at once
    listener.listen(64)
    while True:
        for found, _ in selector.select():
            if found.fileobj is listener:
                channel, _ = listener.accept()
                selector.register(channel, selectors.EVENT_READ)
            elif found.fileobj == wake:
                with contextlib.suppress(BlockingIOError):
                    os.read(wake, 4096)
                _reap(jobs, selector)
            elif isinstance(found.fileobj, socket.socket):
                _hear(found.fileobj, jobs, selector, [listener])


def _hear(
    channel: socket.socket, jobs: dict[int, socket.socket], selector: selectors.BaseSelector, own: list[socket.socket]
) -> None:
    """A client's request, its wish to signal its job, or its end, with which its job ends."""
    pid = next((pid for pid, client in jobs.items() if client is channel), None)
    try:
        message, files = receive(channel)
    except OSError:
        message, files = None, []
    if message is None:
        selector.unregister(channel)
        channel.close()
        if pid is not None:
            _kill(pid, signal.SIGKILL)
            # reaped by its own signal; nobody waits for the answer
            jobs.pop(pid)
    elif pid is not None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, int(message["signal"]))
    else:
        parent = os.getpid()
        child = os.fork()
        if child == 0:
            signal.set_wakeup_fd(-1)
            selector.close()
            for other in [*own, channel, *jobs.values()]:
                other.close()
            _work(message, files, parent)
        jobs[child] = channel
    for file in files:
        os.close(file)


def _reap(jobs: dict[int, socket.socket], selector: selectors.BaseSelector) -> None:
    """Tell the clients of jobs that have ended how they ended."""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        channel = jobs.pop(pid, None)
        # loader processes of a job that was killed
        _kill(pid, signal.SIGKILL)
        if channel is not None:
            with contextlib.suppress(OSError):
                send(channel, {"status": os.waitstatus_to_exitcode(status)})
            selector.unregister(channel)
            channel.close()


def _kill(group: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


def _work(message: dict[str, Any], files: list[int], parent: int) -> NoReturn:
    """Be the job: the log as output, the threads it may use; the other files are locks, held until it ends."""
    os.setsid()
    end_with(parent)()
    for number in (signal.SIGCHLD, signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.dup2(files[0], 1)
    os.dup2(files[0], 2)
    os.environ.update(message["environment"])
    threads = message["environment"].get("OMP_NUM_THREADS")
    code = 1
    try:
        if threads is not None:
            import torch

            # read from the environment when the library was loaded, which is done
            torch.set_num_threads(int(threads))
        from experiments.grid_work import carry_out

        code = carry_out(Path(message["study"]), message["key"])
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
    # the exit handlers belong to the worker
    os._exit(code)


if __name__ == "__main__":
    from experiments.quiet import quieten

    quieten()
    serve(sys.argv[1])
