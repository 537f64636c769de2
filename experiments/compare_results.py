"""What a comparison found: plain values, ready for tables, pages and JSON."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any

from experiments.compare_records import Family, Unit
from experiments.statistics_calibration import BrierParts
from experiments.statistics_calibration_line import Calibration
from experiments.statistics_paired import NonInferiority, PairedRanks
from experiments.statistics_proportions import Interval, McNemar


@dataclass
class ArmResult:
    """One arm.

    Attributes:
        arm: Its name.
        role: ``arm``, ``reference`` or ``probe``.
        seeds: Training seeds, all of them.
        pooling: How folds were brought together; empty for one fold.
        metrics: Mean over seeds with interval; None where not estimable.
        per_seed: The same for each seed, in the order of ``seeds``.
        medians: Median over patients with interval (segmentation only).
        calibration: Of the mean probability over seeds (two classes only).
        brier_parts: The Brier score's parts, each the mean over seeds (two classes only).
        by_class: Of several classes, each one's sensitivity, specificity and AUC against the rest, in their order.
        light: For a probe: ``red`` where it succeeds (the interval of its AUC lies above 0.5, on test patients or, at
            99.9 %, on validation patients, who chose the checkpoint), else ``green``; empty otherwise.
        validation: For a probe of two classes: its AUC on validation patients, with the 99.9 % interval.
        note: What the reader must know of this row alone.
    """

    arm: str
    role: str
    seeds: list[int]
    pooling: str
    metrics: dict[str, Interval | None]
    per_seed: list[dict[str, Interval | None]]
    medians: dict[str, Interval | None] = field(default_factory=dict)
    calibration: Calibration | None = None
    brier_parts: BrierParts | None = None
    by_class: list[dict[str, Interval | None]] = field(default_factory=list)
    light: str = ""
    validation: Interval | None = None
    note: str = ""


@dataclass
class Difference:
    """A paired difference, arm minus reference, on the same patients.

    Attributes:
        arm: The arm.
        reference: What it is compared with.
        metric: On which metric.
        interval: Difference with its bootstrap interval.
        p_value: Two-sided.
        p_holm: Adjusted over the family of differences.
        test: Where the p-value comes from.
        mcnemar: Per seed present in both arms, at the validation threshold: (seed, result).
        correlation: Between the two estimated AUCs (one seed each), or NaN.
        ranks: Wilcoxon's test on means over seeds with its effect size (segmentation only).
        non_inferiority: Against the margin that was asked for, or None.
    """

    arm: str
    reference: str
    metric: str
    interval: Interval
    p_value: float
    p_holm: float
    test: str
    mcnemar: list[tuple[int, McNemar]] = field(default_factory=list)
    correlation: float = math.nan
    ranks: PairedRanks | None = None
    non_inferiority: NonInferiority | None = None


@dataclass
class RankRow:
    """One measurement of one segmenter against the reference, by Wilcoxon's signed-rank test.

    Attributes:
        arm: The segmenter.
        metric: ``dice``, ``hd95_mm`` and so on.
        ranks: Of arm minus reference, patient by patient (means over seeds).
        better: Whether the median difference is a gain; None where it is zero.
        p_holm: Adjusted over all rows of the family.
    """

    arm: str
    metric: str
    ranks: PairedRanks
    better: bool | None
    p_holm: float


@dataclass
class MaskPoint:
    """An arm's primary metric beside the Dice of the masks of the same patients.

    Attributes:
        arm: The arm.
        mask_source: Where its masks come from; ``none`` for an arm that sees no mask.
        masked: Whether the arm sees masks; if not, the Dice is that of other arms' masks of the same scans.
        part: 0 for all patients; 1, 2, 3 for thirds by Dice, worst masks first.
        patients: Number of patients with a known Dice.
        dice: Their mean Dice.
        interval: The metric with its interval, or None where it is not estimable.
    """

    arm: str
    mask_source: str
    masked: bool
    part: int
    patients: int
    dice: float
    interval: Interval | None


@dataclass
class Holding:
    """An arm's AUC on validation patients beside that on test patients.

    Attributes:
        arm: The arm.
        validation: Mean over seeds and folds; those patients chose the checkpoint, so it is a little too good.
        test: Mean over seeds.
        fall: Validation minus test.
    """

    arm: str
    validation: Interval
    test: Interval
    fall: Interval


@dataclass
class Stratum:
    """The arms on a part of the patients.

    Attributes:
        variable: ``quality``, ``source``, ``sequence``, ``sex`` or ``age``.
        value: Which part.
        patients: Number of patients.
        classes: Number of patients of each class; empty for segmentation.
        intervals: Metric of each arm with interval; None where not estimable.
        reason: Why nothing is estimable, or empty.
    """

    variable: str
    value: str
    patients: int
    classes: list[int]
    intervals: dict[str, Interval | None]
    reason: str = ""


@dataclass
class FamilyResult:
    """One question: arms on the same patients, their differences and strata.

    Attributes:
        family: The rows behind it.
        units: One per arm and seed (empty for segmentation).
        metric: The primary metric.
        reference: The arm that all others are compared with.
        counts: Patients of each class.
        arms: Results by arm: reference first, probes last.
        differences: Against the reference, probes left out.
        strata: By quality, source, sequence, sex and age, as far as recorded.
        holding: AUC on validation and on test patients, by arm; empty where validation was not recorded.
        detectable: Smallest AUC difference that this set finds with 80 % power; NaN where not asked, infinite where
            none.
        worst: For segmentation: worst scans by Dice: (arm, seed, patient, scan, Dice).
        ranks: For segmentation: every measurement of every arm against the reference.
        mask_points: The primary metric against the Dice of the masks, where it was recorded.
        sentences: The summary in plain words.
        slices: For arms that classify slices: what they reach over slices (``compare_slices.SliceResult``).
    """

    family: Family
    units: list[Unit]
    metric: str
    reference: str
    counts: list[int]
    arms: list[ArmResult]
    differences: list[Difference] = field(default_factory=list)
    strata: list[Stratum] = field(default_factory=list)
    holding: list[Holding] = field(default_factory=list)
    detectable: float = math.nan
    worst: list[dict[str, Any]] = field(default_factory=list)
    ranks: list[RankRow] = field(default_factory=list)
    mask_points: list[MaskPoint] = field(default_factory=list)
    sentences: list[str] = field(default_factory=list)
    slices: list[Any] = field(default_factory=list)

    @property
    def majority(self) -> float:
        """Accuracy of always calling the most frequent class of these patients; NaN for segmentation."""
        return max(self.counts) / sum(self.counts) if self.counts else math.nan

    def result(self, arm: str) -> ArmResult:
        """The result of one arm."""
        return next(item for item in self.arms if item.arm == arm)


@dataclass
class Comparison:
    """All that ``compare`` found.

    Attributes:
        title: Names of the studies.
        families: One per question.
        notes: What was taken for granted, left out or filled in.
        level: Confidence level.
        resamples: Bootstrap resamples.
        seed: Of the bootstrap.
        provenance: One entry per run directory that has a ``provenance.json``.
    """

    title: str
    families: list[FamilyResult]
    notes: list[str]
    level: float
    resamples: int
    seed: int
    provenance: list[dict[str, Any]] = field(default_factory=list)

    @property
    def light(self) -> str:
        """``red`` where a probe of any family succeeds, ``green`` where all fail, empty without probes."""
        lights = {arm.light for found in self.families for arm in found.arms} - {""}
        return "red" if "red" in lights else "green" if lights else ""

    @property
    def verdict(self) -> str:
        """What the light means for the whole comparison, in a sentence; empty unless it is red."""
        if self.light != "red":
            return ""
        red = [arm.arm for found in self.families for arm in found.arms if arm.light == "red"]
        names = f"{', '.join(red[:-1])} and {red[-1]}" if len(red) > 1 else red[0]
        return (
            f"Red light: {names} {'succeed' if len(red) > 1 else 'succeeds'}, and a probe should fail. Until it is "
            "known why, no difference below can be read as one in finding the disease."
        )

    def as_json(self) -> dict[str, Any]:
        """Stable JSON: intervals as estimate, low, high; what is not estimable as null."""
        return {
            "format": 1,
            "title": self.title,
            "light": self.light,
            "level": self.level,
            "resamples": self.resamples,
            "seed": self.seed,
            "notes": self.notes,
            "families": [_family_json(family) for family in self.families],
            "provenance": self.provenance,
        }


def _family_json(found: FamilyResult) -> dict[str, Any]:
    return {
        "kind": found.family.kind,
        "metric": found.metric,
        "reference": found.reference,
        "patients": len(found.family.patients),
        "class_counts": found.counts,
        "majority_baseline": plain(found.majority),
        "smallest_detectable_auc_difference": plain(found.detectable),
        "summary": found.sentences,
        "arms": [plain(arm) for arm in found.arms],
        "differences": [plain(item) for item in found.differences],
        "strata": [plain(item) for item in found.strata],
        "validation_to_test": [plain(item) for item in found.holding],
        "slices": [plain(item) for item in found.slices],
        "worst": [plain(item) for item in found.worst],
        "by_mask_dice": [plain(item) for item in found.mask_points],
        "signed_ranks": [plain(item) for item in found.ranks],
    }


def plain(value: Any) -> Any:
    """A value as JSON can hold it: dataclasses as objects, NaN as null, infinity as text."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {item.name: plain(getattr(value, item.name)) for item in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float):
        if math.isnan(value):
            return None
        return value if math.isfinite(value) else ("infinity" if value > 0 else "-infinity")
    return value
