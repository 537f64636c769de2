"""Segmentation losses against MONAI, torch and nnU-Net's published weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812  # torch's own habit
from monai.losses.dice import DiceLoss
from nnunetv2.training.loss.compound_losses import DC_and_CE_loss
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss

from lightning_modules.losses.segmentation import (
    DeepSupervisionLoss,
    DiceCELoss,
    deep_supervision_weights,
    resize_target,
    soft_dice,
)


@pytest.mark.parametrize("batch_dice", [True, False])
@pytest.mark.parametrize("classes", [2, 4])
def test_loss_equals_monais_dice_and_torchs_cross_entropy(batch_dice: bool, classes: int) -> None:
    torch.manual_seed(0)
    logits = torch.randn(3, classes, 6, 5, 4)
    target = torch.randint(0, classes, (3, 1, 6, 5, 4), dtype=torch.uint8)
    dice = DiceLoss(
        include_background=False, to_onehot_y=True, softmax=True, batch=batch_dice, smooth_nr=1e-5, smooth_dr=1e-5
    )
    expected = dice(logits, target) - 1 + F.cross_entropy(logits, target[:, 0].long())
    torch.testing.assert_close(DiceCELoss(batch_dice=batch_dice)(logits, target), expected)


def nnunets_loss(batch_dice: bool) -> DC_and_CE_loss:
    """What nnU-Net v2's trainer builds for one process."""
    settings = {"batch_dice": batch_dice, "smooth": 1e-5, "do_bg": False, "ddp": False}
    return DC_and_CE_loss(settings, {}, weight_ce=1, weight_dice=1, dice_class=MemoryEfficientSoftDiceLoss)


@pytest.mark.parametrize("batch_dice", [True, False])
@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("liver", ["everywhere", "in one item", "nowhere"])
def test_loss_and_gradient_equal_nnunets(batch_dice: bool, classes: int, liver: str) -> None:
    torch.manual_seed(1)
    target = torch.randint(0, classes, (3, 1, 6, 5, 4))
    if liver != "everywhere":
        target[1 if liver == "in one item" else 0 :] = 0
    logits = torch.randn(3, classes, 6, 5, 4, requires_grad=True)
    ours = DiceCELoss(batch_dice=batch_dice)(logits, target)
    theirs = nnunets_loss(batch_dice)(logits, target)
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-6)
    gradients = [torch.autograd.grad(loss, logits)[0] for loss in (ours, theirs)]
    torch.testing.assert_close(*gradients, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("batch_dice", [True, False])
def test_deep_supervision_equals_nnunets(batch_dice: bool) -> None:
    torch.manual_seed(2)
    shapes = [(8, 8, 4), (4, 4, 4), (2, 2, 2), (1, 1, 1)]
    levels = [torch.randn(2, 2, *shape) for shape in shapes]
    target = torch.randint(0, 2, (2, 1, 8, 8, 4))
    weights = np.array([1 / 2**level for level in range(len(levels))])
    weights[-1] = 0  # nnUNetTrainer._build_loss
    wrapper = DeepSupervisionWrapper(nnunets_loss(batch_dice), weights / weights.sum())
    theirs = wrapper(levels, [resize_target(target, shape) for shape in shapes])
    torch.testing.assert_close(DeepSupervisionLoss(DiceCELoss(batch_dice))(levels, target), theirs)


def test_levels_stacked_at_full_resolution_as_dynunet_gives_them() -> None:
    torch.manual_seed(3)
    stacked = torch.randn(2, 3, 2, 8, 8, 4)
    target = torch.randint(0, 2, (2, 1, 8, 8, 4))
    loss = DiceCELoss()
    expected = 2 / 3 * loss(stacked[:, 0], target) + 1 / 3 * loss(stacked[:, 1], target)
    torch.testing.assert_close(DeepSupervisionLoss(loss)(stacked, target), expected)


def test_a_perfect_prediction_ends_at_minus_one() -> None:
    target = torch.zeros(1, 1, 4, 4, 4)
    target[..., :2] = 1
    logits = torch.cat([1 - target, target], 1) * 100
    torch.testing.assert_close(DiceCELoss()(logits, target), torch.tensor(-1.0))


def test_batch_dice_bears_an_item_without_liver() -> None:
    probabilities = torch.full((2, 2, 4, 4, 4), 0.5)
    labels = torch.zeros(2, 4, 4, 4, dtype=torch.int64)
    labels[0] = 1
    assert soft_dice(probabilities, labels).shape == (1,)
    torch.testing.assert_close(soft_dice(probabilities, labels), torch.tensor([0.5]))
    torch.testing.assert_close(
        soft_dice(probabilities, labels, batch_dice=False), torch.tensor([[2 / 3], [0.0]]), atol=1e-6, rtol=0
    )


def test_both_empty_counts_as_agreement() -> None:
    probabilities = torch.zeros(1, 2, 4, 4, 4)
    torch.testing.assert_close(soft_dice(probabilities, torch.zeros(1, 4, 4, 4, dtype=torch.int64)), torch.ones(1))


@pytest.mark.parametrize(
    ("levels", "weights"), [(1, (1.0,)), (2, (1.0, 0.0)), (3, (2 / 3, 1 / 3, 0.0)), (4, (4 / 7, 2 / 7, 1 / 7, 0.0))]
)
def test_weights_halve_and_the_lowest_is_zero(levels: int, weights: tuple[float, ...]) -> None:
    assert deep_supervision_weights(levels) == pytest.approx(weights)


def test_deep_supervision_is_the_weighted_sum() -> None:
    torch.manual_seed(0)
    levels = [torch.randn(2, 2, 8, 8, 4), torch.randn(2, 2, 4, 4, 4), torch.randn(2, 2, 2, 2, 2, requires_grad=True)]
    target = torch.randint(0, 2, (2, 1, 8, 8, 4))
    loss = DiceCELoss()
    half = resize_target(target, (4, 4, 4))
    expected = 2 / 3 * loss(levels[0], target) + 1 / 3 * loss(levels[1], half)
    torch.testing.assert_close(DeepSupervisionLoss(loss)(levels, target), expected)
    torch.testing.assert_close(DeepSupervisionLoss(loss)(levels[0], target), loss(levels[0], target))


def test_the_target_keeps_its_values_and_type() -> None:
    target = torch.randint(0, 3, (1, 1, 8, 8, 6), dtype=torch.uint8)
    small = resize_target(target, (4, 4, 3))
    assert small.dtype == torch.uint8
    assert set(small.flatten().tolist()) <= {0, 1, 2}
    assert torch.equal(resize_target(target, (8, 8, 6)), target)


def test_shapes_that_do_not_fit_are_named() -> None:
    with pytest.raises(ValueError, match="does not fit"):
        DiceCELoss()(torch.randn(1, 2, 4, 4, 4), torch.zeros(1, 4, 4, 4))
    with pytest.raises(ValueError, match="levels"):
        deep_supervision_weights(0)
