from __future__ import annotations

from pathlib import Path

import pytest

from datamodules.errors import InputError
from datamodules.readers import csv
from tests.datamodules.readers.tree import volumes

HEADER = "scan_id,patient_id,sequence,image,mask,mask_labels,source,lsm_kpa\n"


def write(folder: Path, text: str, encoding: str = "utf-8-sig") -> Path:
    volumes(folder / "my scans", ["a", "b", "m"])
    path = folder / "table ü.csv"
    path.write_text(text, encoding=encoding)
    return path


def fault(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        csv.read(path, notify=lambda text: None)
    return str(caught.value)


@pytest.mark.parametrize("separator", [",", ";"])
def test_paths_are_relative_to_the_table(tmp_path: Path, separator: str) -> None:
    rows = (
        f"1,Ana,T2W,my scans/a.nii.gz,my scans/m.nii.gz,1,site,12.5\n2,Zoë,T1W,{tmp_path}/my scans/b.nii.gz,,,site,\n"
    )
    path = write(tmp_path, (HEADER + rows).replace(",", separator))
    notices: list[str] = []
    cohort = csv.read(path, notify=notices.append)
    assert [(s.scan_id, s.patient_id, s.lsm_kpa) for s in cohort] == [("1", "Ana", 12.5), ("2", "Zoë", None)]
    assert all(scan.image.is_file() for scan in cohort)
    assert "1 scans have no mask: 2" in notices[0]
    assert csv.read(tmp_path, notify=lambda text: None).sha256 == cohort.sha256


def test_every_missing_file_is_named_by_row(tmp_path: Path) -> None:
    (tmp_path / "dicom").mkdir()
    path = write(
        tmp_path,
        HEADER
        + "1,A,T2W,my scans/x.nii.gz,my scans/y.nii.gz,1,site,\n"
        + "2,B,T2W,dicom,,,site,\n"
        + "3,C,T2W,table ü.csv,,,site,\n",
    )
    said = fault(path).splitlines()
    assert len(said) == 4
    assert "row 1: image" in said[0] and "does not exist" in said[0]
    assert "row 1: mask" in said[1]
    assert "row 2: image" in said[2] and "hepastage cohort dicom" in said[2]
    assert "row 3: image" in said[3] and "is not .nii or .nii.gz" in said[3]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (HEADER, "has no rows"),
        ("", "the column 'scan_id' is missing"),
        (HEADER.replace("lsm_kpa", "lsm"), "unknown column 'lsm'"),
        (HEADER.replace("image", "picture"), "the column 'image' is missing"),
        (HEADER + "1,A,T2W,my scans/a.nii.gz,,,site,soft\n", "lsm_kpa 'soft' is not a number"),
        (HEADER + "1,A,T2W,my scans/a.nii.gz,my scans/m.nii.gz,,site,\n", "a mask without mask_labels"),
        (HEADER + "1,A,T2W,my scans/a.nii.gz,,,site,3,4\n", "row 1 has more values than the header"),
    ],
)
def test_bad_tables(tmp_path: Path, text: str, said: str) -> None:
    if "unknown" in said:
        text += "1,A,T2W,my scans/a.nii.gz,,,site,3\n"
    assert said in fault(write(tmp_path, text))


def test_wrong_encodings_and_places(tmp_path: Path) -> None:
    assert "is not UTF-8" in fault(write(tmp_path, HEADER.replace("source", "süß"), "latin-1"))
    assert "no such file" in fault(tmp_path / "none.csv")
    (tmp_path / "second.csv").write_text("", encoding="utf-8")
    assert "one CSV is expected" in fault(tmp_path)
