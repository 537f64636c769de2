"""The split file: which patient is in which part of which fold, checked against its cohort."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from datamodules.cohort import Cohort
from datamodules.errors import InputError
from datamodules.files import read_json, sha256_of_json, write_json
from datamodules.labels import LabelRule, parse_rule
from datamodules.split_making import plan
from datamodules.split_origin import origin_words, shared_origins
from datamodules.split_schemes import PARTS, Fold

__all__ = ["FORMAT", "PARTS", "SCHEMES", "Fold", "Splits", "make_splits"]

FORMAT: Final = 1
"""Version of the file format, raised when a reader of the old one would misread the new one."""

SCHEMES: Final = ("kfold", "leave-one-source-out", "official", "fixed-test", "given", "sealed")
"""Ways in which a split is made; ``sealed`` is one without its test patients, for whoever must not read them."""


@dataclasses.dataclass(frozen=True)
class Splits:
    """Patient-level folds, made once and used by every arm of a study.

    Attributes:
        scheme: One of ``SCHEMES``.
        seed: Seed that the folds were made with.
        rule: Label rule of train and valid parts (and of test, unless ``test_rule`` is set).
        cohort_sha256: ``Cohort.sha256`` of the table that was split.
        folds: The folds; repeats follow each other.
        test_rule: Label rule of test parts, or None for the same.
        repeats: How many times the k-fold division was made anew.
        excluded: Reason by patient id, for each patient that is in no part of any fold.
    """

    scheme: str
    seed: int
    rule: str
    cohort_sha256: str
    folds: tuple[Fold, ...]
    test_rule: str | None = None
    repeats: int = 1
    excluded: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @classmethod
    def load(cls, path: str | Path, cohort: Cohort) -> Splits:
        """Read a split file and check it against the cohort it was made for.

        Args:
            path: The JSON file.
            cohort: The whole table that was split; select sequences or patients afterwards.

        Raises:
            InputError: The file is missing, torn or of another format; a patient is in two parts of a
                fold, unknown, or missing; the table has changed. All faults, one line each.
        """
        splits = cls.read(path)
        faults = [*splits.overlaps(), *splits.mismatches(cohort)]
        if faults:
            raise InputError(*(f"{path}: {fault}" for fault in faults))
        return splits

    @classmethod
    def read(cls, path: str | Path) -> Splits:
        """Read a split file without a cohort: its form is checked, its content is not.

        Raises:
            InputError: The file is missing, torn or of another format.
        """
        path = Path(path)
        value = read_json(path, "a split file")
        faults = _form_faults(value)
        if faults:
            raise InputError(*(f"{path}: {fault}; make it anew with 'hepastage split make'" for fault in faults))
        folds = tuple(
            Fold(**{part: tuple(fold[part]) for part in PARTS}, name=fold.get("name", "")) for fold in value["folds"]
        )
        return cls(
            value["scheme"],
            value["seed"],
            value["rule"],
            value["cohort_sha256"],
            folds,
            value.get("test_rule"),
            value.get("repeats", 1),
            value.get("excluded", {}),
        )

    def save(self, path: str | Path) -> None:
        """Write the file atomically.

        Raises:
            InputError: It cannot be written there.
        """
        write_json(Path(path), self.as_json())

    def as_json(self) -> dict[str, Any]:
        """The file's content."""
        return {
            "format": FORMAT,
            "scheme": self.scheme,
            "seed": self.seed,
            "rule": self.rule,
            "test_rule": self.test_rule,
            "repeats": self.repeats,
            "cohort_sha256": self.cohort_sha256,
            "folds": [
                {"name": fold.name, **{part: list(ids) for part, ids in fold.parts.items()}} for fold in self.folds
            ],
            "excluded": dict(self.excluded),
        }

    @cached_property
    def sha256(self) -> str:
        """Hash of the content (64 hexadecimal digits), the same however the file is laid out."""
        return sha256_of_json(self.as_json())

    @property
    def label_rule(self) -> LabelRule:
        """The rule of train and valid parts."""
        return parse_rule(self.rule)

    @property
    def test_label_rule(self) -> LabelRule:
        """The rule of test parts."""
        return parse_rule(self.test_rule or self.rule)

    def fold(self, index: int) -> Fold:
        """One fold, counted from 0.

        Raises:
            InputError: There is no such fold.
        """
        if not 0 <= index < len(self.folds):
            raise InputError(f"fold {index}: the split has folds 0 to {len(self.folds) - 1}; choose one of them")
        return self.folds[index]

    def overlaps(self) -> list[str]:
        """Each patient that is in two parts of one fold: one line that names patient, fold and parts."""
        return [
            f"fold {index}: patient {patient!r} is in {' and in '.join(parts)}; "
            "a patient may be in one part of a fold only"
            for index, fold in enumerate(self.folds)
            for patient, parts in fold_overlaps(fold).items()
        ]

    def mismatches(self, cohort: Cohort) -> list[str]:
        """Every way in which the file does not belong to a cohort, one line each; overlaps are not among them."""
        known = set(cohort.patients)
        placed = [{patient for part in fold.parts.values() for patient in part} for fold in self.folds]
        faults = []
        if self.cohort_sha256 != cohort.sha256:
            faults.append(
                f"made for another table than {cohort.name} (cohort hash {self.cohort_sha256[:12]}, "
                f"the table's is {cohort.sha256[:12]}); make the split anew, or give the whole table it was made for"
            )
        anywhere = set().union(*placed)
        faults += _each(anywhere.union(self.excluded) - known, f"is not in {cohort.name}")
        faults += _each(anywhere & set(self.excluded), "is excluded and in a part as well")
        faults += _each(known - anywhere.union(self.excluded), "is in no part and not excluded")
        if cohort.origins:
            faults += [
                f"fold {index}: {origin_words(origin, parts)}; make the split anew"
                for index, fold in enumerate(self.folds)
                for origin, parts in shared_origins(fold, cohort.origins).items()
            ]
        if faults:
            return faults
        labelled = known - set(self.label_rule.apply(cohort).missing) - set(self.excluded)
        testable = known - set(self.test_label_rule.apply(cohort).missing) - set(self.excluded)
        for index, patients in enumerate(placed):
            faults += _each((labelled & testable) - patients, "is in no part", f"fold {index}: ")
        if self.scheme == "kfold":
            tested = Counter(patient for fold in self.folds for patient in fold.test)
            wrong = {patient for patient in testable if tested[patient] != self.repeats}
            faults += _each(wrong, f"is not in test {self.repeats} time{'s' * (self.repeats > 1)}, as in k-fold")
        return faults


