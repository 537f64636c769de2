"""Splits: disjoint, complete, stratified, repeatable; and files that are refused."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from datamodules.cohort import Cohort
from datamodules.splits import Splits, make_splits


def test_a_saved_split_is_read_back_as_it_was(tmp_path: Path) -> None:
    rows = [
        {"scan_id": f"{i}_T1W", "patient_id": str(i), "sequence": "T1W", "image": f"{i}.nii.gz", "source": "a"}
        for i in range(10)
    ]
    cohort = Cohort(pd.DataFrame(rows), tmp_path)
    splits = make_splits(cohort, "none", 5, 1)
    splits.save(tmp_path / "splits.json")
    assert Splits.load(tmp_path / "splits.json", cohort) == splits
