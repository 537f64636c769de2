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


def test_a_shortcut_that_the_test_patients_do_not_carry_turns_its_probe_red(tmp_path: Path) -> None:
    strengths = {"direct": 1.0, "probe-erased": 0.0, "probe-shape": 0.0}
    study = make_study(tmp_path, seeds=1, folds=2, fixed_test=True, strengths=strengths)
    add_validation(study, "probe-erased", 3.0)
    add_validation(study, "probe-shape", 0.0)
    comparison = compare([study], resamples=300)
    (found,) = comparison.families
    red, green = found.result("probe-erased"), found.result("probe-shape")
    assert (red.light, green.light) == ("red", "green")
    area = red.metrics["auc"]
    assert area is not None and area.low < 0.5, "on the test patients it fails"
    assert red.validation is not None and green.validation is not None
    assert red.validation.low > 0.5 > green.validation.low
    wide = red.validation.estimate - red.validation.low
    assert red.validation.level == 0.999
    (line,) = [line for line in found.sentences if line.startswith("Probe probe-erased")]
    assert "it succeeds on validation patients" in line and "the test patients do not carry it" in line
    assert wide > 0 and comparison.light == "red"
    assert comparison.verdict.startswith("Red light: probe-erased succeeds")
    page = as_html(comparison)
    assert page.index("Red light: probe-erased") < page.index("Probe probe-erased")
    assert comparison.as_json()["light"] == "red"


def test_all_probes_failing_is_green_and_none_is_no_light(tmp_path: Path) -> None:
    study = make_study(tmp_path, seeds=1, strengths={"direct": 1.0, "probe-shape": 0.0})
    comparison = compare([study], resamples=300)
    assert (comparison.light, comparison.verdict) == ("green", "")
    assert compare([study / "direct"], resamples=300).light == ""
