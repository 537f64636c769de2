"""Pictures of attention: the right slices in the right order, the right way up, in the run directory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from callbacks.attention import SLICES, write_attention
from callbacks.overlays import HEIGHT
from datamodules.records import read_records
from experiments.lightning_cli import fit_and_test
from tests.tiny import CLASSIFIER, TESTED, Tiny


def test_slices_by_weight_and_places_by_attention(tmp_path: Path) -> None:
    image = np.zeros((20, 10, 5), dtype=np.float32)
    image[:, :, 2], image[:, :, 4] = 50, 100
    slices = np.array([0.0, 0.0, 0.6, 0.1, 0.3])
    locations = np.zeros((5, 20, 10))
    # the patient's left (high I) and front (high J)
    locations[2, 15:, 7:] = 1.0
    write_attention(tmp_path / "a.png", image, slices, locations)
    picture = np.asarray(Image.open(tmp_path / "a.png")).astype(int)
    width = 2 * HEIGHT
    assert picture.shape == (HEIGHT + 8, SLICES * width, 3)
    first, second, third = (picture[:HEIGHT, place * width : (place + 1) * width] for place in range(3))
    assert second.mean() > first.mean() > third.mean() == 0, "slice 2 (grey), slice 4 (white), slice 3 (black)"
    redness = first[..., 0] - first[..., 2]
    assert redness[: HEIGHT // 4, : width // 8].mean() > 100, "high I is on the picture's left, high J at the top"
    assert not redness[HEIGHT // 2 :, width // 2 :].any()
    bars = [picture[-1, place * width : (place + 1) * width, 0].astype(bool).mean() for place in range(3)]
    assert np.allclose(bars, [0.6, 0.3, 0.1], atol=0.01)


def test_without_places_the_slices_alone_are_drawn(tmp_path: Path) -> None:
    image = np.random.default_rng(0).normal(size=(8, 8, 2))
    write_attention(tmp_path / "a.png", image, np.array([0.25, 0.75]), None, (2.0, 1.0))
    assert Image.open(tmp_path / "a.png").size == (2 * 2 * HEIGHT, HEIGHT + 8)


def test_each_tested_scan_has_one(tiny_cohort: Tiny, tmp_path: Path) -> None:
    assert not fit_and_test([*tiny_cohort.words("direct", runs=tmp_path), *CLASSIFIER])
    (run,) = tmp_path.glob("*/*/*/provenance.json")
    pictures = sorted(path.stem for path in (run.parent / "attention").glob("*.png"))
    assert pictures == sorted(f"{patient}_T2W" for patient in TESTED)
    rows = read_records(run.parent / "predictions.parquet")
    assert rows["x_attention_inside"].between(0, 1).all(), "measured by the reference, which the arm never sees"
