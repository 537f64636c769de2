"""DICOM folders against SimpleITK, against pydicom's positions, and against what must be refused."""

from __future__ import annotations

import json
import locale
import warnings
from collections import defaultdict
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK

from datamodules.cohort import Cohort
from datamodules.errors import InputError
from datamodules.images import read_image
from datamodules.readers import dicom
from tests.datamodules.readers.dicom_tree import AXIAL, BIRTH, INSTITUTION, NAME, ramp, write_series, write_slice

sitk: Any = SimpleITK  # it has no type hints


def read(root: Path, out: Path, **options: Any) -> tuple[Cohort, list[str]]:
    notices: list[str] = []
    return dicom.read(root, out, source="here", notify=notices.append, **options), notices


@pytest.mark.real
def test_a_real_study_becomes_the_right_series(test_data: Path, tmp_path: Path) -> None:
    cohort, notices = read(test_data / "prostatex" / "complete_study", tmp_path)
    rows = {(row["x_series_number"], row["sequence"]): row for row in cohort.frame.to_dict("records")}
    assert sorted(rows) == sorted(
        [("3", "T2W"), ("4", "T2W"), ("5", "T2W"), ("6", "DWI_b50"), ("6", "DWI_b400"), ("6", "DWI_b800"),
         ("7", "ADC"), ("8", "DWI_b1000"), ("9", "PDW")]
    )  # fmt: skip
    assert [rows[number, "T2W"]["x_orientation"] for number in "345"] == ["sagittal", "axial", "coronal"]
    assert set(cohort.frame["patient_id"]) == {"ProstateX-0000"}
    assert notices == []


@pytest.mark.real
def test_real_volumes_equal_simpleitk_voxel_by_voxel(test_data: Path, tmp_path: Path) -> None:
    root = test_data / "prostatex" / "complete_study"
    cohort, _ = read(root, tmp_path)
    by_number: dict[str, dict[str, list[Path]]] = defaultdict(lambda: defaultdict(list))
    for path in root.rglob("*.dcm"):
        header = pydicom.dcmread(path, stop_before_pixels=True)
        b_value = bytes(header[0x19, 0x100C].value).decode().strip() if header.SeriesNumber == 6 else ""
        by_number[str(header.SeriesNumber)][b_value].append(path)
    for scan, row in zip(cohort, cohort.frame.to_dict("records"), strict=True):
        number = str(row["x_series_number"])
        paths = by_number[number][str(row["x_b_value"]) if number == "6" else ""]
        headers = [pydicom.dcmread(path) for path in paths]
        ours = read_image(scan.image)
        # pydicom: the centre of each slice's first and last pixel lies where its position says
        inverse = np.linalg.inv(ours.affine)
        for header in headers:
            x, y, z = (float(value) for value in header.ImagePositionPatient)
            index = inverse @ [-x, -y, z, 1.0]
            np.testing.assert_allclose(index[:2], 0.0, atol=2e-3)
            assert abs(index[2] - round(index[2])) < 2e-3
            np.testing.assert_array_equal(ours.data[:, :, round(index[2])], header.pixel_array.T)
        # SimpleITK: its own sorting, its own geometry; both brought to one orientation
        if number == "6":
            continue  # SimpleITK mixes the three b-values of this series
        reader = sitk.ImageSeriesReader()
        reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(paths[0].parent)))
        theirs = sitk.DICOMOrient(reader.Execute(), "LPS")
        mine = sitk.DICOMOrient(sitk.ReadImage(str(scan.image)), "LPS")
        np.testing.assert_array_equal(sitk.GetArrayFromImage(mine), sitk.GetArrayFromImage(theirs))
        np.testing.assert_allclose(mine.GetSpacing(), theirs.GetSpacing(), atol=1e-4)
        np.testing.assert_allclose(mine.GetOrigin(), theirs.GetOrigin(), atol=1e-3)
        np.testing.assert_allclose(mine.GetDirection(), theirs.GetDirection(), atol=1e-5)


