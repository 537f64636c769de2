"""The cohort check: each kind of trouble is planted, and found where it was planted and nowhere else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from datamodules.cohort import Cohort
from datamodules.cohort_check import CheckReport, check_cohort, check_table
from datamodules.errors import InputError
from datamodules.images import write_nifti

SHAPE = (24, 20, 10)
SPACING = (12.0, 12.0, 14.0)


def affine() -> NDArray[np.float64]:
    return np.diag([*SPACING, 1.0])


def liver(radius: float = 4.0) -> NDArray[np.uint8]:
    """A ball: with a radius of 4.7 voxels about 730 ml."""
    grid = np.indices(SHAPE).astype(float)
    distance = np.sqrt((grid[0] - 10) ** 2 + (grid[1] - 10) ** 2 + ((grid[2] - 5) * 1.2) ** 2)
    ball: NDArray[np.uint8] = (distance <= radius).astype(np.uint8)
    return ball


class Case:
    """A cohort that grows scan by scan."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rows: list[dict[str, Any]] = []
        self.random = np.random.default_rng(3)

    def add(
        self,
        scan_id: str,
        patient: str | None = None,
        image: NDArray[np.generic] | None = None,
        mask: NDArray[np.generic] | None = None,
        gain: float = 1.0,
        own_affine: NDArray[np.float64] | None = None,
        mask_affine: NDArray[np.float64] | None = None,
        **columns: Any,
    ) -> None:
        if image is None:
            noise = self.random.normal(0, 5, SHAPE)
            image = ((200 + noise + 60 * liver()) * (np.indices(SHAPE)[0] > 2) * gain).astype(np.int16)
        own_affine = affine() if own_affine is None else own_affine
        write_nifti(self.folder / f"{scan_id}.nii.gz", image, own_affine)
        row = {"scan_id": scan_id, "patient_id": patient or scan_id, "sequence": "T2W", "source": "site",
               "image": f"{scan_id}.nii.gz", "mask": None, "mask_labels": None}  # fmt: skip
        if mask is not None:
            name = f"{scan_id}_mask.nii.gz"
            write_nifti(self.folder / name, mask, own_affine if mask_affine is None else mask_affine)
            row |= {"mask": name, "mask_labels": "1"}
        self.rows.append(row | columns)

    def cohort(self) -> Cohort:
        return Cohort(pd.DataFrame(self.rows), self.folder)

    def check(self, **options: Any) -> CheckReport:
        return check_cohort(self.cohort(), **({"workers": 1, "progress": False} | options))


@pytest.fixture
def case(tmp_path: Path) -> Case:
    made = Case(tmp_path)
    for number in range(7):
        made.add(f"good{number}", mask=liver(4.7), stage=1 + number % 3, sex="F")
    return made


def found(report: CheckReport) -> dict[str, tuple[str, tuple[str, ...]]]:
    assert len({finding.code for finding in report.findings}) == len(report.findings), report.findings
    return {finding.code: (finding.level, finding.scans) for finding in report.findings}


def test_good_scans_have_no_findings(case: Case) -> None:
    report = case.check()
    assert report.findings == () and not report.has_faults
    facts = report.scans[0][1]
    assert facts.mask_ml == pytest.approx(liver(4.7).sum() * 2.016, abs=0.01)
    assert (facts.dtype, facts.orientation, facts.shape, facts.spacing_mm) == ("int16", "RAS", SHAPE, SPACING)
    assert facts.oblique_degrees == 0 and facts.mask_parts == 1 and facts.mask_at_edge is False
    assert report.counts[0]["stage"] == {"1": 3, "2": 2, "3": 2} and report.counts[0]["masks"] == 7


