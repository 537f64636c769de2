"""A published result re-stated from its four counts: intervals beside it, and what a set of its size can show."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from datamodules.errors import InputError
from experiments.compare_words import number, with_interval
from experiments.statistics_operating import smallest_detectable_accuracy_difference, smallest_significant_count
from experiments.statistics_proportions import Interval, clopper_pearson_interval, wilson_interval
from experiments.statistics_roc import smallest_detectable_auc_difference

if TYPE_CHECKING:
    from rich.table import Table

NAMES = ("tp", "fn", "tn", "fp")
REFERENCE_AREAS = (0.75, 0.85)
"""AUCs of a reference arm for which the smallest detectable gain is given."""


@dataclass(frozen=True, slots=True)
class Restated:
    """Four counts with their intervals.

    Attributes:
        tp: True positives.
        fn: False negatives.
        tn: True negatives.
        fp: False positives.
        level: Confidence level in (0, 1).
        wilson: Wilson's intervals by name: sensitivity, specificity, accuracy and predictive values as far as their
            denominators are not zero, and ``majority baseline``.
        exact: Clopper-Pearson intervals of the same.
    """

    tp: int
    fn: int
    tn: int
    fp: int
    level: float
    wilson: dict[str, Interval]
    exact: dict[str, Interval]

    @property
    def positives(self) -> int:
        """Patients with the disease."""
        return self.tp + self.fn

    @property
    def negatives(self) -> int:
        """Patients without it."""
        return self.tn + self.fp


def parse_counts(text: str) -> dict[str, int]:
    """``tp=14,fn=4,tn=4,fp=1`` as whole numbers by name.

    Raises:
        InputError: A count is missing, unknown, named twice, or no whole number from 0 on.
    """
    counts: dict[str, int] = {}
    faults = []
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        name, _, value = (piece.strip() for piece in part.partition("="))
        if name.lower() not in NAMES or not value.isascii() or not value.isdigit():
            faults.append(f"--counts {part}: no count; write whole numbers, such as tp=14,fn=4,tn=4,fp=1")
        elif name.lower() in counts:
            faults.append(f"--counts {part}: {name.lower()} stands there twice; keep one")
        else:
            counts[name.lower()] = int(value)
    missing = [name for name in NAMES if name not in counts]
    if missing and not faults:
        faults.append(f"--counts {text}: {', '.join(missing)} missing; all of tp, fn, tn and fp are needed")
    if not faults and counts["tp"] + counts["fn"] + counts["tn"] + counts["fp"] == 0:
        faults.append(f"--counts {text}: no patient at all; give the counts of the test set")
    if faults:
        raise InputError(*faults)
    return counts


def restated(tp: int, fn: int, tn: int, fp: int, level: float = 0.95) -> Restated:
    """Intervals of a published result, from its counts alone.

    Args:
        tp: True positives.
        fn: False negatives.
        tn: True negatives.
        fp: False positives.
        level: Confidence level in (0, 1).

    Raises:
        ValueError: A count below 0, no patient, or a level out of range.
    """
    total = tp + fn + tn + fp
    shares = {
        "sensitivity": (tp, tp + fn),
        "specificity": (tn, tn + fp),
        "accuracy": (tp + tn, total),
        "majority baseline": (max(tp + fn, tn + fp), total),
        "positive predictive value": (tp, tp + fp),
        "negative predictive value": (tn, tn + fn),
    }
    known = {name: pair for name, pair in shares.items() if pair[1]}
    return Restated(
        tp, fn, tn, fp, level,
        {name: wilson_interval(*pair, level) for name, pair in known.items()},
        {name: clopper_pearson_interval(*pair, level) for name, pair in known.items()},
    )  # fmt: skip


def sentences(found: Restated) -> list[str]:
    """What these patients can show, in plain words."""
    total = found.positives + found.negatives
    accuracy, baseline = found.wilson["accuracy"].estimate, found.wilson["majority baseline"].estimate
    order = (accuracy > baseline) - (accuracy < baseline)
    more = ("less often than", "exactly as often as", "more often than")[order + 1]
    lines = [
        f"{total} patients, {found.positives} positive and {found.negatives} negative. Always calling the more "
        f"frequent class is right for {round(baseline * total)} of them; the result is right for "
        f"{round(accuracy * total)}, {more} that."
    ]
    needed = smallest_significant_count(total, found.level)
    if needed is None:
        lines.append("Two arms cannot differ significantly on so few patients, whatever they do (McNemar, exact).")
    else:
        gain = smallest_detectable_accuracy_difference(total, found.level)
        lines.append(
            f"For a significant difference in accuracy one arm must be right on {needed} patients on whom the other is "
            f"wrong, and never the other way round: {number(100 * needed / total, 0)} percentage points. A true gain "
            f"below {number(100 * gain, 0)} points is missed in more than one study of five (McNemar, exact, at best)."
        )
        for count, name, share in (
            (found.positives, "positive", "sensitivity"),
            (found.negatives, "negative", "specificity"),
        ):
            if 0 < count < needed:
                lines.append(f"On {count} {name} patients no difference in {share} can be significant.")
    if min(found.positives, found.negatives) > 0:
        for area in REFERENCE_AREAS:
            gain = smallest_detectable_auc_difference(area, found.positives, found.negatives, level=found.level)
            lines.append(
                f"Against an AUC of {area:g}, "
                + (
                    "not even a perfect arm is told apart with 80 % power (areas correlated by 0.5)."
                    if math.isinf(gain)
                    else f"the smallest gain found with 80 % power is {number(gain)} (areas correlated by 0.5)."
                )
            )
    return lines


def as_json(found: Restated) -> dict[str, object]:
    """Stable JSON: counts, intervals as estimate, low, high, and the sentences."""
    from experiments.compare_results import plain

    counts = {name: getattr(found, name) for name in NAMES}
    intervals = {"wilson": plain(found.wilson), "clopper_pearson": plain(found.exact)}
    return {"counts": counts, "level": found.level, **intervals, "summary": sentences(found)}


def as_rich(found: Restated) -> Table:
    """The intervals as a table for the terminal."""
    from rich.table import Table

    title = f"tp {found.tp}, fn {found.fn}, tn {found.tn}, fp {found.fp}: {found.level * 100:g} % intervals"
    table = Table(title=title, title_justify="left")
    for name in ("", "Wilson", "Clopper–Pearson"):
        table.add_column(name, justify="left" if not name else "right")
    for name, value in found.wilson.items():
        table.add_row(name, with_interval(value), with_interval(found.exact[name]).split(" ", 1)[1].strip("()"))
    return table
