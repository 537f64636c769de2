"""The front door: light, complete, and quiet about what is not asked."""

from __future__ import annotations

import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.cli import COMMANDS, build_parser, main

HEAVY = ("torch", "numpy", "pandas", "lightning", "scipy", "sklearn", "matplotlib", "wandb", "jsonargparse")

CHECK = """
import sys
from experiments.cli import main
try:
    main(sys.argv[1:])
except SystemExit as stop:
    assert stop.code in (0, None), stop.code
heavy = [name for name in {heavy!r} if name in sys.modules]
assert not heavy, heavy
"""


def run(words: list[str], heavy: tuple[str, ...] = HEAVY) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", CHECK.format(heavy=heavy), *words], capture_output=True, text=True, timeout=60
    )


@pytest.mark.parametrize(
    "words",
    [
        ["--help"], ["--version"], ["fit", "--help"], ["test", "-h"], ["compare", "--help"], ["split", "--help"],
        ["split", "make", "--help"], ["cohort", "--help"], ["cohort", "nifti", "--help"], ["masks", "--help"],
        ["demo", "--help"], ["grid", "--help"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_help_imports_nothing_heavy(words: list[str]) -> None:
    done = run(words)
    assert done.returncode == 0, done.stderr
    assert "hepastage" in done.stdout and done.stderr == ""


def test_tables_need_no_torch(tmp_path: Path) -> None:
    """Checking and splitting a table answers quickly: torch would cost seconds."""
    (tmp_path / "c.csv").write_text(
        "scan_id,patient_id,sequence,image,source,lsm_kpa\n"
        + "".join(f"s{n},p{n},T2W,s{n}.nii.gz,a,{5 + 15 * (n % 2)}\n" for n in range(20))
    )
    words = ["split", "make", str(tmp_path / "c.csv"), "--rule", "lsm>12", "--folds", "2", "--seed", "0"]
    done = run([*words, "--out", str(tmp_path / "s.json")], ("torch", "lightning"))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "s.json").is_file()


def test_help_answers_at_once() -> None:
    """Under half a second of the processor, measured against starting Python at all."""

    def seconds(*words: str) -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, *words], capture_output=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    bare = min(seconds("-c", "pass") for _ in range(3))
    ours = min(seconds("-m", "experiments.cli", "--help") for _ in range(3))
    assert ours - bare < 0.5


def test_every_command_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    for name in ("demo", "cohort", "split", "preprocess", "fit", "validate", "test", "predict", "masks", "compare"):
        assert re.search(rf"\n    {name}\s", text), name
    assert "exit codes: 0 done" in text
    assert len(COMMANDS) == len(set(COMMANDS))


def test_no_abbreviation_anywhere() -> None:
    import argparse

    def parsers(parser: argparse.ArgumentParser) -> list[argparse.ArgumentParser]:
        below = [
            child
            for action in parser._actions
            if isinstance(action, argparse._SubParsersAction)
            for child in action.choices.values()
        ]
        return [parser, *(deep for child in below for deep in parsers(child))]

    abbreviating = [parser.prog for parser in parsers(build_parser()) if parser.allow_abbrev]
    assert abbreviating == []


def test_a_reader_that_leaves_is_no_error() -> None:
    command = f"{sys.executable} -m experiments.cli --help | head -1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_keyboard_interrupt_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(*_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("experiments.cli._dispatch", interrupted)
    assert main(["demo"]) == 130
    assert capsys.readouterr().err == "hepastage: stopped by the keyboard; finished work is kept\n"
