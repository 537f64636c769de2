from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score, roc_curve

from experiments.statistics import (
    auc,
    auc_interval,
    delong_covariance,
    delong_interval,
    delong_test,
    hanley_mcneil_variance,
    newcombe_interval,
    sensitivity_at_specificity,
    smallest_detectable_auc_difference,
    specificity_at_sensitivity,
)


def tied(patients: int = 80, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    target = (np.arange(patients) % 3 == 0).astype(int)
    first = np.round(generator.normal(size=patients) + target, 1)
    return target, first, np.round(0.5 * first + generator.normal(size=patients), 0)


@pytest.mark.real
@pytest.mark.parametrize(
    ("first", "second", "p_value"),
    [
        ("wfns", "s100b", 0.0271757822291882),
        ("wfns", "ndka", 0.00514557970691098),
        ("ndka", "s100b", 0.164295175223054),
    ],
)
def test_delong_equals_proc(test_data: Path, first: str, second: str, p_value: float) -> None:
    table = pd.read_csv(test_data / "roc_aSAH" / "aSAH.csv")
    target = (table["outcome"] == "Poor").astype(int)
    tested = delong_test(target, table[first], table[second])
    assert abs(tested.p_value - p_value) < 1e-10
    assert tested.auc_a == pytest.approx(roc_auc_score(target, table[first]), abs=1e-14)
    swapped = delong_test(target, table[second], table[first])
    assert swapped.z == pytest.approx(-tested.z)


@pytest.mark.real
@pytest.mark.parametrize(("marker", "low", "area", "high"), [("s100b", 0.6301, 0.7314, 0.8326)])
def test_delong_variance_gives_the_interval_that_proc_prints(
    marker: str, low: float, area: float, high: float, test_data: Path
) -> None:
    table = pd.read_csv(test_data / "roc_aSAH" / "aSAH.csv")
    areas, covariance = delong_covariance((table["outcome"] == "Poor").astype(int), table[marker])
    half = stats.norm.ppf(0.975) * math.sqrt(covariance[0, 0])
    assert [areas[0] - half, areas[0], areas[0] + half] == pytest.approx([low, area, high], abs=5e-5)


def test_the_interval_of_an_auc_answers_everywhere() -> None:
    target, first, _ = tied()
    assert list(auc_interval(target, first)) == list(delong_interval(target, first))
    perfect = auc_interval([0, 0, 1, 1], [1, 2, 3, 4])
    assert (perfect.method, perfect.high) == ("Newcombe method 5", 1.0)
    assert auc_interval([0, 0, 1], [1, 3, 2]).method == "Newcombe method 5"
    with pytest.raises(ValueError, match="not estimable"):
        auc_interval([1, 1], [0.2, 0.3])


def test_auc_equals_scikit_learn_with_ties() -> None:
    for seed in range(5):
        target, first, second = tied(seed=seed)
        assert auc(target, first) == pytest.approx(roc_auc_score(target, first), abs=1e-14)
        assert delong_covariance(target, first, second)[0][1] == pytest.approx(roc_auc_score(target, second), abs=1e-14)


def test_delong_covariance_equals_its_definition() -> None:
    target, first, second = tied(40)
    places = []
    for values in (first, second):
        kernel = 0.5 * (np.sign(values[target == 1][:, None] - values[target == 0][None, :]) + 1)
        places.append((kernel.mean(axis=1), kernel.mean(axis=0)))
    expected = np.cov([places[0][0], places[1][0]]) / (target == 1).sum()
    expected = expected + np.cov([places[0][1], places[1][1]]) / (target == 0).sum()
    np.testing.assert_allclose(delong_covariance(target, first, second)[1], expected, atol=1e-14)


def test_equal_ranks_differ_by_nothing() -> None:
    target, first, _ = tied()
    tested = delong_test(target, first, np.exp(first))
    assert (tested.z, tested.p_value) == (0.0, 1.0)


def test_one_class_is_not_estimable_and_never_one_half() -> None:
    with pytest.raises(ValueError, match="not estimable"):
        auc(np.ones(5), np.arange(5))
    with pytest.raises(ValueError, match="NaN"):
        auc([0, 1], [0.1, np.nan])
    with pytest.raises(ValueError, match="two patients of each class"):
        delong_test([0, 0, 1], [1, 2, 3], [1, 2, 3])


def test_delong_interval_stays_inside_and_says_where_it_ends() -> None:
    target, first, _ = tied()
    interval = delong_interval(target, first)
    assert 0 < interval.low < interval.estimate < interval.high < 1
    with pytest.raises(ValueError, match="not defined"):
        delong_interval([0, 0, 1, 1], [1, 2, 3, 4])


def test_newcombe_interval_solves_its_equation_and_does_not_degenerate() -> None:
    interval = newcombe_interval(0.8, 18, 5)
    half = (18 + 5) / 2 - 1
    for end in interval:
        variance = end * (1 - end) * (1 + half * ((1 - end) / (2 - end) + end / (1 + end))) / (18 * 5)
        assert abs(0.8 - end) == pytest.approx(1.959964 * math.sqrt(variance), abs=1e-5)
    perfect = newcombe_interval(1.0, 18, 5)
    assert perfect.high == 1.0
    assert 0.6 < perfect.low < 0.9
    assert newcombe_interval(0.0, 18, 5).high == pytest.approx(1 - perfect.low)


def test_hanley_mcneil_variance_without_any_skill_is_that_of_mann_and_whitney() -> None:
    for positives, negatives in ((18, 5), (51, 58)):
        expected = (positives + negatives + 1) / (12 * positives * negatives)
        assert hanley_mcneil_variance(0.5, positives, negatives) == pytest.approx(expected)
    assert hanley_mcneil_variance(1.0, 18, 5) == 0


def test_smallest_detectable_difference_has_the_power_it_claims() -> None:
    positives = negatives = 100
    difference = smallest_detectable_auc_difference(0.75, positives, negatives, 0.5)
    generator = np.random.default_rng(3)
    target = np.repeat([1, 0], [positives, negatives])
    shift = [math.sqrt(2) * stats.norm.ppf(area) for area in (0.75, 0.75 + difference)]
    found = 0
    for _ in range(300):
        noise = generator.multivariate_normal([0, 0], [[1, 0.52], [0.52, 1]], size=200)
        found += delong_test(target, noise[:, 0] + shift[0] * target, noise[:, 1] + shift[1] * target).p_value < 0.05
    assert 0.72 < found / 300 < 0.90


def test_smallest_detectable_difference_shrinks_with_patients_and_calls_23_by_its_name() -> None:
    sizes = [smallest_detectable_auc_difference(0.7, count, count) for count in (40, 100, 400, 2000)]
    assert sizes == sorted(sizes, reverse=True)
    # the published two-stage test set: 18 positive, 5 negative
    assert math.isinf(smallest_detectable_auc_difference(0.75, 18, 5))


def test_operating_points_equal_the_curve() -> None:
    target, first, _ = tied()
    false_alarm, hit, _ = roc_curve(target, first, drop_intermediate=False)
    for wanted in (0.0, 0.5, 0.8, 0.9, 1.0):
        assert sensitivity_at_specificity(target, first, wanted) == hit[1 - false_alarm >= wanted - 1e-12].max()
        assert specificity_at_sensitivity(target, first, wanted) == pytest.approx(
            (1 - false_alarm)[hit >= wanted - 1e-12].max()
        )
