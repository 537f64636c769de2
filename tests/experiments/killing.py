"""Run commands of hepastage in processes of their own that are killed at a chosen event."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

NEVER = 10**9


def run_killed(words: list[str], at: int = NEVER, sign: int = signal.SIGKILL, log: Path | None = None) -> int:
    """``hepastage WORDS`` in a forked process.

    Args:
        words: The command's words.
        at: Event at which the process gets the signal, counted from 1.
        sign: The signal.
        log: Where to leave what it wrote on stderr, and the number of its events after ``events:``.

    Returns:
        The exit code; minus the signal where one ended it.
    """
    context = multiprocessing.get_context("forkserver")
    # the server imports torch once; each run is a fork of it
    context.set_forkserver_preload(["experiments.lightning_cli", "tests.experiments.killing"])
    process = context.Process(target=_child, args=(words, at, sign, log))
    process.start()
    process.join(timeout=300)
    assert process.exitcode is not None, "the run hangs"
    return process.exitcode


def _child(words: list[str], at: int, sign: int, log: Path | None) -> None:
    from experiments.cli import main

    events = _count_events(at, sign)
    with Path(log or os.devnull).open("w", encoding="utf-8") as stream, contextlib.redirect_stderr(stream):
        try:
            code = main(words)
        finally:
            stream.write(f"events: {events[0]}\n")
    raise SystemExit(code)


def _count_events(at: int, sign: int) -> list[int]:
    """Count hooks of the training and steps of writing checkpoints, and send the signal at one of them."""
    from callbacks.progress import RunProgress

    events = [0]

    def event() -> None:
        events[0] += 1
        if events[0] == at:
            os.kill(os.getpid(), sign)

    def before(owner: Any, name: str) -> None:
        original: Callable[..., Any] = getattr(owner, name)

        def counted(*args: Any, **kwargs: Any) -> Any:
            event()
            return original(*args, **kwargs)

        setattr(owner, name, counted)

    for name in (
        "on_train_start", "on_train_epoch_start", "on_train_batch_start", "on_train_batch_end", "on_train_epoch_end",
        "on_validation_batch_end", "on_validation_end", "on_save_checkpoint", "on_train_end",
    ):  # fmt: skip
        before(RunProgress, name)
    for owner, name in (
        (Path, "replace"),
        (Path, "hardlink_to"),
        (Path, "unlink"),
        (shutil, "copyfile"),
        (shutil, "move"),
    ):
        before(owner, name)
    return events
