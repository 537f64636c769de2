"""Two programs that take turns on the whole machine, so that neither disturbs the other's measurement.

Each contestant is a process group of its own. While one runs, the other is frozen with all its loader processes
(SIGSTOP), whatever it had in its queues; so a queue filled in the other's time cannot be counted as speed.
Contestants write one line an iteration; by the clock, an iteration that spans a change of turns is not counted.
Processor time is that of the whole group, loader processes included; other work on the machine disturbs it less.
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
    """A stretch of time in seconds: by the machine's monotonic clock, and the group's processor time at both ends."""

    start: float
    end: float
    processor_start: float = 0.0
    processor_end: float = 0.0


def processor_seconds() -> float:
    """Processor time of all living processes of this process's group, in seconds (Linux)."""
    group, ticks = os.getpgrp(), 0
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                # the name in brackets may hold anything, blanks as well
                fields = (entry / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()
                if int(fields[2]) == group:
                    ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


class Diary:
    """What a contestant writes: the end of each iteration, and breaks between which time is not its own.

    Args:
        path: File to append to.
    """

    def __init__(self, path: Path) -> None:
        self.file = path.open("a", encoding="utf-8")
        self.last: tuple[float, float] | None = None

    def pause(self) -> None:
        """The next iteration begins afresh: what lies between (validation, a checkpoint) is not counted."""
        self.last = time.monotonic(), processor_seconds()

    def tick(self) -> None:
        """An iteration has ended."""
        now = time.monotonic(), processor_seconds()
        if self.last is not None:
            self.file.write(json.dumps(Span(self.last[0], now[0], self.last[1], now[1])) + "\n")
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
        return [
            span.end - span.start
            for span in self._spans(skip)
            if any(window.start <= span.start and span.end <= window.end for window in self.windows)
        ]

    def processor(self, skip: int = 5) -> list[float]:
        """Processor seconds of each iteration, without the first ones; frozen processes use none.

        Loader processes work ahead, so a single value says little: take the mean.
        """
        return [span.processor_end - span.processor_start for span in self._spans(skip)]

    def _spans(self, skip: int) -> list[Span]:
        if not self.diary.is_file():
            return []
        return [Span(*json.loads(line)) for line in self.diary.read_text(encoding="utf-8").splitlines()][skip:]


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