def fold_overlaps(fold: Fold) -> dict[str, list[str]]:
    """Patients in two parts of a fold, and the parts."""
    where: dict[str, list[str]] = {}
    for part, patients in fold.parts.items():
        for patient in patients:
            where.setdefault(patient, []).append(part)
    return {patient: parts for patient, parts in sorted(where.items()) if len(parts) > 1}


def _each(patients: Iterable[str], fault: str, prefix: str = "", most: int = 10) -> list[str]:
    """One line a patient; of a split for another cohort, the first ``most`` and how many more."""
    ordered = sorted(patients)
    lines = [f"{prefix}patient {patient!r} {fault}; make the split anew" for patient in ordered[:most]]
    more = len(ordered) - most
    return [*lines, f"{prefix}{more} more patients: each {fault}; make the split anew"] if more > 0 else lines


def _form_faults(value: object) -> list[str]:
    """What is wrong with the form of a split file, one line each."""
    if not isinstance(value, dict) or not isinstance(value.get("folds"), list):
        return ["not a split file (no folds)"]
    if value.get("format") != FORMAT:
        return [f"format {value.get('format')!r}, this version reads {FORMAT}"]
    kinds = {"scheme": str, "seed": int, "rule": str, "cohort_sha256": str}
    faults = [
        f"{key} is missing or not {kind.__name__}" for key, kind in kinds.items() if type(value.get(key)) is not kind
    ]
    optional = {"test_rule": (str, type(None)), "repeats": (int,), "excluded": (dict,)}
    faults += [
        f"{key} is of the wrong type" for key, kind in optional.items() if key in value and type(value[key]) not in kind
    ]
    faults += [f"unknown key {key!r}" for key in sorted(set(value) - {*kinds, *optional, "format", "folds"})]
    if not value["folds"]:
        faults.append("it has no fold")
    for index, fold in enumerate(value["folds"]):
        if not isinstance(fold, dict) or set(fold) - {*PARTS, "name"} or not isinstance(fold.get("name", ""), str):
            faults.append(f"fold {index} is not train, valid, test and a name")
            continue
        for part in PARTS:
            ids = fold.get(part)
            if not isinstance(ids, list) or not all(isinstance(patient, str) for patient in ids):
                faults.append(f"fold {index}: {part} is not a list of patient ids (text)")
            elif not ids and not (part == "test" and value.get("scheme") == "sealed"):
                faults.append(f"fold {index}: {part} is empty")
            elif len(set(ids)) < len(ids):
                twice = sorted(patient for patient, times in Counter(ids).items() if times > 1)
                faults.append(f"fold {index}: {part} names {', '.join(map(repr, twice))} more than once")
    if not faults:
        for rule in (value["rule"], value.get("test_rule")):
            try:
                parse_rule(rule or "none")
            except InputError as error:
                faults += error.faults
        if not all(isinstance(reason, str) for reason in value.get("excluded", {}).values()):
            faults.append("excluded is not a reason (text) by patient")
        if value["scheme"] not in SCHEMES:
            faults.append(f"unknown scheme {value['scheme']!r}")
    return faults


