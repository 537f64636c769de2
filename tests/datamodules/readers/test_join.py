from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from datamodules.cohort import Cohort
from datamodules.errors import InputError
from datamodules.readers.join import join


def cohort(root: Path, name: str, rows: list[tuple[str, str]], **more: object) -> Cohort:
    frame = pd.DataFrame(
        [
            {"scan_id": scan, "patient_id": patient, "sequence": "T2W", "image": f"{scan}.nii", "source": name, **more}
            for scan, patient in rows
        ]
    )
    return Cohort(frame, root / name, name)


def test_rows_keep_their_values_and_files(tmp_path: Path) -> None:
    first = cohort(tmp_path, "a", [("a1", "1"), ("a2", "2")], lsm_kpa=12.5, healthy=False, x_alt="40")
    second = cohort(tmp_path, "b", [("b1", "3")], metavir=2)
    joined = join([first, second])
    assert joined.scans == (*first.scans, *second.scans)
    saved = tmp_path / "out" / "joined.parquet"
    joined.save(saved)
    assert Cohort.load(saved).frame["x_alt"].isna().tolist() == [False, False, True]


def test_a_shared_patient_id_needs_a_word(tmp_path: Path) -> None:
    first, second = cohort(tmp_path, "a", [("a1", "7")]), cohort(tmp_path, "b", [("b1", "7")])
    with pytest.raises(InputError, match=r"a and b: 1 patient_ids are in both: 7; .*--shared-patients"):
        join([first, second])
    assert join([first, second], shared_patients=True).patients == ("7",)


def test_shared_scan_ids_one_table_and_a_table_twice(tmp_path: Path) -> None:
    first, second = cohort(tmp_path, "a", [("s", "1")]), cohort(tmp_path, "b", [("s", "2")])
    with pytest.raises(InputError, match="a and b: 1 scan_ids are in both: s"):
        join([first, second], shared_patients=True)
    with pytest.raises(InputError, match="nothing to join"):
        join([first])
    with pytest.raises(InputError, match="a: is named twice"):
        join([first, first])
