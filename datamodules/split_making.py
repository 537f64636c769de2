"""Which patient goes into which part: stratified dealing, by source, official parts, given ids."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from datamodules.cohort import Cohort
from datamodules.errors import InputError
from datamodules.labels import LabelRule
from datamodules.split_dealing import carve, check_classes, deal, seed_of, strata

PARTS: Final = ("train", "valid", "test")
DEFAULT_VALID_FRACTION: Final = 0.2


@dataclasses.dataclass(frozen=True, slots=True)
class Fold:
    """The patients of one fold, each part sorted.

    Attributes:
        train: Patients that weights are fitted on.
        valid: Patients that early stopping, thresholds and calibration see.
        test: Patients that nothing but the final prediction sees.
        name: What sets this fold apart, such as the source left out.
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
        source: Source of each patient; several are joined by ``+``.
        target: Class by the rule of train and valid parts, for patients that have one.
        test_target: Class by the rule of test parts (the same rule unless told otherwise).
        class_names: Names of the classes of ``target``.
        test_class_names: Names of the classes of ``test_target``.
        two_rules: Test parts have a rule of their own.
    """

    name: str
    source: Mapping[str, str]
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


def patient_sources(cohort: Cohort) -> dict[str, str]:
    """Source of each patient, by sorted patient id; a patient of several sources has them joined by ``+``."""
    groups = cohort.frame.groupby("patient_id", sort=True)["source"]
    return {str(patient): "+".join(sorted(set(sources))) for patient, sources in groups}


def official_parts(cohort: Cohort) -> dict[str, dict[str, str]]:
    """Official part of each scan that has one: patient id -> scan ("T1W", "T1W visit 2") -> part."""
    found: dict[str, dict[str, str]] = {}
    frame = cohort.frame.sort_values("scan_id")
    columns = (frame[name] for name in ("patient_id", "sequence", "visit", "official_split", "scan_id"))
    for patient, sequence, visit, part, scan_id in zip(*columns, strict=True):
        if not isinstance(part, str):
            continue
        scans = found.setdefault(str(patient), {})
        where = str(sequence) if not isinstance(visit, str) else f"{sequence} visit {visit}"
        if scans.get(where, part) != part:
            where = f"{where} ({scan_id})"
        scans[where] = part
    return dict(sorted(found.items()))


def official_conflicts(cohort: Cohort) -> dict[str, str]:
    """Patients whose scans have different official parts, and where: ``{"47": "T1W valid, T2W train"}``."""
    return {
        patient: ", ".join(f"{where} {part}" for where, part in sorted(scans.items()))
        for patient, scans in official_parts(cohort).items()
        if len(set(scans.values())) > 1
    }


def kfold(people: Patients, folds: int, repeats: int, seed: int, valid_fraction: float | None) -> list[Fold]:
    """K folds, repeated: each patient with a test label is in test exactly once a repeat.

    With three folds or more and one rule, a fold's valid part is the next fold's test part, unless a
    fraction is asked for; else it is drawn from the fold's other patients.
    """
    if folds < 2:
        raise InputError(f"--folds {folds}: at least 2; for one fixed split use --official or --test-patients")
    tested, trainable = people.tested, people.trainable
    rotate = valid_fraction is None and folds >= 3 and not people.two_rules
    hint = "ask for fewer --folds or another --rule"
    check_classes(tested, people.test_target, people.test_class_names, folds, people.name, hint)
    out = []
    for repeat in range(repeats):
        labels = strata(tested, people.test_target, people.source, folds)
        parts = deal(tested, labels, folds, seed_of(seed, repeat))
        for index, test in enumerate(parts):
            rest = sorted(set(trainable) - set(test))
            step = seed_of(seed, repeat, index)
            fold_name = f"repeat {repeat + 1}, fold {index + 1}" if repeats > 1 else f"fold {index + 1}"
            valid = parts[(index + 1) % folds] if rotate else None
            out.append(_fold(people, rest, test, valid, valid_fraction, step, fold_name))
    return out


def leave_one_source_out(people: Patients, seed: int, valid_fraction: float | None) -> list[Fold]:
    """One fold a source, which is its test part; a patient of two sources is tested with each."""
    tested, trainable = people.tested, people.trainable
    sources = sorted({source for patient in tested for source in people.source[patient].split("+")})
    if len(sources) < 2:
        raise InputError(f"{people.name}: --by source needs two sources or more, it has {', '.join(sources)}")
    out = []
    for index, left_out in enumerate(sources):
        inside = {patient for patient, source in people.source.items() if left_out in source.split("+")}
        test = tuple(patient for patient in tested if patient in inside)
        rest = [patient for patient in trainable if patient not in inside]
        out.append(_fold(people, rest, test, None, valid_fraction, seed_of(seed, index), f"source {left_out}"))
    return out


def fixed_test(
    people: Patients, test: Sequence[str], rest: Sequence[str], folds: int, seed: int, valid_fraction: float | None
) -> list[Fold]:
    """The same test part in every fold; the other patients rotate through valid."""
    if folds == 1:
        return [_fold(people, sorted(rest), tuple(sorted(test)), None, valid_fraction, seed_of(seed, 0), "")]
    hint = "ask for fewer --folds or another --rule"
    check_classes(rest, people.target, people.class_names, folds, f"{people.name}: outside the test part", hint)
    labels = strata(sorted(rest), people.target, people.source, folds)
    parts = deal(sorted(rest), labels, folds, seed_of(seed, 0))
    return [
        _fold(people, sorted(rest), tuple(sorted(test)), valid, None, seed, f"fold {index + 1}")
        for index, valid in enumerate(parts)
    ]


def _fold(
    people: Patients,
    rest: Sequence[str],
    test: tuple[str, ...],
    valid: tuple[str, ...] | None,
    fraction: float | None,
    seed: int,
    name: str,
) -> Fold:
    """A fold from its test part and its other patients; the valid part is drawn where it is not given."""
    where = f"{people.name}: {name}: outside test" if name else f"{people.name}: outside test"
    hint = "use fewer folds, another rule or more patients"
    check_classes(rest, people.target, people.class_names, 2, where, hint)
    if valid is None:
        valid = carve(rest, people.target, people.source, fraction or DEFAULT_VALID_FRACTION, seed)
    train = tuple(sorted(set(rest) - set(valid)))
    check_classes(train, people.target, people.class_names, 1, f"{people.name}: {name or 'the split'}: train", hint)
    return Fold(train, tuple(sorted(valid)), tuple(sorted(test)), name)


def check_fraction(fraction: float | None) -> None:
    """Refuse a validation share outside (0, 1).

    Raises:
        InputError: It is not a share.
    """
    if fraction is not None and not (math.isfinite(fraction) and 0 < fraction < 1):
        raise InputError(f"--valid-fraction {fraction:g}: a share between 0 and 1 of the patients outside test")


@dataclasses.dataclass(frozen=True, slots=True)
class Plan:
    """Folds, and why a patient is in none.

    Attributes:
        scheme: ``kfold``, ``leave-one-source-out``, ``official``, ``fixed-test`` or ``given``.
        folds: The folds.
        excluded: Reason by patient id, for every patient that is in no part of any fold.
    """

    scheme: str
    folds: tuple[Fold, ...]
    excluded: dict[str, str]


def people_of(cohort: Cohort, rule: LabelRule, test_rule: LabelRule | None) -> Patients:
    """What splitting needs to know of a cohort under its rules.

    Raises:
        InputError: Scans of one patient disagree on its class.
    """
    labels = rule.apply(cohort)
    test_labels = labels if test_rule is None else test_rule.apply(cohort)
    return Patients(
        cohort.name,
        patient_sources(cohort),
        labels.target,
        test_labels.target,
        labels.class_names,
        test_labels.class_names,
        test_rule is not None,
    )


def plan(
    cohort: Cohort,
    rule: LabelRule,
    *,
    folds: int | None,
    seed: int,
    test_rule: LabelRule | None = None,
    by: str | None = None,
    official: bool = False,
    repeats: int = 1,
    valid_fraction: float | None = None,
    test_patients: Iterable[str] = (),
    valid_patients: Iterable[str] = (),
    resolve: str | None = None,
    unlabelled: str = "exclude",
) -> Plan:
    """Divide a cohort's patients; the arguments are those of ``datamodules.splits.make_splits``."""
    test_ids, valid_ids = sorted(set(test_patients)), sorted(set(valid_patients))
    _check_request(folds, seed, rule, test_rule, by, official, repeats, valid_fraction, test_ids, valid_ids, unlabelled)
    if resolve not in (None, "test", "exclude"):
        raise InputError(f"--resolve {resolve}: write test (the strictest part wins) or exclude")
    people = people_of(cohort, rule, test_rule)
    usable = set(people.trainable) | set(people.tested)
    rules = str(rule) if test_rule is None else f"{rule} or {test_rule}"
    excluded = {patient: f"no label for {rules}" for patient in cohort.patients if patient not in usable}
    if by is not None:
        scheme, made = "leave-one-source-out", leave_one_source_out(people, seed, valid_fraction)
    elif test_ids:
        scheme, made = "given", [_given(people, cohort, test_ids, valid_ids, excluded, seed, valid_fraction)]
    elif official:
        scheme, made = _official(people, cohort, folds, seed, valid_fraction, resolve, excluded)
    else:
        scheme, made = "kfold", kfold(people, folds or 5, repeats, seed, valid_fraction)
    if unlabelled == "train":
        made, excluded = _train_on_unlabelled(made, excluded, cohort, people)
    placed = {patient for fold in made for part in fold.parts.values() for patient in part}
    for patient in cohort.patients:
        if patient not in placed and patient not in excluded:
            excluded[patient] = f"no label for {rules} that its part needs"
    return Plan(scheme, tuple(made), {patient: excluded[patient] for patient in sorted(excluded)})


