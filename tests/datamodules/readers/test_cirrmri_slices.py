"""The PNG slices of CirrMRI600+ as the archive unpacks, quirks included."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from datamodules.cohort import Cohort
from datamodules.errors import InputError
from datamodules.readers import cirrmri_slices
from datamodules.splits import make_splits

PARTS = {"train": [1, 12, 3, 4], "valid": [47, 48], "test": [56, 57]}
SLICES = 11
HEADER = "Patient ID,Age,Gender,Radiological Evaluation\n"
WIDE, HIGH = 10, 8


def plane(patient: int, number: int) -> np.ndarray:
    """Grey value by row, column, slice and patient, shape (rows, columns)."""
    rows, columns = np.meshgrid(np.arange(HIGH), np.arange(WIDE), indexing="ij")
    return (rows + 10 * columns + number + patient).astype(np.uint8)


def write_slices(root: Path, *, doubled: bool = True) -> Path:
    """``Cirrhosis_T2_2D`` with numbered slices (no leading zeros), and the metadata; 48 has no paired examination."""
    top = root / "Cirrhosis_T2_2D"
    top = top / top.name if doubled else top
    for part, patients in PARTS.items():
        for patient in patients:
            for kind in ("images", "masks"):
                folder = top / part / str(patient) / kind
                folder.mkdir(parents=True)
                for number in range(1, SLICES + 1):
                    grey = plane(patient, number)
                    Image.fromarray(grey if kind == "images" else ((grey > 40) * 255).astype(np.uint8)).save(
                        folder / f"{number}.png"
                    )
    everyone = [patient for patients in PARTS.values() for patient in patients]
    lines = {patient: f"{patient},{40 + patient % 9},1,{1 + patient % 3}\n" for patient in everyone}
    (root / "T2_age_gender_evaluation.csv").write_text("\ufeff" + HEADER + "".join(lines.values()), encoding="utf-8")
    paired = HEADER + "".join(line for patient, line in lines.items() if patient != 48)
    (root / "T1&T2_Paired_age_gender_evaluation.csv").write_text(paired, encoding="utf-8")
    return root


def read(root: Path, out: Path, size: int = 0, paired: bool = False) -> tuple[Cohort, list[str]]:
    notices: list[str] = []
    return cirrmri_slices.read(root, out, size=size, paired=paired, notify=notices.append), notices


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_slices(tmp_path / "set")


def test_slices_are_stacked_in_the_order_of_their_numbers(root: Path, tmp_path: Path) -> None:
    cohort, notices = read(root, tmp_path / "out")
    assert [scan.scan_id for scan in cohort] == [f"{n}_T2W" for n in (1, 3, 4, 12, 47, 48, 56, 57)]
    scan = cohort.scan("47_T2W")
    assert (scan.patient_id, scan.official_split, scan.stage, scan.sequence) == ("47", "valid", 3, "T2W")
    image = nib.load(scan.image)
    voxels = np.asarray(image.dataobj)
    assert voxels.shape == (WIDE, HIGH, SLICES) and nib.aff2axcodes(image.affine) == ("L", "P", "S")
    for number in range(1, SLICES + 1):
        np.testing.assert_array_equal(voxels[..., number - 1], plane(47, number).T)
    assert scan.mask is not None
    np.testing.assert_array_equal(np.asarray(nib.load(scan.mask).dataobj), voxels > 40)
    assert any("no voxel spacing" in text for text in notices)


def test_the_published_protocol(root: Path, tmp_path: Path) -> None:
    """256 by 256, patients of the CSV of paired examinations, the folders' split."""
    cohort, notices = read(root, tmp_path / "out", size=256, paired=True)
    assert "48" not in cohort.patients and any("not in the CSV of paired examinations: 48" in text for text in notices)
    assert nib.load(cohort.scan("1_T2W").image).shape == (256, 256, SLICES)
    splits = make_splits(cohort, "none", official=True)
    assert {part: len(patients) for part, patients in splits.folds[0].parts.items()} == {
        "train": 4, "valid": 1, "test": 2,
    }  # fmt: skip


def test_what_cannot_be_right_is_refused(root: Path, tmp_path: Path) -> None:
    top = root / "Cirrhosis_T2_2D" / "Cirrhosis_T2_2D"

    def fault() -> str:
        with pytest.raises(InputError) as caught:
            read(root, tmp_path / "out")
        return str(caught.value)

    (top / "train" / "1" / "masks" / "3.png").unlink()
    assert "images and masks do not pair: 3.png" in fault()
    (top / "train" / "12" / "images" / "5.png").write_bytes(b"no picture")
    assert "12/images/5.png: cannot be read as a PNG" in fault()
    Image.new("L", (4, 4)).save(top / "train" / "3" / "images" / "2.png")
    assert "slices of different sizes (10x8, 4x4)" in fault()
    colour = np.zeros((HIGH, WIDE, 3), dtype=np.uint8)
    colour[..., 0] = 9
    Image.fromarray(colour).save(top / "train" / "4" / "images" / "2.png")
    assert "is not a grey image of 8 bits" in fault()
    (top / "test" / "47" / "images").mkdir(parents=True)
    Image.new("L", (4, 4)).save(top / "test" / "47" / "images" / "1.png")
    assert "patient 47 has slices in" in fault() and "test/47" in fault() and "valid/47" in fault()
    with pytest.raises(InputError, match="no slices"):
        read(tmp_path / "out", tmp_path / "out2") if (tmp_path / "out").is_dir() else read(tmp_path, tmp_path / "x")
