"""CHAOS MR, on a tree written here in its layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from datamodules.errors import InputError
from datamodules.images import read_image, read_mask
from datamodules.readers import chaos
from tests.datamodules.readers.dicom_tree import ramp, write_series

SLICES = 5


def truth() -> NDArray[np.uint8]:
    """Grey-coded truth (slices, rows, columns): a liver that differs from slice to slice, and a spleen."""
    grey = np.zeros((SLICES, 8, 10), np.uint8)
    for number in range(SLICES):
        grey[number, 2 : 4 + number % 3, 1 : 3 + number] = 63
    grey[:, 6, 8] = 252
    return grey


def write_png(folder: Path, names: list[str]) -> None:
    folder.mkdir(parents=True)
    for name, plane in zip(names, truth(), strict=True):
        Image.fromarray(plane).save(folder / f"{name}.png")


def write_patient(folder: Path, ground: bool = True) -> None:
    values: dict[str, Any] = {
        "PatientID": "anonymous",
        "StudyInstanceUID": f"1.2.{folder.name}",
        "SeriesDescription": "",
    }
    for phase, first in (("InPhase", 2), ("OutPhase", 1)):
        inner = folder / "T1DUAL" / "DICOM_anon" / phase
        for number_, path in enumerate(
            write_series(inner, ramp(SLICES) + first, start=50, step=-6, SeriesInstanceUID=f"1.7.{first}", **values)
        ):
            path.rename(inner / f"IMG-0004-{2 * number_ + first:05d}.dcm")
    write_series(folder / "T2SPIR" / "DICOM_anon", ramp(SLICES), step=8, pattern="IMG-0002-{:05d}.dcm", **values)
    if ground:
        write_png(folder / "T1DUAL" / "Ground", [f"IMG-0004-{2 * number + 2:05d}" for number in range(SLICES)])
        write_png(folder / "T2SPIR" / "Ground", [f"IMG-0002-{number + 1:05d}" for number in range(SLICES)])


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for number in (2, 10):
        write_patient(tmp_path / "CHAOS" / "Train_Sets" / "MR" / f"{number}")
    write_patient(tmp_path / "CHAOS" / "Test_Sets" / "MR" / "3", ground=False)
    return tmp_path / "CHAOS"


def test_the_tree_becomes_a_cohort(root: Path, tmp_path: Path) -> None:
    notices: list[str] = []
    cohort = chaos.read(root, tmp_path / "nifti", notify=notices.append)
    assert cohort.patients == ("CHAOS-10", "CHAOS-2", "CHAOS-3")
    assert {scan.sequence for scan in cohort} == {"T1W_IN", "T1W_OUT", "T2W"} and len(cohort) == 9
    assert {scan.patient_id: scan.official_split for scan in cohort} == {
        "CHAOS-2": "train", "CHAOS-10": "train", "CHAOS-3": "test"
    }  # fmt: skip
    assert len(notices) == 1 and "no truth" in notices[0]
    for scan in cohort:
        image = read_image(scan.image)
        assert image.data.shape == (10, 8, SLICES)
        if scan.patient_id == "CHAOS-3":
            assert scan.mask is None
            continue
        assert scan.mask is not None
        # every slice of the truth lies on the very slice that it was drawn on, whatever the order
        mask = read_mask(scan.mask, scan.mask_labels).data.transpose(2, 1, 0)
        pixels = image.data.transpose(2, 1, 0)
        for k in range(SLICES):
            drawn = int(pixels[k].min()) // 80  # ramp: which slice this was
            np.testing.assert_array_equal(mask[k], truth()[drawn] == 63)


def test_inner_folders_are_accepted(root: Path, tmp_path: Path) -> None:
    whole = chaos.read(root, tmp_path / "a", notify=lambda text: None)
    part = chaos.read(root / "Train_Sets" / "MR", tmp_path / "b", notify=lambda text: None)
    assert set(part.frame["scan_id"]) == set(whole.frame.loc[whole.frame["official_split"] == "train", "scan_id"])


def test_truth_that_does_not_fit_is_refused(root: Path, tmp_path: Path) -> None:
    ground = root / "Train_Sets" / "MR" / "2" / "T2SPIR" / "Ground"
    (ground / "IMG-0002-00001.png").unlink()
    other = root / "Train_Sets" / "MR" / "10" / "T2SPIR" / "Ground" / "IMG-0002-00001.png"
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(other)
    with pytest.raises(InputError) as caught:
        chaos.read(root, tmp_path / "out")
    assert "4 mask slices for 5 image slices" in caught.value.faults[0]
    assert "are not 10 × 8" in caught.value.faults[1]


def test_names_in_another_order_than_positions_are_refused(root: Path, tmp_path: Path) -> None:
    folder = root / "Train_Sets" / "MR" / "2" / "T1DUAL" / "DICOM_anon" / "OutPhase"
    (folder / "IMG-0004-00001.dcm").rename(folder / "IMG-0004-00099.dcm")
    (root / "Train_Sets" / "MR" / "2" / "T1DUAL" / "DICOM_anon" / "InPhase").rename(tmp_path / "gone")
    with pytest.raises(InputError, match="not in the order of their positions"):
        chaos.read(root, tmp_path / "out", notify=lambda text: None)


def test_two_folders_of_one_patient_and_no_tree_are_refused(root: Path, tmp_path: Path) -> None:
    write_patient(root / "copy" / "MR" / "2")
    with pytest.raises(InputError, match="two folders for the patient 2"):
        chaos.read(root, tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="T1DUAL"):
        chaos.read(tmp_path / "empty", tmp_path / "out")
