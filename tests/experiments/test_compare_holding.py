from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit
from sklearn.metrics import roc_auc_score

from datamodules.records import read_records, write_records
from experiments.compare import compare
from experiments.report import as_html
from experiments.statistics_roc import delong_covariance
from tests.experiments.study import make_study


def add_validation(study: Path, arm: str, strength: float) -> list[pd.DataFrame]:
    """Write validation patients beside each run of an arm, their classes ``strength`` deviations apart."""
    frames = []
    for place, path in enumerate(sorted(study.glob(f"{arm}/*/predictions.parquet"))):
        frame = read_records(path).iloc[:40].copy()
        generator = np.random.default_rng([7, place])
        frame["patient_id"] = [f"V{place}{index:02d}" for index in range(len(frame))]
        frame["scan_id"] = frame["patient_id"] + "_T2W"
        frame["target"] = np.arange(len(frame)) % 2
        latent = strength * (frame["target"].to_numpy(float) - 0.5) + generator.normal(size=len(frame))
        frame["prob"] = expit(latent)
        write_records(frame.assign(part="valid"), path.with_name("validation.parquet"))
        frames.append(frame)
    return frames


def test_a_shortcut_is_what_falls_from_validation_to_test(tmp_path: Path) -> None:
    study = make_study(tmp_path, seeds=1, folds=2, fixed_test=True, strengths={"direct": 0.0, "masked": 1.8})
    written = add_validation(study, "direct", 3.0)
    add_validation(study, "masked", 1.8)
    comparison = compare([study], resamples=300)
    (found,) = comparison.families
    direct, masked = found.holding
    assert [direct.arm, masked.arm] == ["direct", "masked"]
    areas = [roc_auc_score(frame["target"], frame["prob"]) for frame in written]
    assert direct.validation.estimate == pytest.approx(np.mean(areas))
    spread = [delong_covariance(frame["target"], frame["prob"])[1][0, 0] for frame in written]
    half = 1.959964 * math.sqrt(sum(spread)) / 2
    assert direct.validation.estimate - direct.validation.low == pytest.approx(half, rel=1e-5)
    assert direct.fall.estimate == pytest.approx(direct.validation.estimate - direct.test.estimate)
    assert direct.fall.low > 0.1
    assert masked.fall.low < 0 < masked.fall.high
    assert [line for line in found.sentences if "does not hold" in line] == [
        line for line in found.sentences if line.startswith("direct does not hold")
    ]
    assert "From validation to test" in as_html(comparison)
    assert comparison.as_json()["families"][0]["validation_to_test"][0]["arm"] == "direct"


def test_without_validation_nothing_is_said(tmp_path: Path) -> None:
    comparison = compare([make_study(tmp_path, seeds=1)], resamples=300)
    assert comparison.families[0].holding == []
    assert "From validation to test" not in as_html(comparison)
