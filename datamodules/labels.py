"""Label rules: from what was measured (LSM in kPa, METAVIR, radiological stage) to a target class."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Final

from datamodules.cohort import Cohort
from datamodules.errors import InputError

FORMS: Final = (
    "lsm>12 (kPa; any threshold, also >=)",
    "metavir>=3 (or >=F3; 1 to 4)",
    "metavir0-4 or metavir1-4 (ordinal: each grade a class)",
    "stage (ordinal: mild, moderate, severe)",
    "stage>=2 or stage>=3",
    "healthy (volunteers against patients)",
    "none (no target)",
    "and '+healthy' after lsm, metavir or stage: volunteers count as negative",
)
"""What ``parse_rule`` understands, as its error and the help say it."""

DEFAULTS: Final = {"lsm": "lsm>12", "metavir": "metavir>=3"}
"""A bare measure means the threshold that the field uses: LSM > 12 kPa, METAVIR F3 and more."""

_COLUMN: Final = {"lsm": "lsm_kpa", "lsm_kpa": "lsm_kpa", "metavir": "metavir", "stage": "stage"}
_RANGE: Final = {"lsm_kpa": (0.5, 100.0), "metavir": (1, 4), "stage": (2, 3)}
_STAGES: Final = ("mild", "moderate", "severe")


@dataclasses.dataclass(frozen=True, slots=True)
class Labels:
    """The targets of a cohort's patients under one rule.

    Attributes:
        rule: The rule in its canonical form.
        target: Class of each patient that has the needed label, from 0 to ``len(class_names) - 1``,
            keyed by patient id in sorted order. Empty for the rule ``none``.
        class_names: What the classes are called in reports, in the order of their numbers.
        missing: Patients without the needed label, sorted. Empty for the rule ``none``.
    """

    rule: str
    target: Mapping[str, int]
    class_names: tuple[str, ...]
    missing: tuple[str, ...]

    def counts(self) -> dict[str, int]:
        """Number of patients of each class, by class name, zeros included."""
        values = list(self.target.values())
        return {name: values.count(number) for number, name in enumerate(self.class_names)}


@dataclasses.dataclass(frozen=True, slots=True)
class LabelRule:
    """How a measurement becomes a target class; made by ``parse_rule``.

    Attributes:
        measure: ``lsm_kpa``, ``metavir``, ``stage``, ``healthy`` or ``none``.
        operator: ``>`` or ``>=`` for a binary rule with a threshold, else empty.
        threshold: In kPa for ``lsm_kpa``, else a stage; None where there is no operator.
        healthy_negative: Healthy volunteers without the measurement count as class 0.
        lowest: Grade that is class 0 of an ordinal scale: 0 or 1 for ``metavir``, 1 for ``stage``.
    """

    measure: str
    operator: str = ""
    threshold: float | None = None
    healthy_negative: bool = False
    lowest: int = 1

    def __str__(self) -> str:
        if self.measure == "metavir" and self.threshold is None:
            return f"metavir{self.lowest}-4"
        name = "lsm" if self.measure == "lsm_kpa" else self.measure
        threshold = "" if self.threshold is None else f"{self.operator}{self.threshold:g}"
        return f"{name}{threshold}{'+healthy' if self.healthy_negative else ''}"

    @property
    def has_target(self) -> bool:
        """False for the rule ``none`` alone."""
        return self.measure != "none"

    @property
    def class_names(self) -> tuple[str, ...]:
        """What the classes are called, in the order of their numbers; empty for ``none``."""
        if self.measure == "none":
            return ()
        if self.measure == "healthy":
            return ("healthy volunteer", "patient")
        if self.threshold is None and self.measure == "metavir":
            return tuple(f"METAVIR F{grade}" for grade in range(self.lowest, 5))
        if self.threshold is None:
            # an ordinal scale has room for volunteers below its mildest grade
            return ("healthy volunteer", *_STAGES) if self.healthy_negative else _STAGES
        if self.measure == "lsm_kpa":
            below = "≤" if self.operator == ">" else "<"
            above = ">" if self.operator == ">" else "≥"
            names = (f"LSM {below} {self.threshold:g} kPa", f"LSM {above} {self.threshold:g} kPa")
        else:
            first, last, prefix = (0, 4, "METAVIR F") if self.measure == "metavir" else (1, 3, "stage ")
            cut = int(self.threshold)
            names = (_span(prefix, first, cut - 1), _span(prefix, cut, last))
        return (f"{names[0]} or healthy volunteer", names[1]) if self.healthy_negative else names

    def class_of(self, value: float) -> int:
        """Class of one measured value: kPa for LSM, the stage as written in the table else."""
        if self.threshold is None:
            return int(value) if self.healthy_negative else int(value) - self.lowest
        return int(value > self.threshold) if self.operator == ">" else int(value >= self.threshold)

    def apply(self, cohort: Cohort) -> Labels:
        """The target of every patient of a cohort.

        A measurement always wins over being a volunteer. Where scans of one patient carry different
        values (visits, say) they must agree on the class, not on the value.

        Args:
            cohort: The table. A patient's label may stand on any of its scans.

        Returns:
            Targets of the patients that have the label; the others are in ``missing``.

        Raises:
            InputError: Scans of one patient disagree: one line a patient.
        """
        if not self.has_target:
            return Labels(str(self), {}, (), ())
        target: dict[str, int] = {}
        missing: list[str] = []
        faults: list[str] = []
        measured = _by_patient(cohort, self.measure)
        volunteers = _by_patient(cohort, "healthy") if self.healthy_negative else {}
        for patient in cohort.patients:
            try:
                label = self._patient(measured.get(patient, []), volunteers.get(patient, []))
            except _DisagreementError as error:
                faults.append(
                    f"{cohort.name}: patient {patient!r}: scans disagree under the rule {self}: {error}; "
                    "correct the table or keep one examination of this patient"
                )
                continue
            if label is None:
                missing.append(patient)
            elif label < 0:
                faults.append(
                    f"{cohort.name}: patient {patient!r}: METAVIR F0 is no class of the rule {self}; use metavir0-4"
                )
            else:
                target[patient] = label
        if faults:
            raise InputError(*faults)
        return Labels(str(self), target, self.class_names, tuple(missing))

    def _patient(self, measured: list[tuple[str, float]], volunteer: list[tuple[str, float]]) -> int | None:
        """Class of one patient, from (scan id, value) of the measure and of the column healthy."""
        if self.measure == "healthy":
            flag = _agreed(measured, [int(value) for _, value in measured], "healthy")
            return None if flag is None else 1 - flag
        label = _agreed(measured, [self.class_of(value) for _, value in measured], self.measure)
        if label is None and _agreed(volunteer, [int(value) for _, value in volunteer], "healthy") == 1:
            return 0
        return label


class _DisagreementError(Exception):
    """Scans of one patient give different classes."""


def _agreed(values: list[tuple[str, float]], classes: list[int], column: str) -> int | None:
    """The one class of all scans, or None without a scan that has a value."""
    if len(set(classes)) > 1:
        raise _DisagreementError(", ".join(f"{scan} has {column} {value:g}" for scan, value in values))
    return classes[0] if classes else None


def _by_patient(cohort: Cohort, column: str) -> dict[str, list[tuple[str, float]]]:
    """(scan id, value) of the scans that have a value, by patient."""
    found: dict[str, list[tuple[str, float]]] = {}
    rows = cohort.frame[["patient_id", "scan_id", column]].dropna().sort_values("scan_id")
    for patient, scan, value in zip(rows["patient_id"], rows["scan_id"], rows[column], strict=True):
        found.setdefault(patient, []).append((scan, float(value)))
    return found


def _span(prefix: str, first: int, last: int) -> str:
    letter = "F" if prefix.endswith("F") else ""
    return f"{prefix}{first}" if first == last else f"{prefix}{first}–{letter}{last}"


def parse_rule(text: str) -> LabelRule:
    """Read a label rule as a user writes it.

    Args:
        text: One of ``FORMS``; case and white space do not matter, ``≥`` is ``>=``. A bare ``lsm`` is
            ``lsm>12``, a bare ``metavir`` is ``metavir>=3``.

    Returns:
        The rule; ``str()`` of it is the canonical form, which ``parse_rule`` reads back.

    Raises:
        InputError: The text is no rule, or its threshold is outside what can be measured.
    """
    plain = re.sub(r"\s+", "", text).lower().replace("≥", ">=")
    base, plus, suffix = plain.partition("+")
    base = DEFAULTS.get(base, base)
    healthy_negative = plus == "+" and suffix == "healthy"
    unknown = InputError(f"label rule {text!r}: not a rule; write one of: {'; '.join(FORMS)}")
    if plus and not healthy_negative:
        raise unknown
    if base in ("none", "healthy", "stage"):
        if healthy_negative and base != "stage":
            raise InputError(f"label rule {text!r}: '+healthy' needs a measure before it; write lsm>12+healthy, say")
        return LabelRule(base, healthy_negative=healthy_negative)
    ordinal = re.fullmatch(r"metavirf?([01])-f?4", base)
    if ordinal is not None:
        if healthy_negative:
            raise InputError(
                f"label rule {text!r}: '+healthy' does not go with it: F0 is a grade; leave '+healthy' out"
            )
        return LabelRule("metavir", lowest=int(ordinal[1]))
    match = re.fullmatch(r"(lsm_kpa|lsm|metavir|stage)(>=|>)f?(\d+(?:\.\d+)?)", base)
    if match is None:
        raise unknown
    measure, operator, threshold = _COLUMN[match[1]], match[2], float(match[3])
    if measure != "lsm_kpa":
        if threshold != int(threshold):
            raise InputError(f"label rule {text!r}: a {measure} threshold is a whole number; write {measure}>=3, say")
        # one spelling for one rule: more than F2 is F3 and more
        threshold, operator = threshold + (operator == ">"), ">="
    low, high = _RANGE[measure]
    if not low <= threshold <= high:
        raise InputError(
            f"label rule {text!r}: the threshold leaves one class empty by definition; "
            f"choose one between {low:g} and {high:g}"
        )
    return LabelRule(measure, operator, threshold, healthy_negative)
