"""Duke DLDS, on a tree written here in its layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datamodules.errors import InputError
from datamodules.images import read_image, read_mask
from datamodules.readers import duke
from tests.datamodules.readers.dicom_tree import ramp, write_series


def write_case(root: Path, patient: str, series: str, *, positions: bool = True, shuffled: bool = False) -> None:
    place = root / "Segmentation" / patient / series
    write_series(place / "images", ramp(5), pattern="{:04d}.dicom", SeriesInstanceUID=f"1.{int(patient)}.{int(series)}",
                 StudyInstanceUID=f"1.{int(patient)}", SeriesDescription="")  # fmt: skip
    mask = (ramp(5) % 7 == 0).astype(np.uint8).astype(np.uint16)
    values: dict[str, Any] = {} if positions else {"ImagePositionPatient": None}
    paths = write_series(
        place / "masks", mask, pattern="m{:04d}.dicom", SeriesInstanceUID=f"1.{int(patient)}.{int(series)}9",
        **values,
    )  # fmt: skip
    if shuffled:
        for number, path in enumerate(paths):
            path.rename(path.with_name(f"x{(number * 2) % 5}.dicom"))


def write_keys(root: Path) -> None:
    (root / "SegmentationKey.csv").write_text("DLDS,Series,Label\n1,12,T2w fat suppressed\n2,3,arterial t1w\n")


def test_the_tree_becomes_a_cohort(tmp_path: Path) -> None:
    root = tmp_path / "in"
    write_case(root, "0001", "12", shuffled=True)
    write_case(root, "0002", "3", positions=False)
    write_keys(root)
    cohort = duke.read(root, tmp_path / "out")
    assert [(scan.scan_id, scan.patient_id, scan.sequence) for scan in cohort] == [
        ("DukeDLDS-0001_12", "DukeDLDS-0001", "T2W"), ("DukeDLDS-0002_3", "DukeDLDS-0002", "T1W"),
    ]  # fmt: skip
    for scan in cohort:
        assert scan.mask is not None
        expected = (ramp(5) % 7 == 0).transpose(2, 1, 0)
        np.testing.assert_array_equal(read_mask(scan.mask, (1,)).data, expected)
        np.testing.assert_array_equal(read_image(scan.image).data, ramp(5).transpose(2, 1, 0))


def test_an_unknown_sequence_is_refused_until_it_is_given(tmp_path: Path) -> None:
    write_case(tmp_path / "in", "0001", "12")
    with pytest.raises(InputError, match="give --sequence"):
        duke.read(tmp_path / "in", tmp_path / "out")
    assert duke.read(tmp_path / "in", tmp_path / "out", sequence="T1W").scans[0].sequence == "T1W"


def test_masks_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    root = tmp_path / "in"
    for patient in ("0001", "0002"):
        write_case(root, patient, "12", positions=patient == "0001")
    write_series(
        root / "Segmentation" / "0001" / "12" / "masks", ramp(5).astype(np.uint16), start=1.0, pattern="m{:04d}.dicom"
    )
    (root / "Segmentation" / "0002" / "12" / "masks" / "m0003.dicom").unlink()
    with pytest.raises(InputError) as caught:
        duke.read(root, tmp_path / "out", sequence="T1W")
    assert "no mask lies at the position" in caught.value.faults[0] and "1.00 mm away" in caught.value.faults[0]
    assert "4 mask slices for 5" in caught.value.faults[1]
