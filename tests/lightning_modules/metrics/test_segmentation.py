"""Segmentation metrics against MONAI and SciPy, on random and degenerate masks."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
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
    volume_ml,
)

Mask = npt.NDArray[np.bool_]
SPACING = (1.5, 1.2, 5.0)


def blob(seed: int, shape: tuple[int, int, int] = (26, 22, 12), level: float = 0.02) -> Mask:
    noise = np.random.default_rng(seed).normal(size=shape)
    return np.asarray(ndimage.gaussian_filter(noise, 2) > level)


def voxel(place: tuple[int, int, int]) -> Mask:
    mask = np.zeros((10, 9, 8), bool)
    mask[place] = True
    return mask


def full() -> Mask:
    return np.ones((10, 9, 8), bool)


PAIRS = [
    *((blob(seed), blob(seed + 50, level=0.03)) for seed in range(6)),
    (voxel((1, 2, 3)), voxel((8, 2, 6))),
    (voxel((0, 0, 0)), voxel((0, 0, 0))),
    (full(), voxel((4, 4, 4))),
    (full(), full()),
    (blob(3)[:, :, :1], blob(4)[:, :, :1]),
]


@pytest.mark.parametrize("pair", PAIRS)
def test_distances_equal_monais(pair: tuple[Mask, Mask]) -> None:
    pred, ref = (torch.from_numpy(np.ascontiguousarray(m))[None, None] for m in pair)
    hd95 = compute_hausdorff_distance(pred, ref, include_background=True, percentile=95, spacing=SPACING).item()
    assd = compute_average_surface_distance(pred, ref, include_background=True, symmetric=True, spacing=SPACING).item()
    assert hausdorff95_mm(*pair, SPACING) == pytest.approx(hd95, abs=1e-4)
    assert average_symmetric_surface_distance_mm(*pair, SPACING) == pytest.approx(assd, abs=1e-4)


@pytest.mark.parametrize("pair", PAIRS)
def test_surface_dice_equals_monais(pair: tuple[Mask, Mask]) -> None:
    pred, ref = (torch.from_numpy(np.ascontiguousarray(m))[None, None] for m in pair)
    # counted in voxels, as ours is
    expected = compute_surface_dice(pred, ref, [2.0], include_background=True, spacing=SPACING, use_subvoxels=False)
    assert normalised_surface_dice(*pair, SPACING, 2.0) == pytest.approx(expected.item(), abs=1e-4)


def test_distances_equal_all_pairs_of_surface_voxels() -> None:
    pred, ref = blob(11, (12, 10, 6)), blob(12, (12, 10, 6))

    def surface(mask: Mask) -> npt.NDArray[Any]:
        inner = ndimage.binary_erosion(mask, ndimage.generate_binary_structure(3, 1))
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
