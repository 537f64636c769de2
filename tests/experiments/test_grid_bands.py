"""Arms that wait for no masks get the bands of all the same, once both are there, and nothing else is touched."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from datamodules.masks import MaskRecord, MaskSet
from datamodules.records import read_records, write_records
from experiments.grid_bands import fill_bands


def mask(name: str, dice: float | None, band: int | None) -> MaskRecord:
    return MaskRecord(f"{name}.nii.gz", "0" * 64, (), dice, band)


def record(folder: Path, **columns: list[object]) -> Path:
    frame = pd.DataFrame(
        {
            "patient_id": ["A", "B", "C"], "scan_id": ["A_T2W", "B_T2W", "C_T2W"], "arm": "direct", "seed": 0,
            "fold": 0, "part": "test", "split_sha256": "0" * 64, "target": [0, 1, 1],
            "prob": [0.2, 0.7, 0.6], **columns,
        }
    )  # fmt: skip
    folder.mkdir(exist_ok=True)
    write_records(frame, folder / "predictions.parquet")
    return folder


def masks(folder: Path) -> Path:
    folder.mkdir()
    made = {"A_T2W": mask("A_T2W", 0.95, 3), "B_T2W": mask("B_T2W", 0.8, 1)}
    MaskSet(folder, {}, made).save()
    return folder


def test_bands_are_filled_in_and_the_rest_stays(tmp_path: Path) -> None:
    run = record(tmp_path / "run", mask_source=["none"] * 3, quality=[None, None, 2])
    before = read_records(run / "predictions.parquet")
    assert fill_bands(run, masks(tmp_path / "masks"))
    after = read_records(run / "predictions.parquet")
    assert after["quality"].tolist() == [3, 1, 2], "the reader's band of a scan without mask stays"
    assert after["mask_dice"].tolist()[:2] == [0.95, 0.8] and pd.isna(after["mask_dice"][2])
    others = [column for column in before if column not in ("quality", "mask_dice")]
    pd.testing.assert_frame_equal(after[others], before[others])
    written = (run / "predictions.parquet").stat().st_mtime_ns
    assert not fill_bands(run, tmp_path / "masks"), "twice changes nothing"
    assert (run / "predictions.parquet").stat().st_mtime_ns == written


def test_perturbed_masks_keep_their_own(tmp_path: Path) -> None:
    run = record(tmp_path / "run", mask_source=["perturbed"] * 3, quality=[1, 1, 1], mask_dice=[0.4, 0.4, 0.4])
    assert not fill_bands(run, masks(tmp_path / "masks"))
