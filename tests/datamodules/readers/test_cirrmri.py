"""CirrMRI600+ as its archives unpack, quirks included."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from datamodules.cohort import Cohort
from datamodules.errors import InputError
from datamodules.readers import cirrmri
from tests.datamodules.readers.tree import volumes

T1 = {"train": [1, 2, 47 + 346, 10], "valid": [460, 463, 464, 47, 471], "test": [56, 4]}
T2 = {"train": [1, 460, 463, 464, 47, 471, 3], "valid": [393, 56], "test": [4, 5]}
HEALTHY = [1, 2, 12, 47]
SEVEN = {
    "460": "T1W valid, T2W train",
    "463": "T1W valid, T2W train",
    "464": "T1W valid, T2W train",
    "47": "T1W valid, T2W train",
    "471": "T1W valid, T2W train",
    "393": "T1W train, T2W valid",
    "56": "T1W test, T2W valid",
}
STAGE = {patient: 1 + patient % 3 for patient in range(1, 500)}
BOM = "\ufeff"
COMPLETE = "CirrMRI600+_CompleteData_age_gender_evaluation.csv"


def patients(split: Mapping[str, Sequence[int]]) -> list[int]:
    return sorted(number for numbers in split.values() for number in numbers)


def write_metadata(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    header = "Patient ID,Age,Gender,Radiological Evaluation\n"

    def rows(numbers: Sequence[int]) -> str:
        return "".join(f"{n},{40 + n % 40},{1 + n % 2},{STAGE[n]}\n" for n in numbers)

    both = sorted({*patients(T1), *patients(T2)})
    paired = sorted({*patients(T1)} & {*patients(T2)})
    (folder / COMPLETE).write_text(BOM + header + rows(both), encoding="utf-8")
    (folder / "T1_age_gender_evaluation.csv").write_text(header + rows(patients(T1)), encoding="utf-8")
    (folder / "T2_age_gender_evaluation.csv").write_text(BOM + header + rows(patients(T2)), encoding="utf-8")
    (folder / "T1&T2_Paired_age_gender_evaluation.csv").write_text(header + rows(paired), encoding="utf-8")
    healthy = "".join(f"{n},{20 + n},{1 + n % 2}\n" for n in HEALTHY)
    (folder / "Healthy_demographics.csv").write_text(BOM + "ID,Age,Gender\n" + healthy, encoding="utf-8")
    (folder / "labels.txt").write_text("0 background\n1 liver\n", encoding="utf-8")


def write_tree(root: Path, *, doubled: bool, metadata: str) -> Path:
    """The archives unpacked; ``doubled`` repeats each archive's folder inside itself."""
    for name, split in (("T1", T1), ("T2", T2)):
        top = root / f"Cirrhosis_{name}_3D"
        folder = top / top.name if doubled else top
        for part, numbers in split.items():
            volumes(folder / f"{part}_images", numbers, value=100)
            volumes(folder / f"{part}_masks", numbers)
    top = root / "Healthy_subjects"
    folder = top / top.name if doubled else top
    for name in ("T1", "T2"):
        volumes(folder / f"{name}_W_Healthy" / f"{name}_images", HEALTHY, value=100)
        volumes(folder / f"{name}_W_Healthy" / f"{name}_masks", HEALTHY)
    write_metadata(root / metadata)
    return root


def read(root: Path) -> tuple[Cohort, list[str]]:
    notices: list[str] = []
    return cirrmri.read(root, notify=notices.append), notices


def fault(root: Path) -> str:
    with pytest.raises(InputError) as caught:
        cirrmri.read(root, notify=lambda text: None)
    return str(caught.value)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_tree(tmp_path / "CirrMRI600+", doubled=False, metadata=".")


def test_two_nestings_give_the_same_cohort(root: Path, tmp_path: Path) -> None:
    plain, _ = read(root)
    nested, _ = read(write_tree(tmp_path / "other copy", doubled=True, metadata="Metadata"))
    columns = [column for column in plain.frame.columns if column not in ("image", "mask")]
    pd.testing.assert_frame_equal(plain.frame[columns], nested.frame[columns])
    assert plain.sha256 == nested.sha256
    assert len(plain) == len(patients(T1)) + len(patients(T2)) + 2 * len(HEALTHY)
    for scan in (*plain, *nested):
        assert scan.mask is not None and scan.mask.name == scan.image.name
        assert scan.mask.parent.name.replace("masks", "images") == scan.image.parent.name
        assert scan.mask_labels == (1,)


def test_every_row_says_what_the_archive_says(root: Path) -> None:
    cohort, _ = read(root)
    for sequence, split in (("T1W", T1), ("T2W", T2)):
        for part, numbers in split.items():
            for number in numbers:
                scan = cohort.scan(f"{number}_{sequence}")
                assert scan.patient_id == str(number)
                assert (scan.official_split, scan.stage) == (part, STAGE[number])
                assert (scan.age, scan.sex) == (40 + number % 40, "FM"[number % 2])
                assert (scan.source, scan.healthy) == ("cirrmri", False)
                assert f"{sequence[:2]}_3D" in str(scan.image) and f"{part}_images" in str(scan.image)


