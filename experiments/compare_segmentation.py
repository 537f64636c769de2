"""Segmentation arms: overlap, surface distance and volume, per patient, with intervals and the worst cases."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from experiments.compare_metrics import Ratio, Resampled
from experiments.compare_records import Family, pooling
from experiments.compare_results import ArmResult, Difference, FamilyResult, RankRow
from experiments.statistics_bootstrap import interval_of, patient_weights, two_sided_p
from experiments.statistics_paired import wilcoxon_test
from experiments.statistics_proportions import Interval, holm

Floats = NDArray[np.float64]
SEGMENTATION = ("dice", "iou", "hd95_mm", "assd_mm", "nsd", "volume_error_ml")
_HIGHER_IS_BETTER = frozenset({"dice", "iou", "nsd"})
_WORST = 12


@dataclass(frozen=True, slots=True)
class SegmentationUnit:
    """One seed of one segmenter: its values per patient, shape (n,); NaN where a distance does not exist."""

    arm: str
    seed: int
    per_patient: dict[str, Floats]

    @property
    def metrics(self) -> dict[str, Ratio]:
        """Means over patients as functions of weights; patients without a value are left out of that mean."""
        return {
            name: Ratio(np.nan_to_num(values), np.isfinite(values).astype(float))
            for name, values in self.per_patient.items()
        }

    @property
    def target(self) -> NDArray[np.int64]:
        """All patients in one stratum."""
        return np.zeros(len(self.per_patient["dice"]), dtype=np.int64)


def segmentation_units(frame: pd.DataFrame) -> list[SegmentationUnit]:
    """One unit per arm and seed; a patient's scans and folds are averaged."""
    frame = frame.copy()
    if "volume_ml" in frame and "reference_volume_ml" in frame:
        frame["volume_error_ml"] = (frame["volume_ml"] - frame["reference_volume_ml"]).abs()
    names = [name for name in SEGMENTATION if name in frame]
    # a distance to an empty mask is infinite in some records: it has no mean
    frame[names] = frame[names].replace([np.inf, -np.inf], np.nan)
    result = []
    for (arm, seed), group in frame.groupby(["arm", "seed"]):
        table = group.groupby("patient_id", sort=True)[names].mean()
        result.append(
            SegmentationUnit(str(arm), int(str(seed)), {name: table[name].to_numpy(dtype=float) for name in names})
        )
    return result


def segmentation_result(family: Family, reference: str, resamples: int, level: float, seed: int) -> FamilyResult:
    """Results of segmentation arms: means and medians with intervals, paired Dice differences, worst cases."""
    members = segmentation_units(family.frame)
    engine = Resampled([u.arm for u in members], [u.metrics for u in members], members[0].target, resamples, seed)
    order = sorted(family.arms, key=lambda arm: (arm in family.probes, arm != reference, arm))
    found = FamilyResult(family, [], "dice", reference, [], [])
    for arm in order:
        inside = [unit for unit in members if unit.arm == arm]
        names = [name for name in SEGMENTATION if name in inside[0].per_patient]
        rows = family.frame[family.frame["arm"] == arm]
        missing = {name: int(np.isnan(np.stack([u.per_patient[name] for u in inside])).sum()) for name in names}
        found.arms.append(
            ArmResult(
                arm=arm,
                role="probe" if arm in family.probes else "reference" if arm == reference else "arm",
                seeds=[unit.seed for unit in inside],
                pooling=pooling(rows[rows["seed"] == inside[0].seed]) or "",
                metrics={name: engine.interval(name, arm, level) for name in names},
                per_seed=[
                    {name: engine.seed_interval(name, column, level) for name in names}
                    for column in engine.columns(arm)
                ],
                medians={name: _median(inside, name, resamples, level, seed) for name in names},
                note=", ".join(f"{count} patients without {name}" for name, count in missing.items() if count),
            )
        )
    found.differences = _differences(found, members, engine, level)
    found.ranks = _ranks(found, members)
    found.worst = _worst(family.frame)
    return found


