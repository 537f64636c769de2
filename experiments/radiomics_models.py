"""Classifiers of radiomics features: scaling, selection, and a model, chosen by cross-validation by patient."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import pandas as pd
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import GradientBoostingClassifier, RandomForestClassifier
from sklearn.feature_selection import VarianceThreshold, f_classif
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import GridSearchCV, StratifiedGroupKFold
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler

from datamodules.errors import InputError

MODELS: Final = ("logistic", "forest", "boosting")
PRESENT: Final = "present_"
"""Columns that begin so say whether a patient has a sequence: 1 or 0, never scaled away or selected out."""


class UncorrelatedBest(BaseEstimator, TransformerMixin):  # type: ignore[misc]  # scikit-learn is not typed
    """The features that differ most between classes and do not say the same thing twice.

    Features are taken in the order of the F statistic of a one-way analysis of variance; one that correlates with a
    taken one by more than the limit is passed over.

    Args:
        k: How many to keep at most.
        limit: Largest absolute Pearson correlation of two kept features, in (0, 1].
    """

    def __init__(self, k: int = 10, limit: float = 0.9) -> None:
        self.k = k
        self.limit = limit

    def fit(self, X: np.ndarray, y: np.ndarray) -> UncorrelatedBest:  # noqa: N803 (scikit-learn's name)
        """Choose features of training rows; X of shape (n, features), y of shape (n,)."""
        values = np.asarray(X, dtype=float)
        with warnings.catch_warnings():
            # a feature that is constant within each class has an infinite or undefined F
            warnings.simplefilter("ignore")
            score = f_classif(values, y)[0]
        centred = values - values.mean(axis=0)
        length = np.linalg.norm(centred, axis=0)
        unit = centred / np.where(length > 0, length, 1.0)
        taken: list[int] = []
        # a stable sort: equal scores keep the columns' order
        for place in np.argsort(-np.nan_to_num(score, nan=-1.0, posinf=np.finfo(float).max), kind="stable"):
            if length[place] == 0:
                continue
            if not taken or np.abs(unit[:, taken].T @ unit[:, place]).max() <= self.limit:
                taken.append(int(place))
            if len(taken) == self.k:
                break
        self.taken_ = np.array(taken, dtype=int)
        return self

    def transform(self, X: np.ndarray) -> np.ndarray:  # noqa: N803
        """Keep the chosen columns, in the order of their score."""
        return np.asarray(X, dtype=float)[:, self.taken_]


@dataclasses.dataclass(frozen=True, slots=True)
class Fitted:
    """A classifier that was chosen and fitted on training patients.

    Attributes:
        pipeline: Gives probabilities, shape (n, classes), of rows of features.
        parameters: What the inner cross-validation chose.
        inner_loss: Mean negative log-likelihood of the held-out training patients with it.
        features: Names of the features that it uses.
        folds: Inner folds.
    """

    pipeline: Pipeline
    parameters: Mapping[str, Any]
    inner_loss: float
    features: tuple[str, ...]
    folds: int


def fit(
    model: str, rows: pd.DataFrame, target: np.ndarray, patients: Sequence[str], seed: int, folds: int = 5
) -> Fitted:
    """Choose hyper-parameters by cross-validation within the training patients, and fit on all of them.

    Args:
        model: One of ``MODELS``.
        rows: Features of training rows, NaN where missing; columns that begin with ``PRESENT`` are 0 or 1.
        target: Classes, shape (n,).
        patients: Patient of each row: all of a patient's rows are on one side of each inner fold.
        seed: Of the inner folds and of the model.
        folds: Inner folds at most; fewer where a class has fewer patients.

    Raises:
        InputError: A class has fewer than two training patients, or no feature varies.
    """
    of_patient = pd.Series(target, index=list(patients)).groupby(level=0).first()
    fewest = int(of_patient.value_counts().min())
    if of_patient.nunique() < 2 or fewest < 2:
        raise InputError(
            f"the training part has {fewest} patients of its rarest class, and inner cross-validation needs two of "
            "each of at least two classes; make a split with fewer folds, or use another rule"
        )
    numbers = [name for name in rows.columns if not name.startswith(PRESENT)]
    flags = [name for name in rows.columns if name.startswith(PRESENT)]
    if not (rows[numbers].max() > rows[numbers].min()).any():
        raise InputError("no feature varies between training patients; are their masks empty?")
    inner = StratifiedGroupKFold(min(folds, fewest), shuffle=True, random_state=seed)
    search = GridSearchCV(
        _pipeline(model, numbers, flags, seed),
        _grid(model),
        scoring=_log_score,
        cv=inner,
        error_score="raise",
    )
    search.fit(rows, target, groups=np.asarray(patients))
    best = search.best_estimator_
    prepared = best.named_steps["features"]
    chain = prepared.named_transformers_["numbers"]
    names = np.array(numbers)[chain.named_steps["constant"].get_support()][chain.named_steps["select"].taken_]
    parameters = {key.rpartition("__")[2]: value for key, value in search.best_params_.items()}
    return Fitted(best, parameters, -float(search.best_score_), (*map(str, names), *flags), inner.n_splits)


def _pipeline(model: str, numbers: list[str], flags: list[str], seed: int) -> Pipeline:
    chain = Pipeline(
        [
            ("impute", SimpleImputer(strategy="median", keep_empty_features=True)),
            ("constant", VarianceThreshold()),
            ("scale", StandardScaler()),
            ("select", UncorrelatedBest()),
        ]
    )
    prepared = ColumnTransformer([("numbers", chain, numbers), ("flags", "passthrough", flags)])
    estimator = {
        "logistic": LogisticRegression(max_iter=5000),
        "forest": RandomForestClassifier(n_estimators=200, random_state=seed),
        "boosting": GradientBoostingClassifier(n_estimators=100, learning_rate=0.05, subsample=0.8, random_state=seed),
    }[model]
    return Pipeline([("features", prepared), ("model", estimator)])


def _grid(model: str) -> dict[str, list[Any]]:
    """Few values: with a hundred patients, a finer grid chooses noise."""
    kept = {"features__numbers__select__k": [5, 10, 20]}
    grids: dict[str, dict[str, list[Any]]] = {
        "logistic": {**kept, "model__C": [0.01, 0.1, 1.0]},
        "forest": {"features__numbers__select__k": [10, 40], "model__min_samples_leaf": [2, 5]},
        "boosting": {"features__numbers__select__k": [10, 40], "model__max_depth": [1, 2]},
    }
    return grids[model]


def _log_score(estimator: Any, rows: pd.DataFrame, target: np.ndarray) -> float:
    """Negative log-likelihood, higher is better; defined where an inner fold lacks a class."""
    return -float(log_loss(target, estimator.predict_proba(rows), labels=estimator.classes_))