@pytest.mark.real
def test_spacing_of_a_real_study_is_not_the_slice_thickness(test_data: Path, tmp_path: Path) -> None:
    cohort, _ = read(test_data / "prostatex" / "complete_study", tmp_path, select="sag")
    (scan,) = cohort.scans
    assert read_image(scan.image).spacing == pytest.approx((0.5625, 0.5625, 3.6), abs=1e-4)  # thickness 3.0 mm


@pytest.mark.real
def test_a_real_missing_slice_is_refused_with_its_position(test_data: Path, tmp_path: Path) -> None:
    root = test_data / "prostatex" / "missing_slice"
    with pytest.raises(InputError) as caught:
        read(root, tmp_path / "out")
    headers = [pydicom.dcmread(path, stop_before_pixels=True) for path in root.rglob("*.dcm")]
    positions = np.array(sorted((header.ImagePositionPatient for header in headers), key=lambda point: float(point[2])))
    steps = np.linalg.norm(np.diff(positions.astype(float), axis=0), axis=1)
    hole = int(steps.argmax())
    distance = np.linalg.norm(positions[hole].astype(float) - positions[0].astype(float)) + np.median(steps)
    middle = (positions[hole].astype(float) + positions[hole + 1].astype(float)) / 2
    message = str(caught.value)
    assert f"{distance:.2f} mm from the first slice" in message
    assert ", ".join(f"{value:.2f}" for value in middle) in message
    assert "series 8" in message and "1 slice is missing" in message
    assert not (tmp_path / "out").exists()


def test_voxels_positions_and_sides(tmp_path: Path) -> None:
    volume = ramp()
    write_series(tmp_path / "in", volume, start=7.0)
    cohort, _ = read(tmp_path / "in", tmp_path / "out")
    (scan,) = cohort.scans
    image = read_image(scan.image)
    assert image.data.dtype == np.int16
    np.testing.assert_array_equal(image.data, volume.transpose(2, 1, 0))
    # PixelSpacing is row spacing first; LPS x and y change their sign
    expected = np.array([[-1.25, 0, 0, 10], [0, -1.5, 0, 20], [0, 0, 4, 7], [0, 0, 0, 1]])
    np.testing.assert_allclose(image.affine, expected)
    assert (scan.sequence, scan.patient_id, scan.visit, scan.source) == ("T2W", "P1", "1", "here")


def test_no_identifying_tag_reaches_an_output(tmp_path: Path) -> None:
    write_series(tmp_path / "in", ramp(), SeriesDescription="t2 of Doe Jane", AccessionNumber="ACC77")
    cohort, _ = read(tmp_path / "in", tmp_path / "out")
    cohort.save(tmp_path / "out" / "cohort.csv")
    for path in (tmp_path / "out").iterdir():
        raw = path.read_bytes()
        if path.suffix == ".gz":
            loaded = nib.load(path)
            assert isinstance(loaded, nib.Nifti1Image)
            raw = loaded.to_bytes()
            assert bytes(loaded.header["descrip"].tobytes()).strip(b"\0") == b""
        for secret in (NAME, "Doe", "Jane", BIRTH, INSTITUTION, "1.2.3", "20200101", "ACC77"):
            assert secret.encode() not in raw, (path.name, secret)
            assert secret not in path.name


def test_b_values_are_told_apart_by_each_way_to_write_them(tmp_path: Path) -> None:
    def standard(b: int) -> dict[str, Any]:
        return {"DiffusionBValue": float(b)}

    def by_name(b: int) -> dict[str, Any]:
        return {"SequenceName": f"*ep_b{b}t"}

    for number, write in ((1, standard), (2, by_name)):
        for at, b in enumerate((50, 800)):
            write_series(
                tmp_path / "in" / f"{number}", ramp() + at, pattern=f"{b}-{{:04d}}.dcm", SeriesNumber=number,
                SeriesInstanceUID=f"1.9.{number}", SeriesDescription="dwi", **write(b),
            )  # fmt: skip
    cohort, _ = read(tmp_path / "in", tmp_path / "out")
    found = cohort.frame[["x_series_number", "sequence"]].to_numpy().tolist()
    assert found == [["1", "DWI_b50"], ["1", "DWI_b800"], ["2", "DWI_b50"], ["2", "DWI_b800"]]
    for scan in cohort:
        np.testing.assert_array_equal(
            read_image(scan.image).data, (ramp() + int(scan.sequence == "DWI_b800")).transpose(2, 1, 0)
        )


