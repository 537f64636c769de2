"""Damaged, lying and odd files: an InputError or a finding, never a traceback, a hang or a gigabyte.

The property tests run in this process with a watch on Python's allocations (numpy's included); one
test limits a whole process's address space, which also sees what libraries allocate by themselves.
"""

from __future__ import annotations

import gzip
import os
import random
import signal
import struct
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from datamodules.cohort import Cohort
from datamodules.cohort_check import check_cohort, check_table
from datamodules.errors import InputError
from datamodules.images import read_image, read_mask, write_nifti
from datamodules.readers import chaos, dicom
from tests.datamodules.readers.dicom_tree import ramp, write_series
from tests.datamodules.readers.test_chaos import write_patient

SECONDS = 10
MEGABYTES = 64
FUZZ = settings(
    max_examples=120, deadline=None, derandomize=True, database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip


@contextmanager
def bounded(megabytes: float = MEGABYTES) -> Iterator[None]:
    """Fail a block that takes too long or allocates too much at its peak."""

    def late(number: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"not done after {SECONDS} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    assert peak < megabytes * 2**20, f"{peak / 2**20:.0f} MB at the peak"


def good_nifti(folder: Path, ending: str = ".nii") -> bytes:
    path = folder / f"good{ending}"
    write_nifti(path, ramp().transpose(2, 1, 0).astype(np.int16), np.diag([1.5, 1.5, 4, 1]))
    return path.read_bytes()


def read_either(path: Path) -> None:
    """Read a file as image and as mask: a volume that makes sense, or an InputError of one line a fault."""
    for read in (read_image, lambda path: read_mask(path, (1,))):
        try:
            volume = read(path)
        except InputError as error:
            assert str(path) in str(error) and all("\n" not in fault for fault in error.faults)
        else:
            assert volume.data.ndim == 3 and np.isfinite(volume.data).all() and np.isfinite(volume.affine).all()


@FUZZ
@given(data=st.data())
def test_any_damage_to_a_nifti_header(tmp_path: Path, data: st.DataObject) -> None:
    raw = bytearray(good_nifti(tmp_path))
    for _ in range(data.draw(st.integers(1, 6))):
        raw[data.draw(st.integers(0, 351))] = data.draw(st.integers(0, 255))
    zipped = data.draw(st.booleans())
    path = tmp_path / ("fuzzed.nii.gz" if zipped else "fuzzed.nii")
    path.write_bytes(gzip.compress(bytes(raw), 1) if zipped else bytes(raw))
    with bounded():
        read_either(path)


@FUZZ
@given(fields=st.lists(
    st.tuples(
        st.sampled_from([(40, "<8h"), (42, "<3h"), (70, "<h"), (72, "<h"), (76, "<8f"), (108, "<f"), (112, "<2f"),
                         (123, "<b"), (252, "<2h"), (256, "<6f"), (280, "<12f"), (344, "<4s")]),
        st.integers(0, 2**32),
    ), min_size=1, max_size=4,
))  # fmt: skip
def test_every_field_with_extreme_values(tmp_path: Path, fields: list[tuple[tuple[int, str], int]]) -> None:
    raw = bytearray(good_nifti(tmp_path))
    for (offset, code), seed in fields:
        source = random.Random(seed)
        count = 1 if code == "<4s" else int(code[1:-1] or 1)
        extremes: dict[str, list[Any]] = {
            "h": [0, -1, 1, 3, 7, 8, 32767, -32768], "b": [0, 1, 2, 3, 127, -128],
            "f": [0.0, -1.0, 1e-30, 1e30, float("nan"), float("inf"), -float("inf"), 352.0, 348.5],
            "s": [b"n+1\0", b"ni1\0", b"n+2\0", b"\0\0\0\0", b"abcd"],
        }  # fmt: skip
        struct.pack_into(code, raw, offset, *(source.choice(extremes[code[-1]]) for _ in range(count)))
    path = tmp_path / "fuzzed.nii"
    path.write_bytes(bytes(raw))
    with bounded():
        read_either(path)


@FUZZ
@given(share=st.floats(0, 1), zipped=st.booleans(), tail=st.binary(max_size=40))
@example(share=0.0, zipped=True, tail=b"")
@example(share=0.0, zipped=False, tail=b"")
def test_truncated_and_overwritten_files(tmp_path: Path, share: float, zipped: bool, tail: bytes) -> None:
    ending = ".nii.gz" if zipped else ".nii"
    raw = good_nifti(tmp_path, ending)
    path = tmp_path / f"torn{ending}"
    path.write_bytes(raw[: int(share * len(raw))] + tail)
    with bounded():
        read_either(path)


@FUZZ
@given(content=st.binary(max_size=1024), ending=st.sampled_from([".nii", ".nii.gz"]))
def test_arbitrary_bytes(tmp_path: Path, content: bytes, ending: str) -> None:
    path = tmp_path / f"any{ending}"
    path.write_bytes(content)
    with bounded():
        read_either(path)


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_a_gigabyte_is_not_allocated_for_a_kilobyte(tmp_path: Path, ending: str) -> None:
    raw = bytearray(good_nifti(tmp_path)[:1000])
    path = tmp_path / f"enormous{ending}"
    for dims in ((3, 32767, 32767, 32767, 1, 1, 1, 1), (3, 1024, 1024, 500, 1, 1, 1, 1), (7, *[32767] * 7)):
        struct.pack_into("<8h", raw, 40, *dims)
        path.write_bytes(gzip.compress(bytes(raw)) if ending == ".nii.gz" else bytes(raw))
        with bounded(8), pytest.raises(InputError):
            read_image(path)


def test_a_gzip_bomb_is_not_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "bomb.nii.gz"
    path.write_bytes(gzip.compress(good_nifti(tmp_path) + bytes(300 * 2**20), 9))
    assert path.stat().st_size < 2**20
    with bounded(16):
        read_either(path)


def test_dimensions_of_a_lying_header_in_a_process_with_little_memory(tmp_path: Path) -> None:
    """The whole process, libraries included, gets 500 MB more than its imports took."""
    raw = bytearray(good_nifti(tmp_path)[:1000])
    struct.pack_into("<8h", raw, 40, 3, 800, 800, 800, 1, 1, 1, 1)
    (tmp_path / "a.nii").write_bytes(bytes(raw))
    (tmp_path / "b.nii.gz").write_bytes(gzip.compress(bytes(raw)))
    write_series(tmp_path / "dicom", ramp(), Rows=60000, Columns=60000)
    write_series(tmp_path / "frames", ramp(), NumberOfFrames=2**31 - 1)
    implicit = bytes(128) + b"DICM" + struct.pack("<HH2sHI", 2, 0x102, b"OB", 0, 0x7FFFFFF0)
    (tmp_path / "long").mkdir()
    (tmp_path / "long" / "x.dcm").write_bytes(implicit)
    program = """
import resource, sys
from pathlib import Path
from datamodules.errors import InputError
from datamodules.images import read_image
from datamodules.readers import dicom
import scipy.ndimage, PIL.Image, rich.progress, pydicom, SimpleITK
root = Path(sys.argv[1])
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 500 * 2**20,) * 2)
for name in ("a.nii", "b.nii.gz"):
    try:
        read_image(root / name)
    except InputError as error:
        print("refused", name)
for name in ("dicom", "frames", "long"):
    try:
        dicom.read(root / name, root / "out", source="x", notify=lambda text: None)
    except InputError as error:
        print("refused", name)
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, timeout=120, check=False,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OPENBLAS_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[:5] == [
        f"refused {name}" for name in ("a.nii", "b.nii.gz", "dicom", "frames", "long")
    ]


@settings(FUZZ, max_examples=60)
@given(data=st.data())
def test_any_damage_to_a_dicom_file(tmp_path: Path, data: st.DataObject) -> None:
    root = tmp_path / "in"
    paths = write_series(root, ramp(3))
    raw = bytearray(paths[1].read_bytes())
    if data.draw(st.booleans()):
        raw = raw[: data.draw(st.integers(0, len(raw)))]
    for _ in range(data.draw(st.integers(0, 8))):
        if len(raw) > 132:
            raw[data.draw(st.integers(132, len(raw) - 1))] = data.draw(st.integers(0, 255))
    paths[1].write_bytes(bytes(raw))
    with bounded():
        try:
            cohort = dicom.read(root, tmp_path / "out", source="x", min_slices=2, notify=lambda text: None)
        except InputError as error:
            assert error.faults
        else:
            for scan in cohort:
                read_image(scan.image)


@settings(FUZZ, max_examples=25)
@given(data=st.data())
def test_any_damage_to_a_truth_slice(tmp_path: Path, data: st.DataObject) -> None:
    root = tmp_path / "in"
    if not root.exists():
        write_patient(root / "Train_Sets" / "MR" / "1")
    path = root / "Train_Sets" / "MR" / "1" / "T2SPIR" / "Ground" / "IMG-0002-00002.png"
    whole = path.read_bytes()
    raw = bytearray(whole[: data.draw(st.integers(0, len(whole)))])
    for _ in range(data.draw(st.integers(0, 4))):
        if raw:
            raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(bytes(raw))
    try:
        with bounded():
            chaos.read(root, tmp_path / "out", notify=lambda text: None)
    except InputError as error:
        assert "IMG-0002-00002.png" in str(error) or "Ground" in str(error)
    finally:
        path.write_bytes(whole)


ODD = [
    "a b",
    "Zoë",
    "病人1",
    "e\u0301",
    "🫀",
    "-rf",
    "#1",
    "%41",
    "a'b\"c",
    "x" * 120,
    "null",
    "\u202egnp",
    "日本 語/1",
]


def test_odd_ids_and_paths_with_spaces(tmp_path: Path) -> None:
    folder = tmp_path / "ein Ordner – mit 空白"
    rows = []
    for number, name in enumerate(ODD):
        scan_id = name.replace("/", "∕")
        image = folder / f"{scan_id}.nii.gz"
        write_nifti(image, (ramp() + number).transpose(2, 1, 0).astype(np.int16), np.diag([1.5, 1.5, 4, 1]))
        rows.append({"scan_id": scan_id, "patient_id": name, "sequence": "T2W", "source": "s ü", "image": image.name})
    cohort = Cohort(pd.DataFrame(rows), folder)
    for ending in ("parquet", "csv"):
        cohort.save(folder / f"the table.{ending}")
        report = check_table(folder / f"the table.{ending}", workers=1, progress=False, thumbnails=True)
        assert [scan.patient_id for scan, _ in report.scans] == ODD
        assert not report.has_faults, report.findings


@settings(FUZZ, max_examples=40)
@given(patient=st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40))
@example(patient="..")
@example(patient="a\x00b")
def test_any_patient_id_in_dicom(tmp_path: Path, patient: str) -> None:
    root = tmp_path / "in"
    write_series(root, ramp(3), PatientID=patient, SpecificCharacterSet="ISO_IR 192")
    try:
        cohort = dicom.read(root, tmp_path / "out", source="x", notify=lambda text: None)
    except InputError as error:
        assert error.faults
    else:
        for scan in cohort:
            assert scan.image.parent == tmp_path / "out" and scan.image.is_file()


def test_a_cohort_of_wreckage_is_checked_to_the_end(tmp_path: Path) -> None:
    source = random.Random(7)
    raw = good_nifti(tmp_path)
    rows = []
    for number in range(40):
        broken = bytearray(raw)
        for _ in range(source.randrange(1, 30)):
            broken[source.randrange(352)] = source.randrange(256)
        name = f"{number}.nii"
        (tmp_path / name).write_bytes(bytes(broken[: source.choice([len(broken), 352, 100])]))
        rows.append({"scan_id": f"{number}", "patient_id": f"{number}", "sequence": "T1W", "source": "x", "image": name,
                     "mask": name, "mask_labels": "1"})  # fmt: skip
    with bounded(200):
        report = check_cohort(Cohort(pd.DataFrame(rows), tmp_path), workers=1, progress=False, thumbnails=True)
    assert len(report.scans) == 40 and report.has_faults
