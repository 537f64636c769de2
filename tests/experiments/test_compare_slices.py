"""Slices beside patients in a comparison, and what an arm that leaks may and may not do there."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from datamodules.records import write_records
from experiments.compare import compare
from experiments.compare_slices import SLICES, SliceResult
from experiments.report import write_outputs

PATIENTS, EACH = 30, 8


def write_arm(study: Path, arm: str, right: float, leak: bool, seed: int, role: str = "staging") -> pd.DataFrame:
    """Two runs (folds) whose slices are called right by whole patients, in a share of them; returns all slices."""
    rng = np.random.default_rng(seed)
    everything = []
    for fold in range(2):
        run = study / arm / f"cell{fold}"
        run.mkdir(parents=True)
        (run / "provenance.json").write_text("{}")
        rows, slices = [], []
        for number in range(fold, PATIENTS, 2):
            target = number % 3
            called = target if rng.random() < right else (target + 1) % 3
            chances = np.full(3, 0.1)
            chances[called] = 0.8
            facts = {"patient_id": f"P{number:02d}", "scan_id": f"P{number:02d}_T2W", "target": target}
            probs = {f"prob_{k}": value for k, value in enumerate(chances)}
            rows.append({**facts, **probs, "x_leak": leak, "part": "test", "split_sha256": "f" * 64, "study": "s",
                         "arm": arm, "seed": 0, "fold": fold, "role": role})  # fmt: skip
            slices += [{**facts, **probs, "slice": place, "x_leak": leak} for place in range(EACH)]
        write_records(pd.DataFrame(rows), run / "predictions.parquet")
        pd.DataFrame(slices).to_parquet(run / SLICES, index=False)
        everything += slices
    return pd.DataFrame(everything)


def share(slices: pd.DataFrame) -> float:
    called = slices[["prob_0", "prob_1", "prob_2"]].to_numpy().argmax(axis=1)
    return float((called == slices["target"]).mean())


def test_the_inflation_is_measured_and_never_wins(tmp_path: Path) -> None:
    study = tmp_path / "study"
    honest = write_arm(study, "slices", 0.5, False, 1)
    # whatever role it says, and though it is first by name
    leaky = write_arm(study, "a-leak", 1.0, True, 2, role="classifier")
    comparison = compare([study], resamples=2000)
    (found,) = comparison.families
    assert found.reference == "slices" and not found.differences, "it is neither reference nor rival"
    assert found.result("a-leak").role == "probe" and found.result("a-leak").light == ""
    by_arm: dict[str, SliceResult] = {item.arm: item for item in found.slices}
    assert by_arm["slices"].slices == PATIENTS * EACH
    assert by_arm["slices"].accuracy.estimate == pytest.approx(share(honest))
    inflation = by_arm["a-leak"].inflation
    assert inflation is not None and by_arm["slices"].inflation is None
    assert inflation.estimate == pytest.approx(share(leaky) - share(honest))
    assert 0 < inflation.low < inflation.estimate < inflation.high < 1
    (said,) = [line for line in found.sentences if "LEAKS on purpose" in line]
    assert "None of its numbers is a result" in said and "The leak alone adds" in said
    assert not any(line.startswith("Probe a-leak") for line in found.sentences)
    write_outputs(comparison, tmp_path / "out")
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "leaks on purpose: no result" in page and "LEAKS on purpose" in page
    written = json.loads((tmp_path / "out" / "comparison.json").read_text())["families"][0]["slices"]
    assert {item["arm"]: item["leaks"] for item in written} == {"slices": False, "a-leak": True}


def test_slices_of_one_patient_are_no_sample(tmp_path: Path) -> None:
    """All slices of a patient are right or wrong together, so the interval is that of patients, not of slices."""
    study = tmp_path / "study"
    honest = write_arm(study, "slices", 0.5, False, 3)
    (found,) = compare([study], resamples=4000).families
    (item,) = found.slices
    p = share(honest)
    width = item.accuracy.high - item.accuracy.low
    by_patients, by_slices = (2 * 1.96 * np.sqrt(p * (1 - p) / n) for n in (PATIENTS, PATIENTS * EACH))
    assert width == pytest.approx(by_patients, rel=0.1) and width > 2 * by_slices
