"""Every metric of every arm and seed under the same resamples of patients."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from experiments.compare_records import Unit
from experiments.statistics_bootstrap import (
    Statistic,
    Weights,
    interval_of,
    leave_one_out,
    pair_kernel,
    patient_weights,
    seed_weights,
)
from experiments.statistics_operating import (
    sensitivity_at_specificity_statistic,
    specificity_at_sensitivity_statistic,
)
from experiments.statistics_ordinal import kappa_statistic, macro_f1_statistic, mean_auc_statistic
from experiments.statistics_proportions import Interval, wilson_interval
from experiments.statistics_roc import auc_interval, newcombe_interval

Floats = NDArray[np.float64]
FIXED = 0.90
"""Specificity at which sensitivity is stated, and the reverse."""
FEWEST = 10
"""Patients in the class that sets such a threshold: with fewer, 90 % is all of them."""
AT_SPECIFICITY, AT_SENSITIVITY = "sensitivity_at_90_specificity", "specificity_at_90_sensitivity"
BINARY = (
    "auc", "sensitivity", "specificity", "accuracy", "balanced_accuracy", "brier", AT_SPECIFICITY, AT_SENSITIVITY,
)  # fmt: skip
MULTICLASS = ("kappa", "accuracy", "macro_f1", "auc_ovr", "mae_stages")
LOWER_IS_BETTER = frozenset({"brier", "mae_stages"})
NAMES = {
    "auc": "AUC",
    "sensitivity": "Sensitivity",
    "specificity": "Specificity",
    "accuracy": "Accuracy",
    "balanced_accuracy": "Balanced accuracy",
    "brier": "Brier score",
    AT_SPECIFICITY: f"Sensitivity at {FIXED * 100:.0f} % specificity",
    AT_SENSITIVITY: f"Specificity at {FIXED * 100:.0f} % sensitivity",
    "kappa": "Quadratic kappa",
    "macro_f1": "Macro F1",
    "auc_ovr": "Mean one-vs-rest AUC",
    "mae_stages": "Stage error (stages)",
    "dice": "Dice",
    "iou": "IoU",
    "hd95_mm": "HD95 (mm)",
    "assd_mm": "ASSD (mm)",
    "nsd": "Surface Dice",
    "volume_error_ml": "Absolute volume error (ml)",
}
_AREAS_AT_ONCE = 16  # 1,000 resamples × 16 units × 250 negatives are 16 MB
NEEDS_CLASSES = frozenset({"auc", "balanced_accuracy", "kappa", "macro_f1", "auc_ovr", AT_SPECIFICITY, AT_SENSITIVITY})
"""Metrics that say nothing where all patients are of one class."""
PROPORTIONS = frozenset({"sensitivity", "specificity", "accuracy"})
BY_CLASS = ("sensitivity", "specificity", "auc")
"""Of several classes, each is judged against the rest by these; their names then end in the class's number."""
_OF_CLASS = re.compile(rf"({'|'.join(BY_CLASS)})_(\d+)")


@dataclass(frozen=True, slots=True)
class Ratio:
    """A metric that is a weighted mean: sum(w · top) / sum(w · bottom); many of them are two matrix products."""

    top: Floats
    bottom: Floats


@dataclass(frozen=True, slots=True)
class Area:
    """The AUC of one unit, kept as its kernel of pairs, so that many units are one matrix product."""

    positive: NDArray[np.bool_]
    kernel: NDArray[np.floating[Any]]
    scores: Floats


Metric = Ratio | Area | Statistic


def metrics_of(unit: Unit) -> dict[str, Metric]:
    """The metrics that one unit allows, as functions of patient weights.

    Those that need a threshold are left out where none was recorded; those of a class that does not occur are left
    out too: they are not estimable.
    """
    target, ones = unit.target, np.ones(len(unit.target))
    if unit.classes > 2:
        right = (unit.predicted == target).astype(float)
        error = np.abs(unit.predicted - target).astype(float)
        found: dict[str, Metric] = {"accuracy": Ratio(right, ones), "mae_stages": Ratio(error, ones)}
        if len(np.unique(target)) > 1:
            found["kappa"] = kappa_statistic(target, unit.predicted, unit.classes)
            found["macro_f1"] = macro_f1_statistic(target, unit.predicted, unit.classes)
        if len(np.unique(target)) == unit.classes:
            found["auc_ovr"] = mean_auc_statistic(target, unit.scores)
        return found
    positive = (target == 1).astype(float)
    both = 0 < positive.sum() < len(target)
    found = {"brier": Ratio((unit.scores - positive) ** 2, ones)}
    if both:
        found["auc"] = Area(target == 1, pair_kernel(target, unit.scores), unit.scores)
        if (target == 0).sum() >= FEWEST:
            found[AT_SPECIFICITY] = sensitivity_at_specificity_statistic(target, unit.scores, FIXED)
        if (target == 1).sum() >= FEWEST:
            found[AT_SENSITIVITY] = specificity_at_sensitivity_statistic(target, unit.scores, FIXED)
    if unit.has_threshold:
        right = (unit.predicted == target).astype(float)
        found["accuracy"] = Ratio(right, ones)
        if positive.any():
            found["sensitivity"] = Ratio(right * positive, positive)
        if not positive.all():
            found["specificity"] = Ratio(right * (1 - positive), 1 - positive)
    return found


