"""The class form against the functional one, in one process and in two real ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor, nn

from lightning_modules.losses.segmentation import DeepSupervisionLoss, DiceCELoss
from lightning_modules.metrics.segmentation import segmentation_scores
from lightning_modules.metrics.segmentation_metric import NAMES, SegmentationMetrics
from lightning_modules.networks.unet import NNUNet
from tests.two_processes import in_two_processes

SPACINGS = [(1.0, 1.0, 1.0), (1.5, 1.2, 5.0), (3.0, 3.0, 7.7)]
SCANS = 7


def scan(number: int) -> tuple[Tensor, Tensor, tuple[float, float, float]]:
    """Prediction and reference of shape (1, 16, 14, 6); scan 5 has an empty prediction, scan 6 two empty masks."""
    rng = np.random.default_rng(number)
    reference = ndimage.gaussian_filter(rng.normal(size=(16, 14, 6)), 2) > 0.02
    predicted = np.roll(reference, number % 3, axis=number % 2)
    if number >= 5:
        predicted = np.zeros_like(reference)
    if number == 6:
        reference = np.zeros_like(reference)
    return torch.from_numpy(predicted)[None], torch.from_numpy(reference)[None], SPACINGS[number % 3]


def measured(numbers: list[int]) -> SegmentationMetrics:
    metric = SegmentationMetrics()
    for number in numbers:
        predicted, reference, spacing = scan(number)
        metric.update(predicted, reference, spacing, [f"scan {number}"])
    return metric


def test_means_equal_the_functional_forms() -> None:
    result = measured(list(range(SCANS))).compute()
    rows = []
    for number in range(SCANS):
        predicted, reference, spacing = scan(number)
        rows.append(segmentation_scores(predicted[0].numpy(), reference[0].numpy(), spacing))
    for name in NAMES:
        values = np.array([getattr(row, name) for row in rows])
        assert float(result[name]) == pytest.approx(np.nanmean(values), abs=1e-12), name
    assert int(result["scans"]) == SCANS
    assert int(result["scans_without_distance"]) == 1


def test_a_batch_with_a_spacing_each() -> None:
    metric = SegmentationMetrics()
    predicted, reference, spacings = zip(*(scan(number) for number in range(3)), strict=True)
    metric.update(torch.stack(predicted), torch.stack(reference), spacings, ["scan 0", "scan 1", "scan 2"])
    torch.testing.assert_close(metric.compute(), measured([0, 1, 2]).compute())


def test_what_does_not_fit_and_what_is_not_there() -> None:
    predicted, reference, spacing = scan(0)
    with pytest.raises(ValueError, match="do not fit"):
        SegmentationMetrics().update(predicted, reference[..., :3], spacing, ["a"])
    with pytest.raises(ValueError, match="do not fit"):
        SegmentationMetrics().update(predicted, reference, spacing, ["a", "b"])
    with pytest.raises(ValueError, match="no scan"), pytest.warns(UserWarning, match="before the"):
        SegmentationMetrics().compute()


def share(rank: int, parts: list[list[list[int]]]) -> list[dict[str, Tensor]]:
    """The metrics of each way to deal the scans, as this rank sees them, and a loss with its gradient."""
    results = []
    for part in parts:
        results.append(measured(part[rank]).compute())
    return [*results, loss_of(rank), network_of(rank)]


def network_of(rank: int | None) -> dict[str, Tensor]:
    """Loss and gradient of a network with deep supervision after two steps, under DDP or with the whole batch."""
    torch.manual_seed(0)
    network = NNUNet(features=(2, 4, 4))
    images, target = torch.randn(4, 1, 8, 8, 8), torch.randint(0, 2, (4, 1, 8, 8, 8))
    if rank is not None:
        images, target = images[rank::2], target[rank::2]
    # DDP stops at the second step where a parameter has had no gradient in the first
    model: nn.Module = network if rank is None else nn.parallel.DistributedDataParallel(network)
    loss_function = DeepSupervisionLoss(DiceCELoss(batch_dice=True))
    for _ in range(2):
        network.zero_grad()
        loss: Tensor = loss_function(model(images), target)
        loss.backward()  # type: ignore[no-untyped-call]  # torch's own
    # the lowest level's head has weight 0: no gradient in one process, zeros in several
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in network.parameters()]
    return {"gradient": torch.cat([gradient.flatten() for gradient in gradients])}


def loss_of(rank: int | None) -> dict[str, Tensor]:
    """Batch-Dice loss and gradient of one rank's two items, or of all four."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(4, 1, 8, 8, 4, generator=generator)
    target = torch.randint(0, 2, (4, 1, 8, 8, 4), generator=generator)
    target[:2] = 0  # the ranks' own Dice differ as much as can be
    weight = nn.Parameter(torch.tensor([0.3, -0.2, 0.7]))
    if rank is not None:
        images, target = images[2 * rank : 2 * rank + 2], target[2 * rank : 2 * rank + 2]
    full = torch.cat([images * weight[0], images * weight[1]], 1)
    low = nn.functional.avg_pool3d(full, 2) * weight[2]
    loss = DeepSupervisionLoss(DiceCELoss(batch_dice=True, ce_weight=0.0))([full, low], target)
    (gradient,) = torch.autograd.grad(loss, weight)
    return {"loss": loss.detach(), "gradient": gradient}


def test_two_processes_give_what_one_gives(tmp_path: Path) -> None:
    # uneven counts; an id doubled by the sampler's padding; a rank without any scan
    parts = [[[0, 2, 4, 6], [1, 3, 5]], [[0, 2, 4, 6], [1, 3, 5, 0]], [list(range(SCANS)), []], [[], [1, 2]]]
    expected = [measured(list(range(SCANS))).compute()] * 3 + [measured([1, 2]).compute()]
    ranks = in_two_processes(share, parts, tmp_path)
    for rank in ranks:
        for found, wanted in zip(rank[: len(expected)], expected, strict=True):
            assert set(found) == set(wanted)
            for name, value in wanted.items():
                torch.testing.assert_close(found[name], value, equal_nan=True, atol=1e-12, rtol=0)
    whole = loss_of(None)
    for rank in ranks:
        torch.testing.assert_close(rank[-2]["loss"], whole["loss"])
    # DDP takes the mean of the ranks' gradients
    torch.testing.assert_close((ranks[0][-2]["gradient"] + ranks[1][-2]["gradient"]) / 2, whole["gradient"])
    for rank in ranks:
        torch.testing.assert_close(rank[-1]["gradient"], network_of(None)["gradient"], atol=1e-5, rtol=1e-4)
