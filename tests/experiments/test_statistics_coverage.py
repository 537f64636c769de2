"""Do 95 % intervals hold the truth as often as they say? A small, seeded part of ``benchmarks.coverage``."""

from __future__ import annotations

import pytest

from benchmarks.coverage import area_study, calibration_study, difference_study, measure, share_study
from experiments.statistics import clopper_pearson_interval, wilson_interval

STUDIES = 600
LOW, HIGH = 0.93, 0.97
"""What the methods promise; 600 studies know a coverage of 0.95 to 0.018 (two standard errors)."""
SLACK = 0.009


@pytest.mark.parametrize(
    ("positives", "negatives", "area"),
    [(18, 5, 0.7), (11, 12, 0.7), (11, 12, 0.85), (30, 30, 0.7), (30, 30, 0.85), (100, 100, 0.85), (160, 40, 0.7)],
)
def test_the_interval_of_an_auc(positives: int, negatives: int, area: float) -> None:
    found = measure("AUC", "", "", area_study(positives, negatives, area), STUDIES, 1)
    assert LOW - SLACK <= found.covered <= HIGH + SLACK


@pytest.mark.parametrize(
    ("positives", "negatives", "first", "second"),
    [(11, 12, 0.7, 0.85), (30, 30, 0.7, 0.7), (30, 30, 0.85, 0.95), (100, 100, 0.7, 0.85)],
)
def test_the_interval_of_a_difference(positives: int, negatives: int, first: float, second: float) -> None:
    found = measure("difference", "", "", difference_study(positives, negatives, first, second), STUDIES, 2)
    assert LOW - SLACK <= found.covered <= HIGH + SLACK


def test_near_one_the_interval_errs_on_the_safe_side() -> None:
    found = measure("AUC", "", "", area_study(18, 5, 0.95), STUDIES, 3)
    assert found.covered >= LOW - SLACK


def test_the_exact_interval_of_a_share_never_covers_less_and_wilsons_about_as_often() -> None:
    exact = measure("exact", "", "", share_study(18, 0.8, clopper_pearson_interval), STUDIES, 4)
    wilson = measure("Wilson", "", "", share_study(60, 0.8, wilson_interval), STUDIES, 4)
    assert exact.covered >= 0.95
    assert LOW - SLACK <= wilson.covered <= HIGH + SLACK


def test_the_interval_of_the_calibration_slope() -> None:
    found = measure("slope", "", "", calibration_study(60, slope=True), STUDIES, 5)
    assert LOW - SLACK <= found.covered <= HIGH + SLACK
    assert found.studies > STUDIES * 0.95