def test_healthy_ids_do_not_collide_with_patients(root: Path) -> None:
    cohort, _ = read(root)
    healthy = [scan for scan in cohort if scan.healthy]
    assert {scan.patient_id for scan in healthy} == {"H1", "H2", "H12", "H47"}
    assert {scan.source for scan in healthy} == {"cirrmri-healthy"}
    assert all(scan.stage is None and scan.official_split is None for scan in healthy)
    assert (cohort.scan("H47_T1W").age, cohort.scan("47_T1W").age) == (67, 47)
    assert len(cohort.patients) == len({*patients(T1), *patients(T2)}) + len(HEALTHY)


def test_the_seven_conflicting_patients_are_named(root: Path) -> None:
    _, notices = read(root)
    (notice,) = [text for text in notices if "splits disagree" in text]
    assert "for 7 patients" in notice
    named = notice.partition("are used: ")[2]
    assert named == ", ".join(
        f"{patient} ({said})" for patient, said in sorted(SEVEN.items(), key=lambda item: int(item[0]))
    )


def test_one_archive_is_enough(root: Path) -> None:
    cohort, notices = read(root / "Cirrhosis_T2_3D")
    assert sorted(cohort.frame["sequence"].unique()) == ["T2W"]
    assert len(cohort) == len(patients(T2))
    assert any("no metadata CSV" in text for text in notices)
    healthy, _ = read(root / "Healthy_subjects" / "T1_W_Healthy")
    assert len(healthy) == len(HEALTHY)


def test_two_candidates_that_differ_are_refused_with_both_paths(root: Path) -> None:
    first = root / "Cirrhosis_T1_3D" / "train_images"
    second = root / "Cirrhosis_T1_3D" / "Cirrhosis_T1_3D" / "train_images"
    volumes(second, [1, 2], value=100)
    said = fault(root)
    assert str(first) in said and str(second) in said and "hold different files" in said


def test_an_identical_copy_is_not_ambiguous(root: Path) -> None:
    before, _ = read(root)
    shutil.copytree(root / "Cirrhosis_T1_3D", root / "backup" / "Cirrhosis_T1_3D")
    after, _ = read(root)
    pd.testing.assert_frame_equal(before.frame, after.frame)


def test_metadata_in_two_places_must_agree(root: Path) -> None:
    before, _ = read(root)
    write_metadata(root / "Metadata")
    after, _ = read(root)
    assert before.sha256 == after.sha256
    copy = root / "Metadata" / COMPLETE
    copy.write_text(copy.read_text(encoding="utf-8-sig").replace("1,41,2,2", "1,42,2,2"), encoding="utf-8")
    said = fault(root)
    assert str(root / COMPLETE) in said and str(copy) in said and "differ" in said


def test_metadata_that_disagree_are_named_and_the_sequence_keeps_its_own(root: Path) -> None:
    path = root / "T2_age_gender_evaluation.csv"
    path.write_text(path.read_text(encoding="utf-8-sig").replace("1,41,2,2\n", "1,41,2,3\n"), encoding="utf-8")
    cohort, notices = read(root)
    (notice,) = [text for text in notices if "disagree on" in text]
    assert "patient 1:" in notice and "disagree on stage" in notice and "3 in T2_age_gender_evaluation.csv" in notice
    assert (cohort.scan("1_T1W").stage, cohort.scan("1_T2W").stage) == (2, 3)


def test_scans_without_a_row_and_rows_without_a_scan(root: Path) -> None:
    for name in (COMPLETE, "T1_age_gender_evaluation.csv"):
        path = root / name
        text = path.read_text(encoding="utf-8-sig").replace("10,50,1,2\n", "9,50,1,2\n")
        path.write_text(text, encoding="utf-8")
    cohort, notices = read(root)
    assert cohort.scan("10_T1W").stage is None
    assert any("1 scans have no row in the metadata: 10_T1W" in text for text in notices)
    assert any("T1_age_gender" in text and "1 rows have no T1W scan: 9" in text for text in notices)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("1,41,2,2\n", "1,41,3,2\n", "row 1: Gender '3' has no meaning"),
        ("1,41,2,2\n", "1,old,2,2\n", "row 1: Age 'old' has no meaning"),
        ("1,41,2,2\n", "1,41,2,4\n", "row 1: Radiological Evaluation '4' has no meaning"),
        ("1,41,2,2\n", ",41,2,2\n", "row 1: Patient ID is empty"),
        ("1,41,2,2\n", "1,41,2,2\n1,41,2,3\n", "row 2: Patient ID 1 occurs twice with different values"),
        ("Radiological Evaluation", "Radiology", "the column 'Radiological Evaluation' is missing"),
    ],
)
def test_bad_metadata(root: Path, old: str, new: str, said: str) -> None:
    path = root / COMPLETE
    path.write_text(path.read_text(encoding="utf-8-sig").replace(old, new, 1), encoding="utf-8")
    assert said in fault(root)