def _official(
    people: Patients,
    cohort: Cohort,
    folds: int | None,
    seed: int,
    valid_fraction: float | None,
    resolve: str | None,
    excluded: dict[str, str],
) -> tuple[str, list[Fold]]:
    """The official parts as they are, or their test part with a rotating valid part."""
    parts = {patient: set(scans.values()) for patient, scans in official_parts(cohort).items()}
    if not parts:
        raise InputError(f"{cohort.name}: --official needs the column official_split, which is empty; leave it out")
    usable = set(people.source) - set(excluded)
    conflicts = {patient: where for patient, where in official_conflicts(cohort).items() if patient in usable}
    if conflicts and resolve is None:
        raise InputError(
            *(
                f"{cohort.name}: patient {patient}: official parts differ ({where}), so this patient would leak; "
                "use --resolve test (the strictest part wins) or --resolve exclude"
                for patient, where in conflicts.items()
            )
        )
    only_test = set().union(*parts.values()) == {"test"}
    chosen: dict[str, str] = {}
    for patient in sorted(usable):
        if patient in conflicts and resolve == "exclude":
            excluded[patient] = f"official parts differ: {conflicts[patient]}"
        elif patient in parts:
            chosen[patient] = max(parts[patient], key=PARTS.index)
        elif only_test:
            chosen[patient] = "train"
        else:
            excluded[patient] = "no official part"
    allowed = {"train": set(people.trainable), "valid": set(people.trainable), "test": set(people.tested)}
    for patient, part in list(chosen.items()):
        if patient not in allowed[part]:
            excluded[patient] = f"officially {part}, but without the label that part needs"
            del chosen[patient]
    test, valid = (tuple(sorted(p for p, part in chosen.items() if part == wanted)) for wanted in ("test", "valid"))
    rest = sorted(set(chosen) - set(test))
    if not test:
        raise InputError(f"{cohort.name}: --official finds no test patient with the label; leave --official out")
    if valid and folds in (None, 1) and valid_fraction is None:
        return "official", [_fold(people, rest, test, valid, None, seed, "")]
    return "fixed-test", fixed_test(people, test, rest, folds or 1, seed, valid_fraction)


