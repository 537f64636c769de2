"""The parts of the report that are not figures or pictures: strata, confusion, disagreement, provenance, methods."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from experiments.compare_metrics import NAMES
from experiments.compare_provenance import ENERGY, HOURS, totals
from experiments.compare_results import Comparison, FamilyResult
from experiments.compare_words import digits_of, number, with_interval
from experiments.report_pictures import encoded
from experiments.statistics_ordinal import confusion_matrix

_DISAGREE = 10
_THUMBNAILS = 6
_IDENTITY = frozenset({"run", "arm", "seed", "fold", "cell", "role", "study", HOURS, ENERGY})
"""Facts that tell runs apart, which the tables name already, and those that are summed over runs."""
STRATA_NAMES = {
    "quality": "By segmentation quality (band 1 poor, 2 fair, 3 good)",
    "source": "By source",
    "sequence": "By sequence",
    "sex": "By sex",
    "age": "By age (years)",
}


def strata_tables(found: FamilyResult) -> list[dict[str, Any]]:
    """One table per variable: rows of strata, the pooled result first, columns of arms."""
    arms = [arm.arm for arm in found.arms if arm.role != "probe"]
    digits = digits_of(found.metric)
    everyone = [with_interval(found.result(arm).metrics.get(found.metric), digits) for arm in arms]
    tables = []
    for variable in dict.fromkeys(item.variable for item in found.strata):
        rows = [["all", _sizes(len(found.family.patients), found.counts), *everyone]]
        for item in found.strata:
            if item.variable == variable:
                cells = [
                    with_interval(item.intervals.get(arm), digits) if arm in item.intervals else "–" for arm in arms
                ]
                rows.append([item.value, _sizes(item.patients, item.classes), *cells])
        reasons = sorted({item.reason for item in found.strata if item.variable == variable and item.reason})
        heading = f"{STRATA_NAMES[variable]}: {NAMES[found.metric]}"
        tables.append(
            {"heading": heading, "header": ["Stratum", "Patients", *arms], "rows": rows, "note": "; ".join(reasons)}
        )
    return tables


def _sizes(patients: int, classes: list[int]) -> str:
    return f"{patients} ({' / '.join(map(str, classes))})" if classes else str(patients)


def confusions(found: FamilyResult) -> list[dict[str, Any]]:
    """Confusion matrix per arm, mean counts over seeds, with the shade of each cell (share of its true class)."""
    result = []
    for arm in found.arms:
        members = [unit for unit in found.units if unit.arm == arm.arm and unit.has_threshold]
        if not members or arm.role == "probe":
            continue
        tables = [confusion_matrix(unit.target, unit.predicted, found.family.classes) for unit in members]
        mean = np.mean(tables, axis=0)
        share = mean / np.maximum(mean.sum(axis=1, keepdims=True), 1)
        digits = 0 if len(members) == 1 else 1
        cells = [
            [
                {"text": number(float(value), digits), "share": round(float(part), 3)}
                for value, part in zip(*pair, strict=True)
            ]
            for pair in zip(mean, share, strict=True)
        ]
        names = (
            ["negative", "positive"] if found.family.kind == "binary" else [str(i) for i in range(found.family.classes)]
        )
        result.append({"arm": arm.arm, "cells": cells, "names": names})
    return result


def disagreements(found: FamilyResult, pictures: dict[str, Path]) -> dict[str, Any] | None:
    """Patients whom arms judge most differently: mean probability of the true class over seeds, widest gap first.

    A tick or a cross says whether most seeds called the patient rightly at their thresholds.

    Args:
        found: The family.
        pictures: An overlay of each patient, as far as there is one.
    """
    arms = [arm.arm for arm in found.arms if arm.role != "probe"]
    if len(arms) < 2 or found.family.kind == "segmentation":
        return None
    truth = next(unit.target for unit in found.units if unit.arm == found.reference)
    columns, marks = [], []
    for arm in arms:
        inside = [unit for unit in found.units if unit.arm == arm]
        known = all(unit.has_threshold for unit in inside)
        right = np.mean([unit.predicted == truth for unit in inside], axis=0) if known else None
        marks.append([""] * len(truth) if right is None else [" ✓" if share > 0.5 else " ✗" for share in right])
        mean = np.mean([unit.scores for unit in inside], axis=0)
        columns.append(mean[np.arange(len(truth)), truth] if mean.ndim == 2 else np.where(truth == 1, mean, 1 - mean))
    table = np.stack(columns, axis=1)
    gap = table.max(axis=1) - table.min(axis=1)
    order = np.argsort(-gap, kind="stable")[:_DISAGREE]
    rows = [
        [
            found.family.patients[place],
            str(truth[place]),
            *(number(float(value)) + mark[place] for value, mark in zip(table[place], marks, strict=True)),
            number(float(gap[place])),
        ]
        for place in order
    ]
    shown = [row for row in rows if row[0] in pictures][:_THUMBNAILS]
    thumbnails = [
        {
            "data": encoded(pictures[row[0]]),
            "caption": f"{row[0]} · truth {row[1]} · "
            + ", ".join(f"{arm} {cell}" for arm, cell in zip(arms[:3], row[2:5], strict=False)),
        }
        for row in shown
    ]
    return {"header": ["Patient", "Truth", *arms, "Gap"], "rows": rows, "pictures": thumbnails}


def provenance_rows(comparison: Comparison) -> list[tuple[str, str]]:
    """What the runs say of themselves: each fact once, with every value that occurs."""
    facts: dict[str, list[str]] = {}
    for record in comparison.provenance:
        for key, value in _flat(record):
            text = str(value)
            if key.removeprefix("identity.") not in _IDENTITY and text not in facts.setdefault(key, []):
                facts[key].append(text)
    result = totals(comparison.provenance)
    for key, values in facts.items():
        shown = ", ".join(value if len(value) <= 90 else value[:87] + "…" for value in values[:3])
        result.append((key, shown + (f" and {len(values) - 3} more" if len(values) > 3 else "")))
    return result


def _flat(record: dict[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in record.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict):
            yield from _flat(value, f"{name}.")
        else:
            yield name, ", ".join(map(str, value)) if isinstance(value, list) else value


def methods(comparison: Comparison) -> list[str]:
    """How the numbers were made, for the reader and for a methods section."""
    level = f"{comparison.level:.0%}".replace("%", " %")
    pooled = {arm.pooling for found in comparison.families for arm in found.arms}
    lines = [
        "One patient counts once: probabilities of a patient's scans are averaged. Only rows of part 'test' are used.",
        f"The AUC of a single training seed has DeLong's {level} interval on the logit scale; where it is exactly 1 or "
        "0, Newcombe's method 5. Sensitivity, specificity and accuracy of a single seed have Wilson intervals, at the "
        "threshold chosen on validation patients.",
        f"All other intervals are {level} bias-corrected accelerated bootstrap intervals over {comparison.resamples:,} "
        f"resamples of patients, stratified by class (seed {comparison.seed}). With several training seeds, resamples "
        "draw patients and seeds both, and the value is the mean over seeds. With fewer than about five seeds the "
        "share of the seeds is underestimated.",
        "Differences are paired. For one seed an arm, the interval of a difference of AUCs or shares is built from the "
        "two intervals and the correlation of the estimates (Newcombe 1998; Zou, Donner 2008), which covers well in "
        "small sets; otherwise it is a percentile interval of the same resampled patients for both arms. The p-value "
        "is DeLong's (AUC) or Wilcoxon's (Dice) for one seed an arm, else the bootstrap's, and Holm's rule adjusts it "
        "over all differences of the table. A p-value and an interval come from different methods and may disagree "
        "close to the border; then nothing is called settled.",
        "Calibration slope and intercept belong to the mean probability over seeds and have profile likelihood "
        "intervals over patients. Segmenters are compared on every measurement by Wilcoxon's signed-rank test.",
        "Results by stratum are not adjusted: they show where a result comes from and prove nothing by themselves.",
        "The smallest detectable difference uses the class sizes, the reference's AUC and the correlation of the "
        "arms' AUCs (0.5 where several seeds leave it unknown), after Hanley and McNeil 1982 and 1983.",
    ]
    if "pooled over folds" in pooled:
        lines.append(
            "Each patient was tested in one fold and folds are pooled. The pooled AUC ranks patients across models, "
            "so a fold that is off in calibration counts against an arm."
        )
    if "averaged over folds" in pooled:
        lines.append("Every fold tested the same patients: probabilities are averaged over folds.")
    return lines