def test_values_as_spreadsheets_write_them(root: Path) -> None:
    path = root / "T1_age_gender_evaluation.csv"
    text = path.read_text(encoding="utf-8-sig").replace("1,41,2,2\n", "1.0,41.0,2.0,2.0\n1,41,2,2\n,,,\n")
    path.write_text(text.replace("\n", ",\r\n"), encoding="utf-8")
    scan = read(root)[0].scan("1_T1W")
    assert (scan.age, scan.sex, scan.stage) == (41, "M", 2)


def test_a_scan_in_two_official_parts_is_refused(root: Path) -> None:
    volumes(root / "Cirrhosis_T1_3D" / "test_images", [47])
    volumes(root / "Cirrhosis_T1_3D" / "test_masks", [47])
    said = fault(root)
    assert "test_images/47.nii.gz" in said and "valid_images/47.nii.gz" in said and "the same scan twice" in said


def test_masks_and_images_that_do_not_pair(root: Path) -> None:
    (root / "Cirrhosis_T1_3D" / "train_images" / "2.nii.gz").unlink()
    (root / "Cirrhosis_T2_3D" / "train_masks" / "3.nii.gz").unlink()
    assert "train_masks/2.nii.gz: a mask without its image" in fault(root)
    (root / "Cirrhosis_T1_3D" / "train_masks" / "2.nii.gz").unlink()
    cohort, notices = read(root)
    assert cohort.scan("3_T2W").mask is None
    assert any("1 images have no mask: 3" in text for text in notices)


def test_slices_are_not_scans_but_their_split_is_checked(root: Path) -> None:
    folder = root / "Cirrhosis_T2_2D" / "Cirrhosis_T2_2D"
    for part, number in (("train", 1), ("test", 3), ("test", 4)):
        for kind in ("images", "masks"):
            place = folder / part / str(number) / kind
            place.mkdir(parents=True)
            Image.new("L", (4, 4)).save(place / "1.png")
    before, _ = read(root / "Cirrhosis_T2_3D")
    cohort, notices = read(root)
    assert len(cohort) == len(before) + len(patients(T1)) + 2 * len(HEALTHY)
    assert any("3 PNG slices of 3 patients" in text and "no voxel spacing" in text for text in notices)
    (conflict,) = [text for text in notices if "2-D slices disagrees" in text]
    assert conflict.endswith(": 3 (2-D test, T2W train)")
    by_scan = cohort.frame.set_index("scan_id")["x_t2_2d_split"]
    assert by_scan["3_T2W"] == by_scan["4_T1W"] == "test" and pd.isna(by_scan["H1_T1W"])


def test_slices_alone_are_refused_with_the_reason(tmp_path: Path) -> None:
    place = tmp_path / "Cirrhosis_T2_2D" / "train" / "1" / "images"
    place.mkdir(parents=True)
    Image.new("L", (4, 4)).save(place / "1.png")
    assert "the 2-D PNG slices hold no voxel spacing" in fault(tmp_path)
    assert "the 2-D PNG slices hold no voxel spacing" in fault(tmp_path / "Cirrhosis_T2_2D")


def test_a_broken_link_in_one_of_two_copies(root: Path) -> None:
    copy = root / "backup" / "Cirrhosis_T1_3D" / "test_images"
    volumes(copy, [4])
    (copy / "56.nii.gz").symlink_to(root / "gone.nii.gz")
    assert f"{copy / '56.nii.gz'}: cannot be read" in fault(root)


def test_other_volumes_are_named_and_left_out(root: Path) -> None:
    volumes(root / "my predictions", ["47"])
    cohort, notices = read(root)
    assert any("1 NIfTI files are no part of CirrMRI600+" in text and "my predictions" in text for text in notices)
    assert len(cohort) == len(patients(T1)) + len(patients(T2)) + 2 * len(HEALTHY)


def test_folders_that_do_not_say_their_sequence(tmp_path: Path) -> None:
    volumes(tmp_path / "data" / "train_images", [1])
    assert "cannot tell whether this is T1 or T2" in fault(tmp_path / "data")


def test_an_empty_or_foreign_folder(tmp_path: Path) -> None:
    assert "the first files there are none" in fault(tmp_path)
    volumes(tmp_path, ["a"])
    assert "no CirrMRI600+ volumes" in fault(tmp_path) and "a.nii.gz" in fault(tmp_path)
    assert "no such folder" in fault(tmp_path / "nowhere")
