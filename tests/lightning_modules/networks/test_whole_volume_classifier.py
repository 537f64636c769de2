"""3D classifiers: every encoder and way of the mask in, the laws of the mask, and weights from stage one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.networks.nets import DenseNet, ResNet, SwinUNETR
from torch import Tensor, nn

from lightning_modules.masked_classification import MaskedClassificationModule
from lightning_modules.networks.initial_weights import without_initial_weights
from lightning_modules.networks.mask_injection import MASK_WAYS, PROBE_WAYS, resize_mask
from lightning_modules.networks.narrow_conv import use_narrow_convolutions
from lightning_modules.networks.unet import NNUNet
from lightning_modules.networks.volume_encoder import VolumeEncoder
from lightning_modules.networks.whole_volume_classifier import WholeVolumeClassifier, by_slice
from lightning_modules.parameter_groups import layered_groups
from lightning_modules.segmentation import SegmentationModule


def resnet(channels: int = 1) -> Any:
    return ResNet("basic", [1, 1, 1, 1], [4, 8, 8, 16], n_input_channels=channels, num_classes=2)


def densenet(channels: int = 1) -> Any:
    return DenseNet(3, channels, 2, init_features=8, growth_rate=4, block_config=(1, 2, 2, 1))


def swin(channels: int = 1) -> Any:
    return SwinUNETR(channels, 2, feature_size=12, depths=(1, 1, 1, 1), num_heads=(1, 2, 2, 2), window_size=4)


def plain(channels: int = 1) -> NNUNet:
    return NNUNet(channels, features=(4, 8, 8, 12))


def residual(channels: int = 1) -> NNUNet:
    return NNUNet(channels, topology="residual", features=(4, 8, 8, 12))


ENCODERS: dict[str, Callable[[int], Any]] = {
    "resnet": resnet, "densenet": densenet, "swin": swin, "plain": plain, "residual": residual,
}  # fmt: skip


def volumes(edge: int = 16) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(2, 1, edge, edge, edge, generator=generator)
    mask = torch.zeros(2, 1, edge, edge, edge)
    mask[:, :, edge // 4 : 3 * edge // 4, edge // 8 : 5 * edge // 8, : edge // 2] = 1
    return image, mask


def edge_of(kind: str) -> int:
    """What the network's strides need."""
    return 32 if kind in ("swin", "densenet") else 16


def network(kind: str, *ways: str, **options: Any) -> WholeVolumeClassifier:
    torch.manual_seed(0)
    return WholeVolumeClassifier(ENCODERS[kind](1 + ("channel" in ways)), mask_injection=ways, **options)


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        *((kind, torch.float32) for kind in ENCODERS),
        ("plain", torch.bfloat16),
        # seconds each on a processor without bfloat16
        *(pytest.param(kind, torch.bfloat16, marks=pytest.mark.slow) for kind in ENCODERS if kind != "plain"),
    ],
)
def test_every_encoder_takes_all_ways_of_the_mask(kind: str, dtype: torch.dtype) -> None:
    image, mask = volumes(edge_of(kind))
    made = network(kind, *MASK_WAYS)
    # as training does
    use_narrow_convolutions(made)
    with torch.autocast("cpu", dtype, enabled=dtype is not torch.float32):
        output = made(image, mask)
    assert output.logits.shape == (2, 1)
    output.logits.float().sum().backward()
    # an instance norm gives its input's bias no gradient, and nothing else goes without
    assert all(p.grad is not None and bool(torch.isfinite(p.grad).all()) for p in made.parameters())
    gates = made.encoder.gates
    assert gates is not None and all(p.grad is not None and bool(p.grad.any()) for p in gates.parameters())


@pytest.mark.parametrize("ways", [(), *((way,) for way in (*MASK_WAYS, *PROBE_WAYS)), ("mask_only", "crop")])
@pytest.mark.parametrize("pooling", ["mean", "attention"])
def test_every_way_alone(ways: tuple[str, ...], pooling: Any) -> None:
    image, mask = volumes()
    made = network("plain", *ways, pooling=pooling, classes=3).train()
    output = made(image, mask if ways else None)
    assert output.logits.shape == (2, 3)
    assert output.slice_attention.shape == (2, 16)
    torch.testing.assert_close(output.slice_attention.sum(1), torch.ones(2))
    output.logits.square().sum().backward()
    assert made.uses_mask == bool(ways)


