"""Arms that classify slices: what they reach over slices beside the patients, and what a leak between them adds."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from datamodules.errors import InputError
from datamodules.records import class_columns
from experiments.compare_records import RUN
from experiments.compare_results import FamilyResult
from experiments.statistics_proportions import Interval

SLICES = "slices.parquet"
"""Beside ``predictions.parquet``: one row per test slice."""
_KEYS = ["patient_id", "scan_id", "slice"]


@dataclass(frozen=True, slots=True)
class SliceResult:
    """An arm's accuracy over slices.

    Attributes:
        arm: Its name.
        slices: Test slices, each counted once.
        accuracy: Share called right, mean over seeds; its interval is over resamples of patients with all their slices.
        majority: Share of the most frequent class among the slices.
        leaks: Whether slices of test patients were in its training.
        inflation: For an arm that leaks: accuracy minus that of the reference, over the same slices; else None.
    """

    arm: str
    slices: int
    accuracy: Interval
    majority: float
    leaks: bool
    inflation: Interval | None = None


def add_slices(found: FamilyResult, resamples: int, level: float, seed: int) -> None:
    """Add what arms reach over slices to a result, and sentences about it.

    Args:
        found: The family's result, with sentences; changed in place.
        resamples: Of patients.
        level: Confidence level in (0, 1).
        seed: Of the resamples.

    Raises:
        InputError: A record of slices is broken.
    """
    tables = {arm.arm: table for arm in found.arms if (table := _slices_of(found, arm.arm)) is not None}
    for arm, table in tables.items():
        right = _right(table)
        leaks = arm in found.family.leaks
        inflation = None
        honest = tables.get(found.reference)
        if leaks and honest is not None:
            inflation = _inflation(right, _right(honest), resamples, level, seed)
        share = table.drop_duplicates(_KEYS)["target"].value_counts(normalize=True).max()
        accuracy = _over_patients(right, resamples, level, seed)
        found.slices.append(SliceResult(arm, len(right), accuracy, float(share), leaks, inflation))
    found.sentences += [_sentence(found, item, level) for item in found.slices]


def _slices_of(found: FamilyResult, arm: str) -> pd.DataFrame | None:
    """All test slices of an arm, with its seeds; None where a run has none."""
    rows = found.family.frame
    if RUN not in rows:
        return None
    rows = rows[rows["arm"] == arm]
    tables = []
    for run, number in rows[[RUN, "seed"]].drop_duplicates().itertuples(index=False):
        path = Path(str(run)) / SLICES
        if not path.is_file():
            return None
        try:
            tables.append(pd.read_parquet(path).assign(seed=int(str(number))))
        except Exception as error:  # pandas and pyarrow raise many kinds for a broken file
            raise InputError(f"{path}: cannot be read as a record of slices ({error}); test the run again") from error
    return pd.concat(tables, ignore_index=True)


def _right(table: pd.DataFrame) -> pd.DataFrame:
    """Share of seeds (and folds) that call each slice right, by patient, scan and slice; most probable class."""
    columns = class_columns(table)
    called = table[columns].to_numpy().argmax(axis=1) if columns else (table["prob"].to_numpy() >= 0.5).astype(int)
    scored = table[_KEYS].assign(right=(called == table["target"].to_numpy()).astype(float))
    return scored.groupby(_KEYS, sort=True)["right"].mean().reset_index()


def _inflation(leaky: pd.DataFrame, honest: pd.DataFrame, resamples: int, level: float, seed: int) -> Interval | None:
    """Accuracy of the leaky arm minus the honest one's, over the slices that both predicted."""
    both = leaky.merge(honest, on=_KEYS, suffixes=("", "_honest"))
    if both.empty:
        return None
    return _over_patients(both.assign(right=both["right"] - both["right_honest"]), resamples, level, seed)


def _over_patients(scored: pd.DataFrame, resamples: int, level: float, seed: int) -> Interval:
    """Mean over slices, with a percentile interval over resamples of patients: slices of one patient are no sample."""
    by_patient = scored.groupby("patient_id", sort=True)["right"]
    sums, counts = by_patient.sum().to_numpy(dtype=float), by_patient.size().to_numpy(dtype=float)
    draws = np.random.default_rng(seed).multinomial(len(sums), np.full(len(sums), 1 / len(sums)), size=resamples)
    means: NDArray[np.float64] = (draws @ sums) / (draws @ counts)
    estimate = float(sums.sum() / counts.sum())
    if len(sums) < 2:
        return Interval(estimate, math.nan, math.nan, level, "none: one patient")
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(estimate, float(low), float(high), level, "percentile bootstrap of patients")


def _sentence(found: FamilyResult, item: SliceResult, level: float) -> str:
    from experiments.compare_words import with_interval

    patients = found.result(item.arm).metrics.get("accuracy")
    base = (
        f"{item.arm}: of {item.slices} slices {with_interval(item.accuracy)} are called right (majority "
        f"{item.majority:.2f}; patients resampled), of patients {with_interval(patients)}."
    )
    if not item.leaks:
        return base
    gap = (
        f" The leak alone adds {with_interval(item.inflation, sign=True)} to the accuracy over the same slices, "
        f"against {found.reference} ({level * 100:g} % interval)."
        if item.inflation is not None
        else ""
    )
    return (
        f"{base} {item.arm} LEAKS on purpose: slices of its test patients were in its training. None of its numbers is "
        f"a result.{gap}"
    )


__all__ = ["SLICES", "SliceResult", "add_slices"]
