"""Segmentation metrics against MONAI and SciPy, on random and degenerate masks."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from monai.metrics.confusion_matrix import get_confusion_matrix
from monai.metrics.hausdorff_distance import compute_hausdorff_distance
from monai.metrics.surface_dice import compute_surface_dice
from monai.metrics.surface_distance import compute_average_surface_distance
from scipy import ndimage
from scipy.spatial.distance import cdist

from lightning_modules.metrics.segmentation import (
    average_symmetric_surface_distance_mm,
    dice,
    hausdorff95_mm,
    iou,
    normalised_surface_dice,
    segmentation_scores,
    volume_difference_ml,
    volume_difference_percent,
    volume_ml,
)

Mask = npt.NDArray[np.bool_]
SPACING = (1.5, 1.2, 5.0)
SPACINGS = [SPACING, (1.0, 1.0, 1.0), (0.7, 3.1, 9.0)]


def blob(seed: int, shape: tuple[int, int, int] = (26, 22, 12), level: float = 0.02) -> Mask:
    noise = np.random.default_rng(seed).normal(size=shape)
    return np.asarray(ndimage.gaussian_filter(noise, 2) > level)


def voxel(place: tuple[int, int, int]) -> Mask:
    mask = np.zeros((10, 9, 8), bool)
    mask[place] = True
    return mask


def full() -> Mask:
    return np.ones((10, 9, 8), bool)


def half(axis: int, *, upper: bool) -> Mask:
    """Half of the grid, touching five of its six faces."""
    mask = np.zeros((10, 9, 8), bool)
    window = [slice(None)] * 3
    window[axis] = slice(4, None) if upper else slice(None, 5)
    mask[tuple(window)] = True
    return mask


PAIRS = [
    *((blob(seed), blob(seed + 50, level=0.03)) for seed in range(6)),
    (voxel((1, 2, 3)), voxel((8, 2, 6))),
    (voxel((0, 0, 0)), voxel((0, 0, 0))),
    (full(), voxel((4, 4, 4))),
    (full(), full()),
    (blob(3)[:, :, :1], blob(4)[:, :, :1]),
    (half(0, upper=True), half(0, upper=False)),
    (half(2, upper=True), half(1, upper=False)),
    (half(1, upper=False), voxel((9, 8, 7))),
]


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("pair", PAIRS)
def test_distances_equal_monais(pair: tuple[Mask, Mask], spacing: tuple[float, float, float]) -> None:
    pred, ref = (torch.from_numpy(np.ascontiguousarray(m))[None, None] for m in pair)
    hd95 = compute_hausdorff_distance(pred, ref, include_background=True, percentile=95, spacing=spacing).item()
    assd = compute_average_surface_distance(pred, ref, include_background=True, symmetric=True, spacing=spacing).item()
    assert hausdorff95_mm(*pair, spacing) == pytest.approx(hd95, abs=1e-4)
    assert average_symmetric_surface_distance_mm(*pair, spacing) == pytest.approx(assd, abs=1e-4)


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("tolerance_mm", [0.0, 2.0, 5.0])
@pytest.mark.parametrize("pair", PAIRS)
def test_surface_dice_equals_monais(
    pair: tuple[Mask, Mask], tolerance_mm: float, spacing: tuple[float, float, float]
) -> None:
    pred, ref = (torch.from_numpy(np.ascontiguousarray(m))[None, None] for m in pair)
    # counted in voxels, as ours is
    expected = compute_surface_dice(
        pred, ref, [tolerance_mm], include_background=True, spacing=spacing, use_subvoxels=False
    )
    assert normalised_surface_dice(*pair, spacing, tolerance_mm) == pytest.approx(expected.item(), abs=1e-4)


@pytest.mark.parametrize("pair", PAIRS)
def test_overlap_equals_monais(pair: tuple[Mask, Mask]) -> None:
    pred, ref = (torch.from_numpy(np.ascontiguousarray(m))[None, None] for m in pair)
    tp, fp, _, fn = get_confusion_matrix(pred.float(), ref.float(), include_background=True)[0, 0].tolist()
    assert dice(*pair) == pytest.approx(2 * tp / (2 * tp + fp + fn), abs=1e-6)
    assert iou(*pair) == pytest.approx(tp / (tp + fp + fn), abs=1e-6)


@pytest.mark.parametrize(
    ("pred", "ref"),
    [
        (blob(11, (12, 10, 6)), blob(12, (12, 10, 6))),
        (full(), voxel((0, 8, 7))),
        (half(0, upper=True), half(2, upper=False)),
    ],
)
def test_distances_equal_all_pairs_of_surface_voxels(pred: Mask, ref: Mask) -> None:

    def surface(mask: Mask) -> npt.NDArray[Any]:
        # what lies beyond the scan is no liver
        inner = ndimage.binary_erosion(mask, ndimage.generate_binary_structure(3, 1), border_value=0)
        places: npt.NDArray[Any] = np.argwhere(mask & ~inner) * np.asarray(SPACING)
        return places

    distances = cdist(surface(pred), surface(ref))
    there, back = distances.min(1), distances.min(0)
    expected = max(np.percentile(there, 95), np.percentile(back, 95))
    assert hausdorff95_mm(pred, ref, SPACING) == pytest.approx(expected, abs=1e-9)
    assert average_symmetric_surface_distance_mm(pred, ref, SPACING) == pytest.approx(
        np.concatenate([there, back]).mean(), abs=1e-9
    )


@pytest.mark.parametrize("seed", range(4))
def test_dice_and_iou_equal_their_definitions_and_each_other(seed: int) -> None:
    pred, ref = blob(seed), blob(seed + 9)
    tp, fp, fn = (pred & ref).sum(), (pred & ~ref).sum(), (~pred & ref).sum()
    assert dice(pred, ref) == pytest.approx(2 * tp / (2 * tp + fp + fn), abs=1e-12)
    assert iou(pred, ref) == pytest.approx(tp / (tp + fp + fn), abs=1e-12)
    assert iou(pred, ref) == pytest.approx(dice(pred, ref) / (2 - dice(pred, ref)), abs=1e-12)


def test_laws() -> None:
    pred, ref = blob(1), blob(2)
    assert segmentation_scores(ref, ref, SPACING)[:5] == (1.0, 1.0, 0.0, 0.0, 1.0)
    assert hausdorff95_mm(pred, ref, SPACING) == hausdorff95_mm(ref, pred, SPACING)
    doubled = tuple(2 * step for step in SPACING)
    assert hausdorff95_mm(pred, ref, doubled) == pytest.approx(2 * hausdorff95_mm(pred, ref, SPACING))
    assert volume_ml(pred, doubled) == pytest.approx(8 * volume_ml(pred, SPACING))
    # numbers other than 1 count as liver, and empty space around changes nothing
    wide = tuple(np.pad(m.astype(np.uint8) * 7, 5) for m in (pred, ref))
    inner = segmentation_scores(np.pad(pred, 1), np.pad(ref, 1), SPACING)
    assert segmentation_scores(wide[0], wide[1], SPACING) == pytest.approx(inner)


def test_volume_is_in_ml() -> None:
    mask = np.zeros((20, 20, 20), np.uint8)
    mask[:10, :10, :10] = 1
    assert volume_ml(mask, (1.0, 1.0, 1.0)) == pytest.approx(1.0)


def test_volume_differences_in_ml_and_percent() -> None:
    pred, ref = np.zeros((10, 10, 10), bool), np.zeros((10, 10, 10), bool)
    pred[:, :, :3], ref[:, :, :4] = True, True
    spacing = (1.0, 2.0, 5.0)
    assert volume_difference_ml(pred, ref, spacing) == pytest.approx(-1.0), "100 voxels of 10 cubic mm less"
    assert volume_difference_percent(pred, ref, spacing) == pytest.approx(-25.0)
    scores = segmentation_scores(pred, ref, spacing)
    assert (scores.volume_difference_ml, scores.volume_difference_percent) == pytest.approx((-1.0, -25.0))
    empty = np.zeros_like(ref)
    assert volume_difference_percent(empty, ref, spacing) == -100.0
    assert volume_difference_percent(empty, empty, spacing) == 0.0
    assert math.isnan(volume_difference_percent(ref, empty, spacing))
    assert math.isnan(segmentation_scores(ref, empty, spacing).volume_difference_percent)
    with pytest.raises(ValueError, match="different grids"):
        volume_difference_ml(ref, ref[:5], spacing)


def test_empty_masks_follow_the_policy() -> None:
    empty, ref = np.zeros((26, 22, 12), bool), blob(1)
    both = segmentation_scores(empty, empty, SPACING)
    assert both == (1.0, 1.0, 0.0, 0.0, 1.0, 0.0, 0.0)
    for pred, truth in ((empty, ref), (ref, empty)):
        scores = segmentation_scores(pred, truth, SPACING)
        assert (scores.dice, scores.iou, scores.surface_dice) == (0.0, 0.0, 0.0)
        assert math.isnan(scores.hd95_mm)
        assert math.isnan(scores.assd_mm)
        assert normalised_surface_dice(pred, truth, SPACING) == 0.0


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match="different grids"):
        dice(np.ones((3, 3, 3)), np.ones((3, 3, 4)))
    with pytest.raises(ValueError, match="spacing"):
        hausdorff95_mm(full(), full(), (1.0, 1.0, 0.0))
    with pytest.raises(ValueError, match="spacing"):
        volume_ml(full(), (1.0, 1.0))
    with pytest.raises(ValueError, match="tolerance"):
        normalised_surface_dice(full(), full(), SPACING, -1.0)