def _median(inside: list[SegmentationUnit], name: str, resamples: int, level: float, seed: int) -> Interval | None:
    """Median over patients of the mean over seeds, with a percentile bootstrap interval."""
    values = np.stack([unit.per_patient[name] for unit in inside]).mean(axis=0)
    values = values[np.isfinite(values)]
    if not len(values):
        return None
    order = np.argsort(values)
    drawn = []
    for weights in patient_weights(np.zeros(len(values)), min(resamples, 2000), seed):
        running = np.cumsum(weights[:, order], axis=1)
        half = len(values) / 2
        # mean of the two middle values where the count is even
        low = (running >= half).argmax(axis=1)
        high = (running > half).argmax(axis=1)
        drawn.append((values[order][low] + values[order][high]) / 2)
    return interval_of(float(np.median(values)), np.concatenate(drawn), None, level)


def _differences(
    found: FamilyResult, members: list[SegmentationUnit], engine: Resampled, level: float
) -> list[Difference]:
    base, base_resampled, _ = engine.value("dice", found.reference)
    means = {
        arm: np.stack([unit.per_patient["dice"] for unit in members if unit.arm == arm]).mean(axis=0)
        for arm in found.family.arms
    }
    rows = []
    for arm in [item.arm for item in found.arms if item.role == "arm"]:
        value, resampled, _ = engine.value("dice", arm)
        interval = interval_of(value - base, resampled - base_resampled, None, level)
        several = len(engine.columns(arm)) > 1 or len(engine.columns(found.reference)) > 1
        ranks = wilcoxon_test(means[arm], means[found.reference])
        if several:
            p_value, test = two_sided_p(resampled - base_resampled), "bootstrap"
        else:
            p_value, test = ranks.p_value, "Wilcoxon"
        rows.append(Difference(arm, found.reference, "dice", interval, p_value, math.nan, test, ranks=ranks))
    for row, adjusted in zip(rows, holm([row.p_value for row in rows]), strict=True):
        row.p_holm = float(adjusted)
    return rows


def _ranks(found: FamilyResult, members: list[SegmentationUnit]) -> list[RankRow]:
    """Wilcoxon's test of every measurement of every arm against the reference, adjusted over all of them by Holm."""

    def means(arm: str, name: str) -> Floats | None:
        inside = [unit.per_patient[name] for unit in members if unit.arm == arm and name in unit.per_patient]
        return np.stack(inside).mean(axis=0) if inside else None

    rows = []
    for arm in [item.arm for item in found.arms if item.role == "arm"]:
        for name in SEGMENTATION:
            ours, base = means(arm, name), means(found.reference, name)
            if ours is None or base is None or not (np.isfinite(ours) & np.isfinite(base)).any():
                continue
            ranks = wilcoxon_test(ours, base)
            gain = ranks.median_difference if name in _HIGHER_IS_BETTER else -ranks.median_difference
            rows.append(RankRow(arm, name, ranks, None if gain == 0 else gain > 0, math.nan))
    for row, adjusted in zip(rows, holm([row.ranks.p_value for row in rows]), strict=True):
        row.p_holm = float(adjusted)
    return rows


def _worst(frame: pd.DataFrame) -> list[dict[str, object]]:
    columns = [name for name in ("arm", "seed", "fold", "patient_id", "scan_id", "dice", "hd95_mm") if name in frame]
    lowest = frame.sort_values("dice").head(_WORST)[columns]
    return [{str(key): _value(value) for key, value in row.items()} for row in lowest.astype(object).to_dict("records")]


def _value(value: object) -> object:
    if value is None or value is pd.NA:
        return None
    if isinstance(value, (int, np.integer)):
        return int(value)
    return float(value) if isinstance(value, (float, np.floating)) else str(value)
