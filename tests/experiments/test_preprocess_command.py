"""``hepastage preprocess`` from its arguments on."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from datamodules.errors import InputError
from experiments.commands import preprocess
from tests.datamodules.store_scans import make_cohort


def run(*arguments: str) -> int:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    preprocess.register(parser.add_subparsers())
    args = parser.parse_args(["preprocess", *arguments])
    code: int = args.run(args)
    return code


def test_the_store_is_filled_and_found_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_cohort(tmp_path, 2)
    command = [
        str(tmp_path / "cohort.csv"),
        "--store",
        str(tmp_path / "s"),
        "--spacing",
        "1.5,native,3",
        "--workers",
        "1",
    ]
    for _ in range(2):
        assert run(*command, "--shape", "16,16,12", "--normalisation", "percentile") == 0
    assert capsys.readouterr().out.count("2 scans are ready") == 2
    assert len(list((tmp_path / "s").glob("??/*/meta.json"))) == 2


def test_wrong_requests_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_cohort(tmp_path, 1)
    base = [str(tmp_path / "cohort.csv"), "--store", str(tmp_path / "s")]
    for extra, message in (
        (["--workers", "0"], "at least 1"),
        (["--normalisation", "nyul"], "--splits and --fold"),
        (["--fold", "1"], "only nyul"),
        (["--spacing", "0,1,1"], "spacing"),
    ):
        with pytest.raises(InputError, match=message):
            run(*base, *extra)
    for extra in (["--spacing", "1,1"], ["--shape", "1,2,x"]):
        with pytest.raises(SystemExit) as caught:
            run(*base, *extra)
        assert caught.value.code == 2
    with pytest.raises(InputError, match="no such cohort"):
        run(str(tmp_path / "none.csv"), "--store", str(tmp_path / "s"))
    assert not (tmp_path / "s").exists()
    capsys.readouterr()