def _given(
    people: Patients,
    cohort: Cohort,
    test: Sequence[str],
    valid: Sequence[str],
    excluded: Mapping[str, str],
    seed: int,
    valid_fraction: float | None,
) -> Fold:
    """One fold from ids that the user names."""
    faults = []
    for option, ids, allowed in (
        ("--test-patients", test, people.tested),
        ("--valid-patients", valid, people.trainable),
    ):
        for patient in ids:
            if patient not in people.source:
                faults.append(f"{option}: no patient {patient!r} in {cohort.name}; check the id")
            elif patient not in set(allowed):
                faults.append(f"{option}: patient {patient!r} has no label for that part; leave it out")
    faults += [
        f"--test-patients and --valid-patients both name patient {patient!r}; keep it in one"
        for patient in sorted(set(test) & set(valid))
    ]
    if faults:
        raise InputError(*faults)
    rest = sorted(set(people.trainable) - set(test) - set(excluded))
    return _fold(people, rest, tuple(test), tuple(valid) or None, valid_fraction, seed, "")


def _train_on_unlabelled(
    folds: list[Fold], excluded: dict[str, str], cohort: Cohort, people: Patients
) -> tuple[list[Fold], dict[str, str]]:
    """Put patients without a label into train: not where their official part or left-out source forbids it."""
    official = {patient for patient, scans in official_parts(cohort).items() if set(scans.values()) - {"train"}}
    extra = [p for p, why in excluded.items() if why.startswith("no label") and p not in official]
    out = []
    for fold in folds:
        left_out = fold.name.removeprefix("source ") if fold.name.startswith("source ") else None
        mine = [p for p in extra if left_out is None or left_out not in people.source[p].split("+")]
        out.append(dataclasses.replace(fold, train=tuple(sorted({*fold.train, *mine}))))
    return out, {patient: why for patient, why in excluded.items() if patient not in set(extra)}


