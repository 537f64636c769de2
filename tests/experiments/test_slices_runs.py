"""The slice-level protocol from the study file to its report, with the leak said on the way."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from datamodules.errors import InputError
from datamodules.phantom import make_phantom
from datamodules.records import read_records
from datamodules.splits import make_splits
from experiments.cli_files import misfit
from experiments.grid import run_study
from experiments.lightning_cli import fit_and_test, parsed
from experiments.study import Study
from tests.tiny import ONE_LOGGER, PREPROCESSING, Tiny

SMALL = [
    *PREPROCESSING, *ONE_LOGGER, "--model.init_args.network.init_args.backbone", "resnet10t",
    "--model.init_args.classes", "2", "--model.init_args.network.init_args.classes", "1",
    "--trainer.max_epochs", "1", "--trainer.accelerator", "cpu",
]  # fmt: skip


@pytest.mark.filterwarnings("ignore:data.init_args.leak")
def test_a_leak_is_no_result(tiny_cohort: Tiny, tmp_path: Path) -> None:
    words = [*tiny_cohort.words("staging_slices", runs=tmp_path), *SMALL, "--data.init_args.leak", "true"]
    with pytest.raises(InputError, match="set role: probe"):
        parsed("fit", words)
    assert not fit_and_test([*words, "--role", "probe"])
    (path,) = tmp_path.glob("*/*/*/predictions.parquet")
    rows = read_records(path)
    assert rows["x_leak"].all() and set(rows["role"]) == {"probe"} and rows["scan_id"].is_unique
    slices = pd.read_parquet(path.with_name("slices.parquet"))
    assert rows["x_slices"].sum() == len(slices) and slices["x_leak"].all()
    means = slices.groupby("scan_id")["prob"].mean()
    assert rows.set_index("scan_id")["prob"].to_dict() == pytest.approx(means.to_dict())
    logged = path.with_name("metrics.jsonl").read_text()
    assert "test/slice_accuracy" in logged and "test/accuracy" in logged and "valid/slice_loss" in logged


def test_slices_go_with_their_module_alone(tiny_cohort: Tiny, tmp_path: Path) -> None:
    words = [*tiny_cohort.words("direct", runs=tmp_path), "--data.class_path", "datamodules.slices.SliceDataModule"]
    with pytest.raises(InputError, match="SliceDataModule"):
        parsed("fit", [*words, *PREPROCESSING, *ONE_LOGGER])
    model = "lightning_modules.slice_classification.SliceClassificationModule"
    assert misfit(model, "datamodules.classification.ClassificationDataModule")
    assert misfit(model, "datamodules.slices.SliceDataModule") is None


@pytest.mark.slow
@pytest.mark.parametrize("folds", [3, 1])
def test_the_study_ends_in_a_report_that_marks_the_leak(folds: int, tmp_path: Path) -> None:
    """In k folds, and with fixed test patients as the published parts are."""
    cohort = make_phantom(tmp_path / "cohort", 40, 1, sequences=("T2W",))
    splits = tmp_path / "splits.json"
    make_splits(cohort, "stage", folds=folds, seed=0, official=folds == 1).save(splits)
    study = Study.load(Path("staging_slices_compat"), smoke=folds == 1)
    small = {} if folds == 1 else {
        "trainer.max_epochs": "1", "model.init_args.network.init_args.backbone": "resnet10t",
        PREPROCESSING[0].lstrip("-"): "{spacing: [12, 12, 20], shape: [32, 32, 16], normalisation: percentile}",
        ONE_LOGGER[0].lstrip("-"): ONE_LOGGER[1],
    }  # fmt: skip
    table = tmp_path / "cohort" / "cohort.parquet"
    assert run_study(study, table, splits, tmp_path / "runs", None, small) == []
    folder = tmp_path / "runs" / study.name / "comparison"
    (family,) = json.loads((folder / "comparison.json").read_text())["families"]
    assert family["reference"] == "slices" and not family["differences"]
    found = {item["arm"]: item for item in family["slices"]}
    assert found["probe-slices-leak"]["leaks"] and found["probe-slices-leak"]["inflation"] is not None
    if folds > 1:
        assert found["slices"]["slices"] == found["probe-slices-leak"]["slices"]
    assert "leaks on purpose: no result" in (folder / "report.html").read_text(encoding="utf-8")
