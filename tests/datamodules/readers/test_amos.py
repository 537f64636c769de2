from __future__ import annotations

from pathlib import Path

import pytest

from datamodules.errors import InputError
from datamodules.readers import amos
from tests.datamodules.readers.tree import volumes


@pytest.mark.parametrize("nesting", [".", "amos22", "amos22/amos22"])
def test_the_mri_part(tmp_path: Path, nesting: str) -> None:
    folder = tmp_path / nesting
    volumes(folder / "imagesTr", ["amos_0001", "amos_0499", "amos_0500", "amos_0507"])
    volumes(folder / "labelsTr", ["amos_0001", "amos_0499", "amos_0500", "amos_0507"])
    volumes(folder / "imagesVa", ["amos_0578"])
    volumes(folder / "labelsVa", ["amos_0578"])
    volumes(folder / "imagesTs", ["amos_0540", "amos_0200"])
    notices: list[str] = []
    cohort = amos.read(tmp_path, notify=notices.append)
    found = {scan.scan_id: (scan.official_split, scan.mask_labels, scan.mask is None) for scan in cohort}
    assert found == {
        "amos_0500": ("train", (6,), False),
        "amos_0507": ("train", (6,), False),
        "amos_0540": ("test", (), True),
        "amos_0578": ("valid", (6,), False),
    }
    assert any("3 CT scans" in text for text in notices)
    assert any("1 MRI scans have no mask: 0540" in text for text in notices)


@pytest.mark.parametrize(
    ("images", "labels", "said"),
    [
        (["amos_0001"], ["amos_0001"], "1 CT scans and no MRI"),
        (["amos_0501"], ["amos_0501", "amos_0502"], "amos_0502.nii.gz: a mask without its image"),
        (["amos_0501", "liver"], ["amos_0501"], "liver.nii.gz: is not named like a case"),
        (["amos_0501", "501"], [], "are the same case twice"),
    ],
)
def test_faults(tmp_path: Path, images: list[str], labels: list[str], said: str) -> None:
    volumes(tmp_path / "imagesTr", images)
    volumes(tmp_path / "labelsTr", labels)
    with pytest.raises(InputError, match=said):
        amos.read(tmp_path)


def test_ambiguous_folders_name_both(tmp_path: Path) -> None:
    volumes(tmp_path / "a" / "imagesTr", ["amos_0501"])
    volumes(tmp_path / "b" / "imagesTr", ["amos_0502"])
    with pytest.raises(InputError) as caught:
        amos.read(tmp_path)
    assert str(tmp_path / "a" / "imagesTr") in str(caught.value) and str(tmp_path / "b" / "imagesTr") in str(
        caught.value
    )


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no folder imagesTr or imagesVa or imagesTs"):
        amos.read(tmp_path)
