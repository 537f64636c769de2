from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from datamodules.cohort import COLUMNS, Cohort
from datamodules.errors import InputError
from tests.tiny import PATIENTS, WITHOUT_T1W, Tiny


def rows(**changes: object) -> pd.DataFrame:
    """Three rows; a change gives a column's three values."""
    base = {
        "scan_id": ["a", "b", "c"],
        "patient_id": ["p1", "p1", "p2"],
        "sequence": ["T1W", "T2W", "T2W"],
        "image": ["a.nii.gz", "b.nii.gz", "c.nii.gz"],
        "source": ["here"] * 3,
    }
    return pd.DataFrame({**base, **changes})


def faults_of(frame: pd.DataFrame) -> tuple[str, ...]:
    with pytest.raises(InputError) as caught:
        Cohort(frame, Path("/data"), "t.csv")
    return caught.value.faults


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
def test_a_table_comes_back_as_it_was(suffix: str, tmp_path: Path) -> None:
    frame = rows(
        mask=["m.nii.gz", None, None], mask_labels=["1,2", None, None], stage=[1, 3, None], lsm_kpa=[4.5, None, 12.0],
        metavir=[0, 4, None], healthy=[True, False, None], age=[50, None, 61.5], sex=["F", "M", None],
        visit=["1", "1", None], official_split=["train", "test", None], x_alt=["31", "x", "7"],
    )  # fmt: skip
    cohort = Cohort(frame, tmp_path, "t")
    cohort.save(tmp_path / f"t{suffix}")
    again = Cohort.load(tmp_path / f"t{suffix}")
    pd.testing.assert_frame_equal(again.frame, cohort.frame, check_dtype=suffix == ".parquet")
    assert again.scans == cohort.scans
    assert again.sha256 == cohort.sha256
    assert tuple(again.frame.columns) == (*COLUMNS, "x_alt")
    scan = again.scan("a")
    assert (scan.mask_labels, scan.stage, scan.lsm_kpa, scan.healthy) == ((1, 2), 1, 4.5, True)
    assert again.scan("b").lsm_kpa is None and again.scan("c").healthy is None


def test_paths_are_relative_to_the_table(tiny_cohort: Tiny, tmp_path: Path) -> None:
    moved = tmp_path / "deep" / "er" / "copy.csv"
    tiny_cohort.table.save(moved)
    assert "../" in moved.read_text()
    assert all(scan.image.is_file() for scan in Cohort.load(moved))


def test_the_hash_follows_content_alone(tiny_cohort: Tiny, tmp_path: Path) -> None:
    table = tiny_cohort.table
    shuffled = Cohort(table.frame.sample(frac=1, random_state=3), tmp_path, "x")
    assert shuffled.sha256 == table.sha256
    changed = table.frame.copy()
    changed.loc[0, "lsm_kpa"] = 21.0
    assert Cohort(changed, tmp_path).sha256 != table.sha256


def test_all_faults_are_said_at_once() -> None:
    faults = faults_of(
        rows(scan_id=["a", "a", "x/y"], source=["here", None, "here"], lsm_kpa=["5", "300", "soft"], stage=[1, 2, 9])
    )
    text = "\n".join(faults)
    for part in (
        "row 3: lsm_kpa 'soft' is not a number",
        "row 2: lsm_kpa 300.0 is not a liver stiffness",
        "row 3: stage 9 is not a radiological stage",
        "row 2: source is empty",
        "row 3: scan_id 'x/y' has a slash",
        "rows 1, 2: scan_id 'a' occurs 2 times",
    ):
        assert part in text
    assert all(fault.startswith("t.csv: ") for fault in faults)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"metvir": [1, 2, 3]}, "unknown column 'metvir'; did you mean 'metavir'?"),
        ({"hba1c": [1, 2, 3]}, "unknown column 'hba1c'; your own columns begin with 'x_'"),
        ({"mask": ["m.nii.gz", None, None]}, "row 1: a mask without mask_labels"),
        ({"mask": ["m", None, None], "mask_labels": ["0", None, None]}, "row 1: mask_labels '0' is not a list"),
        ({"healthy": ["yes", "no", "perhaps"]}, "row 3: healthy 'perhaps' is not true or false"),
        ({"stage": [1, 2.5, 3]}, "row 2: stage 2.5 is not a whole number"),
        ({"sex": ["F", "female", "M"]}, "row 2: sex 'female' is not F or M"),
        ({"age": [50, 130, 1]}, "row 2: age 130.0 is not an age"),
        ({"official_split": ["train", "dev", "test"]}, "row 2: official_split 'dev'"),
        ({"metavir": [5, 1, 2]}, "row 1: metavir 5 is not a METAVIR stage"),
        ({"scan_id": ["..", "b", "c"]}, "row 1: scan_id '..'"),
    ],
)
def test_each_fault_names_row_and_column(changes: dict[str, object], expected: str) -> None:
    (fault,) = faults_of(rows(**changes))
    assert expected in fault


def test_a_table_without_rows_or_columns() -> None:
    assert any("no rows" in fault for fault in faults_of(rows().head(0)))
    faults = faults_of(rows().drop(columns=["source", "image"]))
    assert [fault for fault in faults if "'source' is missing" in fault]
    assert len(faults) == 2, "one line a missing column, not one a row"


def test_selecting(tiny_cohort: Tiny) -> None:
    table = tiny_cohort.table
    t1 = table.select(sequences=["T1W"])
    assert len(t1) == len(PATIENTS) - 1 and WITHOUT_T1W not in t1.patients
    assert table.select(patients=["P01"]).patients == ("P01",)
    with pytest.raises(InputError, match="no sequence FLAIR; it has T1W, T2W"):
        table.select(sequences=["FLAIR"])
    with pytest.raises(InputError, match="no scan is left"):
        table.select(sequences=["T1W"], patients=[WITHOUT_T1W])
    with pytest.raises(InputError, match="no scan 'nope'"):
        table.scan("nope")


def test_a_spreadsheets_csv(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes("\ufeff".encode() + rows(patient_id=["007", "007", "NA"]).to_csv(index=False).encode())
    cohort = Cohort.load(path)
    assert cohort.patients == ("007", "NA"), "ids are text: no zero is lost, and NA is a name"


def test_wrong_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such cohort table"):
        Cohort.load(tmp_path / "t.csv")
    (tmp_path / "t.xlsx").write_bytes(b"x")
    with pytest.raises(InputError, match=r"ends in \.parquet or \.csv"):
        Cohort.load(tmp_path / "t.xlsx")
    (tmp_path / "t.parquet").write_bytes(b"x")
    with pytest.raises(InputError, match="cannot be read as a table"):
        Cohort.load(tmp_path / "t.parquet")
