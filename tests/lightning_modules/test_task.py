from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed
import torch.multiprocessing
from torch.optim.lr_scheduler import PolynomialLR

from lightning_modules.task import TaskModule, gather_by_id, match_layout, rate_factor, use_fused


def test_rates_against_torchs_own_schedules() -> None:
    parameter = torch.nn.Parameter(torch.zeros(()))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    poly = PolynomialLR(optimizer, total_iters=50, power=0.9)
    expected = []
    for _ in range(51):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        poly.step()
    ours = [rate_factor(step / 50, "poly", 0.0) for step in range(51)]
    assert ours == pytest.approx(expected, abs=1e-9)
    cosine = [0.5 * (1 + math.cos(math.pi * step / 50)) for step in range(51)]
    assert [rate_factor(step / 50, "cosine", 0.0) for step in range(51)] == pytest.approx(cosine, abs=1e-12)
    assert {rate_factor(step / 50, "constant", 0.0) for step in range(51)} == {1.0}


@pytest.mark.parametrize("schedule", ["constant", "cosine", "poly"])
def test_warm_up_rises_to_one_and_never_rests_at_zero(schedule: str) -> None:
    steps = [rate_factor(step / 1000, schedule, 0.1) for step in range(1001)]  # type: ignore[arg-type]  # parametrised
    assert 0 < steps[0] <= 1e-3
    assert steps[:101] == sorted(steps[:101])
    assert steps[100] == pytest.approx(1.0)
    assert steps[50] == pytest.approx(0.5)
    assert steps[101:] == sorted(steps[101:], reverse=True)
    assert steps[-1] == pytest.approx(1.0 if schedule == "constant" else 0.0, abs=1e-12)
    # the run may take a step more than was estimated
    assert rate_factor(1.01, schedule, 0.1) == pytest.approx(steps[-1], abs=1e-9)  # type: ignore[arg-type]  # as above


@pytest.mark.parametrize("warmup", [-0.1, 1.0, 2.0])
def test_warm_up_outside_the_run(warmup: float) -> None:
    with pytest.raises(ValueError, match="warmup"):
        TaskModule(warmup=warmup)


def test_one_process_gathers_its_own() -> None:
    assert list(gather_by_id({"b": 2, "a": 1}).items()) == [("a", 1), ("b", 2)]


def _gather(rank: int, store: str, out: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    # five scans on two ranks: a distributed sampler pads with the first one again
    mine = {"s0": 0.0, "s2": 2.0, "s4": 4.0} if rank == 0 else {"s1": 1.0, "s3": 3.0, "s0": 0.0}
    torch.save(list(gather_by_id(mine).items()), f"{out}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_gather_each_scan_once(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(  # type: ignore[attr-defined, no-untyped-call]  # untyped in torch
        _gather, (str(tmp_path / "store"), str(tmp_path)), nprocs=2
    )
    results = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    assert results[0] == results[1] == [(f"s{number}", float(number)) for number in range(5)]


@pytest.mark.parametrize("optimizer_class", [torch.optim.AdamW, torch.optim.SGD])
@pytest.mark.parametrize("torn", ["gradient", "average"])
def test_fused_steps_are_those_of_one_after_another_whatever_the_layout(
    optimizer_class: type[torch.optim.Optimizer], torn: str
) -> None:
    results = []
    for fused in (False, True):
        torch.manual_seed(0)
        weight = torch.nn.Parameter(torch.randn(4, 3, 5, 5).contiguous(memory_format=torch.channels_last))
        options: dict[str, Any] = {"momentum": 0.9} if optimizer_class is torch.optim.SGD else {}
        optimizer = optimizer_class([weight], lr=0.1, **options)  # type: ignore[call-arg]  # both take them
        if fused:
            use_fused(optimizer)
            assert optimizer.param_groups[0]["fused"] is True
        for step in range(3):
            gradient = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(step))
            weight.grad = gradient if torn == "gradient" else torch.empty_like(weight).copy_(gradient)
            if torn == "average" and step == 1:
                state = optimizer.state[weight]
                state |= {name: value.contiguous() for name, value in state.items() if value.ndim}
            match_layout(optimizer)
            optimizer.step()
        results.append(weight.detach().clone())
    torch.testing.assert_close(results[0], results[1], atol=1e-6, rtol=1e-5)


def test_an_optimiser_that_asks_for_another_way_keeps_it() -> None:
    parameters = [torch.nn.Parameter(torch.ones(2))]
    asked: list[dict[str, Any]] = [{"fused": False}, {"foreach": True}]
    for options in asked:
        optimizer = torch.optim.AdamW(parameters, **options)
        use_fused(optimizer)
        assert not optimizer.param_groups[0]["fused"]
    # torch has no fused kernel for it
    use_fused(torch.optim.Rprop(parameters))
    half = torch.optim.SGD([torch.nn.Parameter(torch.ones(2, device="meta"))])
    use_fused(half)
    assert half.param_groups[0]["fused"] is False
