"""What a hostile reviewer would ask of a cohort and its splits: leaks, confounds, cells too small to test."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from typing import Any, Final

from datamodules.cohort import Cohort
from datamodules.errors import InputError
from datamodules.labels import LabelRule, Labels, parse_rule
from datamodules.split_confound import Confound, confound_of
from datamodules.split_making import patient_sources
from datamodules.split_official import official_conflicts, official_parts
from datamodules.split_origin import shared_origins
from datamodules.splits import Splits, fold_overlaps

FORMAT: Final = 1
"""Version of the audit's JSON."""

SMALLEST_CELL: Final = 5
"""Fewest patients of a class in a valid or test part, or of a class in a source, that say anything."""


@dataclasses.dataclass(frozen=True, slots=True)
class Leak:
    """One patient on both sides of a line.

    Attributes:
        patient_id: Who.
        kind: ``two-parts`` of a fold, ``shared-origin`` (patients derived from this one are in two parts), or
            ``official-parts`` that differ between scans.
        fold: The fold, from 0; None for official parts.
        where: The parts, as ``train, test`` or ``T1W valid, T2W train``.
    """

    patient_id: str
    kind: str
    fold: int | None
    where: str

    @property
    def message(self) -> str:
        """The leak in words, and what to do."""
        if self.kind == "two-parts":
            return (
                f"patient {self.patient_id}: in {self.where} of fold {self.fold}; "
                "make the split anew with 'hepastage split make'"
            )
        if self.kind == "shared-origin":
            return (
                f"patient {self.patient_id}: patients derived from this one are in {self.where} of fold {self.fold}; "
                "make the split anew with 'hepastage split make', which keeps them together"
            )
        return (
            f"patient {self.patient_id}: official parts differ between scans ({self.where}); "
            "use 'hepastage split make --official --resolve test' or '--resolve exclude', or make a split of your own"
        )


@dataclasses.dataclass(frozen=True, slots=True)
class PartCount:
    """Patients of one class in one part of one fold.

    Attributes:
        fold: From 0.
        part: ``train``, ``valid`` or ``test``.
        class_name: Name of the class; empty under the rule ``none``, or for patients without a label.
        source: Source, several joined by a plus sign.
        patients: How many.
    """

    fold: int
    part: str
    class_name: str
    source: str
    patients: int


@dataclasses.dataclass(frozen=True, slots=True)
class SplitAudit:
    """What an audit found. Leaks are faults, all else is for the reader to weigh.

    Attributes:
        cohort: Name of the table.
        cohort_sha256: Its hash.
        split_sha256: Hash of the splits, or None where the table alone was audited.
        rules: Label rules that were looked at.
        leaks: Patients on both sides of a line.
        mismatches: Ways in which the splits do not belong to the table.
        confounds: Source, and sequences at hand, against the label.
        small: Cells too small to test, in words.
        warnings: What else a reader should know, in words.
        missing: Patients without the needed label, by rule.
        excluded: Patients whom the splits leave out, with the reason.
        balance: Patients by fold, part, class and source; empty without splits.
    """

    cohort: str
    cohort_sha256: str
    split_sha256: str | None
    rules: tuple[str, ...]
    leaks: tuple[Leak, ...]
    mismatches: tuple[str, ...]
    confounds: tuple[Confound, ...]
    small: tuple[str, ...]
    warnings: tuple[str, ...]
    missing: dict[str, tuple[str, ...]]
    excluded: dict[str, str]
    balance: tuple[PartCount, ...]

    @property
    def sentences(self) -> tuple[str, ...]:
        """All confounds and warnings in words."""
        return (*(message for confound in self.confounds for message in confound.messages), *self.warnings)

    def as_json(self) -> dict[str, Any]:
        """The audit as stable JSON: keys are added in new versions, never changed within a format."""
        return {
            "format": FORMAT,
            "cohort": self.cohort,
            "cohort_sha256": self.cohort_sha256,
            "split_sha256": self.split_sha256,
            "rules": list(self.rules),
            "leaks": [{**dataclasses.asdict(leak), "message": leak.message} for leak in self.leaks],
            "mismatches": list(self.mismatches),
            "confounds": [confound.as_json() for confound in self.confounds],
            "small_cells": list(self.small),
            "warnings": list(self.warnings),
            "missing_labels": {rule: list(patients) for rule, patients in self.missing.items()},
            "excluded": self.excluded,
            "balance": [dataclasses.asdict(count) for count in self.balance],
        }


