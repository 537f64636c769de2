from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from callbacks.overlays import HEIGHT, PREDICTED, REFERENCE, write_overlay
from datamodules.images import Volume
from tests.tiny import SHAPE, affine_of, phantom


def coloured(picture: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    return np.asarray((picture == np.array(colour)).all(axis=2))


def drawn(path: Path, kind: str, slices: int = 3, mask: np.ndarray | None = None) -> np.ndarray:
    image, liver = phantom(1, 200.0, kind)
    write_overlay(path, Volume(image, affine_of(kind)), liver if mask is None else mask, slices=slices)
    return np.asarray(Image.open(path))


def test_the_patients_right_is_on_the_left_for_every_affine(tmp_path: Path) -> None:
    pictures = [drawn(tmp_path / f"{kind}.png", kind, slices=1) for kind in ("ras", "lps")]
    # the same anatomy, stored in turned voxels, gives the same picture
    np.testing.assert_array_equal(pictures[0], pictures[1])
    _, columns = np.nonzero(coloured(pictures[0], PREDICTED))
    assert len(columns) > 20
    assert columns.mean() < 0.45 * pictures[0].shape[1], "the liver lies on the patient's right"


def test_proportions_follow_the_spacing(tmp_path: Path) -> None:
    picture = drawn(tmp_path / "a.png", "oblique", slices=2)
    assert picture.shape[0] == HEIGHT
    assert picture.shape[1] / 2 / HEIGHT == pytest.approx(SHAPE[0] / SHAPE[1], abs=0.02)


def test_mask_and_reference_have_their_colours(tmp_path: Path) -> None:
    image, liver = phantom(1, 200.0)
    write_overlay(tmp_path / "a.png", Volume(image, affine_of("ras")), np.roll(liver, 3, 0), liver)
    picture = np.asarray(Image.open(tmp_path / "a.png"))
    assert coloured(picture, PREDICTED).sum() > 20 and coloured(picture, REFERENCE).sum() > 20


def test_an_empty_mask_and_an_image_of_one_value(tmp_path: Path) -> None:
    picture = drawn(tmp_path / "a.png", "ras", mask=np.zeros(SHAPE, np.uint8))
    assert not coloured(picture, PREDICTED).any()
    write_overlay(tmp_path / "b.png", Volume(np.ones(SHAPE), affine_of("ras")), np.zeros(SHAPE, np.uint8))
    assert (tmp_path / "b.png").is_file()
