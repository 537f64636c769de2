from __future__ import annotations

import json
from pathlib import Path

import pytest

from datamodules.errors import InputError
from datamodules.readers import nnunet
from tests.datamodules.readers.tree import volumes

TWO = {
    "channel_names": {"0": "T1W", "1": "T2W"},
    "labels": {"background": 0, "spleen": 1, "Liver": 2},
    "numTraining": 2,
    "file_ending": ".nii.gz",
}


def write(root: Path, description: object = TWO, *, channels: int = 2) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    (root / "dataset.json").write_text(json.dumps(description), encoding="utf-8")
    volumes(root / "imagesTr", [f"{case}_{n:04d}" for case in ("liver_01", "liver_02") for n in range(channels)])
    volumes(root / "labelsTr", ["liver_01", "liver_02"])
    volumes(root / "imagesTs", [f"liver_03_{n:04d}" for n in range(channels)])
    return root


def fault(root: Path, **options: object) -> str:
    with pytest.raises(InputError) as caught:
        nnunet.read(root, notify=lambda text: None, **options)  # type: ignore[arg-type]  # options are a test's own
    return str(caught.value)


@pytest.mark.parametrize("above", [False, True])
def test_one_row_a_channel(tmp_path: Path, above: bool) -> None:
    root = write(tmp_path / "Dataset007_Liver MR")
    notices: list[str] = []
    cohort = nnunet.read(tmp_path if above else root, notify=notices.append)
    rows = [(s.scan_id, s.patient_id, s.sequence, s.official_split, s.mask_labels) for s in cohort]
    assert rows == [
        ("liver_01_T1W", "liver_01", "T1W", "train", (2,)),
        ("liver_01_T2W", "liver_01", "T2W", "train", (2,)),
        ("liver_02_T1W", "liver_02", "T1W", "train", (2,)),
        ("liver_02_T2W", "liver_02", "T2W", "train", (2,)),
        ("liver_03_T1W", "liver_03", "T1W", "test", ()),
        ("liver_03_T2W", "liver_03", "T2W", "test", ()),
    ]
    assert cohort.scan("liver_01_T2W").image == root / "imagesTr" / "liver_01_0001.nii.gz"
    assert cohort.scan("liver_01_T2W").mask == root / "labelsTr" / "liver_01.nii.gz"
    assert {scan.source for scan in cohort} == {"Dataset007_Liver MR"}
    assert len(notices) == 1 and "1 cases have no mask: liver_03" in notices[0]


def test_options(tmp_path: Path) -> None:
    description = {**TWO, "channel_names": {"0": "noNorm"}, "labels": {"background": 0, "organ": [1, 3]}}
    root = write(tmp_path / "Dataset001_X", description, channels=1)
    cohort = nnunet.read(
        root,
        mask_labels=(1, 3),
        sequences=["T2W"],
        source="site",
        patient="liver_{patient}",
        notify=lambda text: None,
    )
    assert [(s.scan_id, s.patient_id, s.sequence, s.source) for s in cohort] == [
        (f"liver_0{n}", f"0{n}", "T2W", "site") for n in (1, 2, 3)
    ]
    assert cohort.scans[0].mask_labels == (1, 3)
    assert "no label is named 'liver' (background, organ)" in fault(root)
    assert "does not match --patient-pattern" in fault(root, mask_labels=(1,), patient="case_{patient}")


def test_a_region_named_liver(tmp_path: Path) -> None:
    root = write(tmp_path, {**TWO, "labels": {"background": 0, "liver": [2, 1], "tumour": 2}})
    assert nnunet.read(root, notify=lambda text: None).scans[0].mask_labels == (1, 2)


def test_sequences_by_channel(tmp_path: Path) -> None:
    root = write(tmp_path, {**TWO, "channel_names": {"0": "zscore", "1": "zscore"}})
    assert "two channels are named alike" in fault(root)
    cohort = nnunet.read(root, sequences=["0=T1W", "1=T2W"], notify=lambda text: None)
    assert set(cohort.frame["sequence"]) == {"T1W", "T2W"}
    assert "write 0=T2W" in fault(root, sequences=["T2W"])
    assert "no such channel" in fault(root, sequences=["7=T2W"])


def test_every_missing_channel_and_stray_file_is_named(tmp_path: Path) -> None:
    root = write(tmp_path)
    (root / "imagesTr" / "liver_02_0001.nii.gz").unlink()
    volumes(root / "imagesTr", ["liver_09", "liver_01_0002"])
    volumes(root / "labelsTr", ["liver_77"])
    volumes(root / "imagesTs", ["liver_01_0000", "liver_01_0001"])
    said = fault(root)
    assert "liver_02_0001.nii.gz: is missing" in said
    assert "liver_09.nii.gz: is not named CASE_0000.nii.gz" in said
    assert "channel 0002 is not in dataset.json" in said
    assert "liver_77.nii.gz: a mask without its image" in said
    assert "both hold case 'liver_01'" in said


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"file_ending": ".png"}, "'.png' is not NIfTI"),
        ({"channel_names": None}, "channel_names is missing"),
        ({"channel_names": {"a": "T1W"}}, "must be numbered"),
        ({"labels": {"background": 0}}, "no label is named 'liver'"),
        ({"dataset": {}}, "under 'dataset', which is not supported"),
    ],
)
def test_bad_descriptions(tmp_path: Path, change: dict[str, object], said: str) -> None:
    assert said in fault(write(tmp_path, {**TWO, **change}))


def test_version_1_and_broken_json(tmp_path: Path) -> None:
    assert "version 1" in fault(write(tmp_path, {"modality": {"0": "MRI"}, "labels": {"0": "background"}}))
    assert "not a JSON object" in fault(write(tmp_path, [1]))
    (tmp_path / "dataset.json").write_text("{", encoding="utf-8")
    assert "cannot be read" in fault(tmp_path)


def test_fewer_cases_than_announced(tmp_path: Path) -> None:
    notices: list[str] = []
    nnunet.read(write(tmp_path, {**TWO, "numTraining": 20}), notify=notices.append)
    assert any("announces 20 training cases, there are 2" in text for text in notices)


def test_several_or_no_data_sets(tmp_path: Path) -> None:
    assert "no dataset.json" in fault(tmp_path)
    write(tmp_path / "Dataset001_A")
    write(tmp_path / "Dataset002_B")
    assert "holds several data sets" in fault(tmp_path)
