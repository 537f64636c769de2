"""The demo's own part: what it asks for, where everything lies, and what its exit code says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from datamodules.cohort import Cohort
from datamodules.splits import Splits
from experiments.cli import main
from experiments.study import Study
from tests import tiny


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The demo without phantom and grid; what it would have run."""
    seen: list[dict[str, Any]] = []

    def phantom(out: Path, patients: int, seed: int, **options: Any) -> None:
        seen.append({"patients": patients, "seed": seed, **options})
        frame = tiny.frame_of(out)
        Cohort(frame[frame["sequence"] == "T2W"], out).save(out / "cohort.parquet")

    def run_study(study: Study, cohort: Path, splits: Path, runs: Path, store: Path) -> list[str]:
        Splits.load(splits, Cohort.load(cohort))
        seen.append({"study": study, "runs": runs, "store": store})
        return ["direct, fold 0, seed 0: RuntimeError: x"] if study.name == "failing" else []

    monkeypatch.setattr("experiments.demo.make_phantom", phantom)
    monkeypatch.setattr("experiments.demo.run_study", run_study)
    return seen


def test_the_thread(calls: list[dict[str, Any]], tmp_path: Path) -> None:
    out = tmp_path / "mine"
    assert main(["demo", "--out", str(out), "--patients", "24", "--seed", "3", "--shortcut"]) == 0
    made, ran = calls
    assert made == {"patients": 24, "seed": 3, "shortcut": True, "sequences": ("T2W",)}
    assert ran["study"].name == "mine" and ran["study"].seeds == (3,)
    assert (ran["runs"], ran["store"]) == (tmp_path, out / "store"), "cells lie in runs/<study>, the demo's own folder"
    assert ran["study"].compare == {"reference": "direct", "out": "."}, "the report lies in the demo's folder"
    again = Study.load(out / "study.yaml")
    assert again.cohort is not None and again.cohort.is_file(), "hepastage grid can go on with it"
    assert {path.name for path in out.iterdir()} >= {"cohort", "splits.json", "study.yaml"}
    split = Splits.load(out / "splits.json", Cohort.load(out / "cohort" / "cohort.parquet"))
    assert len(split.folds) == 2 and all(fold.test == tiny.TESTED for fold in split.folds)


@pytest.mark.parametrize("name", ["2024", "no", "true", "a-b_c.d"])
def test_the_folders_name_is_the_studys(name: str, calls: list[dict[str, Any]], tmp_path: Path) -> None:
    """YAML would read some names as numbers or flags."""
    assert main(["demo", "--out", str(tmp_path / name)]) == 0
    assert calls[1]["study"].name == name


def test_a_failed_cell_is_bad_news(
    calls: list[dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["demo", "--out", str(tmp_path / "failing")]) == 1
    assert "hepastage: direct, fold 0, seed 0: RuntimeError: x" in capsys.readouterr().err