def class_metrics_of(unit: Unit) -> dict[str, Metric]:
    """Sensitivity, specificity and AUC of each of several classes against the rest, as ``sensitivity_0`` and so on.

    A class that does not occur, or alone occurs, is left out: it is not estimable. Empty for two classes.
    """
    found: dict[str, Metric] = {}
    for index in range(unit.classes if unit.classes > 2 else 0):
        member, called = unit.target == index, unit.predicted == index
        if member.any():
            found[f"sensitivity_{index}"] = Ratio((member & called).astype(float), member.astype(float))
        if not member.all():
            found[f"specificity_{index}"] = Ratio((~member & ~called).astype(float), (~member).astype(float))
        if member.any() and not member.all():
            scores = unit.scores[:, index]
            found[f"auc_{index}"] = Area(member, pair_kernel(member.astype(int), scores), scores)
    return found


class Resampled:
    """Values of all metrics of all units: on the patients as they are, in the resamples, and with one left out.

    Args:
        arms: Arm of each unit; a unit is one seed of one arm.
        metrics: Metrics of each unit, over the same patients in the same order.
        target: Class of each patient, shape (n,): resampling keeps the size of each class.
        resamples: Bootstrap resamples.
        seed: Of the random generator.
    """

    def __init__(
        self,
        arms: Sequence[str],
        metrics: Sequence[Mapping[str, Metric]],
        target: NDArray[np.int64],
        resamples: int,
        seed: int,
    ) -> None:
        self.arms = list(arms)
        self.metrics = list(metrics)
        self.resamples = resamples
        self.seed = seed
        self.target = target
        n = len(self.target)
        self.estimates = _evaluate(metrics, np.ones((1, n), dtype=np.float32))
        self.left_out = _evaluate(metrics, leave_one_out(n))
        chunks = [_evaluate(metrics, weights) for weights in patient_weights(self.target, resamples, seed)]
        self.values = {name: np.concatenate([chunk[name] for chunk in chunks]) for name in self.estimates}
        self._seeds: dict[tuple[int, int], Floats] = {}

    def columns(self, arm: str) -> list[int]:
        """Positions of an arm's seeds."""
        return [index for index, name in enumerate(self.arms) if name == arm]

    def seeds_of(self, arm: str) -> Floats:
        """Resampled weights of an arm's seeds, shape (R, S); each arm's seeds are drawn apart."""
        count = len(self.columns(arm))
        # the arm's place makes the draw its own, and reproducible
        place = self.columns(arm)[0] + 1
        key = (place, count)
        if key not in self._seeds:
            self._seeds[key] = seed_weights(count, self.resamples, self.seed + place)
        return self._seeds[key]

    def value(self, metric: str, arm: str) -> tuple[float, Floats, Floats]:
        """Mean over seeds: on all patients, in the (patients × seeds) resamples (R,), one patient left out (n,)."""
        columns = self.columns(arm)
        estimate = float(self.estimates[metric][0, columns].mean())
        resampled = (self.values[metric][:, columns] * self.seeds_of(arm)).sum(axis=1)
        return estimate, resampled, self.left_out[metric][:, columns].mean(axis=1)

    def interval(self, metric: str, arm: str, level: float) -> Interval | None:
        """Interval of an arm's mean over seeds, or None where the metric is not estimable."""
        if metric not in self.values:
            return None
        columns = self.columns(arm)
        if len(columns) == 1:
            return self.seed_interval(metric, columns[0], level)
        estimate, resampled, left_out = self.value(metric, arm)
        return self._rescued(metric, interval_of(estimate, resampled, left_out, level, self.target), level)

    def seed_interval(self, metric: str, column: int, level: float) -> Interval | None:
        """Interval of one unit: Wilson for a proportion, DeLong on the logit scale for an AUC, else bootstrap."""
        if metric not in self.values or not math.isfinite(self.estimates[metric][0, column]):
            return None
        estimate = float(self.estimates[metric][0, column])
        if _is_proportion(metric):
            total = self._total(metric)
            return wilson_interval(round(estimate * total), total, level)
        metric_here = self.metrics[column].get(metric)
        if isinstance(metric_here, Area):
            return auc_interval(metric_here.positive.astype(int), metric_here.scores, level)
        found = interval_of(
            estimate, self.values[metric][:, column], self.left_out[metric][:, column], level, self.target
        )
        return self._rescued(metric, found, level)

    def _total(self, metric: str) -> int:
        metric, label = _split(metric)
        positives = int((self.target == label).sum())
        if metric in ("sensitivity", AT_SPECIFICITY):
            return positives
        return len(self.target) - positives if metric in ("specificity", AT_SENSITIVITY) else len(self.target)

    def _rescued(self, metric: str, found: Interval, level: float) -> Interval | None:
        """Where every resample gives the same value the bootstrap has nothing to say; a closed form still does."""
        if not math.isfinite(found.estimate):
            return None
        if found.low < found.high or not math.isfinite(found.low):
            return found
        name, label = _split(metric)
        if name == "auc":
            positives = int((self.target == label).sum())
            return newcombe_interval(found.estimate, positives, len(self.target) - positives, level)
        if name in {*PROPORTIONS, AT_SPECIFICITY, AT_SENSITIVITY}:
            total = self._total(metric)
            return wilson_interval(round(found.estimate * total), total, level)
        return Interval(found.estimate, math.nan, math.nan, level, "no interval: all resamples agree")


