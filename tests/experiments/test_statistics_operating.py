from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from experiments.statistics import (
    patient_weights,
    sensitivity_at_specificity,
    sensitivity_at_specificity_statistic,
    smallest_detectable_accuracy_difference,
    smallest_significant_count,
    specificity_at_sensitivity,
    specificity_at_sensitivity_statistic,
)


@pytest.mark.parametrize("level", [0.5, 0.8, 0.9, 1.0])
def test_operating_points_under_weights_equal_those_of_repeated_patients(level: float) -> None:
    for seed in range(4):
        generator = np.random.default_rng(seed)
        target = (np.arange(40) % 3 == 0).astype(int)
        # rounded, so that there are ties within and between classes
        scores = np.round(generator.normal(size=40) + target, 1)
        weights = next(patient_weights(target, 25, seed=seed))
        forth = sensitivity_at_specificity_statistic(target, scores, level)(weights)
        back = specificity_at_sensitivity_statistic(target, scores, level)(weights)
        for row, times in enumerate(weights.astype(int)):
            repeated = np.repeat(target, times), np.repeat(scores, times)
            assert forth[row] == pytest.approx(sensitivity_at_specificity(*repeated, level), abs=1e-12)
            assert back[row] == pytest.approx(specificity_at_sensitivity(*repeated, level), abs=1e-12)


def test_an_operating_point_without_a_class_is_nan() -> None:
    statistic = sensitivity_at_specificity_statistic([0, 1, 0, 1], [0.1, 0.9, 0.4, 0.6], 0.9)
    assert np.isnan(statistic(np.array([[1, 0, 1, 0], [0, 1, 0, 1]], dtype=np.float32))).all()


def test_the_smallest_significant_count_is_that_of_the_exact_test() -> None:
    assert smallest_significant_count(23) == 6
    for count, wanted in ((6, True), (5, False)):
        assert (stats.binomtest(count, count).pvalue < 0.05) == wanted
    assert smallest_significant_count(5) is None
    assert smallest_significant_count(23, 0.99) == 8
    with pytest.raises(ValueError, match="cannot be"):
        smallest_significant_count(0)


def test_the_smallest_detectable_accuracy_difference_has_the_power_it_claims() -> None:
    gain = smallest_detectable_accuracy_difference(23)
    assert gain == pytest.approx(0.322, abs=1e-3)
    assert stats.binom.sf(5, 23, gain) == pytest.approx(0.8, abs=1e-9)
    assert smallest_detectable_accuracy_difference(5) == float("inf")
    sizes = [smallest_detectable_accuracy_difference(count) for count in (23, 60, 200, 1000)]
    assert sizes == sorted(sizes, reverse=True)
    with pytest.raises(ValueError, match="power"):
        smallest_detectable_accuracy_difference(23, power=80)
