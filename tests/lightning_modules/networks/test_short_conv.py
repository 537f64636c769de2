"""Gradients of convolutions over two planes in bfloat16."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from lightning_modules.networks.short_conv import ShortConv3d, mend_short_convolutions
from lightning_modules.task import TaskModule


def litter(seed: int) -> None:
    """Leave extreme values in memory that is free again, as earlier work does."""
    for size in torch.randint(1, 400_000, (6,), generator=torch.Generator().manual_seed(seed)).tolist():
        for value in (float("nan"), float("inf"), 3e38):
            torch.full((size,), value)


def gradient(layer: nn.Conv3d, image: Tensor, *, half: bool) -> Tensor:
    layer.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        result = layer(image)
    result.float().square().sum().backward()
    assert layer.weight.grad is not None
    return layer.weight.grad.clone()


@pytest.mark.parametrize("size", [(2, 2, 2), (2, 8, 8), (3, 3, 3), (8, 2, 8), (1, 4, 4)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
def test_the_gradient_in_bfloat16_is_that_in_float32(size: tuple[int, ...], layout: torch.memory_format) -> None:
    torch.manual_seed(0)
    layer = nn.Conv3d(32, 32, 3, padding=1)
    image = torch.randn(2, 32, *size).to(memory_format=layout)
    expected = gradient(layer, image, half=False)
    mend_short_convolutions(layer)
    for seed in range(15):
        litter(seed)
        found = gradient(layer, image, half=True)
        assert torch.linalg.vector_norm(found - expected) < 0.02 * torch.linalg.vector_norm(expected)


def test_parameters_and_values_stay() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv3d(1, 4, 3), nn.Conv2d(4, 4, 3))
    image = torch.randn(1, 1, 6, 6, 6)
    before, names = network[0](image), dict(network.named_parameters())
    mend_short_convolutions(network)
    assert isinstance(network[0], ShortConv3d) and type(network[1]) is nn.Conv2d
    assert torch.equal(network[0](image), before)
    assert all(parameter is names[name] for name, parameter in network.named_parameters())


def test_training_mends_a_network_of_any_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    module = TaskModule()
    module.network = nn.Sequential(nn.Conv3d(1, 4, 3))
    monkeypatch.setattr(module, "_trainer", SimpleNamespace(estimated_stepping_batches=10))
    module.configure_optimizers()
    assert isinstance(module.network[0], ShortConv3d)


def test_whole_bfloat16_stays_bfloat16() -> None:
    layer = nn.Conv3d(4, 4, 3, padding=1).bfloat16()
    mend_short_convolutions(layer)
    assert layer(torch.ones(1, 4, 2, 4, 4, dtype=torch.bfloat16)).dtype is torch.bfloat16
