"""The metric against the Dice of the masks: does a better mask make a better classifier?"""

from __future__ import annotations

import numpy as np
import pandas as pd

from experiments.compare_metrics import NEEDS_CLASSES, Resampled, metrics_of
from experiments.compare_records import units
from experiments.compare_results import FamilyResult, MaskPoint

_PATIENTS_A_PART = 15
_MOST_PARTS = 3


def add_mask_points(found: FamilyResult, resamples: int, level: float, seed: int) -> None:
    """Set each arm's primary metric against the Dice of its masks: over all patients, and by thirds of Dice.

    An arm without masks takes the Dice of the same scans from the other arms (not of masks that were perturbed on
    purpose, where there are others): whoever is hard to segment may be hard to classify as well, and only the arm
    without masks can show that. Reference masks have a Dice of 1. Probes are left out, and so are patients without a
    known Dice.

    Args:
        found: The family's result; ``mask_points`` is filled. Nothing is added where no Dice was recorded.
        resamples: Bootstrap resamples of each third.
        level: Confidence level.
        seed: Of the bootstrap.
    """
    frame = found.family.frame
    if found.family.kind == "segmentation" or "mask_dice" not in frame or frame["mask_dice"].isna().all():
        return
    key = "scan_id" if "scan_id" in frame and frame["scan_id"].notna().all() else "patient_id"
    source = frame["mask_source"] if "mask_source" in frame else pd.Series(pd.NA, index=frame.index)
    source = source.astype("string").fillna("none")
    measured = frame["mask_dice"].notna()
    natural = measured & (source != "perturbed")
    known = frame[natural if natural.any() else measured].groupby(key)["mask_dice"].mean()
    for arm in [item for item in found.arms if item.role != "probe"]:
        inside = frame["arm"] == arm.arm
        names = sorted(source[inside].unique())
        masked = names != ["none"]
        dice = frame.loc[inside, "mask_dice"].fillna(frame.loc[inside, key].map(known).astype(float))
        if names == ["reference"]:
            dice = dice.where(dice.isna(), 1.0).fillna(1.0)
        by_patient = dice.groupby(frame.loc[inside, "patient_id"]).mean().dropna()
        whole = arm.metrics.get(found.metric)
        if by_patient.empty or whole is None:
            continue
        label = ", ".join(names)
        found.mask_points.append(MaskPoint(arm.arm, label, masked, 0, len(by_patient), float(by_patient.mean()), whole))
        if float(np.ptp(by_patient)) > 0:
            _parts(found, arm.arm, label, masked, by_patient, resamples, level, seed)


def _parts(
    found: FamilyResult,
    arm: str,
    label: str,
    masked: bool,
    by_patient: pd.Series,
    resamples: int,
    level: float,
    seed: int,
) -> None:
    """Add an arm's points by parts of Dice, worst masks first; a part with one class has no interval."""
    count = min(_MOST_PARTS, len(by_patient) // _PATIENTS_A_PART)
    if count < 2:
        return
    ordered = by_patient.sort_values(kind="stable")
    needed = {"sensitivity", "specificity"} if found.metric == "balanced_accuracy" else {found.metric}
    for place, part in enumerate(np.array_split(np.arange(len(ordered)), count), start=1):
        members = set(ordered.index[part])
        rows = found.family.frame
        rows = rows[(rows["arm"] == arm) & rows["patient_id"].isin(members)]
        seeds = units(found.family, rows)
        interval = None
        if found.metric not in NEEDS_CLASSES or len(np.unique(seeds[0].target)) > 1:
            metrics = [{name: item for name, item in metrics_of(unit).items() if name in needed} for unit in seeds]
            engine = Resampled([unit.arm for unit in seeds], metrics, seeds[0].target, resamples, seed)
            interval = engine.interval(found.metric, arm, level)
        mean = float(ordered.iloc[part].mean())
        found.mask_points.append(MaskPoint(arm, label, masked, place, len(members), mean, interval))