def audit(cohort: Cohort, splits: Splits | None = None, rules: Sequence[LabelRule | str] = ()) -> SplitAudit:
    """Look for everything that would make a result on these splits mean less than it seems.

    Args:
        cohort: The whole table.
        splits: Splits as read, not necessarily valid; None audits the table and its official parts.
        rules: Label rules to look at. Unless told: those of the splits; without splits, every rule that
            finds two classes or more in the table.

    Returns:
        The audit.

    Raises:
        InputError: A rule that was asked for finds scans of one patient that disagree.
    """
    wanted = [parse_rule(rule) if isinstance(rule, str) else rule for rule in rules]
    warnings: list[str] = []
    if wanted:
        labels = [rule.apply(cohort) for rule in wanted if rule.has_target]
    elif splits is not None:
        chosen = dict.fromkeys((splits.label_rule, splits.test_label_rule))
        labels = [rule.apply(cohort) for rule in chosen if rule.has_target]
    else:
        labels = _every_rule(cohort, warnings)
    sources = {patient: " + ".join(sorted(mine)) for patient, mine in patient_sources(cohort).items()}
    sequences = _sequences(cohort)
    confounds = []
    small: list[str] = []
    for found in labels:
        by_source = confound_of("source", found.rule, sources, found.target, found.class_names)
        confounds.append(by_source)
        if len(set(sequences.values())) > 1:
            confounds.append(confound_of("sequences", found.rule, sequences, found.target, found.class_names))
        small += _small_strata(by_source)
        warnings += _volunteers(cohort, found)
    conflicts = official_conflicts(cohort)
    leaks = []
    balance: tuple[PartCount, ...] = ()
    if splits is None:
        leaks = [Leak(patient, "official-parts", None, where) for patient, where in conflicts.items()]
        for found in labels:
            small += _small_official(cohort, found)
    else:
        leaks = [
            Leak(patient, "two-parts", index, ", ".join(parts))
            for index, fold in enumerate(splits.folds)
            for patient, parts in fold_overlaps(fold).items()
        ]
        if cohort.origins:
            leaks += [
                Leak(origin, "shared-origin", index, ", ".join(parts))
                for index, fold in enumerate(splits.folds)
                for origin, parts in shared_origins(fold, cohort.origins).items()
            ]
            warnings.append(
                f"{len(set(cohort.origins))} patients are derived from {len(set(cohort.origins.values()))}: intervals "
                "that draw them as if they were independent people are too narrow"
            )
        if conflicts:
            warnings.append(
                f"official parts differ between scans for {_named(list(conflicts))}; "
                "these splits place each patient once, results are not those of the official parts"
            )
        balance = _balance(splits, cohort, sources)
        small += _small_parts(splits, cohort)
    return SplitAudit(
        cohort.name,
        cohort.sha256,
        None if splits is None else splits.sha256,
        tuple(found.rule for found in labels),
        tuple(leaks),
        () if splits is None else tuple(splits.mismatches(cohort)),
        tuple(confounds),
        tuple(small),
        tuple(warnings),
        {found.rule: found.missing for found in labels},
        {} if splits is None else dict(splits.excluded),
        balance,
    )


def _every_rule(cohort: Cohort, warnings: list[str]) -> list[Labels]:
    """Labels by each standard rule that tells two classes apart here; volunteers as negatives where there are any."""
    found = []
    for text in ("lsm", "lsm+healthy", "metavir", "metavir+healthy", "stage", "stage+healthy", "healthy"):
        rule = parse_rule(text)
        if rule.measure != "none" and cohort.frame[rule.measure].isna().all():
            continue
        try:
            labels = rule.apply(cohort)
        except InputError as error:
            warnings += list(error.faults)
            continue
        if len(set(labels.target.values())) < 2:
            continue
        if rule.healthy_negative and not _volunteers_added(cohort, labels):
            continue
        found.append(labels)
    return found


def _sequences(cohort: Cohort) -> dict[str, str]:
    """Which sequences each patient has, as ``T1W + T2W``."""
    found: dict[str, set[str]] = {patient: set() for patient in cohort.patients}
    for patient, sequence in zip(cohort.frame["patient_id"], cohort.frame["sequence"], strict=True):
        found[patient].add(sequence)
    return {patient: " + ".join(sorted(mine)) for patient, mine in found.items()}


def _volunteers_added(cohort: Cohort, labels: Labels) -> int:
    """How many volunteers without a measurement a rule with '+healthy' takes in."""
    measured = dataclasses.replace(parse_rule(labels.rule), healthy_negative=False).apply(cohort)
    return len(labels.target) - len(measured.target)