def test_a_volume_shorter_than_its_siblings_is_refused(tmp_path: Path) -> None:
    for b in (50, 800):
        paths = write_series(tmp_path / "in", ramp(), pattern=f"{b}-{{:02d}}.dcm", DiffusionBValue=float(b))
    paths[-1].unlink()
    with pytest.raises(InputError, match="1 slice is missing at its end: it has 5, DWI_b50 of the same series 6"):
        read(tmp_path / "in", tmp_path / "out")


def test_several_missing_slices_are_named(tmp_path: Path) -> None:
    paths = write_series(tmp_path / "in", ramp(12))
    for number in (3, 7, 8):
        paths[number].unlink()
    with pytest.raises(InputError, match=r"1 slice is missing at 12\.00 mm.*2 slices are missing at 28\.00 mm"):
        read(tmp_path / "in", tmp_path / "out")


def test_mixed_geometry_is_refused(tmp_path: Path) -> None:
    write_series(tmp_path / "size" / "a", ramp(4))
    write_series(tmp_path / "size" / "b", ramp(4, 8, 12), start=16.0)
    tilted = (1.0, 0.0, 0.0, 0.0, np.cos(0.05), np.sin(0.05))
    paths = write_series(tmp_path / "tilt", ramp(4))
    write_slice(paths[2], ramp()[2], (-10, -20, 8), ImageOrientationPatient=list(tilted))
    paths = write_series(tmp_path / "shift", ramp(4))
    write_slice(paths[2], ramp()[2], (-7, -20, 8))
    paths = write_series(tmp_path / "uneven", ramp(6))
    write_slice(paths[2], ramp()[2], (-10, -20, 9.5))
    for folder, words in (
        ("size", "several sizes"),
        ("tilt", "tilted"),
        ("shift", "sheared"),
        ("uneven", "evenly spaced"),
    ):
        with pytest.raises(InputError, match=words):
            read(tmp_path / folder, tmp_path / "out")


def test_all_faults_are_reported_together(tmp_path: Path) -> None:
    write_series(tmp_path / "in" / "a", ramp(), SeriesInstanceUID="1.1")[2].unlink()
    write_series(tmp_path / "in" / "b", ramp(), SeriesInstanceUID="1.2", PatientID="")
    (tmp_path / "in" / "torn.dcm").write_bytes(bytes(128) + b"DICM" + b"\x02\x00\x10\x00UI")
    with pytest.raises(InputError) as caught:
        read(tmp_path / "in", tmp_path / "out")
    assert len(caught.value.faults) == 3
    assert not (tmp_path / "out").exists()


def test_orientations_of_one_series_are_separate_volumes(tmp_path: Path) -> None:
    write_series(tmp_path / "in", ramp(5))
    for number in range(5):
        write_slice(
            tmp_path / "in" / f"c{number}.dcm", ramp()[0], (-10, number * 3.0, 20),
            ImageOrientationPatient=[1, 0, 0, 0, 0, -1], InstanceNumber=10 + number,
        )  # fmt: skip
    cohort, _ = read(tmp_path / "in", tmp_path / "out")
    assert cohort.frame["x_orientation"].tolist() == ["axial", "coronal"]
    assert read_image(cohort.scans[1].image).spacing == pytest.approx((1.25, 1.5, 3.0))
    only, notices = read(tmp_path / "in", tmp_path / "out", orientation="coronal")
    assert len(only) == 1 and "axial, not coronal" in notices[0]


