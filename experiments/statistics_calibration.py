"""How well probabilities mean what they say: Brier score and its parts, reliability curve, net benefit."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from experiments.statistics_proportions import Interval, wilson_interval
from experiments.statistics_roc import binary_target

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class BrierParts:
    """Murphy's decomposition: score = reliability - resolution + uncertainty, up to the spread within bins.

    Attributes:
        score: Mean squared error of the probability, in [0, 1]; lower is better.
        reliability: Distance of bins from the diagonal; lower is better.
        resolution: Spread of bins around the prevalence; higher is better.
        uncertainty: prevalence × (1 - prevalence): the score of always predicting the prevalence.
    """

    score: float
    reliability: float
    resolution: float
    uncertainty: float


def brier_score(target: ArrayLike, probabilities: ArrayLike) -> float:
    """Mean squared difference between probability and truth (0/1), in [0, 1]; lower is better."""
    return float(np.mean((np.asarray(probabilities, dtype=float) - np.asarray(target, dtype=float)) ** 2))


def brier_decomposition(target: ArrayLike, probabilities: ArrayLike, bins: int = 10) -> BrierParts:
    """Brier score and its parts over equally filled bins.

    Raises:
        ValueError: Bad shapes or values, or one class only.

    Source: Murphy 1973.
    """
    positive, (values,) = binary_target(target, probabilities)
    prevalence, reliability, resolution = float(positive.mean()), 0.0, 0.0
    for members in _bins(values, bins):
        share, seen, said = len(members) / len(values), positive[members].mean(), values[members].mean()
        reliability += share * float(said - seen) ** 2
        resolution += share * float(seen - prevalence) ** 2
    return BrierParts(brier_score(positive, values), reliability, resolution, prevalence * (1 - prevalence))


def usual_bins(patients: int) -> int:
    """How many equally filled bins a set of this size bears: one for every twelve patients, two to eight."""
    return max(2, min(8, patients // 12))


def _bins(values: Floats, bins: int) -> list[NDArray[np.intp]]:
    """Row numbers of equally filled bins; equal values stay together."""
    order = np.argsort(values, kind="stable")
    cuts = np.unique(
        np.searchsorted(values[order], values[order][np.linspace(0, len(values), bins + 1)[1:-1].astype(int)])
    )
    return [part for part in np.split(order, cuts) if len(part)]


def reliability_curve(
    target: ArrayLike, probabilities: ArrayLike, bins: int = 5, level: float = 0.95
) -> list[tuple[float, Interval, int]]:
    """Predicted against observed risk over equally filled bins.

    Returns:
        Per bin: mean predicted risk, observed share with its Wilson interval, number of patients.
    """
    positive, (values,) = binary_target(target, probabilities)
    return [
        (float(values[rows].mean()), wilson_interval(int(positive[rows].sum()), len(rows), level), len(rows))
        for rows in _bins(values, bins)
    ]


def net_benefit(target: ArrayLike, probabilities: ArrayLike, thresholds: ArrayLike) -> Floats:
    """Decision curve: TP/n - FP/n × t/(1 - t), for calling patients with a risk of at least t.

    Args:
        target: 0 or 1 per patient, shape (n,).
        probabilities: Risk in [0, 1], shape (n,).
        thresholds: Risks t in [0, 1) at which one would act, shape (T,).

    Returns:
        Net benefit per threshold, shape (T,): true positives per patient, after false ones are charged.

    Source: Vickers, Elkin 2006.
    """
    positive = np.asarray(target).astype(bool)
    values, limits = np.asarray(probabilities, dtype=float), np.asarray(thresholds, dtype=float)
    called = values[None, :] >= limits[:, None]
    n = len(values)
    hits, alarms = (called & positive).sum(axis=1) / n, (called & ~positive).sum(axis=1) / n
    return np.asarray(hits - alarms * limits / (1 - limits), dtype=np.float64)
