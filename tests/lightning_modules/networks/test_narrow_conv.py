"""Gradients of convolutions over narrow maps in bfloat16."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_modules.networks import narrow_conv
from lightning_modules.networks.narrow_conv import NarrowConv2d, NarrowConv3d, columns, use_narrow_convolutions
from lightning_modules.task import TaskModule

Layer = nn.Conv2d | nn.Conv3d


def litter(seed: int) -> None:
    """Leave extreme values in memory that is free again, as earlier work does."""
    for size in torch.randint(1, 400_000, (6,), generator=torch.Generator().manual_seed(seed)).tolist():
        for value in (float("nan"), float("inf"), 3e38):
            torch.full((size,), value)


def gradients(layer: Layer, image: Tensor, *, half: bool) -> list[Tensor]:
    """Of the image and of all parameters."""
    layer.zero_grad()
    leaf = image.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        result = layer(leaf)
    result.float().square().sum().backward()
    found = [leaf.grad, *(parameter.grad for parameter in layer.parameters())]
    return [gradient.clone() for gradient in found if gradient is not None]


def assert_close(found: list[Tensor], expected: list[Tensor], share: float) -> None:
    for one, other in zip(found, expected, strict=True):
        assert one.dtype is other.dtype
        assert torch.linalg.vector_norm(one - other) < share * torch.linalg.vector_norm(other)


@pytest.mark.parametrize("size", [(2, 2, 2), (2, 8, 8), (3, 3, 3), (8, 2, 8), (1, 4, 4)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
def test_the_gradient_in_bfloat16_is_that_in_float32(size: tuple[int, ...], layout: torch.memory_format) -> None:
    torch.manual_seed(0)
    layer = nn.Conv3d(32, 32, 3, padding=1)
    image = torch.randn(2, 32, *size).to(memory_format=layout)
    expected = gradients(layer, image, half=False)
    use_narrow_convolutions(layer)
    for seed in range(15):
        litter(seed)
        assert_close(gradients(layer, image, half=True), expected, 0.02)


CASES: list[tuple[Layer, tuple[int, ...]]] = [
    (nn.Conv2d(128, 24, 3, padding=1), (9, 5)),
    (nn.Conv2d(128, 24, 3, 2, padding=1, bias=False), (9, 8)),
    (nn.Conv2d(128, 24, 1, 2), (8, 7)),
    (nn.Conv2d(128, 24, (3, 2), (1, 2), padding=(0, 1)), (7, 6)),
    (nn.Conv3d(128, 24, 3, padding=1, bias=False), (4, 5, 3)),
    (nn.Conv3d(128, 24, (1, 3, 3), (1, 2, 2), padding=(0, 1, 1)), (3, 8, 6)),
]


@pytest.mark.parametrize("case", range(len(CASES)))
@pytest.mark.parametrize("last", [True, False])
def test_the_product_gives_torchs_gradients(case: int, last: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[Tensor] = []

    def watched(*values: Any) -> Tensor:
        taken.append(columns(*values))
        return taken[-1]

    monkeypatch.setattr(narrow_conv, "MATRIX_UNIT", True)
    monkeypatch.setattr(narrow_conv, "columns", watched)
    layer, size = copy.deepcopy(CASES[case])
    torch.manual_seed(0)
    image = torch.randn(3, 128, *size)
    if last:
        image = image.to(memory_format=torch.channels_last if len(size) == 2 else torch.channels_last_3d)
    expected = gradients(layer, image, half=False)
    forward = layer(image)
    use_narrow_convolutions(layer)
    assert_close(gradients(layer, image, half=True), expected, 0.01)
    assert taken
    assert torch.equal(layer(image), forward), "float32 is torch's own"
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        kept = layer(image)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer(image), kept), "results are torch's own"


def test_neighbourhoods_are_those_of_unfold() -> None:
    image = torch.arange(2 * 3 * 5 * 6, dtype=torch.float32).view(2, 3, 5, 6)
    expected = nn.functional.unfold(image, (3, 2), padding=(1, 0), stride=(2, 1))
    rows = columns(image, (3, 2), (2, 1), (1, 0))
    # unfold's rows are channel, neighbour; its columns are places
    assert torch.equal(rows.view(2, -1, 6, 3).transpose(2, 3).flatten(2), expected.transpose(1, 2))


def test_wide_maps_groups_and_frozen_weights_are_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(narrow_conv, "MATRIX_UNIT", True)
    monkeypatch.setattr(narrow_conv, "columns", lambda *_: pytest.fail("taken"))
    layers = [
        (nn.Conv2d(128, 8, 3, padding=1), 8), (nn.Conv2d(64, 8, 3, padding=1), 4),
        (nn.Conv2d(128, 8, 3, padding=1, groups=2), 4), (nn.Conv2d(128, 8, 3, padding=2, dilation=2), 4),
        (nn.Conv2d(128, 8, 3, padding="same"), 4), (nn.Conv2d(128, 8, 3, padding=1, padding_mode="reflect"), 4),
        (nn.Conv2d(128, 8, 3, padding=1).requires_grad_(False), 4),
    ]  # fmt: skip
    for layer, edge in layers:
        use_narrow_convolutions(layer)
        gradients(layer, torch.randn(2, layer.in_channels, edge, edge), half=True)


def test_parameters_and_values_stay() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv3d(1, 4, 3), nn.Conv2d(4, 4, 3), nn.ConvTranspose2d(4, 4, 2))
    image = torch.randn(1, 1, 6, 6, 6)
    before, names = network[0](image), dict(network.named_parameters())
    use_narrow_convolutions(network)
    assert [type(layer) for layer in network] == [NarrowConv3d, NarrowConv2d, nn.ConvTranspose2d]
    assert torch.equal(network[0](image), before)
    assert all(parameter is names[name] for name, parameter in network.named_parameters())


def test_training_uses_them_in_a_network_of_any_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    module = TaskModule()
    module.network = nn.Sequential(nn.Conv3d(1, 4, 3))
    monkeypatch.setattr(module, "_trainer", SimpleNamespace(estimated_stepping_batches=10))
    module.configure_optimizers()
    assert isinstance(module.network[0], NarrowConv3d)


def test_whole_bfloat16_stays_bfloat16() -> None:
    layer = nn.Conv3d(4, 4, 3, padding=1).bfloat16()
    use_narrow_convolutions(layer)
    assert layer(torch.ones(1, 4, 2, 4, 4, dtype=torch.bfloat16)).dtype is torch.bfloat16
