from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from callbacks import throughput
from callbacks.arithmetic import number_format, peak_flops, step_flops
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
        assert rank_zero_only
        logged[name] = value

    data = SimpleNamespace(augmentation_s=7.0)
    meter, trainer = Throughput(arithmetic=False), SimpleNamespace(current_epoch=0, datamodule=data)
    module: Any = SimpleNamespace(log=log)
    meter.on_train_epoch_start(trainer, module)  # type: ignore[arg-type]  # the trainer is not asked
    for step in range(4):
        clock.now += 1.0
        meter.on_train_batch_start(trainer, module, None, step)  # type: ignore[arg-type]  # as above
        clock.now += 3.0
        meter.on_train_batch_end(trainer, module, None, {"image": torch.zeros(2, 1)}, step)  # type: ignore[arg-type]  # as above
    data.augmentation_s += 0.8
    meter.on_validation_start(trainer, module)  # type: ignore[arg-type]  # as above
    clock.now += 50.0
    meter.on_validation_end(trainer, module)  # type: ignore[arg-type]  # as above
    meter.on_train_epoch_end(trainer, module)  # type: ignore[arg-type]  # as above
    assert logged["speed/steps_per_s"] == pytest.approx(4 / 16)
    assert logged["speed/scans_per_s"] == pytest.approx(8 / 16)
    assert logged["speed/data_wait"] == pytest.approx(0.25)
    assert logged["speed/step_s"] == pytest.approx(3.0)
    assert logged["speed/augmentation"] == pytest.approx(0.05)
    assert 0.01 < logged["speed/peak_memory_gib"] < 1000


@pytest.mark.parametrize(
    ("wait", "augmentation", "named"),
    [(0.4, 0.05, "loading is the bottleneck"), (0.4, 0.3, "augmentation is the bottleneck")],
)
def test_the_bottleneck_is_named_once(
    monkeypatch: pytest.MonkeyPatch, wait: float, augmentation: float, named: str
) -> None:
    clock = Clock()
    said: list[str] = []
    monkeypatch.setattr(throughput, "time", clock)
    monkeypatch.setattr(throughput, "say", said.append)
    data = SimpleNamespace(augmentation_s=0.0)
    trainer, module = SimpleNamespace(current_epoch=0, datamodule=data), SimpleNamespace(log=lambda *a, **k: None)
    meter: Any = Throughput(arithmetic=False)
    for epoch in range(4):
        trainer.current_epoch = epoch
        meter.on_train_epoch_start(trainer, module)
        clock.now += 100 * wait
        data.augmentation_s += 100 * augmentation
        meter.on_train_batch_start(trainer, module, None, 0)
        clock.now += 100 * (1 - wait)
        meter.on_train_batch_end(trainer, module, None, None, 0)
        meter.on_train_epoch_end(trainer, module)
    # the first epoch fills caches and says nothing
    (line,) = said
    assert named in line and line.startswith(f"epoch 2: the network waited {100 * wait:.0f} %")


def test_operations_of_a_step_are_three_times_those_of_the_layers() -> None:
    network = torch.nn.Sequential(torch.nn.Conv3d(1, 4, 3, padding=1), torch.nn.BatchNorm3d(4), torch.nn.Dropout(0.5))
    module: Any = SimpleNamespace(network=network)
    network[1].eval()
    batch = {"image": torch.randn(2, 1, 4, 5, 6)}
    before, state = torch.get_rng_state(), {name: value.clone() for name, value in network.state_dict().items()}
    # 2 × voxels × kernel × channels in × channels out
    assert step_flops(module, batch) == 3 * 2 * (2 * 4 * 5 * 6) * 27 * 4
    assert [part.training for part in network] == [True, False, True]
    assert torch.equal(torch.get_rng_state(), before)
    for name, value in network.state_dict().items():
        assert torch.equal(value, state[name]), name


def test_the_peak_is_of_a_processors_size_and_formats_are_told_apart() -> None:
    assert 1e9 < peak_flops(torch.device("cpu"), torch.float32, repeats=1) < 1e14
    assert number_format("bf16-mixed") == torch.bfloat16
    assert number_format("16-mixed") == torch.float16
    assert number_format("32-true") == torch.float32