def test_echoes_and_time_points_are_separate_volumes(tmp_path: Path) -> None:
    for number, (echo, time) in enumerate(((1.2, 1), (2.4, 1), (1.2, 2), (2.4, 2))):
        write_series(
            tmp_path / "in", ramp() + number, pattern=f"{number}-{{:03d}}.dcm", SeriesDescription="t1_vibe",
            EchoTime=echo, TemporalPositionIdentifier=time,
        )  # fmt: skip
    cohort, notices = read(tmp_path / "in", tmp_path / "out")
    assert sorted(int(read_image(scan.image).data.min()) for scan in cohort) == [0, 1, 2, 3]
    assert len({scan.scan_id for scan in cohort}) == 4
    assert "4 volumes of this series are all called T1W; they differ in EchoTime, TemporalPositionId" in notices[0]


def test_a_b_value_of_zero_makes_no_diffusion_by_itself(tmp_path: Path) -> None:
    write_series(tmp_path / "in" / "a", ramp(), SeriesInstanceUID="1.1", DiffusionBValue=0.0)
    for b in (0, 600):
        write_series(
            tmp_path / "in" / "b", ramp(), pattern=f"{b}-{{:02d}}.dcm", SeriesInstanceUID="1.2", SeriesNumber=6,
            SeriesDescription="ax focus", DiffusionBValue=float(b),
        )  # fmt: skip
    cohort, _ = read(tmp_path / "in", tmp_path / "out")
    assert cohort.frame["sequence"].tolist() == ["T2W", "DWI_b0", "DWI_b600"]


def test_a_damaged_series_can_be_named_and_left_out(tmp_path: Path) -> None:
    write_series(tmp_path / "in" / "a", ramp(), SeriesInstanceUID="1.1")[2].unlink()
    write_series(tmp_path / "in" / "b", ramp(), SeriesInstanceUID="1.2", PatientID="P2")
    cohort, notices = read(tmp_path / "in", tmp_path / "out", exclude="^P1/5/")
    assert cohort.patients == ("P2",) and "'P1/5/t2_tse_tra'" in notices[0]


@pytest.mark.parametrize("kind", ["rle", "jpeg2000-lossless", "deflated"])
def test_compressed_pixels(tmp_path: Path, kind: str) -> None:
    volume = ramp(4, 64, 64)
    before = locale.setlocale(locale.LC_ALL)
    for path in write_series(tmp_path / "in", volume):
        dataset = pydicom.dcmread(path)
        if kind == "rle":
            dataset.compress(pydicom.uid.RLELossless)
            dataset.save_as(path)
        elif kind == "deflated":
            dataset.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
            dataset.save_as(path)
        else:  # pydicom alone cannot unpack it
            image = sitk.ReadImage(str(path))
            writer = sitk.ImageFileWriter()
            writer.KeepOriginalImageUIDOn()
            writer.SetImageIO("GDCMImageIO")
            writer.UseCompressionOn()
            writer.SetCompressor("JPEG2000")
            writer.SetFileName(str(path))
            writer.Execute(image)
            packed = pydicom.dcmread(path)
            assert packed.file_meta.TransferSyntaxUID.is_compressed
            for element in dataset:
                if element.keyword != "PixelData" and element.tag.group != 0x28:
                    packed[element.tag] = element
            packed.PixelSpacing = dataset.PixelSpacing
            packed.save_as(path)
            # GDCM's writer, which this test uses, leaves the C locale behind
            locale.setlocale(locale.LC_ALL, before)
    (scan,) = read(tmp_path / "in", tmp_path / "out")[0].scans
    np.testing.assert_array_equal(read_image(scan.image).data, volume.transpose(2, 1, 0))
    assert locale.setlocale(locale.LC_ALL) == before, "text files opened after a DICOM folder would be read as ASCII"


def test_images_that_nothing_tells_apart_are_refused(tmp_path: Path) -> None:
    for number in range(2):
        write_series(tmp_path / "in", ramp(), pattern=f"{number}-{{:03d}}.dcm")
    with pytest.raises(InputError, match="share a position"):
        read(tmp_path / "in", tmp_path / "out")