def _split(metric: str) -> tuple[str, int]:
    """A metric's name and the class that it is of: that which ends its name, else the positive one."""
    found = _OF_CLASS.fullmatch(metric)
    return (found[1], int(found[2])) if found else (metric, 1)


def _is_proportion(metric: str) -> bool:
    return _split(metric)[0] in PROPORTIONS


def _evaluate(metrics: Sequence[Mapping[str, Metric]], weights: Weights) -> dict[str, Floats]:
    """All metrics of all units for rows of weights: name to (R, units); NaN where a unit lacks the metric."""
    names = sorted({name for found in metrics for name in found})
    result = {name: np.full((len(weights), len(metrics)), np.nan) for name in names}
    wide = weights.astype(np.float64)
    for name in names:
        ratios = [
            (index, metric) for index, found in enumerate(metrics) if isinstance(metric := found.get(name), Ratio)
        ]
        if ratios:
            tops = np.column_stack([metric.top for _, metric in ratios])
            bottoms = np.column_stack([metric.bottom for _, metric in ratios])
            with np.errstate(invalid="ignore", divide="ignore"):
                result[name][:, [index for index, _ in ratios]] = (wide @ tops) / (wide @ bottoms)
        areas = [(index, metric) for index, found in enumerate(metrics) if isinstance(metric := found.get(name), Area)]
        for start in range(0, len(areas), _AREAS_AT_ONCE):
            block = areas[start : start + _AREAS_AT_ONCE]
            result[name][:, [index for index, _ in block]] = _areas([metric for _, metric in block], weights)
        for index, found in enumerate(metrics):
            metric = found.get(name)
            if metric is not None and not isinstance(metric, Ratio | Area):
                result[name][:, index] = metric(weights)
    if "sensitivity" in result and "specificity" in result:
        result["balanced_accuracy"] = (result["sensitivity"] + result["specificity"]) / 2
    return result


def _areas(areas: Sequence[Area], weights: Weights) -> Floats:
    """AUCs of units that share their target, shape (R, units)."""
    positive, kind = areas[0].positive, areas[0].kernel.dtype
    up, down = weights[:, positive].astype(kind, copy=False), weights[:, ~positive].astype(kind, copy=False)
    above = (up @ np.hstack([area.kernel for area in areas])).reshape(len(weights), len(areas), -1)
    sizes = up.sum(axis=1, dtype=np.float64) * down.sum(axis=1, dtype=np.float64)
    # a batch of matrix-vector products; each sum is a half of a whole number, exact in the kernel's precision
    pairs = (above @ down[:, :, None])[:, :, 0].astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(pairs / sizes[:, None], dtype=np.float64)
