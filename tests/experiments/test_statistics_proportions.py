from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest

from experiments.statistics import clopper_pearson_interval, holm, mcnemar_test, wilson_interval


@pytest.mark.parametrize(("successes", "total"), [(0, 5), (4, 5), (14, 18), (23, 23), (250, 500)])
def test_intervals_equal_scipy(successes: int, total: int) -> None:
    oracle = binomtest(successes, total)
    exact, wilson = oracle.proportion_ci(0.95, method="exact"), oracle.proportion_ci(0.95, method="wilson")
    assert list(clopper_pearson_interval(successes, total)) == pytest.approx([exact.low, exact.high], abs=1e-12)
    assert list(wilson_interval(successes, total)) == pytest.approx([wilson.low, wilson.high], abs=1e-12)


def test_published_two_stage_result_restated() -> None:
    # 18 positive, 5 negative; 14 true positives, 4 true negatives
    assert list(wilson_interval(14, 18)) == pytest.approx([0.548, 0.910], abs=5e-4)
    assert list(wilson_interval(4, 5)) == pytest.approx([0.376, 0.964], abs=5e-4)
    assert list(wilson_interval(18, 23)) == pytest.approx([0.581, 0.903], abs=5e-4)


def test_impossible_counts_and_levels_are_refused() -> None:
    for successes, total, level in ((6, 5, 0.95), (-1, 5, 0.95), (0, 0, 0.95), (1, 2, 95)):
        with pytest.raises(ValueError, match=r"cannot be|between 0 and 1"):
            wilson_interval(successes, total, level)


@pytest.mark.parametrize(("only_a", "only_b"), [(0, 0), (1, 8), (5, 5), (12, 3)])
def test_mcnemar_equals_the_binomial_test(only_a: int, only_b: int) -> None:
    a = np.repeat([1, 0, 1, 0], [only_a, only_b, 7, 2])
    b = np.repeat([0, 1, 1, 0], [only_a, only_b, 7, 2])
    tested = mcnemar_test(a, b)
    assert (tested.only_a, tested.only_b) == (only_a, only_b)
    expected = binomtest(only_a, only_a + only_b).pvalue if only_a + only_b else 1.0
    assert tested.p_value == pytest.approx(expected, abs=1e-12)
    with pytest.raises(ValueError, match="shapes"):
        mcnemar_test(a, b[:-1])


def test_holm_equals_its_definition() -> None:
    values = [0.01, 0.04, 0.03, 0.005]
    # sorted 0.005·4, 0.01·3, 0.03·2, 0.04·1, then made monotone
    assert holm(values).tolist() == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]).tolist() == [1.0, 1.0]
    assert holm([]).size == 0
    with pytest.raises(ValueError, match="between 0 and 1"):
        holm([0.1, float("nan")])
