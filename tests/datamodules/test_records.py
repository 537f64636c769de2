from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from datamodules.errors import InputError
from datamodules.records import RECORD_COLUMNS, class_columns, read_records, write_records


def rows(**changes: object) -> pd.DataFrame:
    base: dict[str, object] = {
        "patient_id": ["p1", "p2", "p3"],
        "scan_id": ["s1", "s2", "s3"],
        "source": "A",
        "arm": "direct",
        "seed": 0,
        "fold": [0, 0, 1],
        "part": "test",
        "split_sha256": "ab",
        "target": [0, 1, 1],
        "prob": [0.125, 0.5, 1.0],
        "threshold": 0.5,
        "quality": [None, 1, 3],
    }
    return pd.DataFrame(base | changes)


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
def test_round_trip_keeps_values_types_and_gaps(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / "deep" / f"predictions{suffix}"
    write_records(rows(x_note=["a", "b", "c"]), path)
    back = read_records(path)
    assert back["prob"].tolist() == [0.125, 0.5, 1.0]
    assert back["quality"].isna().tolist() == [True, False, False]
    assert str(back["target"].dtype) == "Int64"
    assert back["x_note"].tolist() == ["a", "b", "c"]
    assert [column for column in back.columns if column in RECORD_COLUMNS] == [
        column for column in RECORD_COLUMNS if column in back.columns
    ]
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"prob": [0.1, np.nan, 0.2]}, r"row 2 \(patient p2\): prob is NaN"),
        ({"prob": [0.1, 1.5, 0.2]}, r"row 2 .* not between 0 and 1"),
        ({"prob": [0.1, "high", 0.2]}, r"row 2: prob 'high' is not a number"),
        ({"target": [0, 2, 1]}, r"row 2 .* not a class from 0 to 1"),
        ({"target": [0, None, 1]}, r"row 2 .* target is empty"),
        ({"part": ["test", "tset", "test"]}, r"row 2 .* part is not train, valid or test"),
        ({"quality": [1, 2, 4]}, r"row 3 .* quality is not between 1 and 3"),
        ({"patient_id": ["p1", "p1", "p3"], "scan_id": ["s1", "s1", "s3"], "fold": 0}, r"rows 1, 2 .* more than once"),
        ({"treshold": 0.5}, r"unknown column 'treshold'; did you mean 'threshold'"),
        ({"prob_0": 0.5}, r"prob_0 to prob_k without a gap"),
        ({"dice": [0.9, 1.2, 0.8]}, r"row 2 .* dice is not between 0 and 1"),
        ({"mask_dice": [0.9, 1.2, 0.8]}, r"row 2 .* mask_dice is not between 0 and 1"),
    ],
)
def test_faults_name_row_and_patient_and_write_nothing(tmp_path: Path, changes: dict[str, object], words: str) -> None:
    path = tmp_path / "predictions.parquet"
    with pytest.raises(InputError, match=words):
        write_records(rows(**changes), path)
    assert not path.exists()


def test_all_faults_are_reported_together(tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        write_records(rows(prob=[np.nan, 2.0, 0.3], quality=9), tmp_path / "p.csv")
    assert len(error.value.faults) == 3


def test_several_classes(tmp_path: Path) -> None:
    frame = rows(target=[0, 2, 1]).drop(columns="prob").assign(prob_0=0.2, prob_1=0.3, prob_2=0.5)
    write_records(frame, tmp_path / "p.parquet")
    assert class_columns(read_records(tmp_path / "p.parquet")) == ["prob_0", "prob_1", "prob_2"]
    with pytest.raises(InputError, match="sum to 1"):
        write_records(frame.assign(prob_2=0.9), tmp_path / "q.parquet")


def test_segmentation_rows_need_no_target(tmp_path: Path) -> None:
    frame = rows().drop(columns=["target", "prob"]).assign(dice=[0.9, 0.8, 0.7], hd95_mm=[1.0, np.nan, 3.0])
    write_records(frame, tmp_path / "p.parquet")
    alone = frame.assign(dice=[0.9, np.nan, 0.7], volume_ml=1500.0, reference_volume_ml=[1400.0, np.nan, 1300.0])
    write_records(alone, tmp_path / "without_reference.parquet")
    with pytest.raises(InputError, match=r"row 2 .* dice is NaN"):
        write_records(alone.assign(reference_volume_ml=1400.0), tmp_path / "q.parquet")
    with pytest.raises(InputError, match="dice is NaN"):
        write_records(frame.assign(dice=[0.9, np.nan, 0.7]), tmp_path / "q.parquet")


def test_missing_column_missing_file_and_foreign_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="'arm' is missing"):
        write_records(rows().drop(columns="arm"), tmp_path / "p.csv")
    with pytest.raises(InputError, match="no such prediction record"):
        read_records(tmp_path / "none.parquet")
    (tmp_path / "broken.parquet").write_bytes(b"not a table")
    with pytest.raises(InputError, match="cannot be read as a table"):
        read_records(tmp_path / "broken.parquet")