def make_splits(
    cohort: Cohort,
    rule: LabelRule | str = "none",
    folds: int | None = None,
    seed: int = 0,
    *,
    test_rule: LabelRule | str | None = None,
    by: str | None = None,
    official: bool = False,
    repeats: int = 1,
    valid_fraction: float | None = None,
    test_patients: Iterable[str] = (),
    valid_patients: Iterable[str] = (),
    resolve: str | None = None,
    unlabelled: str = "exclude",
) -> Splits:
    """Divide a cohort's patients into folds, the same for the same table and seed in whatever row order.

    Args:
        cohort: The table.
        rule: Label rule that parts are stratified by, with the source; ``none`` for source alone.
        folds: Number of folds. K-fold: 5 unless told, at least 2. With ``official`` or ``test_patients``: 1
            unless told; more let valid rotate over the patients outside test. With ``by`` there are as many
            folds as sources, whatever is told.
        seed: 0 to 2^32 - 1.
        test_rule: Label rule of test parts where it differs (train on LSM, test on histology).
        by: ``source`` makes one fold for each source, which is its test part.
        official: Use the column ``official_split``. Its test part is the test part of every fold. Patients
            without an official part are excluded, unless the column marks nothing but ``test``.
        repeats: Make the k-fold division so many times anew.
        valid_fraction: Share of the patients outside test that becomes valid. Unless told: the next fold's
            test part in k-fold (from 5 folds on), the official valid part, else 0.2.
        test_patients: Ids of the test part.
        valid_patients: Ids of the valid part, with one fold; drawn where left out.
        resolve: What to do with patients whose scans have different official parts: ``test`` moves them to
            the strictest of these, ``exclude`` leaves them out; None refuses.
        unlabelled: ``exclude`` lists patients without the label under ``excluded``; ``train`` puts them into
            train parts, for models that need no target.

    Returns:
        The splits. Each patient of the table is in a part or excluded with a reason.

    Raises:
        InputError: The request contradicts itself, a class has too few patients (named with its count), a
            patient's scans disagree, or an id is unknown.
    """
    rule = parse_rule(rule) if isinstance(rule, str) else rule
    test_rule = parse_rule(test_rule) if isinstance(test_rule, str) else test_rule
    test_rule = None if test_rule == rule else test_rule
    made = plan(
        cohort,
        rule,
        folds=folds,
        seed=seed,
        test_rule=test_rule,
        by=by,
        official=official,
        repeats=repeats,
        valid_fraction=valid_fraction,
        test_patients=test_patients,
        valid_patients=valid_patients,
        resolve=resolve,
        unlabelled=unlabelled,
    )
    splits = Splits(
        made.scheme,
        seed,
        str(rule),
        cohort.sha256,
        made.folds,
        None if test_rule is None else str(test_rule),
        repeats,
        made.excluded,
    )
    faults = [*splits.overlaps(), *splits.mismatches(cohort)]
    if faults:
        raise AssertionError(f"a split that does not hold was made: {faults[:3]}")
    return splits