def test_masks(case: Case) -> None:
    two = liver(4.7)
    two[20:23, 15:18, 2:5] = 1
    case.add("small", mask=liver(2.0))
    case.add("two", mask=two)
    case.add("empty", mask=liver() * 6)
    case.add("other-grid", mask=liver(4.7)[1:])
    case.add("shifted", mask=liver(4.7), mask_affine=affine() + _shift(20.0))
    case.add("fraction", mask=liver(4.7) * np.float32(0.5))
    case.add("edge", mask=np.roll(liver(4.7), -6, axis=0))
    report = case.check()
    by_scan = {(finding.code, finding.scans[0]): finding for finding in report.findings}
    assert {key: finding.level for key, finding in by_scan.items()} == {
        ("implausible-volume", "small"): "warning", ("disconnected-mask", "two"): "warning",
        ("empty-mask", "empty"): "fault", ("mask-off-grid", "other-grid"): "fault",
        ("mask-off-grid", "shifted"): "fault", ("unreadable-mask", "fraction"): "fault",
        ("mask-at-edge", "edge"): "note",
        ("intensity-outlier-liver-ratio", "edge"): "warning",  # rightly: the mask is beside the liver
    }  # fmt: skip
    assert "it holds 0, 6" in by_scan["empty-mask", "empty"].message


def _shift(mm: float) -> NDArray[np.float64]:
    shift = np.zeros((4, 4))
    shift[0, 3] = mm
    return shift


def test_duplicates_are_found_by_content_however_stored(case: Case) -> None:
    original = np.asarray(nib.load(case.folder / "good0.nii.gz").dataobj)
    flipped = affine() @ np.array([[-1, 0, 0, SHAPE[0] - 1], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]], float)
    case.add("again", image=original[::-1].astype(np.float32), own_affine=flipped)
    case.add("same-person", patient="good1", image=np.asarray(nib.load(case.folder / "good1.nii.gz").dataobj))
    codes = found(case.check())
    assert codes["duplicate-image"] == ("fault", ("good0", "again"))
    assert codes["duplicate-scan"] == ("warning", ("good1", "same-person"))
    assert set(codes) == {"duplicate-image", "duplicate-scan", "mixed-dtype", "mixed-orientation"}


def test_geometry(case: Case) -> None:
    tilt = np.eye(4)
    angle = np.radians(12)
    tilt[1:3, 1:3] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    case.add("oblique", own_affine=tilt @ affine())
    case.add("unset", own_affine=np.eye(4), sequence="T1W")
    case.add("far", own_affine=np.diag([40.0, 40, 40, 1]))
    report = case.check()
    codes = found(report)
    assert codes == {
        "oblique": ("note", ("oblique",)), "unit-spacing": ("warning", ("unset",)), "odd-spacing": ("warning", ("far",))
    }  # fmt: skip
    assert report.scans[7][1].oblique_degrees == pytest.approx(12, abs=0.01)


def test_intensity_outliers_by_source(case: Case) -> None:
    case.add("dim", gain=0.1)
    case.add("other-scanner", gain=0.1, source="elsewhere")
    noise = case.random.normal(0, 5, SHAPE)
    dark = ((200 + noise - 150 * liver()) * (np.indices(SHAPE)[0] > 2)).astype(np.int16)
    case.add("dark-liver", image=dark, mask=liver(4.7))
    outliers = {(finding.code, finding.scans) for finding in case.check().findings if "outlier" in finding.code}
    assert ("intensity-outlier-median", ("dim",)) in outliers
    assert ("intensity-outlier-liver-ratio", ("dark-liver",)) in outliers
    assert not any("other-scanner" in scans for _, scans in outliers)


def test_volumes_of_one_patient_in_two_sequences(case: Case) -> None:
    case.add("good0-t1", patient="good0", sequence="T1W", mask=liver(3.6))
    case.add("good1-t1", patient="good1", sequence="T1W", mask=liver(4.5))
    case.add("later", patient="good2", sequence="T1W", mask=liver(3.6), visit="2")
    report = case.check()
    assert [finding.scans for finding in report.findings if finding.code == "volumes-disagree"] == [
        ("good0-t1", "good0")
    ]


