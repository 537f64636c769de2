"""The same arms by segmentation quality, source, sequence, sex and age: always beside the pooled result."""

from __future__ import annotations

import numpy as np
import pandas as pd

from experiments.compare_metrics import NEEDS_CLASSES, Resampled, metrics_of
from experiments.compare_records import Unit, units
from experiments.compare_results import FamilyResult, Stratum
from experiments.statistics_proportions import Interval

VARIABLES = ("quality", "source", "sequence", "sex", "age")
AGE_EDGES = (50, 65)
"""Years at which age groups begin."""


def add_strata(found: FamilyResult, resamples: int, level: float, seed: int) -> None:
    """Add strata to a family's result; a variable with a single value everywhere says nothing and is left out.

    Args:
        found: The family's result; ``strata`` is filled.
        resamples: Bootstrap resamples per stratum.
        level: Confidence level.
        seed: Of the bootstrap.
    """
    for variable in VARIABLES:
        values = labels(found.family.frame, variable)
        present = sorted(values.dropna().unique())
        if len(present) < 2 and not (variable == "quality" and present):
            continue
        for value in present:
            rows = found.family.frame[values == value]
            found.strata.append(_stratum(found, variable, str(value), rows, resamples, level, seed))


def labels(frame: pd.DataFrame, variable: str) -> pd.Series:
    """The stratum of each row; an arm that did not record it (a direct arm has no mask quality) borrows the scan's.

    So does an arm whose masks were perturbed on purpose: a band stands for patients who are hard to segment, the same
    ones for all arms.

    Returns:
        Text per row, ``<NA>`` where nobody recorded it.
    """
    if variable not in frame:
        return pd.Series(pd.NA, index=frame.index, dtype="string")
    raw = frame[variable]
    if variable == "age":
        low, high = AGE_EDGES
        names = [f"0 to {low - 1}", f"{low} to {high - 1}", f"{high} and over"]
        text = pd.cut(raw, [-1, low - 1e-9, high - 1e-9, 200], labels=names).astype("string")
    elif variable == "quality":
        text = ("band " + raw.astype("string")).astype("string")
        if "mask_source" in frame:
            perturbed = (frame["mask_source"] == "perturbed").fillna(False).astype(bool)
            if text[~perturbed].notna().any():
                text = text.mask(perturbed)
    else:
        text = raw.astype("string")
    for key in ("scan_id", "patient_id"):
        if key in frame and text.isna().any() and text.notna().any():
            known = text[text.notna()].groupby(frame.loc[text.notna(), key]).agg(lambda group: group.iloc[0])
            text = text.fillna(frame[key].map(known).astype("string"))
    return text


def _stratum(
    found: FamilyResult, variable: str, value: str, rows: pd.DataFrame, resamples: int, level: float, seed: int
) -> Stratum:
    arms = [arm.arm for arm in found.arms if arm.role != "probe"]
    rows = rows[rows["arm"].isin(arms)]
    patients = int(rows["patient_id"].nunique())
    if found.family.kind == "segmentation":
        from experiments.compare_segmentation import segmentation_units

        members = segmentation_units(rows)
        engine = Resampled([u.arm for u in members], [u.metrics for u in members], members[0].target, resamples, seed)
        return Stratum(
            variable,
            value,
            patients,
            [],
            {arm: engine.interval("dice", arm, level) for arm in arms if engine.columns(arm)},
        )
    members_by_arm: dict[str, list[Unit]] = {arm: [] for arm in arms}
    for unit in units(found.family, rows):
        members_by_arm[unit.arm].append(unit)
    needed = {"sensitivity", "specificity"} if found.metric == "balanced_accuracy" else {found.metric}
    present = [arm for arm in arms if members_by_arm[arm]]
    target = members_by_arm[present[0]][0].target
    counts = np.bincount(target, minlength=found.family.classes).tolist()
    values: dict[str, Interval | None] = {}
    reason = ""
    engines: dict[bytes, Resampled] = {}
    for arm in present:
        members_here = members_by_arm[arm]
        here = members_here[0].target
        if found.metric in NEEDS_CLASSES and len(np.unique(here)) < 2:
            values[arm], reason = None, "not estimable: one class only"
            continue
        # masks of each seed may fall into other bands: then seeds see other patients and are judged one by one
        if any(not np.array_equal(unit.target, here) for unit in members_here):
            values[arm], reason = None, "not estimable: seeds have different patients here"
            continue
        key = here.tobytes()
        if key not in engines:
            alike = [unit for other in present for unit in members_by_arm[other] if np.array_equal(unit.target, here)]
            metrics = [{name: item for name, item in metrics_of(unit).items() if name in needed} for unit in alike]
            engines[key] = Resampled([unit.arm for unit in alike], metrics, here, resamples, seed)
        values[arm] = engines[key].interval(found.metric, arm, level)
    if not reason and all(item is None for item in values.values()):
        reason = "not estimable: one class only" if len(np.unique(target)) < 2 else "not estimable"
    return Stratum(variable, value, patients, counts, values, reason)
