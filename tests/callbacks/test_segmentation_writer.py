from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import nibabel as nib
import numpy as np
import pytest
import torch

from callbacks.segmentation_writer import SegmentationWriter, liver_logit, measured, native_mask
from datamodules.images import read_image, read_mask, spacing_of
from datamodules.preprocessing import Preprocessing, preprocess
from tests.tiny import SHAPE, Tiny, affine_of, phantom, write

GRIDS = [
    Preprocessing(spacing=(10.0, 10.0, 20.0)),
    Preprocessing(spacing=(10.0, 10.0, 20.0), shape=(32, 32, 12)),
    Preprocessing(spacing=(5.0, 5.0, 10.0)),
]


@pytest.mark.parametrize("kind", ["ras", "lps", "oblique"])
@pytest.mark.parametrize("grid", GRIDS)
def test_the_way_back_finds_every_voxel(kind: str, grid: Preprocessing, tmp_path: Path) -> None:
    image, mask = phantom(1, 200.0, kind)
    image_path = write(tmp_path / "i.nii.gz", image, affine_of(kind))
    mask_path = write(tmp_path / "m.nii.gz", mask, affine_of(kind))
    volume, reference = read_image(image_path), read_mask(mask_path, (1,))
    _, on_grid, geometry = preprocess(volume, reference, grid)
    assert on_grid is not None
    back = native_mask(np.where(on_grid > 0, 1.0, -1.0).astype(np.float32), geometry)
    assert back.dtype == np.uint8 and back.shape == SHAPE
    overlap = 2 * (back & mask).sum() / (back.sum() + mask.sum())
    assert overlap == 1.0 if grid.spacing == (10.0, 10.0, 20.0) else overlap > 0.9


def test_what_was_cropped_away_is_background(tmp_path: Path) -> None:
    image, _ = phantom(1, 200.0)
    path = write(tmp_path / "i.nii.gz", image, affine_of("ras"))
    grid = Preprocessing(spacing=(10.0, 10.0, 20.0), shape=(12, 10, 4))
    array, _, geometry = preprocess(read_image(path), None, grid)
    back = native_mask(np.ones_like(array), geometry)
    assert back.sum() == 12 * 10 * 4
    assert back[6:18, 5:15, 2:6].all()


def test_log_odds() -> None:
    logits = torch.randn(2, 3, 4, 5)
    odds = liver_logit(logits)
    share = torch.softmax(logits, 0)[1].numpy()
    np.testing.assert_allclose(1 / (1 + np.exp(-odds)), share, rtol=1e-5)
    np.testing.assert_array_equal(odds > 0, logits.argmax(0).numpy() == 1)


def test_measures_in_mm_and_ml(tiny_cohort: Tiny) -> None:
    scan = tiny_cohort.table.scan("P02_T2W")
    assert scan.mask is not None
    image = nib.load(scan.mask)
    reference, spacing = np.asarray(image.dataobj), spacing_of(image.affine)
    row = measured(reference, reference, spacing)
    assert (row["dice"], row["iou"], row["hd95_mm"], row["assd_mm"], row["quality"]) == (1.0, 1.0, 0.0, 0.0, 3)
    # a voxel has 10 x 10 x 20 mm, 2 ml, whatever the tilt
    assert row["volume_ml"] == pytest.approx(2.0 * reference.sum()) == row["reference_volume_ml"]
    assert row["nsd"] == 1.0
    shifted = np.roll(reference, 1, axis=0)
    row = measured(shifted, reference, spacing)
    assert row["dice"] == pytest.approx(2 * (shifted & reference).sum() / (2 * reference.sum()))
    assert row["hd95_mm"] == pytest.approx(10.0)


def test_without_a_reference_only_the_volume_is_known() -> None:
    row = measured(np.ones(SHAPE, np.uint8), None, (10.0, 10.0, 20.0))
    assert row["volume_ml"] == pytest.approx(2.0 * np.prod(SHAPE))
    assert {row[name] for name in row if name != "volume_ml"} == {None}


def test_the_writer_keeps_the_largest_part_where_it_is_asked_to(
    tiny_cohort: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scan = tiny_cohort.table.scan("P02_T2W")
    volume = read_image(scan.image)
    array, _, geometry = preprocess(volume, None, Preprocessing(spacing=None))
    liver = np.full(array.shape, -5.0, dtype=np.float32)
    liver[2:12, 2:12, 2:6] = 5.0
    liver[-2:, -2:, -1:] = 5.0
    outputs = {"logits": torch.from_numpy(np.stack([np.zeros_like(liver), liver]))[None], "scan_id": [scan.scan_id]}
    module = SimpleNamespace(
        cohort=tiny_cohort.table,
        store=SimpleNamespace(entry=lambda item: SimpleNamespace(geometry=geometry)),
        facts=lambda scan_id: {"scan_id": scan_id},
    )
    monkeypatch.setattr("callbacks.segmentation_writer.datamodule_of", lambda trainer: module)
    sizes = {}
    for largest in (False, True):
        writer = SegmentationWriter(overlays=False, largest_component=largest)
        trainer: Any = SimpleNamespace(default_root_dir=str(tmp_path / str(largest)))
        writer.on_test_batch_end(trainer, cast(Any, None), outputs, {}, 0)
        written = read_mask(tmp_path / str(largest) / "masks" / f"{scan.scan_id}.nii.gz", (1,))
        sizes[largest] = int(written.data.sum())
    assert sizes == {False: 400 + 4, True: 400}
