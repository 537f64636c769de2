from __future__ import annotations

import tempfile
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datamodules.cohort import Cohort
from datamodules.errors import InputError
from datamodules.readers import nifti
from datamodules.readers._common import ReaderNotice
from datamodules.readers._patterns import Pattern
from tests.datamodules.readers.tree import volumes


def faults(root: Path, image: str, **options: object) -> tuple[str, ...]:
    defaults: dict[str, object] = {"source": "site", "sequence": "T2W", "notify": lambda text: None}
    with pytest.raises(InputError) as caught:
        nifti.read(root, image, **{**defaults, **options})  # type: ignore[arg-type]  # options are a test's own
    return caught.value.faults


def test_pairs_images_and_masks_in_natural_order_and_names_the_image_without_one(tmp_path: Path) -> None:
    volumes(tmp_path, ["image_10", "image_2", "image_1", "label_1", "label_10"])
    notices: list[str] = []
    cohort = nifti.read(
        tmp_path,
        "image_{id}.nii.gz",
        mask="label_{id}.nii.gz",
        mask_labels=(2, 1),
        sequence="T2W",
        source="site",
        notify=notices.append,
    )
    assert [scan.scan_id for scan in cohort] == ["1", "2", "10"]
    assert [scan.mask_labels for scan in cohort] == [(1, 2), (), (1, 2)]
    assert cohort.scan("10").image == tmp_path / "image_10.nii.gz"
    assert cohort.scan("10").mask == tmp_path / "label_10.nii.gz"
    assert cohort.scan("2").mask is None
    (notice,) = notices
    assert "1 images have no mask" in notice and "image_2.nii.gz" in notice


def test_notices_are_python_warnings_unless_taken(tmp_path: Path) -> None:
    volumes(tmp_path, ["image_1", "image_2", "label_1"])
    with pytest.warns(ReaderNotice, match=r"image_2\.nii\.gz"):
        nifti.read(tmp_path, "image_{id}.nii.gz", mask="label_{id}.nii.gz", sequence="T2W", source="site")


def test_sub_folders_spaces_unicode_and_fields(tmp_path: Path) -> None:
    root = tmp_path / "my study ü"
    for patient in ("Müller-7", "Ana 1"):
        for sequence in ("T1W", "T2W"):
            volumes(root / patient / "week 1" / sequence, ["image", "liver mask"])
    cohort = nifti.read(
        root,
        "{patient}/{visit}/{sequence}/image.nii.gz",
        mask="{patient}/{visit}/{sequence}/liver*.nii.gz",
        source="site",
    )
    assert cohort.patients == ("Ana 1", "Müller-7")
    assert [scan.scan_id for scan in cohort if scan.patient_id == "Müller-7"] == [
        "Müller-7_week 1_T1W",
        "Müller-7_week 1_T2W",
    ]
    assert {scan.visit for scan in cohort} == {"week 1"}
    saved = tmp_path / "out put" / "kohorte é.parquet"
    cohort.save(saved)
    again = Cohort.load(saved)
    assert all(scan.image.is_file() and scan.mask is not None and scan.mask.is_file() for scan in again)


def test_composed_and_decomposed_unicode_are_one_id(tmp_path: Path) -> None:
    volumes(tmp_path, [unicodedata.normalize("NFD", "image_Zoë"), unicodedata.normalize("NFC", "label_Zoë")])
    cohort = nifti.read(tmp_path, "image_{id}.nii.gz", mask="label_{id}.nii.gz", sequence="T2W", source="site")
    (scan,) = cohort.scans
    assert scan.patient_id == unicodedata.normalize("NFC", "Zoë")
    assert scan.image.is_file() and scan.mask is not None and scan.mask.is_file()


def test_patient_and_visit_from_the_id(tmp_path: Path) -> None:
    volumes(tmp_path, ["P1-a", "P1-b", "P2-a"])
    cohort = nifti.read(tmp_path, "{id}.nii.gz", patient="{patient}-{visit}", sequence="T1W", source="site")
    assert [(scan.scan_id, scan.patient_id, scan.visit) for scan in cohort] == [
        ("P1-a", "P1", "a"),
        ("P1-b", "P1", "b"),
        ("P2-a", "P2", "a"),
    ]
    (fault,) = faults(tmp_path, "{id}.nii.gz", patient="{patient:P1}-*")
    assert "'P2-a' does not match --patient" in fault


def test_patient_folders_with_ids_that_repeat(tmp_path: Path) -> None:
    for patient in ("A", "B"):
        volumes(tmp_path / patient, ["1", "2"])
    cohort = nifti.read(tmp_path, "{patient}/{id}.nii.gz", sequence="T1W", source="site")
    assert [scan.scan_id for scan in cohort] == ["A_1", "A_2", "B_1", "B_2"]
    assert cohort.patients == ("A", "B")


