"""Ways of the mask in: laws that each of them keeps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812  # torch's own habit
from torch import Tensor

from lightning_modules.networks.mask_injection import (
    AttentionPool,
    CropToMask,
    InputInjection,
    MaskGate,
    MultiplyMask,
    check_ways,
    fill_empty_masks,
    masked_attention_pool,
    resize_mask,
)


def box_mask(shape: tuple[int, ...] = (2, 1, 24, 20, 4)) -> Tensor:
    mask = torch.zeros(shape)
    mask[:, :, 6:14, 4:12, 1:3] = 1
    return mask


def test_multiplying_by_ones_changes_no_bit() -> None:
    image = torch.randn(2, 1, 8, 8, 4)
    assert torch.equal(MultiplyMask()(image, torch.ones(2, 1, 8, 8, 4))[0], image)


@pytest.mark.parametrize("ways", [("multiply",), ("crop", "multiply"), ("multiply", "crop", "channel")])
def test_no_gradient_reaches_voxels_outside_the_mask(ways: tuple[str, ...]) -> None:
    image, mask = torch.randn(2, 1, 24, 20, 4, requires_grad=True), box_mask()
    seen, _ = InputInjection(ways, crop_margin=2)(image, mask)
    seen.square().sum().backward()
    assert image.grad is not None
    assert torch.count_nonzero(image.grad[mask == 0]) == 0
    assert torch.count_nonzero(image.grad[mask == 1]) > 0


def test_crop_alone_lets_the_surroundings_through() -> None:
    image, mask = torch.randn(2, 1, 24, 20, 4, requires_grad=True), box_mask()
    CropToMask(2)(image, mask)[0].square().sum().backward()
    assert image.grad is not None
    assert torch.count_nonzero(image.grad[mask == 0]) > 0


def test_crop_equals_cutting_and_resizing() -> None:
    image, mask = torch.randn(1, 1, 24, 20, 3), torch.zeros(1, 1, 24, 20, 3)
    mask[0, 0, 6:18, 5:15, 1] = 1  # half of each edge, so the cut keeps the shape
    cropped, cropped_mask = CropToMask(0)(image, mask)
    for k in range(3):
        cut = image[:, :, 6:18, 5:15, k]
        expected = F.interpolate(cut, size=(24, 20), mode="bilinear", align_corners=False)
        # at the cut's border, resizing repeats it while the crop still sees the neighbour
        torch.testing.assert_close(cropped[:, :, 2:-2, 2:-2, k], expected[:, :, 2:-2, 2:-2], atol=1e-5, rtol=1e-5)
    assert bool((cropped_mask[0, 0, 2:-2, 2:-2, 1] > 0.99).all())
    assert torch.count_nonzero(cropped_mask[..., 0]) == 0


def test_crop_of_a_full_mask_is_the_identity() -> None:
    image = torch.randn(2, 2, 16, 12, 3)
    cropped, _ = CropToMask(5)(image, torch.ones(2, 1, 16, 12, 3))
    torch.testing.assert_close(cropped, image, atol=1e-5, rtol=1e-5)


def test_crop_keeps_the_whole_liver_and_its_proportions() -> None:
    mask = torch.zeros(1, 1, 40, 40, 2)
    mask[0, 0, 30:38, 1:17, 0] = 1  # 8 × 16 voxels at the border
    _, cropped = CropToMask(2)(torch.zeros_like(mask), mask)
    extent_i = int((cropped[0, 0, :, :, 0] > 0.5).any(1).sum())
    extent_j = int((cropped[0, 0, :, :, 0] > 0.5).any(0).sum())
    assert extent_j / extent_i == pytest.approx(2, rel=0.1)
    assert extent_j > 30  # enlarged from 16 of 40


def test_erasing_leaves_no_trace_of_the_liver_s_signal() -> None:
    image, mask = torch.randn(2, 2, 24, 20, 4), box_mask()
    mask[:, :, 6, 4] = 0  # not a box any more
    erased, _ = InputInjection(["erase"])(image, mask)
    inside = (mask > 0).expand_as(image)
    assert torch.count_nonzero(erased[inside]) == 0
    assert torch.equal(erased[~inside], image[~inside])
    boxed, _ = InputInjection(["erase_box"], crop_margin=1)(image, mask)
    assert torch.count_nonzero(boxed[:, :, 5:15, 3:13]) == 0
    assert torch.equal(boxed[:, :, 15:], image[:, :, 15:])
    assert torch.equal(boxed[:, :, :, :3], image[:, :, :, :3])


def test_mask_only_holds_no_signal() -> None:
    mask = box_mask()
    shape, _ = InputInjection(["mask_only"])(torch.full((2, 2, 24, 20, 4), float("nan")), mask)
    assert torch.equal(shape, mask.expand_as(shape))


def test_an_empty_mask_becomes_ones_and_is_flagged() -> None:
    mask = box_mask()
    mask[1] = 0
    filled, empty = fill_empty_masks(mask)
    assert empty.tolist() == [False, True]
    assert torch.equal(filled[0], mask[0])
    assert bool((filled[1] == 1).all())


def test_gate_passes_the_inside_unchanged_and_scales_the_outside() -> None:
    gate = MaskGate(3, initial_pass=0.25)
    features, mask = torch.randn(2, 3, 4, 4), torch.zeros(2, 1, 4, 4)
    mask[:, :, :2] = 1
    gated = gate(features, mask)
    torch.testing.assert_close(gated[:, :, :2], features[:, :, :2])
    torch.testing.assert_close(gated[:, :, 2:], features[:, :, 2:] * 0.25)


def test_gate_of_a_full_mask_is_the_identity_bit_for_bit() -> None:
    features = torch.randn(2, 3, 4, 4)
    assert torch.equal(MaskGate(3)(features, torch.ones(2, 1, 4, 4)), features)


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("edges", [(5, 4), (5, 4, 3)])
def test_a_gate_is_its_formula_with_its_gradients(kind: torch.dtype, edges: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2, 3, *edges, generator=generator).to(kind).requires_grad_()
    mask = torch.rand(2, 1, *edges, generator=generator)
    upstream = torch.randn(2, 3, *edges, generator=generator)
    gate = MaskGate(3)
    with torch.no_grad():
        gate.logit.copy_(torch.tensor([-2.0, 0.5, 30.0]))
    gate(features, mask).backward(upstream.to(kind))

    double, logit = features.detach().double().requires_grad_(), gate.logit.detach().double().requires_grad_()
    passed = torch.sigmoid(logit).view(1, -1, *[1] * len(edges))
    expected = double * (mask.double() + (1 - mask.double()) * passed)
    expected.backward(upstream.to(kind).double())  # type: ignore[no-untyped-call]  # torch's own
    # bf16 keeps eight bits of each factor
    close = 1e-5 if kind == torch.float32 else 2e-2
    torch.testing.assert_close(gate(features, mask).double(), expected, rtol=close, atol=close)
    assert features.grad is not None and gate.logit.grad is not None
    torch.testing.assert_close(features.grad.double(), double.grad, rtol=close, atol=close)
    torch.testing.assert_close(gate.logit.grad.double(), logit.grad, rtol=close, atol=10 * close)


def test_attention_equals_a_softmax_over_the_liver_only() -> None:
    features, scores = torch.randn(2, 5, 4, 3), torch.randn(2, 1, 4, 3)
    mask = (torch.rand(2, 1, 4, 3) > 0.5).float()
    mask[:, :, 0, 0] = 1
    pooled, weights = masked_attention_pool(features, mask, scores)
    for item in range(2):
        inside = mask[item, 0] > 0
        expected = scores[item, 0][inside].softmax(0)
        torch.testing.assert_close(weights[item][inside], expected)
        torch.testing.assert_close(pooled[item], features[item][:, inside] @ expected)
        assert torch.count_nonzero(weights[item][~inside]) == 0


def test_attention_of_a_share_weighs_border_locations_less() -> None:
    mask = torch.tensor([[[[1.0, 0.25]]]])
    _, weights = masked_attention_pool(torch.randn(1, 2, 1, 2), mask, torch.zeros(1, 1, 1, 2))
    torch.testing.assert_close(weights, torch.tensor([[[0.8, 0.2]]]))


def test_attention_sends_no_gradient_to_scores_or_features_outside() -> None:
    features = torch.randn(1, 5, 4, 3, requires_grad=True)
    scores = torch.randn(1, 1, 4, 3, requires_grad=True)
    mask = torch.zeros(1, 1, 4, 3)
    mask[..., :2, :] = 1
    loss: Any = masked_attention_pool(features, mask, scores)[0].square().sum()
    loss.backward()
    assert features.grad is not None
    assert scores.grad is not None
    assert torch.count_nonzero(features.grad[..., 2:, :]) == 0
    assert torch.count_nonzero(scores.grad[..., 2:, :]) == 0
    assert torch.count_nonzero(scores.grad[..., :2, :]) > 0


def test_attention_over_an_empty_mask_is_the_mean_and_finite() -> None:
    features = torch.randn(1, 5, 4, 3, requires_grad=True)
    scores = torch.randn(1, 1, 4, 3, requires_grad=True)
    pooled, _ = masked_attention_pool(features, torch.zeros(1, 1, 4, 3), scores)
    torch.testing.assert_close(pooled, features.mean((2, 3)))
    loss: Any = pooled.sum()
    loss.backward()
    assert features.grad is not None
    assert bool(torch.isfinite(features.grad).all())


def test_attention_refuses_other_locations() -> None:
    with pytest.raises(ValueError, match="different locations"):
        masked_attention_pool(torch.randn(1, 5, 4, 3), torch.ones(1, 1, 4, 4), torch.randn(1, 1, 4, 3))


def test_attention_pool_weights_sum_to_one() -> None:
    pooled, weights = AttentionPool(5)(torch.randn(2, 5, 4, 3))
    assert pooled.shape == (2, 5)
    torch.testing.assert_close(weights.sum((1, 2)), torch.ones(2))


def test_a_single_liver_voxel_survives_resizing() -> None:
    mask = torch.zeros(1, 1, 64, 60)
    mask[0, 0, 37, 11] = 1
    assert torch.count_nonzero(resize_mask(mask, (3, 7))) >= 1


@pytest.mark.parametrize(
    "ways", [("multply",), ("none", "crop"), ("crop", "crop"), ("erase", "gate"), ("erase", "mask_only")]
)
def test_bad_ways_are_named(ways: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="mask_injection"):
        check_ways(ways)


def test_none_is_the_empty_list() -> None:
    assert check_ways(["none"]) == check_ways([]) == check_ways("none") == ()
