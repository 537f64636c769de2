from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lightning_modules.networks.unet import NNUNet
from lightning_modules.segmentation import SegmentationModule, overlap_dice


class Pointwise(nn.Module):
    """Liver where the image is positive: equivariant to everything, so windows and mirrors must change nothing."""

    divisible_by = (4, 4, 2)

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[int, ...]] = []

    def forward(self, image: Tensor) -> Tensor:
        self.seen.append(tuple(image.shape[2:]))
        return torch.cat([-image, image], dim=1)


@pytest.mark.parametrize("window", [None, (8, 8, 4), (16, 6, 3)])
@pytest.mark.parametrize("mirror_axes", [(), (0,), (0, 1, 2)])
def test_windows_and_mirrors_leave_a_pointwise_network_alone(
    window: tuple[int, int, int] | None, mirror_axes: tuple[int, ...]
) -> None:
    image = torch.randn(2, 1, 13, 10, 5)
    module = SegmentationModule(Pointwise(), window=window, mirror_axes=mirror_axes)
    torch.testing.assert_close(module(image), torch.cat([-image, image], dim=1), atol=1e-5, rtol=1e-5)


def test_whole_volumes_are_padded_to_what_the_network_divides() -> None:
    network = Pointwise()
    SegmentationModule(network)(torch.zeros(1, 1, 13, 10, 5))
    assert network.seen == [(16, 12, 6)]


def test_every_mirror_is_used_once() -> None:
    network = Pointwise()
    SegmentationModule(network, mirror_axes=(0, 2))(torch.zeros(1, 1, 8, 8, 4))
    assert len(network.seen) == 4

    class Corner(nn.Module):
        """Sees one corner alone."""

        def forward(self, image: Tensor) -> Tensor:
            out = torch.zeros_like(image)
            out[..., 0, 0, 0] = 1.0
            return torch.cat([out, out], dim=1)

    logits = SegmentationModule(Corner(), mirror_axes=(0, 1, 2))(torch.zeros(1, 1, 4, 4, 4))
    corners = logits[0, 0, ::3, ::3, ::3]
    assert torch.equal(corners, torch.full((2, 2, 2), 1 / 8))
    assert float(logits[0, 0].sum()) == pytest.approx(1.0)


def test_a_real_network_of_any_size() -> None:
    network = NNUNet(features=(2, 4, 4), strides=[(1, 1, 1), (2, 2, 1), (2, 2, 2)])
    module = SegmentationModule(network).eval()
    with torch.no_grad():
        assert module(torch.randn(1, 1, 17, 14, 5)).shape == (1, 2, 17, 14, 5)


def test_axes_that_do_not_exist() -> None:
    with pytest.raises(ValueError, match="axes are 0, 1 and 2"):
        SegmentationModule(Pointwise(), mirror_axes=(3,))


def test_dice() -> None:
    mask = torch.zeros(4, 4, 4, dtype=torch.bool)
    other = mask.clone()
    mask[:2], other[1:3] = True, True
    assert overlap_dice(mask, other) == 0.5
    assert overlap_dice(mask, mask) == 1.0
    assert overlap_dice(mask, torch.zeros_like(mask)) == 0.0
    assert overlap_dice(torch.zeros_like(mask), torch.zeros_like(mask)) == 1.0


def test_validation_counts_each_scan_once(monkeypatch: pytest.MonkeyPatch) -> None:
    module = SegmentationModule(Pointwise())
    logged: dict[str, float] = {}
    monkeypatch.setattr(module, "log", lambda name, value, **_: logged.update({name: value}))
    good, bad = torch.ones(1, 1, 4, 4, 2), -torch.ones(1, 1, 4, 4, 2)
    for scan_id, image in (("a", good), ("b", bad), ("a", good), ("a", good)):
        module.validation_step(
            {"image": image, "mask": torch.ones_like(image), "scan_id": [scan_id], "patient_id": [scan_id]}, 0
        )
    module.on_validation_epoch_end()
    assert logged == {"valid/dice": 0.5}
