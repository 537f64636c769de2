"""Selection and choice of radiomics classifiers, by laws and by scikit-learn's own selection."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from sklearn.feature_selection import SelectKBest, f_classif

from datamodules.errors import InputError
from experiments.radiomics_models import MODELS, UncorrelatedBest, fit


def noise(patients: int, features: int, seed: int = 0) -> tuple[pd.DataFrame, np.ndarray, list[str]]:
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(patients, features))
    names = [f"T2W_{number}" for number in range(features)]
    return pd.DataFrame(values, columns=names), np.arange(patients) % 2, [f"P{n}" for n in range(patients)]


def test_without_a_limit_the_selection_is_scikit_learns() -> None:
    rows, target, _ = noise(60, 30)
    ours = set(UncorrelatedBest(k=7, limit=1.0).fit(rows.to_numpy(), target).taken_)
    theirs = set(np.flatnonzero(SelectKBest(f_classif, k=7).fit(rows.to_numpy(), target).get_support()))
    assert ours == theirs


def test_no_two_kept_features_say_the_same() -> None:
    rows, target, _ = noise(60, 10)
    rows["T2W_0"] += 3 * target
    copies = {f"copy_{n}": -2.0 * rows["T2W_0"] + 0.01 * n * rows[f"T2W_{n}"] for n in range(1, 6)}
    both = pd.concat([rows, pd.DataFrame(copies)], axis=1).to_numpy()
    kept = UncorrelatedBest(k=6, limit=0.9).fit(both, target)
    share = np.corrcoef(kept.transform(both), rowvar=False)
    assert np.abs(share[~np.eye(6, dtype=bool)]).max() <= 0.9
    assert sum(place == 0 or place >= 10 for place in kept.taken_) == 1


def test_choosing_among_noise_finds_nothing() -> None:
    """Selection outside the inner folds would give a loss far below that of a coin."""
    rows, target, patients = noise(60, 300)
    fitted = fit("logistic", rows, target, patients, seed=0, folds=3)
    assert fitted.inner_loss > 0.95 * np.log(2)
    told = rows.assign(T2W_5=rows["T2W_5"] + 4 * target)
    assert fit("logistic", told, target, patients, seed=0).inner_loss < 0.3


@pytest.mark.parametrize("model", MODELS)
def test_missing_values_three_classes_and_repetition(model: str) -> None:
    rows, _, patients = noise(30, 8)
    target = np.arange(30) % 3
    rows["T2W_1"] += 2 * target
    rows.iloc[::4, 1] = np.nan
    rows["T1W_all_missing"] = np.nan
    rows["T2W_constant"] = 7.0
    rows["present_T1W"] = (np.arange(30) % 4 > 0).astype(float)
    first, second = (fit(model, rows, target, patients, seed=3, folds=2) for _ in range(2))
    chances = first.pipeline.predict_proba(rows)
    assert chances.shape == (30, 3) and np.allclose(chances.sum(axis=1), 1)
    np.testing.assert_array_equal(chances, second.pipeline.predict_proba(rows))
    assert "T2W_1" in first.features and "present_T1W" in first.features
    assert not {"T1W_all_missing", "T2W_constant"} & set(first.features)


def test_visits_of_one_patient_stay_together() -> None:
    """A patient's visits are copies: a model that met one of them in training would know the other."""
    rows, target, patients = noise(30, 40)
    doubled = pd.concat([rows, rows], ignore_index=True)
    fitted = fit("forest", doubled, np.concatenate([target, target]), patients + patients, seed=0, folds=2)
    assert fitted.inner_loss > 0.6


def test_too_few_patients_of_a_class() -> None:
    rows, target, patients = noise(10, 4)
    with pytest.raises(InputError, match="has 1 patients of its rarest class"):
        fit("logistic", rows, np.array([1] + [0] * 9), patients, seed=0)
    with pytest.raises(InputError, match="no feature varies"):
        fit("logistic", rows * np.nan, target, patients, seed=0)
