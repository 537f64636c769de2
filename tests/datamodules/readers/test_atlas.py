from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest

from datamodules.errors import InputError
from datamodules.readers import atlas
from tests.datamodules.readers.tree import volumes


@pytest.mark.parametrize(("images", "labels"), [("im{}", "lb{}"), ("{}", "{}"), ("im{}_0000", "im{}")])
@pytest.mark.parametrize("nesting", [".", "atlas-train/atlas-train"])
def test_liver_and_tumour_are_the_liver(tmp_path: Path, images: str, labels: str, nesting: str) -> None:
    volumes(tmp_path / nesting / "imagesTr", [images.format(n) for n in (0, 2, 10)])
    volumes(tmp_path / nesting / "labelsTr", [labels.format(n) for n in (0, 2, 10)])
    cohort = atlas.read(tmp_path, notify=pytest.fail)
    assert [scan.scan_id for scan in cohort] == ["atlas_0", "atlas_2", "atlas_10"]
    assert {scan.mask_labels for scan in cohort} == {(1, 2)}
    assert {(scan.sequence, scan.source, scan.official_split) for scan in cohort} == {("T1W", "atlas", "train")}
    for scan in cohort:
        number = scan.scan_id.removeprefix("atlas_")
        assert scan.image.name == f"{images.format(number)}.nii.gz"
        assert scan.mask is not None and scan.mask.name == f"{labels.format(number)}.nii.gz"


def test_composed_and_decomposed_unicode_are_one_case(tmp_path: Path) -> None:
    volumes(tmp_path / "imagesTr", [unicodedata.normalize("NFD", "Zoë")])
    volumes(tmp_path / "labelsTr", [unicodedata.normalize("NFC", "Zoë")])
    (scan,) = atlas.read(tmp_path, notify=pytest.fail).scans
    assert scan.image.is_file() and scan.mask is not None and scan.mask.is_file()


def test_the_same_case_twice(tmp_path: Path) -> None:
    volumes(tmp_path / "imagesTr", ["im1", "im1_0000"])
    with pytest.raises(InputError, match=r"im1\.nii\.gz and .*im1_0000\.nii\.gz are the same case twice"):
        atlas.read(tmp_path)


def test_a_mask_without_image_and_an_image_without_mask(tmp_path: Path) -> None:
    volumes(tmp_path / "imagesTr", ["im1", "im2"])
    volumes(tmp_path / "labelsTr", ["lb1"])
    notices: list[str] = []
    assert atlas.read(tmp_path, notify=notices.append).scan("atlas_2").mask is None
    assert "1 images have no mask: 2" in notices[0]
    volumes(tmp_path / "labelsTr", ["lb3"])
    with pytest.raises(InputError, match=r"lb3\.nii\.gz: a mask without its image"):
        atlas.read(tmp_path)
