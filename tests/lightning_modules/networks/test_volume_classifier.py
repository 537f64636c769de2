"""Classifiers over slices: every encoder × way × aggregation, and the laws of issue-level promises."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor

from lightning_modules.networks.mask_injection import MASK_WAYS
from lightning_modules.networks.slice_aggregation import AGGREGATIONS, MajorityVote, mean_of_probabilities
from lightning_modules.networks.slice_encoder import SliceEncoder
from lightning_modules.networks.volume_classifier import SliceClassifier, masked_attention_resnet

BACKBONES = (
    "resnet18",
    "densenet121",
    "swin_tiny_patch4_window7_224",
    "convnext_tiny",
    "vgg19",
    "pvt_v2_b2",
    "mambaout_tiny",
)


def volumes(batch: int = 2, edge: int = 64, slices: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(batch, 1, edge, edge, slices, generator=generator)
    mask = torch.zeros(batch, 1, edge, edge, slices)
    mask[:, :, 16:48, 8:40, : slices - 1] = 1
    return image, mask


@pytest.fixture(scope="module", params=BACKBONES)
def gated(request: pytest.FixtureRequest) -> SliceClassifier:
    torch.manual_seed(0)
    return SliceClassifier(request.param, mask_injection=MASK_WAYS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_encoder_takes_all_ways_of_the_mask(gated: SliceClassifier, dtype: torch.dtype) -> None:
    image, mask = volumes(batch=1)
    gated.zero_grad()
    with torch.autocast("cpu", dtype, enabled=dtype is not torch.float32):
        output = gated(image, mask)
    assert output.logits.shape == (1, 1)
    output.logits.float().sum().backward()
    gradients = [p.grad for p in gated.parameters() if p.grad is not None]
    assert all(bool(torch.isfinite(g).all()) for g in gradients)
    gates = gated.encoder.gates
    assert gates is not None
    # a gate that the next stage does not see would get no gradient
    assert all(p.grad is not None and bool(p.grad.any()) for p in gates.parameters())


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("ways", [(), ("multiply",), ("crop",), ("channel",), ("gate",), ("attention",)])
@pytest.mark.parametrize("classes", [1, 3])
def test_every_way_with_every_aggregation(aggregation: Any, ways: tuple[str, ...], classes: int) -> None:
    image, mask = volumes(batch=2, edge=32)
    network = SliceClassifier("resnet18", mask_injection=ways, aggregation=aggregation, classes=classes)
    network.train()
    output = network(image, mask[..., :32, :32, :] if ways else None)
    assert output.logits.shape == (2, classes)
    torch.testing.assert_close(output.slice_attention.sum(1), torch.ones(2))
    if ways:
        assert torch.count_nonzero(output.slice_attention[:, -1]) == 0  # no liver there
    output.logits.square().sum().backward()
    network.eval()
    assert bool(torch.isfinite(network(image, mask if ways else None).logits).all())


@pytest.mark.parametrize("ways", [("multiply",), ("crop", "multiply"), ("multiply", "gate", "attention")])
@pytest.mark.parametrize("neighbours", [0, 1])
def test_voxels_outside_the_mask_have_no_gradient(ways: tuple[str, ...], neighbours: int) -> None:
    image, mask = volumes()
    image.requires_grad_()
    network = SliceClassifier("resnet18", mask_injection=ways, neighbours=neighbours).eval()
    network(image, mask).logits.sum().backward()
    assert image.grad is not None
    assert torch.count_nonzero(image.grad[mask == 0]) == 0
    assert torch.count_nonzero(image.grad[mask == 1]) > 0


def test_a_mask_of_ones_makes_multiply_the_direct_arm_bit_for_bit() -> None:
    image, mask = volumes()
    direct = SliceClassifier("resnet18").eval()
    masked = SliceClassifier("resnet18", mask_injection=("multiply",)).eval()
    masked.load_state_dict(direct.state_dict())
    assert torch.equal(direct(image).logits, masked(image, torch.ones_like(mask)).logits)
    assert not torch.equal(direct(image).logits, masked(image, mask).logits)


def test_an_empty_mask_falls_back_to_the_direct_arm_with_a_flag() -> None:
    image, mask = volumes()
    mask[1] = 0
    direct = SliceClassifier("resnet18").eval()
    masked = SliceClassifier("resnet18", mask_injection=("multiply",)).eval()
    masked.load_state_dict(direct.state_dict())
    output = masked(image, mask)
    assert output.empty_mask.tolist() == [False, True]
    torch.testing.assert_close(output.logits[1], direct(image).logits[1])


@pytest.mark.parametrize("way", MASK_WAYS)
def test_an_empty_mask_is_no_nan_in_any_way(way: str) -> None:
    image, mask = volumes()
    network = SliceClassifier("resnet18", mask_injection=(way,))
    output = network(image, torch.zeros_like(mask))
    output.logits.sum().backward()
    assert bool(output.empty_mask.all())
    assert all(bool(torch.isfinite(p.grad).all()) for p in network.parameters() if p.grad is not None)


def test_slices_without_liver_have_no_influence() -> None:
    image, mask = volumes()
    other = image.clone()
    other[..., -1] = 100.0
    network = SliceClassifier("resnet18", mask_injection=("gate", "attention")).eval()
    assert torch.equal(network(image, mask).logits, network(other, mask).logits)


def test_a_patient_is_classified_alike_alone_and_in_a_batch() -> None:
    image, mask = volumes()
    network = masked_attention_resnet().eval()
    assert network.ways == ("multiply", "gate", "attention")
    torch.testing.assert_close(network(image, mask).logits[:1], network(image[:1], mask[:1]).logits)


def test_location_attention_lies_in_the_liver() -> None:
    image, mask = volumes()
    locations = masked_attention_resnet().eval()(image, mask).location_attention
    assert locations is not None
    assert locations.shape == (2, 3, 2, 2)
    torch.testing.assert_close(locations.sum((2, 3)), torch.tensor([[1.0, 1.0, 0.0]] * 2))


def test_the_direct_arm_refuses_a_mask_and_the_others_demand_it() -> None:
    image, mask = volumes()
    with pytest.raises(ValueError, match="direct arm"):
        SliceClassifier("resnet18")(image, mask)
    with pytest.raises(ValueError, match="needs a mask"):
        SliceClassifier("resnet18", mask_injection=("multiply",))(image)
    with pytest.raises(ValueError, match="does not fit"):
        SliceClassifier("resnet18", mask_injection=("multiply",))(image, mask[..., :2])


def test_neighbours_are_channels_and_repeat_at_the_ends() -> None:
    image, _ = volumes()
    network = SliceClassifier("resnet18", neighbours=1).eval()
    seen: list[Tensor] = []
    network.encoder.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    network(image)
    stack = seen[0].view(2, 3, 3, 64, 64)  # (B, K, channels, I, J)
    assert torch.equal(stack[0, 0, 0], image[0, 0, :, :, 0])
    assert torch.equal(stack[0, 0, 2], image[0, 0, :, :, 1])
    assert torch.equal(stack[1, 2, 1], image[1, 0, :, :, 2])
    assert torch.equal(stack[1, 2, 2], image[1, 0, :, :, 2])


def test_mean_of_probabilities_equals_the_plain_mean() -> None:
    logits = torch.randn(2, 4, 3)
    weights = torch.tensor([[0.25] * 4, [0.5, 0.5, 0.0, 0.0]])
    expected = torch.einsum("bk,bkc->bc", weights, logits.softmax(2))
    torch.testing.assert_close(mean_of_probabilities(logits, weights).softmax(1), expected)
    single = logits[:, :, :1]
    expected = torch.einsum("bk,bkc->bc", weights, single.sigmoid())
    torch.testing.assert_close(mean_of_probabilities(single, weights).sigmoid(), expected)
    # certain slices must not overflow
    assert bool(torch.isfinite(mean_of_probabilities(torch.full((1, 4, 1), 500.0), weights[:1])).all())


def test_majority_vote_counts_the_used_slices() -> None:
    vote = MajorityVote(2, 3).eval()
    vote.head = torch.nn.Identity()
    logits = torch.tensor([[[9.0, 0, 0], [0, 9.0, 0], [9.0, 0, 0], [0, 0, 9.0]]])
    used = torch.tensor([[True, True, True, False]])
    shares = vote(logits, used).logits.softmax(1)
    torch.testing.assert_close(shares, torch.tensor([[2.5, 1.5, 0.5]]) / 4.5)


def test_the_transformer_knows_the_order_of_slices() -> None:
    image, _ = volumes(slices=4)
    network = SliceClassifier("resnet18", aggregation="transformer").eval()
    assert not torch.allclose(network(image).logits, network(image.flip(-1)).logits, atol=1e-6)
    unordered = SliceClassifier("resnet18", aggregation="attention").eval()
    torch.testing.assert_close(unordered(image).logits, unordered(image.flip(-1)).logits)


@pytest.mark.parametrize("backbone", ["vit_tiny_patch16_224", "vit_small_patch16_dinov3"])
def test_a_vision_transformer_takes_all_ways_too(backbone: str) -> None:
    image, mask = volumes(batch=1)
    network = SliceClassifier(backbone, mask_injection=MASK_WAYS).eval()
    logits: Any = network(image, mask).logits
    logits.sum().backward()
    gates = {name: p for name, p in network.named_parameters() if name.endswith("gate.logit")}
    assert len(gates) == 3
    # the last block's gate acts outside the liver only, where its attention does not look
    assert sum(bool(p.grad is not None and p.grad.any()) for p in gates.values()) >= 2


def test_the_gate_of_a_vision_transformer_acts_outside_the_mask() -> None:
    image, mask = volumes(batch=1)
    gated = SliceClassifier("vit_tiny_patch16_224", mask_injection=("gate",)).eval()
    direct = SliceClassifier("vit_tiny_patch16_224").eval()
    weights = {name.replace(".block.", "."): value for name, value in gated.state_dict().items()}
    direct.load_state_dict({name: value for name, value in weights.items() if "gate.logit" not in name})
    torch.testing.assert_close(gated(image, torch.ones_like(mask)).logits, direct(image).logits)
    assert not torch.allclose(gated(image, mask).slice_attention, direct(image).slice_attention)


def test_weights_from_a_file_are_really_loaded(tmp_path: Path) -> None:
    torch.manual_seed(1)
    full = timm.create_model("resnet18")
    torch.save(full.state_dict(), tmp_path / "weights.pth")
    encoder = SliceEncoder("resnet18", 1, weights_file=tmp_path / "weights.pth")
    own = encoder.backbone.state_dict()
    for name in ("layer1.0.conv1.weight", "layer4.1.bn2.weight"):
        assert torch.equal(own[name], full.state_dict()[name])
    # timm sums the first convolution's colour channels for grey images
    torch.testing.assert_close(own["conv1.weight"], full.state_dict()["conv1.weight"].sum(1, keepdim=True))


def test_weights_of_another_backbone_are_refused(tmp_path: Path) -> None:
    torch.save(timm.create_model("resnet18").state_dict(), tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=r"weights of resnet50 are missing"):
        SliceEncoder("resnet50", 1, weights_file=tmp_path / "weights.pth")
    with pytest.raises(ValueError, match="no such file"):
        SliceEncoder("resnet18", 1, weights_file=tmp_path / "none.pth")
    (tmp_path / "broken.pth").write_bytes(b"not weights")
    with pytest.raises(ValueError, match="cannot be read"):
        SliceEncoder("resnet18", 1, weights_file=tmp_path / "broken.pth")


def test_pretrained_weights_that_cannot_be_had_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    create = timm.create_model

    def offline(name: str, pretrained: bool = False, **options: Any) -> Any:
        if pretrained:
            raise ConnectionError("no network")
        return create(name, pretrained=False, **options)

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(ValueError, match="could not be loaded") as caught:
        SliceClassifier("resnet18", pretrained=True)
    assert "weights_file" in str(caught.value)
    with pytest.raises(ValueError, match="timm has no weights for it"):
        SliceClassifier("cspresnet50d", pretrained=True)


@pytest.mark.parametrize(
    "options",
    [{"backbone": "resnet19"}, {"aggregation": "median"}, {"pooling": "max"}, {"neighbours": -1}],
)
def test_bad_requests_are_named(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        SliceClassifier(**options)


def test_slices_of_a_size_that_a_backbone_does_not_take() -> None:
    network = SliceClassifier("vit_small_patch14_dinov2")
    with pytest.raises(ValueError, match=r"slices of 64 x 64 voxels do not suit it .*divisible by patch size \(14\)"):
        network(volumes(batch=1)[0])


EVERY = (*BACKBONES, "resnet50", "vit_small_patch16_dinov3")
"""The encoders that studies name."""


@pytest.mark.slow  # 288 networks, some 20 minutes on one core
@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("ways", [(), *((way,) for way in MASK_WAYS), ("multiply", "gate", "attention"), MASK_WAYS])
@pytest.mark.parametrize("backbone", EVERY)
def test_the_whole_product_in_both_precisions(backbone: str, ways: tuple[str, ...], aggregation: Any) -> None:
    image, mask = volumes(batch=2, slices=2)
    network = SliceClassifier(backbone, mask_injection=ways, aggregation=aggregation)
    for dtype in (torch.float32, torch.bfloat16):
        network.zero_grad()
        with torch.autocast("cpu", dtype, enabled=dtype is not torch.float32):
            logits = network(image, mask if ways else None).logits
        assert logits.shape == (2, 1) and bool(torch.isfinite(logits).all())
        logits.float().square().sum().backward()
        gradients = [p.grad for p in network.parameters() if p.grad is not None]
        assert gradients and all(bool(torch.isfinite(g).all()) for g in gradients)
