"""The tables beside the main one: operating points and calibration, discordant decisions, medians, signed ranks."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from experiments.compare_metrics import AT_SENSITIVITY, AT_SPECIFICITY, BY_CLASS, NAMES
from experiments.compare_results import ArmResult, Difference, FamilyResult
from experiments.compare_words import digits_of, number, p_cell, with_interval
from experiments.statistics_proportions import Interval


@dataclass(frozen=True, slots=True)
class Detail:
    """A table for people.

    Attributes:
        heading: What it is about.
        header: Column names, the first being the arm.
        rows: Cells as text.
        note: How to read it.
    """

    heading: str
    header: list[str]
    rows: list[list[str]]
    note: str


def details(found: FamilyResult) -> list[Detail]:
    """All detail tables that a family allows, in reading order."""
    made = {
        "binary": (_calibration, _discordant, _looking),
        "multiclass": (_by_class, _discordant, _looking),
        "segmentation": (_ranks, _medians),
    }[found.family.kind]
    return [table for make in made if (table := make(found)) is not None and table.rows]


def difference_of(found: FamilyResult, arm: ArmResult) -> Difference | None:
    """The arm's difference from the reference, if it has one."""
    return next((item for item in found.differences if item.arm == arm.arm), None)


def extra_values(arm: ArmResult) -> Iterator[tuple[str, Interval]]:
    """What an arm has beyond its metrics, by the names that the CSV uses; means over seeds."""
    line, parts = arm.calibration, arm.brier_parts
    if line is not None:
        for name, value in (("slope", line.slope_interval), ("intercept", line.intercept_interval)):
            if value is not None:
                yield f"calibration_{name}", value
    if parts is not None:
        for name in ("reliability", "resolution", "uncertainty"):
            yield f"brier_{name}", Interval(getattr(parts, name), math.nan, math.nan, math.nan, "Murphy, binned")
    for index, values in enumerate(arm.by_class):
        for name, value in values.items():
            if value is not None:
                yield f"{name}_{index}", value
    for name, median in arm.medians.items():
        if median is not None:
            yield f"median_{name}", median


def _calibration(found: FamilyResult) -> Detail | None:
    rows = []
    for arm in found.arms:
        line, parts = arm.calibration, arm.brier_parts
        if line is None or parts is None:
            continue
        slope = with_interval(line.slope_interval) if line.slope_interval else "not estimable"
        rows.append(
            [
                arm.arm,
                *(with_interval(arm.metrics.get(name)) for name in (AT_SPECIFICITY, AT_SENSITIVITY)),
                slope,
                with_interval(line.intercept_interval, 2, sign=True),
                *(number(value, 3) for value in (parts.reliability, parts.resolution, parts.uncertainty)),
            ]
        )
    names = [NAMES[AT_SPECIFICITY], NAMES[AT_SENSITIVITY], "Calibration slope", "Calibration in the large"]
    return Detail(
        "Operating points and calibration",
        ["Arm", *names, "Brier reliability", "Brier resolution", "Brier uncertainty"],
        rows,
        "A fixed specificity or sensitivity sets the threshold on these test patients themselves, so the numbers are a "
        "little too good; the table above uses the threshold of validation patients. Slope: 1 is ideal, below 1 the "
        "risks are too extreme. In the large: 0 is ideal, above 0 the risks are too low. Brier score = reliability "
        "(0 is ideal) − resolution (the more the better) + uncertainty (prevalence alone), up to the spread in bins.",
    )


def _by_class(found: FamilyResult) -> Detail | None:
    rows = [
        [
            arm.arm,
            str(index),
            # a probe may predict another target, whose classes have other sizes
            "–" if arm.note else str(found.counts[index]),
            *(with_interval(values.get(name)) for name in BY_CLASS),
        ]
        for arm in found.arms
        for index, values in enumerate(arm.by_class)
    ]
    return Detail(
        "Each class against the rest",
        ["Arm", "Class", "Patients", "Sensitivity", "Specificity", "AUC"],
        rows,
        "Classes are numbered from 0, the mildest. A patient is called the most probable class.",
    )


def _discordant(found: FamilyResult) -> Detail | None:
    rows = []
    for arm in found.arms:
        item = difference_of(found, arm)
        if item is None or not item.mcnemar:
            continue
        for seed, tested in item.mcnemar:
            cells = [str(tested.only_a), str(tested.only_b), p_cell(tested.p_value)]
            rows.append([arm.arm, str(seed), *cells])
    return Detail(
        "Discordant decisions",
        ["Arm", "Seed", "Only the arm right", "Only the reference right", "p (McNemar, exact)"],
        rows,
        "At the thresholds chosen on validation patients, seed by seed; not adjusted for multiplicity.",
    )


def _looking(found: FamilyResult) -> Detail | None:
    """Share of attention and of Grad-CAM inside the liver, where runs recorded it."""
    frame = found.family.frame
    columns = {"x_attention_inside": "Attention", "x_grad_cam_inside": "Grad-CAM"}
    present = [column for column in columns if column in frame and frame[column].notna().any()]
    rows = []
    for arm in found.arms if present else []:
        cells = []
        for column in present:
            values = frame.loc[frame["arm"] == arm.arm, ["patient_id", column]].astype({column: "float64"})
            shares = values.groupby("patient_id")[column].mean().dropna()
            low, middle, high = shares.quantile([0.1, 0.5, 0.9]) if len(shares) else (math.nan,) * 3
            cells.append(f"{number(middle)} ({number(low)}–{number(high)})" if len(shares) else "–")
        rows.append([arm.arm, *cells])
    return Detail(
        "Looking inside the liver",
        ["Arm", *(f"{columns[column]} in the liver" for column in present)],
        rows,
        "Share of each patient's map that lies in the liver: median over patients (tenth to ninetieth percentile), "
        "means over seeds and folds. The maps are coarse: a location at the liver's edge reaches beyond it. Where a "
        "network looks is not why it decides.",
    )


def _medians(found: FamilyResult) -> Detail | None:
    names = list(dict.fromkeys(name for arm in found.arms for name in arm.medians))
    rows = [
        [arm.arm, *(with_interval(arm.medians.get(name), digits_of(name)) for name in names), arm.note or "–"]
        for arm in found.arms
    ]
    return Detail("Medians", ["Arm", *(f"Median {NAMES[name]}" for name in names), "Note"], rows, "")


def _ranks(found: FamilyResult) -> Detail | None:
    rows = [
        [
            row.arm,
            NAMES[row.metric],
            str(row.ranks.pairs),
            number(row.ranks.median_difference, digits_of(row.metric), sign=True),
            number(row.ranks.effect, 2, sign=True),
            p_cell(row.ranks.p_value),
            p_cell(row.p_holm),
            "–" if row.better is None else "arm" if row.better else "reference",
        ]
        for row in found.ranks
    ]
    return Detail(
        f"Every measurement against {found.reference}",
        ["Arm", "Measurement", "Patients", "Median difference", "Effect (rank-biserial)", "p", "p (Holm)", "In favour"],
        rows,
        "Wilcoxon's signed-rank test on the same patients, means over seeds; Holm's rule over all rows of this table. "
        "Effect: share of rank sum above the reference minus the share below, from −1 to 1.",
    )
