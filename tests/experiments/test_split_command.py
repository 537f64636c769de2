"""``hepastage split``: what is written and printed, and the exit codes."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from datamodules.cohort import Cohort
from datamodules.errors import InputError
from datamodules.splits import Splits
from experiments.commands import split


def hepastage(*arguments: str | Path) -> int:
    """Run the command as the front door does."""
    parser = argparse.ArgumentParser(prog="hepastage", allow_abbrev=False)
    split.register(parser.add_subparsers(required=True))
    args = parser.parse_args([str(argument) for argument in arguments])
    code = args.run(args)
    assert isinstance(code, int)
    return code


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """56 volunteers of 116 negatives from another source, none of the 84 positives; one patient without LSM."""
    rows = [{"patient_id": f"v{i}", "healthy": True, "source": "volunteers"} for i in range(56)]
    rows += [{"patient_id": f"n{i}", "lsm_kpa": 6.0, "source": "hospital"} for i in range(60)]
    rows += [{"patient_id": f"p{i}", "lsm_kpa": 20.0, "source": "hospital"} for i in range(84)]
    rows += [{"patient_id": "unmeasured", "source": "hospital"}]
    rows = [{**row, "scan_id": f"{row['patient_id']}", "sequence": "T2W", "image": "x.nii.gz"} for row in rows]
    path = tmp_path / "cohort.parquet"
    Cohort(pd.DataFrame(rows), tmp_path).save(path)
    return path


def test_make_writes_a_split_that_loads_and_says_what_is_in_it(table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = table.parent / "splits.json"
    assert hepastage("split", "make", table, "--rule", "lsm+healthy", "--folds", "5", "--seed", "7", "--out", out) == 0
    splits = Splits.load(out, Cohort.load(table))
    assert (len(splits.folds), splits.rule, splits.seed) == (5, "lsm>12+healthy", 7)
    printed = capsys.readouterr().out
    assert "LSM > 12 kPa" in printed
    assert "volunteers" in printed
    assert "Excluded, no label for lsm>12+healthy: 1 of 201 patients: unmeasured" in printed
    assert "56 of 116 negatives come from source 'volunteers', none of the 84 positives do" in printed
    assert splits.sha256[:12] in printed


def test_make_says_when_no_rule_was_given_and_when_folds_do_not_count(
    table: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = table.parent / "splits.json"
    assert hepastage("split", "make", table, "--by", "source", "--folds", "5", "--out", out) == 0
    printed = capsys.readouterr().out
    assert "No --rule: parts are stratified by source alone" in printed
    assert "--by source makes one fold for each of 2 sources" in printed
    assert [fold.name for fold in Splits.read(out).folds] == ["source hospital", "source volunteers"]


def test_make_with_given_patients(table: Path) -> None:
    out = table.parent / "splits.json"
    options = ("--rule", "lsm", "--test-patients", "n1,p1, p2", "--valid-patients", "n2,p3")
    assert hepastage("split", "make", table, *options, "--out", out) == 0
    (fold,) = Splits.read(out).folds
    assert (fold.test, fold.valid) == (("n1", "p1", "p2"), ("n2", "p3"))


def test_many_folds_are_cut_in_the_table_and_counted(table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = table.parent / "splits.json"
    assert hepastage("split", "make", table, "--rule", "lsm", "--repeats", "4", "--out", out) == 0
    assert len(Splits.read(out).folds) == 20
    assert "and 8 folds more" in capsys.readouterr().out


def test_a_bad_request_writes_nothing(table: Path) -> None:
    out = table.parent / "splits.json"
    with pytest.raises(InputError, match="label rule 'lms>12': not a rule"):
        hepastage("split", "make", table, "--rule", "lms>12", "--out", out)
    with pytest.raises(InputError, match=r"ends in .json"):
        hepastage("split", "make", table, "--out", table.parent / "splits.csv")
    with pytest.raises(SystemExit) as stop:
        hepastage("split", "make", table, "--test-patients", "a,,b", "--out", out)
    assert stop.value.code == 2
    assert sorted(path.name for path in table.parent.iterdir()) == ["cohort.parquet"]


def test_audit_of_a_sound_split_is_0_and_of_a_leaking_one_1(table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, report = table.parent / "splits.json", table.parent / "audit.json"
    hepastage("split", "make", table, "--rule", "lsm+healthy", "--folds", "3", "--out", out)
    assert hepastage("split", "audit", table, "--splits", out, "--json", report) == 0
    assert json.loads(report.read_text(encoding="utf-8"))["leaks"] == []
    assert "0 patients leak." in capsys.readouterr().out
    value = json.loads(out.read_text(encoding="utf-8"))
    leaking = value["folds"][1]["test"][0]
    value["folds"][1]["train"].append(leaking)
    out.write_text(json.dumps(value), encoding="utf-8")
    assert hepastage("split", "audit", table, "--splits", out, "--json", report) == 1
    assert f"LEAK: patient {leaking}: in train, test of fold 1" in capsys.readouterr().out
    (leak,) = json.loads(report.read_text(encoding="utf-8"))["leaks"]
    assert (leak["patient_id"], leak["fold"], leak["kind"]) == (leaking, 1, "two-parts")


def test_audit_of_a_split_for_another_table_is_refused(table: Path) -> None:
    out, other = table.parent / "splits.json", table.parent / "other.csv"
    hepastage("split", "make", table, "--rule", "lsm", "--out", out)
    Cohort.load(table).select(patients=["n1", "n2", "p1"]).save(other)
    with pytest.raises(InputError, match=r"splits.json: made for another table than .*other.csv"):
        hepastage("split", "audit", other, "--splits", out)


def test_audit_of_a_table_whose_official_parts_disagree_is_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        {"scan_id": f"{p}{s}", "patient_id": p, "sequence": s, "image": "x.nii", "source": "a", "official_split": part}
        for p, parts in {"47": ("valid", "train"), "1": ("train", "train"), "2": ("test", "test")}.items()
        for s, part in zip(("T1W", "T2W"), parts, strict=True)
    ]
    path = tmp_path / "cohort.csv"
    Cohort(pd.DataFrame(rows), tmp_path).save(path)
    assert hepastage("split", "audit", path) == 1
    printed = capsys.readouterr().out
    assert "LEAK: patient 47: official parts differ between scans (T1W valid, T2W train)" in printed
    assert "1 patient leaks." in printed


def test_the_command_is_light_to_import_and_never_needs_torch() -> None:
    code = (
        "import sys, experiments.commands.split; "
        "assert not {'pandas', 'numpy', 'torch', 'rich'} & set(sys.modules), 'heavy'; "
        "import datamodules.splits, datamodules.split_audit; assert 'torch' not in sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
