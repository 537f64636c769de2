"""Masks made worse on purpose: by law, on a liver-like shape with thick slices."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from scipy import ndimage

from datamodules.errors import InputError
from datamodules.perturbation import MaskPerturbation, dice_of, signed_distance, transplanted

SPACING = (2.5, 2.0, 7.0)
SHAPE = (48, 60, 18)


@pytest.fixture
def liver() -> np.ndarray:
    i, j, k = ((np.arange(n) - centre) * step for n, centre, step in zip(SHAPE, (24, 28, 9), SPACING, strict=True))
    return np.asarray((i[:, None, None] / 38) ** 2 + (j[:, None] / 30) ** 2 + (k / 35) ** 2 < 1)


def made(mask: np.ndarray, scan: str = "P1_T2W", **options: Any) -> np.ndarray:
    perturbation = MaskPerturbation(**options)
    return perturbation.apply(mask, SPACING, perturbation.stream(scan))


@pytest.mark.parametrize("kind", ["dilate", "erode", "shift"])
def test_zero_mm_is_the_identity_and_dice_falls_with_mm(kind: str, liver: np.ndarray) -> None:
    assert np.array_equal(made(liver, kind=kind, mm=0), liver)
    values = [dice_of(made(liver, kind=kind, mm=mm), liver) for mm in (0, 3, 6, 12, 24)]
    assert values[0] == 1
    assert all(later < earlier for earlier, later in itertools.pairwise(values))


def test_a_ball_in_mm_whatever_the_slices(liver: np.ndarray) -> None:
    """Against dilation and erosion by a ball of voxels, counted by its definition."""
    reach = [int(6 // step) for step in SPACING]
    offsets = np.meshgrid(*(np.arange(-n, n + 1) * step for n, step in zip(reach, SPACING, strict=True)), indexing="ij")
    ball = sum(axis**2 for axis in offsets) <= 6**2
    assert ball.shape[2] == 1, "a neighbouring slice is 7 mm away"
    assert np.array_equal(made(liver, kind="dilate", mm=6), ndimage.binary_dilation(liver, ball))
    assert np.array_equal(made(liver, kind="erode", mm=6), ndimage.binary_erosion(liver, ball, border_value=1))


def test_a_shift_moves_the_centre_by_so_many_mm(liver: np.ndarray) -> None:
    moved = made(liver, kind="shift", mm=12)
    centres = [np.array(ndimage.center_of_mass(mask)) * SPACING for mask in (liver, moved)]
    assert np.linalg.norm(centres[1] - centres[0]) == pytest.approx(12, abs=1.0)
    assert moved.sum() == pytest.approx(liver.sum(), rel=0.04)


@pytest.mark.parametrize("wanted", [0.95, 0.8, 0.5])
def test_as_bad_as_a_dice(wanted: float, liver: np.ndarray) -> None:
    assert dice_of(made(liver, kind="degrade", dice=wanted), liver) == pytest.approx(wanted, abs=0.02)


def test_a_dice_of_one_and_an_empty_mask_stay(liver: np.ndarray) -> None:
    assert np.array_equal(made(liver, kind="degrade", dice=1.0), liver)
    assert not made(np.zeros_like(liver), kind="dilate", mm=5).any()
    assert not made(liver, kind="erode", mm=100).any(), "nothing may be left: the arm then says so"


def test_the_scan_and_the_seed_alone_decide(liver: np.ndarray) -> None:
    first = made(liver, kind="degrade", dice=0.8)
    assert np.array_equal(first, made(liver, kind="degrade", dice=0.8))
    assert not np.array_equal(first, made(liver, kind="degrade", dice=0.8, seed=1))
    assert not np.array_equal(first, made(liver, "P2_T2W", kind="degrade", dice=0.8))
    centres = [np.array(ndimage.center_of_mass(made(liver, kind="shift", mm=mm))) * SPACING for mm in (0, 8, 16)]
    steps = [centre - centres[0] for centre in centres[1:]]
    cosine = steps[0] @ steps[1] / np.linalg.norm(steps[0]) / np.linalg.norm(steps[1])
    assert cosine > 0.98, "a stronger shift goes the same way"


def test_signed_distance_is_positive_inside(liver: np.ndarray) -> None:
    field = signed_distance(liver, SPACING)
    assert np.array_equal(field > 0, liver)
    assert field.max() == pytest.approx(ndimage.distance_transform_edt(liver, sampling=SPACING).max())


def test_another_patients_mask_lies_about_this_scans_centre(liver: np.ndarray) -> None:
    affine = np.diag([*SPACING, 1.0])
    assert np.array_equal(transplanted(liver, affine, SHAPE, affine), liver), "the same grid: voxel by voxel"
    # the same liver stored from left to right and elsewhere in space: the patient's right stays right
    flipped = np.diag([-SPACING[0], SPACING[1], SPACING[2], 1.0])
    flipped[:3, 3] = (300.0, -50.0, 20.0)
    assert np.array_equal(transplanted(liver[::-1], flipped, SHAPE, affine), liver)
    fine = np.diag([1.25, 1.0, 7.0, 1.0])
    volume = transplanted(liver, affine, (96, 120, 18), fine).sum() * 1.25 * 1.0
    assert volume == pytest.approx(liver.sum() * 2.5 * 2.0, rel=0.03)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"kind": "melt", "mm": 3}, "kind 'melt': choose one of dilate"),
        ({"kind": "dilate"}, "mm: dilate needs it"),
        ({"kind": "dilate", "mm": -1}, "mm -1: give 0 to 100 mm"),
        ({"kind": "dilate", "mm": 3, "dice": 0.9}, "dice: dilate does not take it"),
        ({"kind": "degrade", "dice": 0}, "dice 0: give a Dice above 0"),
        ({"kind": "swap", "mm": 3}, "mm: swap does not take it"),
        ({"kind": "swap", "seed": -1}, "seed -1"),
    ],
)
def test_what_makes_no_sense(options: dict[str, Any], match: str) -> None:
    with pytest.raises(InputError, match=match):
        MaskPerturbation(**options)
