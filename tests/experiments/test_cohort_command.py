from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from datamodules.cohort import Cohort
from experiments.cli import build_parser, main
from tests.datamodules.readers.test_cirrmri import SEVEN, write_tree
from tests.datamodules.readers.tree import volumes

LAYOUTS = (
    "phantom", "nifti", "cirrmri", "care-liver", "chaos", "amos", "atlas", "duke", "nnunet", "dicom", "csv", "join",
    "check",
)  # fmt: skip


def run(*words: object) -> int:
    """Run a command as the console script would."""
    return main(["cohort", *(str(word) for word in words)])


def nifti(root: Path, out: Path, *more: str) -> int:
    return run(
        "nifti", root, "--image", "image_{id}.nii.gz", "--mask", "label_{id}.nii.gz", "--mask-label", "1",
        "--sequence", "T2W", "--source", "my site", "--out", out, *more,
    )  # fmt: skip


def test_nifti_writes_a_table_with_paths_relative_to_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "scans é 1"
    volumes(root, ["image_1", "image_Zoë", "label_1"])
    out = tmp_path / "tables" / "cohort.csv"
    assert nifti(root, out) == 0
    said = capsys.readouterr()
    assert said.out == (f"{out}: 2 scans of 2 patients; sequences: T2W 2; sources: my site 2; 1 with a mask\n")
    assert said.err.startswith("note: ") and "image_Zoë.nii.gz" in said.err
    assert "../scans é 1/image_1.nii.gz" in out.read_text(encoding="utf-8")
    assert all(scan.image.is_file() for scan in Cohort.load(out))


def test_faults_go_to_stderr_one_a_line_and_write_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    volumes(tmp_path, ["image_1", "label_1", "label_2", "label_3"])
    out = tmp_path / "cohort.parquet"
    assert nifti(tmp_path, out) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and "label_2.nii.gz" in lines[0] and "label_3.nii.gz" in lines[1]
    assert not out.exists()


@pytest.mark.parametrize("out", ["cohort.xlsx", "cohort", "folder.csv"])
def test_a_bad_out_is_refused_before_the_work(tmp_path: Path, capsys: pytest.CaptureFixture[str], out: str) -> None:
    (tmp_path / "folder.csv").mkdir()
    assert nifti(tmp_path / "not even there", tmp_path / out) == 2
    assert "--out" in capsys.readouterr().err


@pytest.mark.parametrize("value", ["0", "1,x", "", "-1"])
def test_a_bad_mask_label(tmp_path: Path, capsys: pytest.CaptureFixture[str], value: str) -> None:
    with pytest.raises(SystemExit) as caught:
        nifti(tmp_path, tmp_path / "c.csv", f"--mask-label={value}")
    assert caught.value.code == 2
    assert "positive whole numbers" in capsys.readouterr().err