def _volunteers(cohort: Cohort, labels: Labels) -> list[str]:
    """Say aloud how many negatives are healthy volunteers, under a rule that counts them."""
    if not parse_rule(labels.rule).healthy_negative:
        return []
    added = _volunteers_added(cohort, labels)
    negatives = sum(1 for number in labels.target.values() if number == 0)
    return [
        f"under the rule {labels.rule}, {added} of {negatives} negatives are healthy volunteers without a "
        "measurement: telling volunteers from patients is another, easier question than staging patients"
    ]


def _small_strata(confound: Confound) -> list[str]:
    """Class × source cells with few patients: results by source will say little there."""
    return [
        f"source '{level}' has {count} patient{'s' * (count > 1)} of class '{name}' ({confound.rule}): "
        f"fewer than {SMALLEST_CELL}, too few for a result of its own"
        for level, row in zip(confound.levels, confound.table, strict=True)
        for name, count in zip(confound.class_names, row, strict=True)
        if 0 < count < SMALLEST_CELL and len(confound.levels) > 1
    ]


def _small_parts(splits: Splits, cohort: Cohort) -> list[str]:
    """Classes with few patients in valid or test parts."""
    out = []
    for part, rule in (("valid", splits.label_rule), ("test", splits.test_label_rule)):
        out += _small_cells(part, [fold.parts[part] for fold in splits.folds], rule.apply(cohort))
    return out


def _small_official(cohort: Cohort, labels: Labels) -> list[str]:
    """Classes with few patients in the official valid and test parts."""
    parts = {patient: set(scans.values()) for patient, scans in official_parts(cohort).items()}
    out = []
    for part in ("valid", "test"):
        patients = [patient for patient, mine in parts.items() if mine == {part} and patient in labels.target]
        if patients:
            out += [f"official {line} ({labels.rule})" for line in _small_cells(part, [patients], labels)]
    return out


def _small_cells(part: str, folds: Sequence[Sequence[str]], labels: Labels) -> list[str]:
    """One line for each class with few patients in this part of some folds."""
    names = dict(enumerate(labels.class_names)) if labels.class_names else {None: ""}
    out = []
    for number, name in names.items():
        counts = [sum(1 for patient in patients if labels.target.get(patient) == number) for patients in folds]
        of_class = f" of class '{name}'" if name else ""
        for few, words in (
            ({i: n for i, n in enumerate(counts) if n == 0}, "AUC cannot be computed there"),
            ({i: n for i, n in enumerate(counts) if 0 < n < SMALLEST_CELL}, None),
        ):
            if not few:
                continue
            low, high = min(few.values()), max(few.values())
            share = "one patient's result moves the rate by"
            words = words or f"{share} {'up to ' * (low < high)}{100 / low:.0f} percentage points"
            size = "no patient" if high == 0 else "1 patient" if high == 1 else f"{high} patients"
            size = f"{low} to {high} patients" if low < high else size
            where = "" if len(folds) == 1 else f" in {_folds(list(few), len(folds))}"
            out.append(f"{part} has {size}{of_class}{where}: {words}")
    return out


def _folds(few: list[int], total: int) -> str:
    """Folds in a sentence."""
    if len(few) == total:
        return "each fold"
    if len(few) > 8:
        return f"{len(few)} of {total} folds"
    return f"fold{'s' * (len(few) > 1)} {', '.join(map(str, few))}"


def _balance(splits: Splits, cohort: Cohort, sources: dict[str, str]) -> tuple[PartCount, ...]:
    """Patients by fold, part, class and source."""
    labels = {False: splits.label_rule.apply(cohort), True: splits.test_label_rule.apply(cohort)}
    counts: Counter[tuple[int, str, str, str]] = Counter()
    for index, fold in enumerate(splits.folds):
        for part, patients in fold.parts.items():
            mine = labels[part == "test"]
            for patient in patients:
                name = mine.class_names[mine.target[patient]] if patient in mine.target else ""
                counts[index, part, name, sources.get(patient, "unknown")] += 1
    return tuple(PartCount(*cell, patients=count) for cell, count in counts.items())


def _named(patients: list[str], most: int = 12) -> str:
    """Patients in a sentence: all of a few, the first of many."""
    more = len(patients) - most
    listed = ", ".join(sorted(patients)[:most])
    return f"{len(patients)} patient{'s' * (len(patients) > 1)} ({listed}{f' and {more} more' if more > 0 else ''})"
