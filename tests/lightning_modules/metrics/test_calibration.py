"""Temperature and threshold: optima against brute force, laws on many samples."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit
from sklearn.metrics import log_loss, roc_auc_score

from lightning_modules.classification import probabilities
from lightning_modules.metrics.calibration import Calibration, fit_temperature, negative_log_likelihood
from lightning_modules.metrics.operating_point import choose_threshold, youden_threshold


def overconfident(seed: int, factor: float, classes: int = 2, patients: int = 400) -> tuple[np.ndarray, np.ndarray]:
    """Classes drawn from the softmax of true logits, and those logits times a factor."""
    rng = np.random.default_rng(seed)
    if classes == 2:
        true = rng.normal(0, 1.5, (patients, 1))
        return (rng.random(patients) < expit(true[:, 0])).astype(int), true * factor
    true = rng.normal(0, 1.5, (patients, classes))
    share = np.exp(true) / np.exp(true).sum(1, keepdims=True)
    target = np.array([rng.choice(classes, p=row) for row in share])
    return target, true * factor


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("factor", [0.5, 1.0, 4.0])
def test_the_temperature_undoes_too_much_or_too_little_confidence(classes: int, factor: float) -> None:
    target, logits = overconfident(1, factor, classes, 4000)
    assert fit_temperature(target, logits) == pytest.approx(factor, rel=0.1)


@pytest.mark.parametrize("classes", [2, 3])
def test_the_temperature_is_the_best_of_all(classes: int) -> None:
    target, logits = overconfident(3, 3.0, classes)
    found = fit_temperature(target, logits)
    losses = [log_loss(target, probabilities(logits, t)) for t in np.geomspace(0.3, 15, 400)]
    assert log_loss(target, probabilities(logits, found)) <= min(losses) + 1e-9
    assert negative_log_likelihood(target, logits) == pytest.approx(log_loss(target, probabilities(logits)))


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    patients=st.integers(1, 40),
    spread=st.floats(0.01, 60),
    bias=st.floats(-5, 5),
    classes=st.integers(2, 4),
)
def test_scaling_never_raises_the_loss_nor_moves_a_rank(
    seed: int, patients: int, spread: float, bias: float, classes: int
) -> None:
    rng = np.random.default_rng(seed)
    target = rng.integers(0, classes, patients)
    logits = rng.normal(bias, spread, (patients, 1 if classes == 2 else classes)).astype(np.float32).astype(float)
    temperature = float(np.float32(fit_temperature(target, logits)))
    assert 0.2 - 1e-6 <= temperature <= 20.0 + 1e-5
    scaled = negative_log_likelihood(target, logits / temperature)
    assert scaled <= negative_log_likelihood(target, logits) * (1 + 1e-6)
    before, after = probabilities(logits), probabilities(logits, temperature)
    if temperature != 1.0:
        assert (before.argmax(1) == after.argmax(1)).all()
    if classes == 2 and len(np.unique(target)) == 2 and np.abs(logits).max() < 30:
        assert roc_auc_score(target, after[:, 1]) == roc_auc_score(target, before[:, 1])


def test_patients_that_cannot_say_how_sure_to_be_leave_the_logits_alone() -> None:
    assert fit_temperature(np.array([1, 1, 1]), np.array([[0.3], [2.0], [-1.0]])) == 1.0
    separated = np.array([[-2.0], [-1.0], [1.0], [3.0]])
    assert fit_temperature(np.array([0, 0, 1, 1]), separated) == 1.0
    backwards = fit_temperature(np.array([1, 1, 0, 0]), separated)
    assert backwards == pytest.approx(20.0, rel=1e-3), "worse than chance: nearly one half for all"


def scores(seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    target = np.r_[0, 1, rng.integers(0, 2, 60)]
    score = np.round(np.asarray(expit(rng.normal(target, 1.2))), 2)  # with ties
    return target, np.stack([1 - score, score], axis=1)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("wanted", [0.5, 0.9, 1.0])
def test_fixed_sensitivity_and_specificity_against_all_cuts(seed: int, wanted: float) -> None:
    target, probability = scores(seed)
    score = probability[:, 1]

    def sensitivity(cut: float) -> float:
        return float(np.mean(score[target == 1] >= cut))

    def specificity(cut: float) -> float:
        return float(np.mean(score[target == 0] < cut))

    cuts = np.linspace(-0.005, 1.005, 102)  # between the rounded scores
    by_sensitivity = choose_threshold(target, probability, "sensitivity", wanted)
    assert sensitivity(by_sensitivity) >= wanted
    best = max(specificity(cut) for cut in cuts if sensitivity(cut) >= wanted)
    assert specificity(by_sensitivity) == best
    by_specificity = choose_threshold(target, probability, "specificity", wanted)
    assert specificity(by_specificity) >= wanted
    assert sensitivity(by_specificity) == max(sensitivity(cut) for cut in cuts if specificity(cut) >= wanted)
    assert not np.isin([by_sensitivity, by_specificity], score).any(), "between patients, not on one"


def test_the_other_rules() -> None:
    target, probability = scores(0)
    assert choose_threshold(target, probability, "fixed", 0.3) == 0.3
    assert choose_threshold(target, probability) == youden_threshold(target, probability)
    assert choose_threshold(target[:1], probability[:1], "sensitivity", 0.9) == 0.5
    with pytest.raises(ValueError, match="needs a value"):
        choose_threshold(target, probability, "fixed")


def test_rules_and_values_that_contradict_each_other() -> None:
    with pytest.raises(ValueError, match=r"calibration\.value: threshold sensitivity needs a value"):
        Calibration(threshold="sensitivity")
    with pytest.raises(ValueError, match="threshold youden takes no value"):
        Calibration(value=0.9)
    with pytest.raises(ValueError, match=r"90\.0 does not lie in \[0, 1\]"):
        Calibration(threshold="specificity", value=90.0)
