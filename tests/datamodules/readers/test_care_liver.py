from __future__ import annotations

from pathlib import Path

import pytest

from datamodules.errors import InputError
from datamodules.readers import care_liver
from tests.datamodules.readers.tree import volumes

ALL = ["T1", "T2", "DWI_800", "GED1", "GED2", "GED3", "GED4"]


def write_tree(folder: Path) -> None:
    volumes(folder / "Vendor_A" / "1001-A-S4", [*ALL, "mask_GED4"])
    volumes(folder / "Vendor_A" / "1002-A-S1", ["T2", "GED4"])
    volumes(folder / "Vendor_B1" / "1001-B1-S2", ["GED4"])
    volumes(folder / "Vendor_B2" / "7-B2-S3", ["DWI_800", "GED4", "mask_GED4"])


def fault(root: Path) -> str:
    with pytest.raises(InputError) as caught:
        care_liver.read(root, notify=lambda text: None)
    return str(caught.value)


@pytest.mark.parametrize("nesting", ["LiQA_training_data", "LiQA_training_data/LiQA_training_data", "."])
def test_reads_every_phase(tmp_path: Path, nesting: str) -> None:
    write_tree(tmp_path / nesting)
    notices: list[str] = []
    cohort = care_liver.read(tmp_path, notify=notices.append)
    assert [scan.scan_id for scan in cohort if scan.patient_id == "1001-A"] == [
        f"1001-A_{name}" for name in ("DWI", "GED1", "GED2", "GED3", "GED4", "T1W", "T2W")
    ]
    assert cohort.patients == ("1001-A", "1001-B1", "1002-A", "7-B2")
    stages = {scan.patient_id: (scan.metavir, scan.source) for scan in cohort}
    assert stages == {"1001-A": (4, "A"), "1002-A": (1, "A"), "1001-B1": (2, "B1"), "7-B2": (3, "B2")}
    masks = {scan.scan_id: scan.mask.name for scan in cohort if scan.mask}
    assert masks == {"1001-A_GED4": "mask_GED4.nii.gz", "7-B2_GED4": "mask_GED4.nii.gz"}
    assert cohort.scan("7-B2_DWI").image.name == "DWI_800.nii.gz"
    (notice,) = notices
    assert "2 GED4 scans have no mask" in notice and "1001-B1_GED4, 1002-A_GED4" in notice


def test_unlabelled_cases_of_the_validation_phase(tmp_path: Path) -> None:
    volumes(tmp_path / "Vendor_A" / "0001-A", ["T1", "GED4"])
    volumes(tmp_path / "Vendor_B1" / "0001-B1", ["GED4"])
    cohort = care_liver.read(tmp_path, notify=lambda text: None)
    assert {scan.patient_id: (scan.metavir, scan.source) for scan in cohort} == {
        "0001-A": (None, "A"), "0001-B1": (None, "B1"),
    }  # fmt: skip


def test_one_vendor_alone(tmp_path: Path) -> None:
    write_tree(tmp_path)
    assert care_liver.read(tmp_path / "Vendor_B2", notify=lambda text: None).patients == ("7-B2",)


def test_all_faults_at_once(tmp_path: Path) -> None:
    write_tree(tmp_path)
    volumes(tmp_path / "Vendor_A" / "1003-A-S2", ["T1"])
    volumes(tmp_path / "Vendor_A" / "1004-A-S5", ["GED4"])
    volumes(tmp_path / "Vendor_A" / "1005-B1-S1", ["GED4"])
    volumes(tmp_path / "Vendor_A" / "1002-A-S2", ["GED4"])
    volumes(tmp_path / "Vendor_B2" / "8-B2-S1", ["GED4", "mask_T1"])
    said = fault(tmp_path)
    assert "1003-A-S2: GED4.nii.gz is missing" in said
    assert "1004-A-S5: is not named like a case" in said
    assert "1005-B1-S1: the vendor B1 stands in Vendor_A" in said
    assert "1002-A-S1 and" in said and "1002-A-S2 give patient 1002-A two stages" in said
    assert "8-B2-S1: mask_T1 has no image" in said
    assert len(said.splitlines()) == 5


def test_two_copies_of_a_case_that_differ(tmp_path: Path) -> None:
    write_tree(tmp_path)
    volumes(tmp_path / "old" / "Vendor_A" / "1002-A-S1", ["GED4"])
    said = fault(tmp_path)
    assert str(tmp_path / "Vendor_A" / "1002-A-S1") in said and str(tmp_path / "old" / "Vendor_A") in said


def test_a_file_that_is_no_phase_is_named(tmp_path: Path) -> None:
    write_tree(tmp_path)
    volumes(tmp_path / "Vendor_A" / "1001-A-S4", ["GED5"])
    notices: list[str] = []
    care_liver.read(tmp_path, notify=notices.append)
    assert any("GED5.nii.gz" in text for text in notices)


def test_nothing_there(tmp_path: Path) -> None:
    assert "no case such as" in fault(tmp_path)
