"""Two programs that take turns on the whole machine, so that neither disturbs the other's measurement.

Each contestant is a process group of its own. While one runs, the other is frozen with all its loader processes
(SIGSTOP), whatever it had in its queues; so a queue filled in the other's time cannot be counted as speed.
Contestants write one line an iteration; an iteration that spans a change of turns is not counted.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import statistics
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple


class Span(NamedTuple):
    """One iteration by the machine's monotonic clock, in seconds."""

    start: float
    end: float


class Diary:
    """What a contestant writes: the end of each iteration, and breaks between which time is not its own.

    Args:
        path: File to append to.
    """

    def __init__(self, path: Path) -> None:
        self.file = path.open("a", encoding="utf-8")
        self.last: float | None = None

    def pause(self) -> None:
        """The next iteration begins afresh: what lies between (validation, a checkpoint) is not counted."""
        self.last = time.monotonic()

    def tick(self) -> None:
        """An iteration has ended."""
        now = time.monotonic()
        if self.last is not None:
            self.file.write(json.dumps([self.last, now]) + "\n")
            self.file.flush()
        self.last = now


class Contestant:
    """A process group that runs or is frozen.

    Args:
        name: For the tables.
        command: Its command line; it appends its iterations to ``diary``.
        diary: Its diary.
        log: Where its output goes.
    """

    def __init__(self, name: str, command: Sequence[str], diary: Path, log: Path) -> None:
        self.name = name
        self.diary = diary
        self.log = log
        self.windows: list[Span] = []
        with log.open("a", encoding="utf-8") as output:
            self.process = subprocess.Popen(list(command), stdout=output, stderr=output, start_new_session=True)
        self._send(signal.SIGSTOP)

    def _send(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    def turn(self, seconds: float) -> bool:
        """Run for a while.

        Args:
            seconds: Length of the turn.

        Returns:
            True where the contestant has ended.

        Raises:
            RuntimeError: It ended badly.
        """
        start = time.monotonic()
        self._send(signal.SIGCONT)
        try:
            code: int | None = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            code = None
        self._send(signal.SIGSTOP)
        self.windows.append(Span(start, time.monotonic()))
        if code:
            raise RuntimeError(f"{self.name} ended with {code}:\n{self.log.read_text(encoding='utf-8')[-3000:]}")
        return code is not None

    def kill(self) -> None:
        """End the whole group."""
        self._send(signal.SIGKILL)
        self.process.wait()

    def iterations(self, skip: int = 5) -> list[float]:
        """Seconds of each iteration that lies within one turn, without the first ones.

        Args:
            skip: Iterations left out at the start, while buffers are filled.
        """
        if not self.diary.is_file():
            return []
        spans = [Span(*json.loads(line)) for line in self.diary.read_text(encoding="utf-8").splitlines()]
        return [
            span.end - span.start
            for span in spans[skip:]
            if any(window.start <= span.start and span.end <= window.end for window in self.windows)
        ]


def take_turns(contestants: Sequence[Contestant], seconds: float, enough: int | None = None) -> None:
    """Run all to their end, in turns; or until each has enough iterations measured.

    Args:
        contestants: Who takes part.
        seconds: Length of a turn.
        enough: Stop when every contestant has this many iterations; None waits for their end.
    """
    running = list(contestants)
    try:
        while running:
            for contestant in list(running):
                if contestant.turn(seconds):
                    running.remove(contestant)
            if enough is not None and all(len(item.iterations()) >= enough for item in contestants):
                break
    finally:
        for contestant in contestants:
            contestant.kill()


def spread(values: Sequence[float]) -> str:
    """Median and quartiles as text."""
    if len(values) < 3:
        return ", ".join(f"{value:.3f}" for value in values)
    low, middle, high = statistics.quantiles(values, n=4)
    return f"{middle:.3f} ({low:.3f}-{high:.3f})"
