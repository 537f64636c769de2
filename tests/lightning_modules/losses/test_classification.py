"""Classification losses against torch and torchvision; ordinal ones against their definitions."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F  # noqa: N812  # torch's own habit
from torchvision.ops import sigmoid_focal_loss

from lightning_modules.losses.classification import (
    BalancedCELoss,
    FocalLoss,
    WeightedBCELoss,
    class_balanced_weights,
)
from lightning_modules.losses.ordinal import CornLoss, SoftOrdinalLoss, corn_exceedance, corn_probabilities

LOGITS = torch.tensor([[0.3, -1.0, 2.0], [1.5, 0.2, -0.7], [-0.4, 0.1, 0.6], [2.0, 1.0, 0.0]])
TARGET = torch.tensor([2, 0, 1, 2])


def test_bce_equals_torchs_with_and_without_weight() -> None:
    logits, target = torch.tensor([[0.3], [-1.2], [2.0]]), torch.tensor([1, 0, 0])
    expected = F.binary_cross_entropy_with_logits(logits[:, 0], target.float(), pos_weight=torch.tensor(3.0))
    torch.testing.assert_close(WeightedBCELoss(3.0)(logits, target), expected)
    torch.testing.assert_close(WeightedBCELoss(3.0)(logits[:, 0], target), expected)


def test_bce_smoothing_moves_the_best_logit_inwards() -> None:
    smooth, target = WeightedBCELoss(label_smoothing=0.2), torch.tensor([1])
    best = torch.logit(torch.tensor([0.9]))
    assert smooth(best, target) < smooth(best + 0.5, target)
    assert smooth(best, target) < smooth(best - 0.5, target)


def test_cross_entropy_equals_torchs() -> None:
    weights = torch.tensor([1.0, 2.0, 0.5])
    torch.testing.assert_close(BalancedCELoss()(LOGITS, TARGET), F.cross_entropy(LOGITS, TARGET))
    torch.testing.assert_close(
        BalancedCELoss([1, 2, 0.5], 0.1)(LOGITS, TARGET),
        F.cross_entropy(LOGITS, TARGET, weights, label_smoothing=0.1),
    )


def test_focal_without_focus_is_cross_entropy() -> None:
    torch.testing.assert_close(FocalLoss(0.0)(LOGITS, TARGET), F.cross_entropy(LOGITS, TARGET))


def test_focal_equals_torchvisions_for_one_logit() -> None:
    logits, target = torch.tensor([0.3, -1.2, 2.0, -0.1]), torch.tensor([1, 0, 0, 1])
    expected = sigmoid_focal_loss(logits, target.float(), alpha=-1, gamma=2.0, reduction="mean")
    torch.testing.assert_close(FocalLoss(2.0)(logits[:, None], target), expected)
    weighted = sigmoid_focal_loss(logits, target.float(), alpha=0.25, gamma=2.0, reduction="mean")
    torch.testing.assert_close(FocalLoss(2.0, (0.75, 0.25))(logits, target), weighted)


def test_balanced_weights_make_classes_count_alike() -> None:
    counts = (10, 30, 60)
    weights = class_balanced_weights(counts)
    assert [n * w for n, w in zip(counts, weights, strict=True)] == pytest.approx([counts[0] * weights[0]] * 3)
    assert sum(weights) == pytest.approx(3)
    # with beta near 1 the effective number is the number; with beta 0 all count alike
    assert class_balanced_weights(counts, 1 - 1e-9) == pytest.approx(weights, rel=1e-4)
    assert class_balanced_weights(counts, 0.0) == pytest.approx((1, 1, 1))


def test_corn_loss_equals_its_definition() -> None:
    logits = torch.tensor([[0.5, -0.3], [1.2, 0.4], [-0.8, 0.9]])
    target = torch.tensor([0, 1, 2])
    p = torch.sigmoid(logits)
    # task 0 is asked of all, task 1 of those beyond stage 0
    terms = [(1 - p[0, 0]).log(), p[1, 0].log(), p[2, 0].log(), (1 - p[1, 1]).log(), p[2, 1].log()]
    torch.testing.assert_close(CornLoss(3)(logits, target), -torch.stack(terms).mean())


def test_corn_probabilities_are_ordered_and_sum_to_one() -> None:
    logits = torch.randn(50, 4) * 5
    beyond, probabilities = corn_exceedance(logits), corn_probabilities(logits)
    assert bool((beyond.diff(dim=1) <= 0).all())
    assert probabilities.shape == (50, 5)
    assert bool((probabilities >= 0).all())
    torch.testing.assert_close(probabilities.sum(1), torch.ones(50))
    torch.testing.assert_close(probabilities[:, 3:].sum(1), beyond[:, 2])


def test_corn_can_be_learned() -> None:
    torch.manual_seed(0)
    score = torch.rand(300, 1) * 3
    target = score[:, 0].long()
    layer = torch.nn.Sequential(torch.nn.Linear(1, 16), torch.nn.ReLU(), torch.nn.Linear(16, 2))
    optimizer = torch.optim.Adam(layer.parameters(), 0.02)
    for _ in range(300):
        optimizer.zero_grad()
        CornLoss(3)(layer(score), target).backward()
        optimizer.step()
    accuracy = (corn_probabilities(layer(score)).argmax(1) == target).float().mean()
    assert accuracy > 0.95


def test_soft_labels_fall_with_distance_and_sharpen() -> None:
    soft = SoftOrdinalLoss(4, 1.0).soften(torch.tensor([1]))[0]
    assert soft[1] > soft[0]
    torch.testing.assert_close(soft[0], soft[2])
    assert soft[2] > soft[3]
    sharp = SoftOrdinalLoss(3, 100.0)
    torch.testing.assert_close(sharp(LOGITS, TARGET), F.cross_entropy(LOGITS, TARGET))


def test_bad_requests_are_named() -> None:
    with pytest.raises(ValueError, match="one logit"):
        WeightedBCELoss()(LOGITS, TARGET)
    with pytest.raises(ValueError, match="no training patient"):
        class_balanced_weights((3, 0))
    with pytest.raises(ValueError, match="CORN takes"):
        CornLoss(3)(LOGITS, TARGET)
    with pytest.raises(ValueError, match="label_smoothing"):
        BalancedCELoss(label_smoothing=1.0)
    with pytest.raises(ValueError, match="gamma"):
        FocalLoss(-1.0)
    with pytest.raises(ValueError, match="positive_weight"):
        WeightedBCELoss(0.0)


def test_the_losses_say_how_many_logits_they_take() -> None:
    assert [loss.outputs(2) for loss in (WeightedBCELoss(), BalancedCELoss(), FocalLoss(), CornLoss(2))] == [1] * 4
    assert [loss.outputs(3) for loss in (BalancedCELoss(), FocalLoss(), SoftOrdinalLoss(3))] == [3] * 3
    assert CornLoss(4).outputs(4) == 3
    with pytest.raises(ValueError, match="two classes, not 3; take BalancedCELoss"):
        WeightedBCELoss().outputs(3)
    with pytest.raises(ValueError, match=r"class_weights: has 2 weights for 3 classes"):
        FocalLoss(class_weights=(1, 2)).outputs(3)
    for loss in (CornLoss(3), SoftOrdinalLoss(3)):
        with pytest.raises(ValueError, match=r"has 3 stages, the model 4 classes; set it to 4"):
            loss.outputs(4)


def test_class_logits_give_the_losses_probabilities() -> None:
    several, single = torch.randn(20, 3) * 3, torch.randn(20, 1) * 3
    torch.testing.assert_close(BalancedCELoss().probabilities(several), several.softmax(1))
    torch.testing.assert_close(FocalLoss().probabilities(single)[:, 1], single[:, 0].sigmoid())
    corn = CornLoss(4)
    assert corn.class_logits(several).shape == (20, 4)
    torch.testing.assert_close(corn.class_logits(several).softmax(1), corn_probabilities(several), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(CornLoss(2).probabilities(single), corn_probabilities(single))


def test_corn_s_class_logits_are_finite_where_its_probabilities_vanish() -> None:
    extreme = torch.tensor([[80.0, -80.0], [-90.0, 90.0], [120.0, 120.0]])
    found = CornLoss(3).class_logits(extreme)
    assert bool(torch.isfinite(found).all())
    assert found.argmax(1).tolist() == [1, 0, 2]


def test_two_classes_as_one_logit_or_two_are_the_same_loss() -> None:
    logit, target = torch.randn(12, 1), torch.randint(0, 2, (12,))
    two = torch.cat([torch.zeros(12, 1), logit], 1)
    for loss in (BalancedCELoss((0.5, 2.0), 0.1), FocalLoss(1.5, (0.5, 2.0)), SoftOrdinalLoss(2)):
        torch.testing.assert_close(loss(logit, target), loss(two, target))
    # with the target's weight as sample weight, binary cross-entropy is the weighted cross-entropy
    expected = F.binary_cross_entropy_with_logits(
        logit[:, 0], target.float(), weight=torch.tensor([0.5, 2.0])[target], reduction="sum"
    )
    found = BalancedCELoss((0.5, 2.0))(logit, target) * torch.tensor([0.5, 2.0])[target].sum()
    torch.testing.assert_close(found, expected)


def test_balanced_weights_come_from_counts_and_stay_out_of_checkpoints() -> None:
    binary, focal, effective = (
        WeightedBCELoss("balanced"),
        FocalLoss(class_weights="balanced"),
        BalancedCELoss("balanced", beta=0.9),
    )
    assert not WeightedBCELoss(2.0).needs_counts
    for loss in (binary, focal, effective):
        assert loss.needs_counts
        loss.set_counts([30, 10])
        assert not loss.state_dict()
    assert float(binary.positive_weight) == 3.0
    assert focal.class_weights is not None and effective.class_weights is not None
    assert focal.class_weights.tolist() == pytest.approx(class_balanced_weights((30, 10)))
    assert effective.class_weights.tolist() == pytest.approx(class_balanced_weights((30, 10), 0.9))
    with pytest.raises(ValueError, match="no training patient"):
        binary.set_counts([3, 0])


def test_bad_weights_are_named() -> None:
    with pytest.raises(ValueError, match="'balanced', or null"):
        BalancedCELoss("blanced")  # type: ignore[arg-type]  # as a person may write it
    with pytest.raises(ValueError, match="each must be positive"):
        BalancedCELoss((1, 0))
    with pytest.raises(ValueError, match="class_weights: balanced alone"):
        FocalLoss(beta=0.9)
