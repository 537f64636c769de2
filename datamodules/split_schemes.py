"""The ways to divide patients: k folds, one fold a source, a fixed test part."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Final

from datamodules.errors import InputError
from datamodules.split_dealing import carve, check_classes, deal, seed_of, strata

PARTS: Final = ("train", "valid", "test")
DEFAULT_VALID_FRACTION: Final = 0.2
ROTATING_FOLDS: Final = 5
"""Folds from which the next fold serves as valid: with fewer it would take too much from train."""


@dataclasses.dataclass(frozen=True, slots=True)
class Fold:
    """The patients of one fold, each part sorted.

    Attributes:
        train: Patients that weights are fitted on.
        valid: Patients that early stopping, thresholds and calibration see.
        test: Patients that nothing but the final prediction sees.
        name: What sets this fold apart: the source left out, the repeat; else empty.
    """

    train: tuple[str, ...]
    valid: tuple[str, ...]
    test: tuple[str, ...]
    name: str = ""

    @property
    def parts(self) -> dict[str, tuple[str, ...]]:
        """The three parts by name."""
        return {"train": self.train, "valid": self.valid, "test": self.test}


@dataclasses.dataclass(frozen=True, slots=True)
class Patients:
    """What splitting needs to know of a cohort's patients.

    Attributes:
        name: What errors call the cohort.
        source: Source of each patient; several are joined by a plus sign.
        sources: The same, apart.
        target: Class by the rule of train and valid parts, for patients that have one.
        test_target: Class by the rule of test parts (the same rule unless told otherwise).
        class_names: Names of the classes of ``target``.
        test_class_names: Names of the classes of ``test_target``.
        two_rules: Test parts have a rule of their own.
    """

    name: str
    source: Mapping[str, str]
    sources: Mapping[str, frozenset[str]]
    target: Mapping[str, int]
    test_target: Mapping[str, int]
    class_names: tuple[str, ...]
    test_class_names: tuple[str, ...]
    two_rules: bool = False

    @property
    def trainable(self) -> list[str]:
        """Patients that may be in train or valid, sorted."""
        return sorted(self.target) if self.class_names else sorted(self.source)

    @property
    def tested(self) -> list[str]:
        """Patients that may be in test, sorted."""
        return sorted(self.test_target) if self.test_class_names else sorted(self.source)


def kfold(people: Patients, folds: int, repeats: int, seed: int, valid_fraction: float | None) -> list[Fold]:
    """K folds, repeated: each patient with a test label is in test exactly once a repeat.

    From ``ROTATING_FOLDS`` on and with one rule, a fold's valid part is the next fold's test part, unless
    a fraction is asked for; else it is drawn from the fold's other patients.
    """
    if folds < 2:
        raise InputError(f"--folds {folds}: at least 2; for one fixed split use --official or --test-patients")
    tested, trainable = people.tested, people.trainable
    rotate = valid_fraction is None and folds >= ROTATING_FOLDS and not people.two_rules
    hint = "ask for fewer --folds or another --rule"
    check_classes(tested, people.test_target, people.test_class_names, folds, people.name, hint)
    out = []
    for repeat in range(repeats):
        labels = strata(tested, people.test_target, people.source, folds)
        parts = deal(tested, labels, folds, seed_of(seed, repeat))
        for index, test in enumerate(parts):
            rest = sorted(set(trainable) - set(test))
            step = seed_of(seed, repeat, index)
            fold_name = f"repeat {repeat + 1}" if repeats > 1 else ""
            valid = parts[(index + 1) % folds] if rotate else None
            out.append(fold_of(people, rest, test, valid, valid_fraction, step, fold_name))
    return out


def leave_one_source_out(people: Patients, seed: int, valid_fraction: float | None) -> list[Fold]:
    """One fold a source, which is its test part; a patient of two sources is tested with each."""
    sources = tested_sources(people)
    if len(sources) < 2:
        raise InputError(
            f"{people.name}: --by source needs two sources or more with patients to test, it has "
            f"{', '.join(sources) or 'none'}; leave --by out or choose another --rule"
        )
    hint = "without this source there is too little to train on: leave --by out or choose another --rule"
    out = []
    for index, left_out in enumerate(sources):
        test = tuple(patient for patient in people.tested if left_out in people.sources[patient])
        rest = [patient for patient in people.trainable if left_out not in people.sources[patient]]
        step = seed_of(seed, index)
        out.append(fold_of(people, rest, test, None, valid_fraction, step, f"source {left_out}", hint))
    return out


def tested_sources(people: Patients) -> list[str]:
    """Sources that have patients to test, sorted: the order of the folds of ``leave_one_source_out``."""
    return sorted(set().union(*(people.sources[patient] for patient in people.tested)))


def fixed_test(
    people: Patients,
    test: Sequence[str],
    rest: Sequence[str],
    folds: int,
    seed: int,
    valid_fraction: float | None = None,
    valid: Sequence[str] = (),
) -> list[Fold]:
    """The same test part in every fold; the other patients rotate through valid.

    With one fold the valid part is the given one, or drawn where none is given.
    """
    if folds == 1:
        step = seed_of(seed, 0)
        return [fold_of(people, sorted(rest), tuple(sorted(test)), tuple(valid) or None, valid_fraction, step, "")]
    hint = "ask for fewer --folds or another --rule"
    check_classes(rest, people.target, people.class_names, folds, f"{people.name}: outside the test part", hint)
    labels = strata(sorted(rest), people.target, people.source, folds)
    parts = deal(sorted(rest), labels, folds, seed_of(seed, 0))
    return [fold_of(people, sorted(rest), tuple(sorted(test)), valid, None, seed, "") for valid in parts]


def fold_of(
    people: Patients,
    rest: Sequence[str],
    test: tuple[str, ...],
    valid: tuple[str, ...] | None,
    fraction: float | None,
    seed: int,
    name: str,
    hint: str = "use fewer folds, another rule or more patients",
) -> Fold:
    """A fold from its test part and its other patients; the valid part is drawn where it is not given."""
    where = f"{people.name}: {name}: outside test" if name else f"{people.name}: outside test"
    check_classes(rest, people.target, people.class_names, 2, where, hint)
    if valid is None:
        valid = carve(rest, people.target, people.source, fraction or DEFAULT_VALID_FRACTION, seed)
    train = tuple(sorted(set(rest) - set(valid)))
    check_classes(train, people.target, people.class_names, 1, f"{people.name}: {name or 'the split'}: train", hint)
    return Fold(train, tuple(sorted(valid)), tuple(sorted(test)), name)
