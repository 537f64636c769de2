"""nnU-Net's networks: shapes, modes, weights and the rule of pooling."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lightning.pytorch.utilities.model_helpers import _ModuleMode
from torch import Tensor, nn

from lightning_modules.networks.unet import NNUNet, kernel_sizes_for, nnunet, strides_for

STRIDES = [(1, 1, 1), (2, 2, 1), (2, 2, 2)]


@pytest.mark.parametrize("topology", ["plain", "residual"])
def test_training_returns_levels_and_evaluation_one_tensor(topology: Any) -> None:
    network = nnunet(classes=3, topology=topology, features=(4, 8, 8), strides=STRIDES)
    image = torch.randn(2, 1, 16, 16, 8)
    levels = network(image)
    assert [tuple(level.shape) for level in levels] == [(2, 3, 16, 16, 8), (2, 3, 8, 8, 8)]
    assert network.level_strides == ((1, 1, 1), (2, 2, 1))
    network.eval()
    single = network(image)
    assert isinstance(single, Tensor)
    torch.testing.assert_close(single, levels[0])
    network.train()
    assert isinstance(network(image), list)


def test_levels_come_back_after_a_validation_within_training() -> None:
    """Lightning sets each module's mode back one by one, and never calls train()."""
    network = nnunet(features=(4, 8, 8), strides=STRIDES)
    mode = _ModuleMode()
    mode.capture(network)
    network.eval()
    network(torch.randn(1, 1, 16, 16, 8))
    mode.restore(network)
    assert isinstance(network(torch.randn(1, 1, 16, 16, 8)), list)


def test_without_deep_supervision_training_returns_one_tensor() -> None:
    assert isinstance(nnunet(features=(4, 8), deep_supervision=False)(torch.randn(1, 1, 8, 8, 8)), Tensor)


def test_two_dimensions() -> None:
    network = nnunet(features=(4, 8), dimensions=2).eval()
    assert network(torch.randn(1, 1, 8, 8)).shape == (1, 2, 8, 8)


def test_defaults_are_those_of_nnunet() -> None:
    network = nnunet(features=(4, 8))
    norms = [m for m in network.modules() if isinstance(m, nn.InstanceNorm3d)]
    assert norms
    assert all(m.affine and m.eps == 1e-5 for m in norms)
    assert all(m.negative_slope == 0.01 for m in network.modules() if isinstance(m, nn.LeakyReLU))
    assert all(m.bias is not None for m in network.modules() if isinstance(m, nn.Conv3d))


def test_batch_normalisation_can_be_asked_for() -> None:
    network = nnunet(features=(4, 8), normalisation="batch")
    assert any(isinstance(m, nn.BatchNorm3d) for m in network.modules())
    assert not any(isinstance(m, nn.InstanceNorm3d) for m in network.modules())


def test_every_weight_gets_a_gradient_but_the_unused_lowest_head() -> None:
    network = nnunet(features=(4, 8, 8), strides=STRIDES)
    sum(level.square().mean() for level in network(torch.randn(1, 1, 16, 16, 8))).backward()
    assert [name for name, p in network.named_parameters() if p.grad is None] == []


def test_an_edge_that_cannot_be_pooled_is_refused() -> None:
    with pytest.raises(ValueError, match=r"multiple of \(4, 4, 2\)"):
        nnunet(features=(4, 8, 8), strides=STRIDES)(torch.randn(1, 1, 16, 18, 8))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"features": (4,)}, "two stages"),
        ({"topology": "dense"}, "topology"),
        ({"normalisation": "layer"}, "normalisation"),
        ({"strides": [(1, 1, 1)]}, "strides has 1"),
        ({"kernel_sizes": [(3, 3), (3, 3)]}, "each entry needs 3"),
        ({"decoder_blocks": [1, 1]}, "decoder_blocks"),
        ({"dimensions": 4}, "dimensions"),
    ],
)
def test_bad_requests_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NNUNet(**{"features": (4, 8), **options})


def test_thick_slices_wait_until_the_spacings_are_within_a_factor_of_two() -> None:
    # in-plane 1.5 → 3 → 6 mm: slices of 6 mm join when the others are above 3 mm
    assert strides_for((128, 128, 64), (1.5, 1.5, 6.0), 6) == [
        (1, 1, 1), (2, 2, 1), (2, 2, 1), (2, 2, 2), (2, 2, 2), (2, 2, 2),
    ]  # fmt: skip
    assert kernel_sizes_for((128, 128, 64), (1.5, 1.5, 6.0), 6)[:3] == [(3, 3, 1), (3, 3, 1), (3, 3, 3)]


def test_pooling_equals_nnunets_published_plans() -> None:
    # Task04 hippocampus of the decathlon, 3d_fullres plan of nnU-Net v2: patch 40×56×40 at 1 mm
    assert strides_for((40, 56, 40), (1.0, 1.0, 1.0)) == [(1, 1, 1), (2, 2, 2), (2, 2, 2), (2, 2, 2)]
    # isotropic 128³ ends at 4³
    assert strides_for((128,) * 3, (1.0,) * 3, 10) == [(1, 1, 1)] + [(2, 2, 2)] * 5


@pytest.mark.parametrize("shape", [(128, 128, 64), (192, 160, 16), (33, 65, 20), (8, 8, 8), (7, 7, 7)])
def test_no_axis_falls_below_four_voxels(shape: tuple[int, int, int]) -> None:
    edge = list(shape)
    for stride in strides_for(shape, (1.2, 1.2, 5.0), 10):
        edge = [-(-n // s) for n, s in zip(edge, stride, strict=True)]
    assert min(edge) >= 4


def test_bad_spacing_is_named() -> None:
    with pytest.raises(ValueError, match="positive"):
        strides_for((8, 8, 8), (1.0, 0.0, 1.0))
    with pytest.raises(ValueError, match="differ in length"):
        strides_for((8, 8, 8), (1.0, 1.0))