@pytest.mark.parametrize("kind", ["resnet", "swin", "plain"])
@pytest.mark.parametrize("ways", [("multiply",), ("crop", "multiply")])
def test_voxels_outside_the_mask_have_no_gradient(kind: str, ways: tuple[str, ...]) -> None:
    image, mask = volumes(edge_of(kind))
    image.requires_grad_()
    network(kind, *ways).eval()(image, mask).logits.sum().backward()
    assert image.grad is not None
    assert torch.count_nonzero(image.grad[mask == 0]) == 0
    assert torch.count_nonzero(image.grad[mask == 1]) > 0


def test_a_mask_of_ones_makes_multiply_the_direct_arm_bit_for_bit() -> None:
    image, mask = volumes()
    direct, masked = network("plain").eval(), network("plain", "multiply").eval()
    assert torch.equal(direct(image).logits, masked(image, torch.ones_like(mask)).logits)
    assert not torch.equal(direct(image).logits, masked(image, mask).logits)


@pytest.mark.parametrize("ways", [(way,) for way in MASK_WAYS])
def test_an_empty_mask_is_flagged_and_no_nan(ways: tuple[str, ...]) -> None:
    image, mask = volumes()
    mask[1] = 0
    made = network("resnet", *ways)
    output = made(image, mask)
    output.logits.sum().backward()
    assert output.empty_mask.tolist() == [False, True]
    assert bool(torch.isfinite(output.logits).all())
    assert all(bool(torch.isfinite(p.grad).all()) for p in made.parameters() if p.grad is not None)
    if ways == ("multiply",):
        direct = network("resnet").eval()
        direct.load_state_dict(made.state_dict())
        torch.testing.assert_close(made.eval()(image, mask).logits[1], direct(image).logits[1])


def test_attention_lies_in_the_liver_and_sends_no_gradient_outside() -> None:
    image, mask = volumes()
    made = network("plain", "attention").eval()
    maps: list[Tensor] = []
    made.encoder.register_forward_hook(lambda _module, _inputs, output: maps.append(output[-1]))
    output = made(image, mask)
    maps[0].retain_grad()
    output.logits.sum().backward()
    inside = resize_mask(mask, maps[0].shape[2:]) > 0
    assert maps[0].grad is not None
    assert torch.count_nonzero(maps[0].grad[~inside.expand_as(maps[0])]) == 0
    assert torch.count_nonzero(maps[0].grad) > 0
    assert torch.count_nonzero(output.slice_attention[:, 8:]) == 0, "no liver in the upper half"
    assert output.location_attention is not None
    assert output.location_attention.shape == (2, 16, *maps[0].shape[2:4])
    torch.testing.assert_close(output.location_attention[:, :8].sum((2, 3)), torch.ones(2, 8))


def test_attention_by_slice_keeps_every_weight() -> None:
    weights = torch.rand(2, 3, 4, 5)
    weights = weights / weights.sum((1, 2, 3), keepdim=True)
    slices, locations = by_slice(weights, 20)
    torch.testing.assert_close(slices.view(2, 5, 4).sum(2), weights.sum((1, 2)))
    torch.testing.assert_close(locations[:, 8], weights[..., 2] / weights[..., 2].sum((1, 2), keepdim=True))


def segmenter(folder: Path, channels: int = 1) -> Path:
    """A run directory as a segmenter's training leaves it; only the weights are in it."""
    torch.manual_seed(5)
    path = folder / "checkpoints" / "best.ckpt"
    path.parent.mkdir(parents=True)
    torch.save({"state_dict": SegmentationModule(plain(channels)).state_dict()}, path)
    return folder