def test_contradictions_of_one_patient(case: Case) -> None:
    case.add("second", patient="good0", stage=3, sex="M")
    case.add("next-year", patient="good1", stage=3, visit="2")
    codes = found(case.check())
    assert codes["contradicting-sex"] == ("fault", ("good0", "second"))
    assert codes["contradicting-label"] == ("fault", ("good0", "second"))


def test_bad_files_are_faults_and_the_others_are_checked(case: Case) -> None:
    case.add("torn")
    case.add("nan", image=np.full(SHAPE, np.nan, np.float32))
    case.add("flat", image=np.ones(SHAPE, np.int16))
    case.add("gone")
    torn = case.folder / "torn.nii.gz"
    torn.write_bytes(torn.read_bytes()[:300])
    (case.folder / "gone.nii.gz").unlink()
    report = case.check()
    assert [(f.level, f.code, f.scans[0]) for f in report.findings if f.level == "fault"] == [
        ("fault", "constant-image", "flat"), ("fault", "unreadable-image", "gone"),
        ("fault", "unreadable-image", "nan"), ("fault", "unreadable-image", "torn"),
    ]  # fmt: skip
    assert len(report.scans) == 11


def test_processes_and_json_give_the_same(case: Case) -> None:
    case.add("empty", mask=liver() * 2)
    alone, together = case.check(thumbnails=True), case.check(workers=2, thumbnails=True)
    assert alone == together
    text = json.dumps(alone.to_json(), allow_nan=False)
    back = json.loads(text)
    assert back["summary"] == {"scans": 8, "faults": 1, "warnings": 0, "notes": 0}
    assert back["findings"][0]["scans"] == ["empty"] and len(back["scans"]) == 8
    assert list(back) == ["format", "cohort", "cohort_sha256", "summary", "findings", "counts", "scans"]


def test_a_broken_table_is_a_report_of_all_its_faults(case: Case) -> None:
    frame = pd.DataFrame(case.rows)
    frame.loc[0, "stage"] = 7
    frame.loc[1, "scan_id"] = "good2"
    frame.to_csv(case.folder / "cohort.csv", index=False)
    report = check_table(case.folder / "cohort.csv", progress=False)
    assert report.has_faults and report.number("fault") == 2 and report.scans == ()
    assert {finding.code for finding in report.findings} == {"table", "files-not-checked"}
    with pytest.raises(InputError, match="no such cohort table"):
        check_table(case.folder / "absent.csv")


@pytest.mark.real
def test_the_dark_liver_of_a_real_cohort_is_found(test_data: Path) -> None:
    folder = test_data / "chaos_t2"
    rows = [
        {"scan_id": number, "patient_id": number, "sequence": "T2W", "source": "CHAOS", "mask_labels": "1",
         "image": f"image_{number}.nii.gz", "mask": f"label_{number}.nii.gz"}
        for number in ("1", "2", "3", "5", "8", "10", "13", "15", "19", "20")
    ]  # fmt: skip
    report = check_cohort(Cohort(pd.DataFrame(rows), folder), workers=1, progress=False)
    assert [(finding.code, finding.scans) for finding in report.findings] == [
        ("intensity-outlier-liver-ratio", ("15",))
    ]
    assert all(1000 < (facts.mask_ml or 0) < 3400 for _, facts in report.scans)


def test_faults_of_columns_do_not_hide_faults_of_rows(tmp_path: Path) -> None:
    path = tmp_path / "bad.csv"
    path.write_text("scan_id,patient_id,sequence,image,stag,stage\na,1,T1W,x.nii,1,7\na,2,T1W,y.nii,,2\n")
    messages = " ".join(finding.message for finding in check_table(path).findings)
    for words in ("unknown column 'stag'", "'source' is missing", "stage 7 is not", "occurs 2 times"):
        assert words in messages
    assert "source is empty" not in messages
