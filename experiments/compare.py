"""The honest comparison: arms on the same patients, with intervals, paired tests, strata and what the set can show."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from datamodules.errors import InputError
from experiments.compare_metrics import (
    BINARY,
    BY_CLASS,
    LOWER_IS_BETTER,
    MULTICLASS,
    PROPORTIONS,
    Resampled,
    class_metrics_of,
    metrics_of,
)
from experiments.compare_records import Family, Unit, families, load, units
from experiments.compare_results import ArmResult, Comparison, Difference, FamilyResult
from experiments.statistics_bootstrap import interval_of, two_sided_p
from experiments.statistics_calibration import BrierParts, brier_decomposition, usual_bins
from experiments.statistics_calibration_line import calibration_line
from experiments.statistics_paired import non_inferiority, square_and_add_interval
from experiments.statistics_proportions import Interval, McNemar, holm, mcnemar_test
from experiments.statistics_roc import delong_test, smallest_detectable_auc_difference

Floats = NDArray[np.float64]
REFERENCE = "direct"
"""The arm that others are compared with where none is named and one has this name."""


def compare(
    paths: Sequence[Path],
    *,
    reference: str | None = None,
    metric: str | None = None,
    resamples: int = 10_000,
    level: float = 0.95,
    seed: int = 0,
    mapping: Mapping[str, str] | None = None,
    threshold: float | None = None,
    margin: float | None = None,
) -> Comparison:
    """Compare the arms in prediction records.

    Args:
        paths: Study folders (every ``predictions.parquet`` below them) and plain ``.parquet`` or ``.csv`` files.
        reference: Arm that the others are compared with; ``direct`` or the first by name where not given.
        metric: Primary metric of the paired difference; AUC for two classes, quadratic kappa for more.
        resamples: Bootstrap resamples of patients (and seeds).
        level: Confidence level in (0, 1).
        seed: Of the bootstrap.
        mapping: For plain files: record column to the file's own column.
        threshold: Operating point for rows that recorded none.
        margin: For non-inferiority: the largest loss in the primary metric that would not matter, above 0.

    Raises:
        InputError: Records are missing or broken, or arms cannot be compared honestly: all faults together.
    """
    faults = []
    if not 0 < level < 1:
        faults.append(f"--level {level}: a confidence level lies between 0 and 1; give 0.95 for 95 %")
    if resamples < 100:
        faults.append(f"--resamples {resamples}: too few for an interval; give 1000 or more")
    if metric is not None and metric not in {*BINARY, *MULTICLASS}:
        faults.append(f"--metric {metric}: unknown; choose from {', '.join(sorted({*BINARY, *MULTICLASS}))}")
    if margin is not None and not margin > 0:
        faults.append(f"--margin {margin}: a margin is the largest loss that would not matter; give one above 0")
    if faults:
        raise InputError(*faults)
    notes: list[str] = []
    frame, validation = load(paths, mapping or {}, notes, threshold)
    groups = families(frame)
    everything = [arm for family in groups for arm in family.arms]
    if reference is not None and reference not in everything:
        raise InputError(f"--reference {reference}: no such arm; there are {', '.join(everything)}")
    results = []
    for family in groups:
        chosen = _reference(family, reference, notes)
        if family.kind == "segmentation":
            from experiments.compare_segmentation import segmentation_result

            results.append(segmentation_result(family, chosen, resamples, level, seed))
        else:
            results.append(_classification(family, chosen, metric, resamples, level, seed, notes))
    from experiments.compare_holding import add_holding, add_probe_validation
    from experiments.compare_masks import add_mask_points
    from experiments.compare_provenance import run_provenance
    from experiments.compare_slices import add_slices
    from experiments.compare_strata import add_strata
    from experiments.compare_words import add_sentences

    for result in results:
        if margin is not None:
            _judge_margin(result, margin)
        add_holding(result, validation, level)
        add_probe_validation(result, validation)
        for arm in result.family.leaks:
            # a light is for shortcuts
            result.result(arm).light = ""
        add_strata(result, min(resamples, 2000), level, seed)
        add_mask_points(result, min(resamples, 2000), level, seed)
        add_sentences(result, level)
        add_slices(result, min(resamples, 10_000), level, seed)
    studies = sorted({str(value) for value in frame["study"].dropna()}) if "study" in frame else []
    title = ", ".join(studies) or ", ".join(path.stem for path in paths)
    # questions of classification first: segmentation is a means to them
    results.sort(key=lambda item: ("binary", "multiclass", "segmentation").index(item.family.kind))
    return Comparison(title, results, notes, level, resamples, seed, run_provenance(frame))


def _reference(family: Family, asked: str | None, notes: list[str]) -> str:
    if asked in family.arms:
        return str(asked)
    usual = [arm for arm in family.arms if arm not in family.probes] or family.arms
    named = [arm for arm in usual if arm.rpartition("/")[2] == REFERENCE]
    chosen = (named or usual)[0]
    if len(usual) > 1:
        why = "it is named so" if named else "it comes first by name"
        notes.append(f"Arms are compared with '{chosen}' ({why}); --reference chooses another.")
    return chosen


def _classification(
    family: Family, reference: str, metric: str | None, resamples: int, level: float, seed: int, notes: list[str]
) -> FamilyResult:
    members = units(family)
    own = next(unit.target for unit in members if unit.arm == reference)
    allowed = BINARY if family.kind == "binary" else MULTICLASS
    primary = metric if metric is not None and metric in allowed else allowed[0]
    # a probe may predict something else (the source, say): it stands beside the family, not in it
    shared = [unit for unit in members if np.array_equal(unit.target, own)]
    engine = _engine(shared, resamples, seed)
    if not all(unit.has_threshold for unit in members):
        arms = sorted({unit.arm for unit in members if not unit.has_threshold})
        notes.append(
            f"No threshold was recorded for {', '.join(arms)}: sensitivity, specificity and accuracy are left out; "
            "--threshold sets one."
        )
    order = sorted(family.arms, key=lambda arm: (arm in family.probes, arm != reference, arm))
    found = FamilyResult(
        family=family,
        units=members,
        metric=primary,
        reference=reference,
        counts=np.bincount(own, minlength=family.classes).tolist(),
        arms=[],
    )
    for arm in order:
        inside = [unit for unit in members if unit.arm == arm]
        apart = not np.array_equal(inside[0].target, own)
        found.arms.append(
            _arm(family, arm, reference, inside, _engine(inside, resamples, seed) if apart else engine, level)
        )
        if apart:
            found.arms[-1].note = "predicts another target"
        elif arm in family.leaks:
            found.arms[-1].note = "leaks on purpose"
    rivals = [arm for arm in order if arm != reference and arm not in family.probes]
    found.differences = _differences(found, engine, rivals, level)
    if family.kind == "binary" and min(found.counts) > 0:
        found.detectable = _detectable(found, level)
    return found


def _engine(members: Sequence[Unit], resamples: int, seed: int) -> Resampled:
    metrics = [{**metrics_of(unit), **class_metrics_of(unit)} for unit in members]
    return Resampled([unit.arm for unit in members], metrics, members[0].target, resamples, seed)


def _arm(
    family: Family, arm: str, reference: str, inside: Sequence[Unit], engine: Resampled, level: float
) -> ArmResult:
    names = [name for name in (BINARY if family.kind == "binary" else MULTICLASS) if name in engine.values]
    columns = engine.columns(arm)
    role = "probe" if arm in family.probes else "reference" if arm == reference else "arm"
    result = ArmResult(
        arm=arm,
        role=role,
        seeds=[unit.seed for unit in inside],
        pooling=inside[0].pooling,
        metrics={name: engine.interval(name, arm, level) for name in names},
        per_seed=[{name: engine.seed_interval(name, column, level) for name in names} for column in columns],
    )
    if family.kind == "multiclass":
        result.by_class = [
            {name: engine.interval(f"{name}_{index}", arm, level) for name in BY_CLASS}
            for index in range(family.classes)
        ]
    target = inside[0].target
    if family.kind == "binary" and 0 < target.sum() < len(target):
        result.calibration = calibration_line(target, np.mean([unit.scores for unit in inside], axis=0), level)
        parts = [brier_decomposition(target, unit.scores, usual_bins(len(target))) for unit in inside]
        result.brier_parts = BrierParts(*np.mean([dataclasses.astuple(part) for part in parts], axis=0).tolist())
    if role == "probe":
        area = result.metrics.get("auc") or result.metrics.get("auc_ovr")
        result.light = "red" if area is not None and area.low > 0.5 else "green"
    return result


def _differences(found: FamilyResult, engine: Resampled, rivals: Sequence[str], level: float) -> list[Difference]:
    metric, reference = found.metric, found.reference
    if metric not in engine.values:
        return []
    base, base_resampled, _ = engine.value(metric, reference)
    rows = []
    for arm in rivals:
        value, resampled, _ = engine.value(metric, arm)
        if not math.isfinite(value - base):
            continue
        gap = resampled - base_resampled
        # percentile: for differences of small sets it covers better than BCa, see bootstrap_interval
        interval = interval_of(value - base, gap, None, level)
        p_value, test, correlation = two_sided_p(gap), "bootstrap", math.nan
        pair = [[unit for unit in found.units if unit.arm == name] for name in (arm, reference)]
        if metric == "auc" and len(pair[0]) == len(pair[1]) == 1 and min(found.counts) >= 2:
            tested = delong_test(engine.target, pair[0][0].scores, pair[1][0].scores, level)
            p_value, test, correlation = tested.p_value, "DeLong", tested.correlation
        elif np.ptp(gap) == 0 and value == base:
            p_value = 1.0
        if len(pair[0]) == len(pair[1]) == 1 and metric in {"auc", *PROPORTIONS}:
            # an AUC or share near 1 has a skewed interval, which the percentile interval of a difference misses
            r = correlation if metric == "auc" else _correlation(resampled, base_resampled)
            ends = [engine.interval(metric, name, level) for name in (arm, reference)]
            # two arms that rank alike differ by nothing; at an AUC of 0 or 1 that is not known
            alike = value == base and np.ptp(gap) == 0 and 0 < value < 1
            if ends[0] is not None and ends[1] is not None and not alike:
                interval = square_and_add_interval(ends[0], ends[1], r)
        rows.append(Difference(arm, reference, metric, interval, p_value, math.nan, test, _mcnemar(*pair), correlation))
    for row, adjusted in zip(rows, holm([row.p_value for row in rows]), strict=True):
        row.p_holm = float(adjusted)
    return rows


def _correlation(first: Floats, second: Floats) -> float:
    """Of two estimates over the resamples; NaN where one does not vary."""
    return math.nan if min(np.ptp(first), np.ptp(second)) == 0 else float(np.corrcoef(first, second)[0, 1])


def _judge_margin(found: FamilyResult, margin: float) -> None:
    """Judge each difference against the margin; where lower is better, a gain is a fall."""
    for item in found.differences:
        inside = item.interval
        if found.metric in LOWER_IS_BETTER:
            inside = Interval(-inside.estimate, -inside.high, -inside.low, inside.level, inside.method)
        if math.isfinite(inside.low):
            item.non_inferiority = non_inferiority(inside, margin)


def _mcnemar(first: Sequence[Unit], second: Sequence[Unit]) -> list[tuple[int, McNemar]]:
    """McNemar's test at the validation thresholds, for each seed that both arms have."""
    others = {unit.seed: unit for unit in second}
    return [
        (unit.seed, mcnemar_test(unit.predicted == unit.target, other.predicted == other.target))
        for unit in first
        if (other := others.get(unit.seed)) is not None and unit.has_threshold and other.has_threshold
    ]


def _detectable(found: FamilyResult, level: float) -> float:
    """At the reference's AUC and the correlation seen (0.5 where several seeds leave it unknown)."""
    area = found.result(found.reference).metrics.get("auc")
    if area is None:
        return math.nan
    seen = [item.correlation for item in found.differences if math.isfinite(item.correlation)]
    correlation = float(np.median(seen)) if seen else 0.5
    return smallest_detectable_auc_difference(
        max(area.estimate, 0.5), found.counts[1], found.counts[0], min(correlation, 0.99), level
    )