def _check_request(
    folds: int | None,
    seed: int,
    rule: LabelRule,
    test_rule: LabelRule | None,
    by: str | None,
    official: bool,
    repeats: int,
    valid_fraction: float | None,
    test: Sequence[str],
    valid: Sequence[str],
    unlabelled: str,
) -> None:
    """Refuse what contradicts itself, all faults at once."""
    faults = []
    if folds is not None and folds < 1:
        faults.append(f"--folds {folds}: at least 2, or 1 with --official")
    if not 0 <= seed < 2**32:
        faults.append(f"--seed {seed}: a whole number from 0 to {2**32 - 1}")
    if repeats < 1:
        faults.append(f"--repeats {repeats}: at least 1")
    if by not in (None, "source"):
        faults.append(f"--by {by}: only source; leave it out for folds across sources")
    if unlabelled not in ("exclude", "train"):
        faults.append(f"--unlabelled {unlabelled}: write exclude or train")
    schemes = [name for name, on in (("--by", by), ("--official", official), ("--test-patients", bool(test))) if on]
    if len(schemes) > 1:
        faults.append(f"{' and '.join(schemes)} contradict each other; choose one")
    if schemes and repeats > 1:
        faults.append(f"--repeats {repeats} with {schemes[0]}: only folds that rotate the test part can be repeated")
    if valid and not test:
        faults.append("--valid-patients without --test-patients; name both, or neither")
    if valid and valid_fraction is not None:
        faults.append("--valid-patients and --valid-fraction contradict each other; choose one")
    if test_rule is not None and not (test_rule.has_target and rule.has_target):
        faults.append(f"--rule {rule} with --test-rule {test_rule}: with two rules both need a target; none has none")
    if faults:
        raise InputError(*faults)
    check_fraction(valid_fraction)