def test_a_mask_in_the_images_folder_is_no_image(tmp_path: Path) -> None:
    volumes(tmp_path, ["1", "1_mask", "2", "2_mask"])
    cohort = nifti.read(tmp_path, "{id}.nii.gz", mask="{id}_mask.nii.gz", sequence="T2W", source="site")
    assert [(scan.scan_id, scan.mask and scan.mask.name) for scan in cohort] == [
        ("1", "1_mask.nii.gz"),
        ("2", "2_mask.nii.gz"),
    ]
    found = faults(tmp_path, "{id}.nii.gz", mask="{patient}.nii.gz")
    assert "{patient} is not in --image" in found[0]
    assert "matches --image and --mask" in faults(tmp_path, "{id}.nii.gz", mask="{id}.nii.gz")[0]


def test_labels_are_joined_by_patient_and_gaps_are_said(tmp_path: Path) -> None:
    volumes(tmp_path, ["1", "2", "3"])
    table = tmp_path / "lsm.csv"
    table.write_text("\ufeffpatient_id,lsm_kpa,metavir,x_alt\n1,13.5,3,40\n2,6,,22\n9,5,0,1\n", encoding="utf-8")
    notices: list[str] = []
    cohort = nifti.read(tmp_path, "{id}.nii.gz", sequence="T2W", source="site", labels=table, notify=notices.append)
    assert [(scan.lsm_kpa, scan.metavir) for scan in cohort] == [(13.5, 3), (6.0, None), (None, None)]
    assert cohort.frame["x_alt"].tolist()[:2] == ["40", "22"]
    assert any("no row for 1 patient_ids of the cohort: 3" in text for text in notices)
    assert any("1 rows belong to no image: 9" in text for text in notices)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("patient_id,lsm\n1,3\n", "unknown column 'lsm'"),
        ("patient_id,lsm_kpa\n1,3\n1,4\n", "row 2: patient_id '1' occurs twice"),
        ("id,lsm_kpa\n1,3\n", "neither a patient_id nor a scan_id"),
        ("patient_id,lsm_kpa\n77,3\n", "none of its ids (77) is a patient_id of the cohort (1)"),
        ("patient_id,lsm_kpa\n1,3,4\n", "row 1 has more values than the header"),
        ("patient_id,lsm_kpa,lsm_kpa\n1,3,4\n", "'lsm_kpa' occurs twice"),
    ],
)
def test_bad_labels(tmp_path: Path, text: str, said: str) -> None:
    volumes(tmp_path, ["1"])
    table = tmp_path / "labels.csv"
    table.write_text(text, encoding="utf-8")
    assert said in faults(tmp_path, "{id}.nii.gz", labels=table)[0]


def test_no_match_lists_the_first_files(tmp_path: Path) -> None:
    volumes(tmp_path / "scans", ["a", "b"])
    (fault,) = faults(tmp_path, "image_{id}.nii.gz")
    assert "no file matches --image" in fault and "scans/a.nii.gz, scans/b.nii.gz" in fault


def test_one_id_in_two_images_names_both(tmp_path: Path) -> None:
    volumes(tmp_path, ["image_1_old", "image_1_new", "image_2_new"])
    (fault,) = faults(tmp_path, r"image_{id:\d+}_*.nii.gz")
    assert "image_1_new.nii.gz" in fault and "image_1_old.nii.gz" in fault and "id='1'" in fault


def test_a_name_that_reads_in_two_ways_is_refused(tmp_path: Path) -> None:
    volumes(tmp_path, ["a_b_T2W"])
    (fault,) = faults(tmp_path, "{id}_{sequence}.nii.gz", sequence="{sequence}")
    assert "id='a_b' sequence='T2W' or id='a' sequence='b_T2W'" in fault
    cohort = nifti.read(tmp_path, "{id}_{sequence:T[12]W}.nii.gz", source="site")
    assert cohort.scans[0].scan_id == "a_b_T2W"


def test_every_mask_without_its_image_is_named(tmp_path: Path) -> None:
    volumes(tmp_path, ["image_1", "label_1", "label_2", "label_3"])
    found = faults(tmp_path, "image_{id}.nii.gz", mask="label_{id}.nii.gz")
    assert len(found) == 2
    assert "label_2.nii.gz" in found[0] and "image_2.nii.gz is missing" in found[0]