def test_the_segmenters_encoder_is_where_training_begins(tmp_path: Path) -> None:
    run = segmenter(tmp_path)
    torch.manual_seed(5)
    taught = plain().eval()
    made = WholeVolumeClassifier(plain(), weights_from=run).eval()
    image, _ = volumes()
    skips = taught.network.encoder(image)  # type: ignore[operator]  # the engine's
    for ours, theirs in zip(made.encoder(image), skips, strict=True):
        assert torch.equal(ours, theirs)
    fresh = WholeVolumeClassifier(plain()).eval()
    assert not torch.equal(fresh.encoder(image)[-1], skips[-1])
    with without_initial_weights():
        assert WholeVolumeClassifier(plain(), weights_from=tmp_path / "gone", freeze=True).encoder.frozen


def test_a_mask_channel_changes_nothing_at_first(tmp_path: Path) -> None:
    run = segmenter(tmp_path)
    image, mask = volumes()
    alone = WholeVolumeClassifier(plain(), weights_from=run).eval()
    beside = WholeVolumeClassifier(plain(2), mask_injection=("channel",), weights_from=run).eval()
    both = torch.cat([image, mask], 1)
    torch.testing.assert_close(beside.encoder(both)[-1], alone.encoder(image)[-1])


def test_frozen_stages_and_falling_rates(tmp_path: Path) -> None:
    run = segmenter(tmp_path)
    frozen = WholeVolumeClassifier(plain(), mask_injection=("gate",), weights_from=run, freeze=True).train()
    assert not any(module.training for module in frozen.encoder.stages.modules())
    trained = {name for name, p in frozen.named_parameters() if p.requires_grad}
    assert trained == {name for name in dict(frozen.named_parameters()) if not name.startswith("encoder.stages")}
    groups = layered_groups(WholeVolumeClassifier(plain(), mask_injection=("gate",)), 0.5)
    assert sorted(group["lr_scale"] for group in groups) == [0.5**4, 0.5**3, 0.5**2, 0.5, 1.0]


def test_what_does_not_fit(tmp_path: Path) -> None:
    run = segmenter(tmp_path)
    with pytest.raises(ValueError, match=r"has the shape .*; configure the encoder as the network"):
        WholeVolumeClassifier(NNUNet(features=(4, 8, 8, 16)), weights_from=run)
    with pytest.raises(ValueError, match=r"weights of the encoder are missing \(first: "):
        WholeVolumeClassifier(resnet(), weights_from=run)
    with pytest.raises(ValueError, match="there is no checkpoint; give a segmenter's run directory"):
        WholeVolumeClassifier(plain(), weights_from=tmp_path / "gone")
    with pytest.raises(ValueError, match="both set"):
        WholeVolumeClassifier(plain(), weights_from=run, weights_file=run)
    with pytest.raises(ValueError, match="would stay random"):
        WholeVolumeClassifier(plain(), freeze=True)
    with pytest.raises(ValueError, match=r"takes 1 of input channels, but gets 2"):
        WholeVolumeClassifier(plain(), mask_injection=("channel",))
    with pytest.raises(ValueError, match="Conv3d is of no known kind"):
        VolumeEncoder(nn.Conv3d(1, 2, 3))
    (tmp_path / "torn.pth").write_bytes(b"PK torn")
    with pytest.raises(ValueError, match=r"weights_file .*torn\.pth: cannot be read"):
        WholeVolumeClassifier(plain(), weights_file=tmp_path / "torn.pth")
    torch.save(resnet().state_dict(), tmp_path / "own.pth")
    WholeVolumeClassifier(resnet(), weights_file=tmp_path / "own.pth", freeze=True)


def test_the_module_takes_it() -> None:
    image, mask = volumes()
    module = MaskedClassificationModule(network("plain", "multiply", "attention"))
    batch: Any = {"image": image, "mask": mask, "target": torch.tensor([0, 1]), "scan_id": ["a", "b"]}
    logits, empty = module.outputs(batch)
    assert logits.shape == (2, 1) and not empty.any()
    with pytest.raises(ValueError, match="needs a mask"):
        network("plain", "multiply")(image)
    with pytest.raises(ValueError, match="direct arm"):
        network("plain")(image, mask)
    with pytest.raises(ValueError, match="does not fit"):
        network("plain", "multiply")(image, mask[..., :2])
