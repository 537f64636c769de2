"""Does an arm hold from its validation patients to its test patients? A shortcut is what does not."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from scipy import stats

from experiments.compare_records import Unit
from experiments.compare_results import FamilyResult, Holding
from experiments.statistics_proportions import Interval
from experiments.statistics_roc import delong_covariance

PROBE_LEVEL = 0.999
"""Confidence at which a probe succeeds on validation patients: they chose its checkpoint, the best of several."""
METHOD = "DeLong, normal; validation and test patients independent"


def add_holding(found: FamilyResult, validation: pd.DataFrame, level: float) -> None:
    """Set each arm's AUC on validation patients beside that on test patients.

    Validation patients chose the checkpoint and the threshold, so their AUC is a little too good; a large fall
    says that what was learned does not hold on other patients. Two classes only; probes are left out.

    Args:
        found: The family's result; ``holding`` is filled.
        validation: Rows of part ``valid`` of all arms.
        level: Confidence level.
    """
    if found.family.kind != "binary" or validation.empty:
        return
    z = float(stats.norm.ppf(0.5 + level / 2))
    for arm in (item.arm for item in found.arms if item.arm not in found.family.probes):
        before = _validation_area(validation[validation["arm"] == arm])
        after = _test_area([unit for unit in found.units if unit.arm == arm])
        if before is None or after is None:
            continue
        fall, error = before[0] - after[0], math.hypot(before[1], after[1])
        found.holding.append(
            Holding(arm, _clipped(*before, z, level), _clipped(*after, z, level), _interval(fall, error, z, level))
        )


def add_probe_validation(found: FamilyResult, validation: pd.DataFrame) -> None:
    """Set each probe's AUC on validation patients, and its light to red where that lies above 0.5.

    A shortcut that the test patients do not carry shows in no test result: a probe finds it among the validation
    patients, who come from where the training patients do.

    Args:
        found: The family's result; ``validation`` and ``light`` of its probes are set.
        validation: Rows of part ``valid`` of all arms.
    """
    if found.family.kind != "binary" or validation.empty:
        return
    z = float(stats.norm.ppf(0.5 + PROBE_LEVEL / 2))
    for arm in (item for item in found.arms if item.role == "probe"):
        area = _validation_area(validation[validation["arm"] == arm.arm])
        if area is not None:
            arm.validation = _clipped(*area, z, PROBE_LEVEL)
            if arm.validation.low > 0.5:
                arm.light = "red"


def _interval(estimate: float, error: float, z: float, level: float) -> Interval:
    return Interval(estimate, estimate - z * error, estimate + z * error, level, METHOD)


def _clipped(estimate: float, error: float, z: float, level: float) -> Interval:
    """An area's interval, inside [0, 1]."""
    found = _interval(estimate, error, z, level)
    return Interval(estimate, max(0.0, found.low), min(1.0, found.high), level, METHOD)


def _validation_area(rows: pd.DataFrame) -> tuple[float, float] | None:
    """Mean AUC over seeds and folds and its standard error, or None where no fold has two of each class.

    Folds hold different patients, so their errors are independent; seeds share patients, and what they share is
    not averaged away: the error is that of one seed's mean over folds.
    """
    means, errors = [], []
    for _, seeded in rows.groupby("seed"):
        areas = [
            _area(fold["target"].to_numpy(float), fold["prob"].to_numpy(float)) for _, fold in seeded.groupby("fold")
        ]
        known = [area for area in areas if area is not None]
        if known:
            means.append(float(np.mean([area for area, _ in known])))
            errors.append(math.sqrt(sum(error**2 for _, error in known)) / len(known))
    return (float(np.mean(means)), float(np.mean(errors))) if means else None


def _test_area(units: list[Unit]) -> tuple[float, float] | None:
    """Mean AUC over seeds and the standard error of one seed's, or None where it is not estimable."""
    known = [area for unit in units if (area := _area(unit.target.astype(float), unit.scores)) is not None]
    if not known:
        return None
    return float(np.mean([area for area, _ in known])), float(np.mean([error for _, error in known]))


def _area(target: np.ndarray, score: np.ndarray) -> tuple[float, float] | None:
    """AUC and its standard error by DeLong; None with fewer than two patients of a class."""
    if min(int((target == 1).sum()), int((target == 0).sum())) < 2:
        return None
    areas, covariance = delong_covariance(target, score)
    return float(areas[0]), math.sqrt(float(covariance[0, 0]))