def test_what_is_left_out_is_said(tmp_path: Path) -> None:
    root = tmp_path / "in"
    write_series(root / "good", ramp())
    (root / "good" / "copy.dcm").write_bytes((root / "good" / "0001.dcm").read_bytes())
    write_series(root / "loc", ramp(), SeriesInstanceUID="1.5", SeriesDescription="localizer")
    write_series(root / "one", ramp(1), SeriesInstanceUID="1.6")
    write_series(root / "mip", ramp(), SeriesInstanceUID="1.7", ImageType=["DERIVED", "SECONDARY", "PROJECTION IMAGE"])
    write_series(root / "ct", ramp(), SeriesInstanceUID="1.8", Modality="CT")
    write_series(root / "what", ramp(), SeriesInstanceUID="1.10", SeriesDescription="kidney study")
    write_series(root / "phase", ramp(), SeriesInstanceUID="1.11", ImageType=["ORIGINAL", "PRIMARY", "P"])
    (root / "notes.txt").write_text("seen")
    cohort, notices = read(root, tmp_path / "out")
    assert len(cohort) == 1
    text = "\n".join(notices)
    for reason in ("a localiser", "1 slice, fewer than 3", "projection", "modality CT", "no rule knows", "phase, real",
                   "1 file that is no DICOM", "second copy"):  # fmt: skip
        assert reason in text, reason
    assert len(notices) == 8
    asked, notices = read(root, tmp_path / "out", sequence="T1W", select="kidney")
    assert asked.frame["sequence"].tolist() == ["T1W"]


def test_descriptions_to_sequences(tmp_path: Path) -> None:
    expected = {
        "t1_vibe_dixon_tra_in": "T1W_IN", "t1_vibe_dixon_tra_opp": "T1W_OUT", "t1_vibe_dixon_tra_W": "T1W_WATER",
        "t1_vibe_fs_tra_bh": "T1W", "LAVA-Flex": "T1W", "eTHRIVE": "T1W", "T2 HASTE cor": "T2W", "t2_blade_fs": "T2W",
        "SSFSE": "T2W", "AX T2 FAT SAT": "T2W", "t2_star_map": "T2STAR", "ADC (10^-6)": "ADC", "pd_tse": "PDW",
        "MRE stiffness": "MRE", "dADC map": "ADC", "t2_velocity": "T2W",
    }  # fmt: skip
    for number, text in enumerate(expected, start=1):
        write_series(
            tmp_path / "in" / f"{number}",
            ramp(3),
            SeriesInstanceUID=f"1.{number}",
            SeriesNumber=number,
            SeriesDescription=text,
        )
    cohort, _ = read(tmp_path / "in", tmp_path / "out")
    assert cohort.frame["sequence"].tolist() == list(expected.values())


def test_rescaling(tmp_path: Path) -> None:
    write_series(tmp_path / "in", ramp(), RescaleSlope=0.5, RescaleIntercept=-3)
    write_series(tmp_path / "in2", ramp(dtype=np.uint16) + np.uint16(60000), SeriesInstanceUID="1.8")
    (half,) = read(tmp_path / "in", tmp_path / "out")[0].scans
    (large,) = read(tmp_path / "in2", tmp_path / "out2")[0].scans
    assert read_image(half.image).data.dtype == np.float32
    np.testing.assert_allclose(read_image(half.image).data.astype(float), ramp().transpose(2, 1, 0) * 0.5 - 3)
    assert read_image(large.image).data.dtype == np.uint16 and read_image(large.image).data.min() == 60000


def test_names_in_odd_values_are_not_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for path in write_series(tmp_path / "in", ramp()):
        path.write_bytes(path.read_bytes().replace(b"1.2.3.4\0", b"1.Doe.4\0"))  # quoted by pydicom as no valid UID
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read(tmp_path / "in", tmp_path / "out")
    assert "Doe" not in caplog.text


def test_an_image_without_pixel_spacing_leaves_a_hole(tmp_path: Path) -> None:
    paths = write_series(tmp_path / "in", ramp())
    write_slice(paths[2], ramp()[2], (-10, -20, 8), PixelSpacing=None)
    with pytest.raises(InputError, match="1 slice is missing at 8"):
        read(tmp_path / "in", tmp_path / "out")


