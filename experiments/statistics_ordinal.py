"""Metrics of several ordered classes as functions of bootstrap weights: kappa, macro F1, stage error, mean AUC."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from experiments.statistics_bootstrap import Statistic, Weights, auc_statistic, mean_statistic

Floats = NDArray[np.float64]


def confusion_matrix(target: ArrayLike, predicted: ArrayLike, classes: int) -> NDArray[np.int64]:
    """Counts by truth (rows) and prediction (columns), shape (classes, classes)."""
    cells = np.asarray(target, dtype=int) * classes + np.asarray(predicted, dtype=int)
    return np.bincount(cells, minlength=classes**2).reshape(classes, classes).astype(np.int64)


def _weighted_confusion(target: ArrayLike, predicted: ArrayLike, classes: int, weights: Weights) -> Floats:
    cells = np.asarray(target, dtype=int) * classes + np.asarray(predicted, dtype=int)
    indicator = np.eye(classes**2)[cells]
    return np.asarray(weights.astype(np.float64) @ indicator).reshape(-1, classes, classes)


def kappa_statistic(target: ArrayLike, predicted: ArrayLike, classes: int) -> Statistic:
    """Cohen's kappa with quadratic weights; NaN where truth and prediction are one single class.

    Source: Cohen 1968: 1 - sum(w · observed) / sum(w · expected), w = (i - j)².
    """
    distance = (np.arange(classes)[:, None] - np.arange(classes)[None, :]) ** 2

    def statistic(weights: Weights) -> Floats:
        table = _weighted_confusion(target, predicted, classes, weights)
        total = table.sum(axis=(1, 2))
        expected = table.sum(axis=2)[:, :, None] * table.sum(axis=1)[:, None, :] / total[:, None, None]
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray(1 - (table * distance).sum(axis=(1, 2)) / (expected * distance).sum(axis=(1, 2)))

    return statistic


def macro_f1_statistic(target: ArrayLike, predicted: ArrayLike, classes: int) -> Statistic:
    """Mean over classes of 2 TP / (2 TP + FP + FN); a class neither true nor predicted is left out of the mean."""

    def statistic(weights: Weights) -> Floats:
        table = _weighted_confusion(target, predicted, classes, weights)
        hits = np.diagonal(table, axis1=1, axis2=2)
        sizes = table.sum(axis=1) + table.sum(axis=2)
        with np.errstate(invalid="ignore", divide="ignore"):
            scores = np.where(sizes > 0, 2 * hits / sizes, np.nan)
        return np.asarray(np.nanmean(scores, axis=1), dtype=np.float64)

    return statistic


def mean_auc_statistic(target: ArrayLike, probabilities: ArrayLike) -> Statistic:
    """Mean over classes of the AUC of that class against the rest; NaN where a class does not occur.

    Args:
        target: Class per patient, shape (n,).
        probabilities: Shape (n, classes).
    """
    truth, values = np.asarray(target), np.asarray(probabilities, dtype=float)
    members = [auc_statistic(truth == index, values[:, index]) for index in range(values.shape[1])]

    def statistic(weights: Weights) -> Floats:
        return np.asarray(np.mean([member(weights) for member in members], axis=0), dtype=np.float64)

    return statistic


def stage_error_statistic(target: ArrayLike, predicted: ArrayLike) -> Statistic:
    """Mean absolute difference between predicted and true stage, in stages."""
    return mean_statistic(np.abs(np.asarray(target, dtype=float) - np.asarray(predicted, dtype=float)))
