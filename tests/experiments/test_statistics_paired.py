from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.proportion import confint_proportions_2indep

from experiments.statistics import (
    Interval,
    non_inferiority,
    square_and_add_interval,
    wilcoxon_test,
    wilson_interval,
)


def test_wilcoxon_equals_scipy_and_its_effect_has_the_right_sign() -> None:
    generator = np.random.default_rng(0)
    a = generator.normal(0.92, 0.03, 30)
    b = a - generator.normal(0.01, 0.02, 30)
    tested = wilcoxon_test(a, b)
    assert tested.p_value == pytest.approx(stats.wilcoxon(a, b).pvalue)
    assert tested.median_difference == pytest.approx(np.median(a - b))
    # scipy's statistic is the smaller of the two rank sums; both add up to n(n + 1) / 2
    assert abs(tested.effect) == pytest.approx(1 - 2 * stats.wilcoxon(a, b).statistic / (30 * 31 / 2))
    assert tested.effect > 0
    assert wilcoxon_test(b, a).effect == pytest.approx(-tested.effect)


def test_all_one_way_ties_and_gaps() -> None:
    assert wilcoxon_test([2, 3, 4], [1, 1, 1]).effect == 1
    assert wilcoxon_test([1, 2], [1, 2]).p_value == 1
    assert wilcoxon_test([1.0, np.nan, 3.0], [0.5, 2.0, np.inf]).pairs == 1
    with pytest.raises(ValueError, match="no patient"):
        wilcoxon_test([np.nan], [1.0])
    with pytest.raises(ValueError, match="shapes"):
        wilcoxon_test([1.0], [1.0, 2.0])


def test_non_inferiority_needs_the_whole_interval_above_the_margin() -> None:
    assert non_inferiority(Interval(0.0, -0.04, 0.04), 0.05).shown
    assert not non_inferiority(Interval(0.02, -0.06, 0.10), 0.05).shown
    with pytest.raises(ValueError, match="margin"):
        non_inferiority(Interval(0.0, -0.04, 0.04), 0.0)


@pytest.mark.parametrize(("a", "n", "b", "m"), [(14, 18, 9, 20), (5, 5, 3, 6), (56, 70, 48, 80)])
def test_square_and_add_of_independent_shares_is_newcombes_interval_of_statsmodels(
    a: int, n: int, b: int, m: int
) -> None:
    found = square_and_add_interval(wilson_interval(a, n), wilson_interval(b, m))
    expected = confint_proportions_2indep(a, n, b, m, method="newcomb", compare="diff")
    assert list(found) == pytest.approx(list(expected), abs=1e-12)
    assert found.estimate == pytest.approx(a / n - b / m)


def test_square_and_add_laws() -> None:
    first, second = Interval(0.8, 0.6, 0.9), Interval(0.7, 0.55, 0.85)
    forth, back = square_and_add_interval(first, second, 0.4), square_and_add_interval(second, first, 0.4)
    assert (forth.low, forth.high) == pytest.approx((-back.high, -back.low))
    wide = square_and_add_interval(first, second)
    assert wide.low < forth.low < forth.estimate < forth.high < wide.high
    assert list(square_and_add_interval(first, second, float("nan"))) == list(wide)
    # two estimates that always move together, with equal and even intervals, differ by what they differ
    even = Interval(0.5, 0.4, 0.6)
    assert list(square_and_add_interval(even, even, 1.0)) == pytest.approx([0, 0])
    with pytest.raises(ValueError, match="same level"):
        square_and_add_interval(first, Interval(0.7, 0.5, 0.8, 0.9))
    with pytest.raises(ValueError, match="correlation"):
        square_and_add_interval(first, second, 1.5)