@pytest.mark.parametrize(
    ("image", "options", "said"),
    [
        ("image_{nr}.nii.gz", {}, "'{nr}' is no field"),
        ("image_{id.nii.gz", {}, "'{' is no field"),
        ("image.nii.gz", {}, "holds no field"),
        ("{id:[}.nii.gz", {}, "not a regular expression"),
        ("{sequence}.nii.gz", {"sequence": "{sequence}"}, "neither {id} nor {patient}"),
        ("{id}_{sequence}.nii.gz", {}, "--image holds {sequence} too"),
        ("{id}.nii.gz", {"sequence": "{sequence}"}, "give --sequence NAME"),
        ("{id}.nii.gz", {"source": "{source}"}, "give --source NAME"),
        ("{id}.nii.gz", {"mask": "{id}_*.nii.gz", "mask_labels": (0,)}, "positive values"),
        ("{patient}.nii.gz", {"patient": "{patient}"}, "must hold {id} and not {patient}"),
        ("{id}.nii.gz", {"patient": "{id}"}, "must hold {patient}"),
        ("{id}_{visit}.nii.gz", {"patient": "{patient}-{visit}"}, "--image holds {visit} too"),
    ],
)
def test_bad_options(tmp_path: Path, image: str, options: dict[str, object], said: str) -> None:
    volumes(tmp_path, ["1", "1_T2W"])
    assert said in faults(tmp_path, image, **options)[0]


def test_missing_root(tmp_path: Path) -> None:
    (fault,) = faults(tmp_path / "nowhere", "{id}.nii.gz")
    assert "no such folder" in fault


def test_hidden_files_and_links_up_the_tree_are_passed_over(tmp_path: Path) -> None:
    volumes(tmp_path / "a", ["1", "._1"])
    volumes(tmp_path / "__MACOSX" / "a", ["1"])
    (tmp_path / "a" / "up").symlink_to(tmp_path, target_is_directory=True)
    cohort = nifti.read(tmp_path, "a/{id}.nii.gz", sequence="T2W", source="site")
    assert [scan.scan_id for scan in cohort] == ["1"]
    assert "no file matches" in faults(tmp_path, "b/{id}.nii.gz")[0]


def test_a_file_name_that_is_no_text(tmp_path: Path) -> None:
    volumes(tmp_path, ["1"])
    bad = bytes(tmp_path) + b"/image_\xff.nii.gz"
    try:
        with open(bad, "wb"):  # noqa: PTH123  # a path of bytes has no pathlib form
            pass
    except OSError:
        pytest.skip("this file system refuses names that are not UTF-8")
    (fault,) = faults(tmp_path, "{id}.nii.gz")
    assert "not valid UTF-8" in fault
    fault.encode("utf-8")


@settings(max_examples=25, deadline=None)
@given(ids=st.sets(st.text(st.characters(exclude_categories=("Cs", "Cc"), exclude_characters="/\\"), max_size=20)))
def test_any_id_survives_the_table_or_is_refused_in_words(ids: set[str]) -> None:
    with tempfile.TemporaryDirectory() as name:
        root = Path(name) / "a b"
        volumes(root, [f"image_{text}" for text in ids])
        try:
            cohort = nifti.read(root, "image_{id}.nii.gz", sequence="T2W", source="site")
        except InputError as error:
            composed = [unicodedata.normalize("NFC", text).strip() for text in ids]
            # no id at all, an id of white space, or two that differ in white space or composition only
            assert not ids - {""} or "" in composed or len(set(composed)) < len(ids), error
            return
        for ending in (".csv", ".parquet"):
            table = root / f"table{ending}"
            cohort.save(table)
            again = Cohort.load(table)
            assert again.sha256 == cohort.sha256
            assert all(scan.image.is_file() for scan in again)
            assert set(again.patients) == {unicodedata.normalize("NFC", text).strip() for text in ids - {""}}


def test_pattern_repeats_a_field() -> None:
    pattern = Pattern("{id}/{id}_T2.nii", "--image")
    assert pattern.match("7/7_T2.nii") == {"id": "7"}
    assert pattern.match("7/8_T2.nii") is None
    assert pattern.match("x/7/7_T2.nii") is None


@pytest.mark.real
def test_chaos_t2(test_data: Path) -> None:
    cohort = nifti.read(
        test_data / "chaos_t2",
        "image_{id}.nii.gz",
        mask="label_{id}.nii.gz",
        sequence="T2W",
        source="chaos",
        notify=pytest.fail,
    )
    assert [scan.scan_id for scan in cohort] == ["1", "2", "3", "5", "8", "10", "13", "15", "19", "20"]
    assert len(cohort.patients) == 10
    assert all(scan.mask is not None and scan.mask.is_file() and scan.mask_labels == (1,) for scan in cohort)
