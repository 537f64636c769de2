from __future__ import annotations

import time

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score

from experiments.statistics import (
    auc_statistic,
    bootstrap_interval,
    interval_of,
    mean_statistic,
    patient_weights,
    two_sided_p,
)
from experiments.statistics_bootstrap import Statistic, leave_one_out


def sample(patients: int = 60, distance: float = 1.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    target = np.arange(patients) % 2
    return target, np.random.default_rng(seed).normal(size=patients) + distance * target


def plain_mean(target: object, scores: object) -> Statistic:
    return mean_statistic(np.asarray(scores))


def test_resamples_keep_the_size_of_each_class_and_repeat_with_the_seed() -> None:
    strata = np.repeat([0, 1, 2], [5, 7, 11])
    drawn = np.concatenate(list(patient_weights(strata, 300, seed=4, chunk=128)))
    assert drawn.shape == (300, 23)
    for value, size in ((0, 5), (1, 7), (2, 11)):
        assert (drawn[:, strata == value].sum(axis=1) == size).all()
    again = np.concatenate(list(patient_weights(strata, 300, seed=4, chunk=128)))
    assert (drawn == again).all()
    assert drawn.mean(axis=0) == pytest.approx(np.ones(23), abs=0.3)


def test_all_rows_of_a_patient_are_drawn_together() -> None:
    patients = np.repeat(np.arange(10), 3)
    drawn = np.concatenate(list(patient_weights(patients % 2, 50, seed=0, clusters=patients)))
    assert (drawn.reshape(50, 10, 3) == drawn.reshape(50, 10, 3)[:, :, :1]).all()


def test_weighted_auc_equals_scikit_learn_on_the_repeated_patients() -> None:
    target, scores = sample()
    scores = np.round(scores, 1)
    weights = next(patient_weights(target, 40, seed=1))
    expected = [roc_auc_score(target, scores, sample_weight=row) for row in weights]
    np.testing.assert_allclose(auc_statistic(target, scores)(weights), expected, atol=1e-12)


def test_weighted_auc_without_a_class_is_nan() -> None:
    target, scores = sample(6)
    assert np.isnan(auc_statistic(target, scores)(np.asarray([target], dtype=np.float32))).all()


def test_bca_equals_scipy() -> None:
    values = np.random.default_rng(5).gamma(1.0, size=40)
    ours = bootstrap_interval(np.zeros(40), values, statistic=plain_mean, resamples=40_000)
    theirs = stats.bootstrap(
        (values,), np.mean, method="BCa", n_resamples=40_000, rng=np.random.default_rng(0)
    ).confidence_interval
    # both ends move by about 0.005 between seeds
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.02)
    assert ours.estimate == pytest.approx(values.mean())


def test_pairing_makes_the_interval_of_a_difference_narrow() -> None:
    target, scores = sample(80)
    near = scores + 0.05 * np.random.default_rng(9).normal(size=80)
    paired = bootstrap_interval(target, scores, near, resamples=2000)
    single = bootstrap_interval(target, scores, resamples=2000)
    assert paired.high - paired.low < 0.5 * (single.high - single.low)
    same = bootstrap_interval(target, scores, scores, resamples=200)
    assert (same.estimate, same.low, same.high) == (0, 0, 0)


def test_seeds_that_differ_widen_the_interval() -> None:
    target, scores = sample(80)
    generator = np.random.default_rng(2)
    alike = np.stack([scores] * 5)
    unlike = np.stack([scores * strength + generator.normal(size=80) for strength in (0.0, 0.3, 1, 2, 4)])
    one = bootstrap_interval(target, scores, resamples=3000)
    five = bootstrap_interval(target, alike, resamples=3000)
    assert (five.low, five.high) == pytest.approx((one.low, one.high), abs=1e-12)
    wide = bootstrap_interval(target, unlike, resamples=3000)
    only_patients = [bootstrap_interval(target, row, resamples=1000) for row in unlike]
    assert wide.estimate == pytest.approx(np.mean([item.estimate for item in only_patients]))
    # patients alone: the mean over seeds with every seed always drawn
    weights = np.concatenate(list(patient_weights(target, 3000, seed=0)))
    fixed = np.mean([auc_statistic(target, row)(weights) for row in unlike], axis=0)
    low, high = np.quantile(fixed, [0.025, 0.975])
    assert wide.high - wide.low > 1.2 * (high - low)


def test_where_all_resamples_agree_the_interval_is_a_point() -> None:
    interval = bootstrap_interval([0, 0, 1, 1], [1, 2, 3, 4], resamples=200)
    assert (interval.low, interval.high) == (1, 1)


def test_too_few_estimable_resamples_give_no_interval() -> None:
    interval = interval_of(0.5, np.full(1000, np.nan))
    assert np.isnan(interval.low)
    assert interval.method == "not estimable"


def test_leave_one_out_weights() -> None:
    assert leave_one_out(3).tolist() == [[0, 1, 1], [1, 0, 1], [1, 1, 0]]
    assert leave_one_out(3, ["a", "a", "b"]).tolist() == [[0, 0, 1], [1, 1, 0]]


def test_two_sided_p() -> None:
    assert two_sided_p(np.linspace(-1, 1, 1001)) == 1.0
    assert two_sided_p(np.ones(999)) == pytest.approx(0.002)
    assert np.isnan(two_sided_p([np.nan]))


def test_wrong_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="patients"):
        bootstrap_interval([0, 1, 1], [0.1, 0.2])
    with pytest.raises(ValueError, match="between 0 and 1"):
        bootstrap_interval([0, 1], [0.1, 0.2], level=95)


@pytest.mark.parametrize("patients", [60, 200])
def test_intervals_of_the_auc_cover_as_often_as_they_say(patients: int) -> None:
    true = stats.norm.cdf(1.2 / np.sqrt(2))
    inside = 0
    for seed in range(200):
        target, scores = sample(patients, 1.2, seed)
        low, high = bootstrap_interval(target, scores, resamples=600, seed=seed)
        inside += low <= true <= high
    # 200 studies know a coverage of 0.95 to 0.03 (two standard errors)
    assert 0.90 <= inside / 200 <= 0.99


@pytest.mark.parametrize("positives", [5, 11])
def test_intervals_of_a_difference_cover_at_23_patients(positives: int) -> None:
    target = np.repeat([1, 0], [23 - positives, positives])
    inside = 0
    for seed in range(200):
        generator = np.random.default_rng(seed)
        common = 0.7 * generator.normal(size=23) + 1.2 * target
        first, second = (common + 0.7 * generator.normal(size=23) for _ in range(2))
        low, high = bootstrap_interval(target, first, second, resamples=600, seed=seed)
        inside += low <= 0 <= high
    assert 0.90 <= inside / 200 <= 0.99


def test_ten_thousand_resamples_of_five_hundred_patients_are_quick() -> None:
    target, scores = sample(500)
    start = time.perf_counter()
    bootstrap_interval(target, scores)
    assert time.perf_counter() - start < 5
