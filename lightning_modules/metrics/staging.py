"""Metrics of ordered stages over patients, by scikit-learn."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt


class StagingScores(NamedTuple):
    """How well stages were told, each patient once.

    Attributes:
        accuracy: Share of patients with the right stage.
        majority_accuracy: What always saying the commonest stage of these patients gives.
        macro_f1: Mean F1 over the stages.
        quadratic_kappa: Cohen's kappa with squared distances; NaN where all say one stage.
        mean_absolute_error: Mean distance in stages.
        auc: One-versus-rest area under the ROC curve of each stage; NaN where a stage is missing.
        sensitivity: Of each stage; NaN where a stage is missing.
        specificity: Of each stage; NaN where there is only that stage.
        confusion: Patients by true (rows) and predicted stage.
    """

    accuracy: float
    majority_accuracy: float
    macro_f1: float
    quadratic_kappa: float
    mean_absolute_error: float
    auc: tuple[float, ...]
    sensitivity: tuple[float, ...]
    specificity: tuple[float, ...]
    confusion: npt.NDArray[np.int64]


def staging_scores(target: npt.ArrayLike, probabilities: npt.ArrayLike) -> StagingScores:
    """Score predicted stages.

    Args:
        target: True stage of each patient, 0-based, shape (N,).
        probabilities: Of each stage, shape (N, stages).

    Returns:
        All metrics.

    Raises:
        ValueError: Shapes do not fit, a stage is out of range, or there is no patient.
    """
    from sklearn import metrics  # slow to import, and not needed by those who only train

    truth, scores = np.asarray(target), np.asarray(probabilities, dtype=float)
    if scores.ndim != 2 or truth.shape != scores.shape[:1] or truth.size == 0:
        raise ValueError(f"target {truth.shape} and probabilities {scores.shape} do not fit, or are empty")
    stages = np.arange(scores.shape[1])
    if not np.isin(truth, stages).all():
        raise ValueError(f"target holds stages outside 0 … {stages[-1]}")
    said = scores.argmax(1)
    confusion: npt.NDArray[np.int64] = metrics.confusion_matrix(truth, said, labels=stages).astype(np.int64)
    hits, actual, predicted = np.diag(confusion), confusion.sum(1), confusion.sum(0)
    negatives = truth.size - actual
    auc = [_auc(metrics, truth == stage, scores[:, stage]) for stage in stages]
    return StagingScores(
        accuracy=float(hits.sum() / truth.size),
        majority_accuracy=float(actual.max() / truth.size),
        macro_f1=float(metrics.f1_score(truth, said, labels=stages, average="macro", zero_division=0.0)),
        quadratic_kappa=_kappa(metrics, truth, said, stages),
        mean_absolute_error=float(np.abs(truth - said).mean()),
        auc=tuple(auc),
        sensitivity=tuple(_share(h, n) for h, n in zip(hits, actual, strict=True)),
        specificity=tuple(
            _share(n - (p - h), n) for n, p, h in zip(negatives, predicted, hits, strict=True)
        ),
        confusion=confusion,
    )  # fmt: skip


def _auc(metrics: Any, positive: npt.NDArray[np.bool_], scores: npt.NDArray[np.float64]) -> float:
    if positive.all() or not positive.any():
        return float("nan")
    return float(metrics.roc_auc_score(positive, scores))


def _kappa(metrics: Any, truth: npt.NDArray[Any], said: npt.NDArray[Any], stages: npt.NDArray[Any]) -> float:
    if np.unique(truth).size == 1 and np.array_equal(truth, said):
        return float("nan")  # agreement by chance is certain, so kappa is 0 / 0
    return float(metrics.cohen_kappa_score(truth, said, labels=stages, weights="quadratic"))


def _share(part: Any, whole: Any) -> float:
    return float(part / whole) if whole > 0 else float("nan")
