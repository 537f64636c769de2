"""The parts of the report that are not figures: strata, confusion, disagreement, overlays, provenance, checklist."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from experiments.compare_metrics import NAMES
from experiments.compare_records import RUN
from experiments.compare_results import Comparison, FamilyResult
from experiments.compare_words import digits_of, number, with_interval
from experiments.statistics_ordinal import confusion_matrix

_OVERLAYS = 12
_LARGEST = 2_000_000  # bytes of one picture: a page with a dozen must still open on a phone
_DISAGREE = 10
_THUMBNAILS = 6
_IDENTITY = frozenset({"run", "arm", "seed", "fold", "cell", "role", "study"})
"""Facts that tell runs apart; the tables name them already."""
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

    Args:
        found: The family.
        pictures: An overlay of each patient, as far as there is one.
    """
    arms = [arm.arm for arm in found.arms if arm.role != "probe"]
    if len(arms) < 2 or found.family.kind == "segmentation":
        return None
    truth = next(unit.target for unit in found.units if unit.arm == found.reference)
    columns = []
    for arm in arms:
        members = [unit.scores for unit in found.units if unit.arm == arm]
        mean = np.mean(members, axis=0)
        columns.append(mean[np.arange(len(truth)), truth] if mean.ndim == 2 else np.where(truth == 1, mean, 1 - mean))
    table = np.stack(columns, axis=1)
    gap = table.max(axis=1) - table.min(axis=1)
    order = np.argsort(-gap, kind="stable")[:_DISAGREE]
    rows = [
        [
            found.family.patients[place],
            str(truth[place]),
            *(number(float(value)) for value in table[place]),
            number(float(gap[place])),
        ]
        for place in order
    ]
    shown = [row[0] for row in rows if row[0] in pictures][:_THUMBNAILS]
    thumbnails = [{"data": _encoded(pictures[patient]), "caption": patient} for patient in shown]
    return {"header": ["Patient", "Truth", *arms, "Gap"], "rows": rows, "pictures": thumbnails}


def patient_pictures(comparison: Comparison) -> dict[str, Path]:
    """One overlay for each patient, from the first segmenter that drew one."""
    result: dict[str, Path] = {}
    for found in comparison.families:
        for path, item in _drawn(found):
            result.setdefault(str(item["patient_id"]), path)
    return result


def _drawn(found: FamilyResult) -> list[tuple[Path, dict[Any, Any]]]:
    """Pictures that runs left in ``overlays/<scan_id>.png``, with their rows, by Dice."""
    frame = found.family.frame
    if found.family.kind != "segmentation" or RUN not in frame or "scan_id" not in frame:
        return []
    rows = []
    for item in frame.sort_values("dice")[[RUN, "arm", "seed", "patient_id", "scan_id", "dice"]].to_dict("records"):
        if isinstance(item[RUN], str) and isinstance(item["scan_id"], str):
            path = Path(item[RUN]) / "overlays" / f"{item['scan_id']}.png"
            if path.is_file() and path.stat().st_size <= _LARGEST:
                rows.append((path, item))
    return rows


def _encoded(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()


def overlays(found: FamilyResult) -> list[dict[str, Any]]:
    """Pictures ``overlays/<scan_id>.png`` of the runs, worst by Dice first, then the best, at most twelve."""
    rows = _drawn(found)
    half = _OVERLAYS * 2 // 3
    chosen = [(*row, "worst") for row in rows[:half]]
    chosen += [(*row, "best") for row in rows[max(half, len(rows) - (_OVERLAYS - half)) :][::-1]]
    return [
        {
            "data": _encoded(path),
            "caption": f"{item['scan_id']} · Dice {number(float(item['dice']), 3)} · {item['arm']}",
            "rank": rank,
        }
        for path, item, rank in chosen
    ]


def provenance_rows(comparison: Comparison) -> list[tuple[str, str]]:
    """What the runs say of themselves: each fact once, with every value that occurs."""
    facts: dict[str, list[str]] = {}
    for record in comparison.provenance:
        for key, value in _flat(record):
            text = str(value)
            if key.removeprefix("identity.") not in _IDENTITY and text not in facts.setdefault(key, []):
                facts[key].append(text)
    result = []
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
        f"Intervals of AUC, Brier score, kappa and F1 are {level} bias-corrected accelerated bootstrap intervals over "
        f"{comparison.resamples:,} resamples of patients, stratified by class (seed {comparison.seed}). With several "
        "training seeds, resamples draw patients and seeds both, and the value is the mean over seeds. With fewer "
        "than about five seeds the share of the seeds is underestimated.",
        "Sensitivity, specificity and accuracy of a single seed have Wilson intervals, at the threshold chosen on "
        "validation patients.",
        "Where the AUC is exactly 1 or 0 the bootstrap cannot answer, and Newcombe's method 5 is used.",
        "Differences are paired: the same resampled patients for both arms, with percentile intervals, which for "
        "differences of small sets cover better than BCa. The p-value is DeLong's for one seed an "
        "arm, else the bootstrap's, and Holm's rule adjusts it over all differences of the table.",
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


def checklist(comparison: Comparison) -> list[tuple[str, str]]:
    """Items of CLAIM 2024 and TRIPOD+AI on evaluation that this report answers, and where."""
    several = any(len(arm.seeds) > 1 for found in comparison.families for arm in found.arms)
    sources = any(item.variable == "source" for found in comparison.families for item in found.strata)
    probes = any(arm.role == "probe" for found in comparison.families for arm in found.arms)
    classes = any(found.counts for found in comparison.families)
    hashes = sorted({str(value) for found in comparison.families for value in found.family.frame["split_sha256"]})
    return [
        (
            "Partitions at patient level, disjoint",
            f"split {', '.join(value[:12] for value in hashes)}",
        ),
        ("Performance measures with uncertainty", "tables above"),
        ("Class balance of the test set", "given with the baseline" if classes else "not applicable"),
        ("Comparison with a baseline", "majority class and reference arm" if classes else "reference arm"),
        ("Variation between training runs", "all seeds shown" if several else "one seed only: not answered"),
        ("Performance in subgroups and sources", "by source" if sources else "a single source: not answered"),
        ("Calibration", "figure" if any(f.family.kind == "binary" for f in comparison.families) else "not answered"),
        ("Sensitivity to shortcuts", "probes" if probes else "no probe arm: not answered"),
        ("Software, versions, code state", "provenance below" if comparison.provenance else "not recorded"),
        ("Patients, eligibility, reference standard, ethics", "not in the run: to be written by the authors"),
    ]