def test_the_layouts_of_public_sets(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    volumes(tmp_path / "cirr" / "Cirrhosis_T1_3D" / "valid_images", [47])
    volumes(tmp_path / "cirr" / "Cirrhosis_T2_3D" / "train_images", [47])
    volumes(tmp_path / "care" / "Vendor_A" / "1-A-S3", ["GED4", "T1"])
    volumes(tmp_path / "amos" / "imagesTr", ["amos_0007", "amos_0507"])
    volumes(tmp_path / "atlas" / "imagesTr", ["im0"])
    volumes(tmp_path / "nnunet" / "imagesTr", ["case_0000"])
    description = {"channel_names": {"0": "MR"}, "labels": {"background": 0, "leber": 4}, "file_ending": ".nii.gz"}
    (tmp_path / "nnunet" / "dataset.json").write_text(json.dumps(description), encoding="utf-8")
    expected = {"cirr": 2, "care": 2, "amos": 1, "atlas": 1, "nnunet": 1}
    commands = {"cirr": "cirrmri", "care": "care-liver"}
    for name, count in expected.items():
        more = ("--mask-label", "4", "--sequence", "T1W", "--source", "ours") if name == "nnunet" else ()
        out = tmp_path / f"{name}.parquet"
        assert run(commands.get(name, name), tmp_path / name, "--out", out, *more) == 0
        assert len(Cohort.load(out)) == count
    assert "47 (T1W valid, T2W train)" in capsys.readouterr().err


def test_the_audit_names_the_patients_whose_official_parts_differ(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cohort = tmp_path / "cirrmri.parquet"
    assert run("cirrmri", write_tree(tmp_path / "CirrMRI600+", doubled=True, metadata="."), "--out", cohort) == 0
    note = capsys.readouterr().err
    assert main(["split", "audit", str(cohort)]) == 1
    said = capsys.readouterr().out
    for patient in SEVEN:
        assert re.search(rf"\b{patient}\b", note) and re.search(rf"\b{patient}\b", said)


def test_csv_and_join(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    volumes(tmp_path / "a", ["image_1", "label_1"])
    volumes(tmp_path / "b", ["image_2", "label_2"])
    for name in ("a", "b"):
        assert nifti(tmp_path / name, tmp_path / f"{name}.csv") == 0
    assert run("csv", tmp_path / "a.csv", "--out", tmp_path / "elsewhere" / "a.parquet") == 0
    both = tmp_path / "both.parquet"
    assert run("join", tmp_path / "elsewhere" / "a.parquet", tmp_path / "b.csv", "--out", both) == 0
    joined = Cohort.load(both)
    assert [scan.scan_id for scan in joined] == ["1", "2"]
    assert all(scan.image.is_file() and scan.mask is not None and scan.mask.is_file() for scan in joined)
    capsys.readouterr()
    assert run("join", tmp_path / "a.csv", tmp_path / "elsewhere" / "a.parquet", "--out", both) == 2
    said = capsys.readouterr().err
    assert "1 scan_ids are in both: 1" in said and "1 patient_ids are in both: 1" in said


def test_phantom(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "phantom"
    assert run("phantom", "--out", out, "--patients", 2, "--seed", 3, "--workers", 1, "--detail", 0.5) == 0
    cohort = Cohort.load(out / "cohort.parquet")
    assert len(cohort.patients) == 2
    assert capsys.readouterr().out.startswith(f"{out / 'cohort.parquet'}: {len(cohort)} scans of 2 patients")


@pytest.mark.real
def test_dicom_folders_in_a_csv(test_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = next((test_data / "prostatex" / "complete_study").glob("*/*t2tsetra*"))
    table = tmp_path / "own.csv"
    header = "scan_id,patient_id,sequence,image,source\n"
    table.write_text(f"{header}a,Ana,T2W,{folder},site\n", encoding="utf-8")
    out = tmp_path / "cohort.parquet"
    assert run("csv", table, "--out", out) == 0
    (scan,) = Cohort.load(out).scans
    assert scan.image.resolve() == tmp_path / "cohort_nifti" / "a.nii.gz" and scan.image.is_file()
    hole = next(path.parent for path in (test_data / "prostatex" / "missing_slice").rglob("*.dcm"))
    table.write_text(f"{header}a,Ana,T2W,{hole},site\n", encoding="utf-8")
    assert run("csv", table, "--out", out) == 2
    assert " mm" in capsys.readouterr().err


@pytest.mark.real
def test_dicom_needs_no_option(test_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = next((test_data / "prostatex" / "complete_study").glob("*/*t2tsetra*"))
    out = tmp_path / "my cohort.csv"
    assert run("dicom", root, "--out", out) == 0
    (scan,) = Cohort.load(out).scans
    assert scan.source == root.name and scan.image.resolve().parent == tmp_path / "my cohort_nifti"
    assert f"note: every scan's source is '{root.name}'" in capsys.readouterr().err


def test_every_command_of_the_guide_is_understood() -> None:
    guide = Path(__file__).parents[2] / "docs" / "cohorts.md"
    blocks = re.findall(r"```sh\n(.*?)```", guide.read_text(encoding="utf-8"), re.DOTALL)
    lines = [
        line for block in blocks for line in block.replace("\\\n", " ").splitlines() if line.startswith("hepastage ")
    ]
    parser = build_parser()
    for line in lines:
        parser.parse_args(shlex.split(line, comments=True)[1:])
    named = {line.split()[2] for line in lines if line.startswith("hepastage cohort ")}
    assert named >= set(LAYOUTS)


def test_every_layout_has_its_help_without_heavy_imports() -> None:
    code = (
        "import sys\n"
        "from experiments.cli import main\n"
        "try:\n"
        "    main(['cohort', '--help'])\n"
        "except SystemExit as end:\n"
        "    heavy = {'torch', 'pandas', 'numpy', 'nibabel', 'pydicom'} & set(sys.modules)\n"
        "    sys.exit(str(heavy) if heavy or end.code else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    listed = {line.split()[0] for line in done.stdout.splitlines() if line.startswith("    ") and line.strip()}
    assert set(LAYOUTS) <= listed
