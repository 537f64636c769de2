from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from callbacks import throughput
from callbacks.throughput import Throughput


class Clock:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


def test_shares_and_rates_leave_validation_out(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, logged = Clock(), {}
    monkeypatch.setattr(throughput, "time", clock)

    def log(name: str, value: float, rank_zero_only: bool) -> None:
        logged[name] = value

    meter, trainer = Throughput(), SimpleNamespace()
    module: Any = SimpleNamespace(log=log)
    meter.on_train_epoch_start(trainer, module)  # type: ignore[arg-type]  # the trainer is not asked
    for step in range(4):
        clock.now += 1.0
        meter.on_train_batch_start(trainer, module, None, step)  # type: ignore[arg-type]  # as above
        clock.now += 3.0
        meter.on_train_batch_end(trainer, module, None, {"image": torch.zeros(2, 1)}, step)  # type: ignore[arg-type]  # as above
    meter.on_validation_start(trainer, module)  # type: ignore[arg-type]  # as above
    clock.now += 50.0
    meter.on_validation_end(trainer, module)  # type: ignore[arg-type]  # as above
    meter.on_train_epoch_end(trainer, module)  # type: ignore[arg-type]  # as above
    assert logged["speed/steps_per_s"] == pytest.approx(4 / 16)
    assert logged["speed/scans_per_s"] == pytest.approx(8 / 16)
    assert logged["speed/data_wait"] == pytest.approx(0.25)
    assert 0.01 < logged["speed/peak_memory_gib"] < 1000