def test_visits_follow_the_dates_and_ids_stay_apart(tmp_path: Path) -> None:
    ids = ["a/b", "a_b", "Zoë 3", "Zoë  3"]  # the last two are one patient: white space does not count
    for number, patient in enumerate(ids):
        write_series(
            tmp_path / "in" / f"{number} x", ramp(3), PatientID=patient, StudyInstanceUID=f"2.{number}",
            SeriesInstanceUID=f"3.{number}", StudyDate=f"20{20 - number}0101", SpecificCharacterSet="ISO_IR 192",
        )  # fmt: skip
    cohort, _ = read(tmp_path / "in", tmp_path / "out")
    assert set(cohort.patients) == {"a/b", "a_b", "Zoë 3"}
    assert sorted(scan.visit for scan in cohort if scan.patient_id == "Zoë 3") == ["1", "2"]
    assert len({scan.scan_id for scan in cohort}) == 4 and all(scan.image.is_file() for scan in cohort)


def test_a_volume_is_converted_once(tmp_path: Path) -> None:
    paths = write_series(tmp_path / "in", ramp())
    (scan,) = read(tmp_path / "in", tmp_path / "out")[0].scans
    before = scan.image.stat().st_mtime_ns
    read(tmp_path / "in", tmp_path / "out")
    assert scan.image.stat().st_mtime_ns == before
    scan.image.write_bytes(b"torn")
    read(tmp_path / "in", tmp_path / "out")
    np.testing.assert_array_equal(read_image(scan.image).data, ramp().transpose(2, 1, 0))
    write_slice(paths[0], ramp()[0] + np.int16(9), (-10, -20, 0), InstanceNumber=1)
    read(tmp_path / "in", tmp_path / "out")
    assert read_image(scan.image).data[0, 0, 0] == 9
    assert (
        json.loads((tmp_path / "out" / "conversion.json").read_text(encoding="utf-8"))["volumes"][scan.scan_id][
            "slices"
        ]
        == 6
    )


def test_enhanced_multi_frame(tmp_path: Path) -> None:
    volume = ramp(6)
    frames = []
    for number in range(6):
        frame = pydicom.Dataset()
        plane, content = pydicom.Dataset(), pydicom.Dataset()
        plane.ImagePositionPatient = [-10.0, -20.0, 20.0 - 4.0 * number]
        content.EffectiveEchoTime = 90.0
        frame.PlanePositionSequence, frame.MREchoSequence = [plane], [content]
        frames.append(frame)
    shared, orientation, measures = pydicom.Dataset(), pydicom.Dataset(), pydicom.Dataset()
    orientation.ImageOrientationPatient = list(AXIAL)
    measures.PixelSpacing = [1.5, 1.25]
    shared.PlaneOrientationSequence, shared.PixelMeasuresSequence = [orientation], [measures]
    write_slice(
        tmp_path / "in" / "all.dcm", volume.reshape(48, 10), (0, 0, 0), Rows=8, NumberOfFrames=6, PixelSpacing=None,
        ImagePositionPatient=None, ImageOrientationPatient=None, PerFrameFunctionalGroupsSequence=frames,
        SharedFunctionalGroupsSequence=[shared], SOPClassUID="1.2.840.10008.5.1.4.1.1.4.1",
    )  # fmt: skip
    (scan,) = read(tmp_path / "in", tmp_path / "out")[0].scans
    image = read_image(scan.image)
    np.testing.assert_array_equal(image.data, volume[::-1].transpose(2, 1, 0))
    np.testing.assert_allclose(image.affine[:3, 3], [10, 20, 0])
    assert image.spacing == pytest.approx((1.25, 1.5, 4.0))


def test_an_option_that_cannot_be_used_is_refused(tmp_path: Path) -> None:
    write_series(tmp_path / "in", ramp())
    for options in ({"select": "("}, {"orientation": "oblique"}, {"select": "nothing like it"}):
        with pytest.raises(InputError):
            read(tmp_path / "in", tmp_path / "out", **options)
    with pytest.raises(InputError, match="no such folder"):
        read(tmp_path / "absent", tmp_path / "out")
