from __future__ import annotations

import numpy as np
import pytest
import statsmodels.api as sm
from scipy import stats
from scipy.special import expit
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import brier_score_loss, cohen_kappa_score, f1_score
from sklearn.metrics import confusion_matrix as oracle_confusion

from experiments.statistics import (
    brier_decomposition,
    brier_score,
    calibration_line,
    confusion_matrix,
    kappa_statistic,
    macro_f1_statistic,
    mean_auc_statistic,
    net_benefit,
    patient_weights,
    reliability_curve,
    stage_error_statistic,
)


def risks(patients: int = 400, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    logits = generator.normal(size=patients) * 1.5
    return (generator.random(patients) < expit(logits)).astype(int), expit(logits)


def test_brier_equals_scikit_learn_and_its_parts_add_up() -> None:
    target, values = risks()
    assert brier_score(target, values) == pytest.approx(brier_score_loss(target, values), abs=1e-14)
    coarse = np.round(values, 1)
    parts = brier_decomposition(target, coarse, bins=200)
    # every bin holds one value only, so that nothing is left within bins
    assert parts.reliability - parts.resolution + parts.uncertainty == pytest.approx(parts.score, abs=1e-12)
    assert parts.score == pytest.approx(brier_score_loss(target, coarse), abs=1e-14)


def test_calibration_line_equals_logistic_regression_and_knows_overconfidence() -> None:
    target, values = risks()
    line = calibration_line(target, values)
    logits = np.log(values / (1 - values))
    oracle = LogisticRegression(C=np.inf, tol=1e-10).fit(logits[:, None], target)
    assert line.slope == pytest.approx(oracle.coef_[0, 0], abs=1e-4)
    assert line.slope == pytest.approx(1, abs=0.3)
    assert calibration_line(target, expit(2 * logits)).slope == pytest.approx(line.slope / 2, rel=1e-6)
    assert calibration_line(target, expit(logits + 1)).intercept == pytest.approx(line.intercept - 1, abs=1e-6)


def test_calibration_intervals_hold_what_the_likelihood_ratio_test_does_not_refuse() -> None:
    target, values = risks(60, seed=3)
    line = calibration_line(target, values)
    logits = np.log(values / (1 - values))
    assert line.slope_interval is not None and line.intercept_interval is not None
    family = sm.families.Binomial()
    best = sm.GLM(target, sm.add_constant(logits), family=family).fit().llf
    for end in line.slope_interval:
        # the slope held at the end of its interval, the intercept free
        held = sm.GLM(target, np.ones(60), family=family, offset=end * logits).fit().llf
        assert 2 * (best - held) == pytest.approx(stats.chi2.ppf(0.95, 1), abs=1e-3)
    free = sm.GLM(target, np.ones(60), family=family, offset=logits).fit()
    assert line.intercept == pytest.approx(free.params[0], abs=1e-6)
    for end in line.intercept_interval:
        fixed = family.loglike(target, expit(end + logits))
        assert 2 * (free.llf - fixed) == pytest.approx(stats.chi2.ppf(0.95, 1), abs=1e-3)
    assert line.slope_interval.low < line.slope < line.slope_interval.high
    wide = calibration_line(target, values, level=0.99).slope_interval
    assert wide is not None and wide.high > line.slope_interval.high


def test_separated_or_constant_probabilities_have_no_slope() -> None:
    separated = calibration_line([0, 0, 1, 1], [0.1, 0.2, 0.8, 0.9])
    assert "separated" in separated.note
    assert separated.slope_interval is not None
    assert 0 < separated.slope_interval.low < 1 and separated.slope_interval.high == np.inf
    assert calibration_line([0, 0, 1, 1], [0.1, 0.5, 0.5, 0.9]).slope_interval is None
    constant = calibration_line([0, 1, 1, 1], [0.75] * 4)
    assert np.isnan(constant.slope)
    assert constant.intercept == pytest.approx(0, abs=1e-9)
    assert np.isfinite(calibration_line([0, 1, 0, 1], [0.0, 1.0, 1.0, 0.0]).slope)


def test_reliability_curve_holds_everyone_once() -> None:
    target, values = risks(57)
    curve = reliability_curve(target, values)
    assert sum(count for _, _, count in curve) == 57
    assert [said for said, _, _ in curve] == sorted(said for said, _, _ in curve)
    assert len(reliability_curve([0, 1, 1], [0.5, 0.5, 0.5])) == 1


def test_net_benefit_equals_its_formula_at_the_ends() -> None:
    target, values = risks()
    limits = np.array([0.0, 0.3])
    found = net_benefit(target, values, limits)
    assert found[0] == pytest.approx(target.mean())
    called = values >= 0.3
    expected = (called & (target == 1)).mean() - (called & (target == 0)).mean() * 0.3 / 0.7
    assert found[1] == pytest.approx(expected)


def test_ordinal_metrics_equal_scikit_learn_on_repeated_patients() -> None:
    generator = np.random.default_rng(0)
    target = np.arange(90) % 3
    predicted = np.clip(target + generator.integers(-1, 2, size=90), 0, 2)
    weights = next(patient_weights(target, 20, seed=0))
    kappa, macro = kappa_statistic(target, predicted, 3)(weights), macro_f1_statistic(target, predicted, 3)(weights)
    error = stage_error_statistic(target, predicted)(weights)
    for row, times in enumerate(weights.astype(int)):
        a, b = np.repeat(target, times), np.repeat(predicted, times)
        assert kappa[row] == pytest.approx(cohen_kappa_score(a, b, weights="quadratic"), abs=1e-12)
        assert macro[row] == pytest.approx(f1_score(a, b, average="macro"), abs=1e-12)
        assert error[row] == pytest.approx(np.abs(a - b).mean(), abs=1e-12)
    assert (confusion_matrix(target, predicted, 3) == oracle_confusion(target, predicted)).all()


def test_mean_auc_is_not_estimable_without_a_class() -> None:
    shares = np.full((6, 3), 1 / 3)
    ones = np.ones((1, 6), dtype=np.float32)
    assert mean_auc_statistic(np.arange(6) % 3, shares)(ones)[0] == 0.5
    assert np.isnan(mean_auc_statistic(np.arange(6) % 2, shares)(ones)[0])
