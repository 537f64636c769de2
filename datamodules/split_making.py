"""Making a split: who has the label, which scheme was asked for, and who is left out and why."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import Any

from datamodules.cohort import Cohort
from datamodules.errors import InputError
from datamodules.labels import LabelRule, parse_rule
from datamodules.split_dealing import check_classes
from datamodules.split_official import official_folds, official_parts
from datamodules.split_origin import as_origins, expanded
from datamodules.split_schemes import Fold, Patients, fixed_test, kfold, leave_one_source_out, tested_sources


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
    sources = patient_sources(cohort)
    return Patients(
        cohort.name,
        {patient: " + ".join(sorted(mine)) for patient, mine in sources.items()},
        sources,
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
    if cohort.origins:
        return _plan_by_origin(
            cohort, rule, test_rule, unlabelled,
            folds=folds, seed=seed, by=by, official=official, repeats=repeats, valid_fraction=valid_fraction,
            test_patients=test_ids, valid_patients=valid_ids, resolve=resolve,
        )  # fmt: skip
    _check_request(
        folds, seed, rule, test_rule, by, official, repeats, valid_fraction, test_ids, valid_ids, resolve, unlabelled
    )
    people = people_of(cohort, rule, test_rule)
    usable = set(people.trainable) | set(people.tested)
    rules = str(rule) if test_rule is None else f"{rule} or {test_rule}"
    excluded = {patient: f"no label for {rules}" for patient in cohort.patients if patient not in usable}
    if by is not None:
        scheme, made = "leave-one-source-out", leave_one_source_out(people, seed, valid_fraction)
    elif test_ids:
        _check_given(people, cohort, test_ids, valid_ids)
        rest = sorted(set(people.trainable) - set(test_ids))
        scheme, made = "given", fixed_test(people, test_ids, rest, folds or 1, seed, valid_fraction, valid_ids)
    elif official:
        scheme, made = official_folds(people, cohort, folds, seed, valid_fraction, resolve, excluded)
    else:
        scheme, made = "kfold", kfold(people, folds or 5, repeats, seed, valid_fraction)
    if unlabelled == "train":
        made = _train_on_unlabelled(made, set(cohort.patients) - usable, cohort, people, by)
        excluded = {patient: why for patient, why in excluded.items() if patient in usable}
    placed = {patient for fold in made for part in fold.parts.values() for patient in part}
    for patient in cohort.patients:
        if patient not in placed and patient not in excluded:
            excluded[patient] = f"no label for {rules}" if patient not in usable else "no part that its label fits"
    return Plan(scheme, tuple(made), {patient: excluded[patient] for patient in sorted(excluded)})


def _plan_by_origin(
    cohort: Cohort, rule: LabelRule, test_rule: LabelRule | None, unlabelled: str, **request: Any
) -> Plan:
    """Deal origins, then put in the patients derived from each.

    Where an origin has patients of several classes, all origins are dealt by source alone: each brings its classes.
    """
    people = people_of(cohort, rule, test_rule)
    classes: dict[str, set[int | None]] = {}
    for patient in cohort.patients:
        classes.setdefault(cohort.origins.get(patient, patient), set()).add(people.target.get(patient))
    mixed = any(len(found) > 1 for found in classes.values())
    none = parse_rule("none")
    request["test_patients"] = {cohort.origins.get(patient, patient) for patient in request["test_patients"]}
    request["valid_patients"] = {cohort.origins.get(patient, patient) for patient in request["valid_patients"]}
    dealt = plan(
        as_origins(cohort),
        none if mixed else rule,
        test_rule=None if mixed else test_rule,
        unlabelled=unlabelled if not mixed else "exclude",
        **request,
    )
    trainable = cohort.patients if unlabelled == "train" else people.trainable
    folds = expanded(dealt.folds, cohort, {"train": trainable, "valid": people.trainable, "test": people.tested})
    placed = {patient for fold in folds for part in fold.parts.values() for patient in part}
    excluded = {
        patient: dealt.excluded.get(cohort.origins.get(patient, patient), f"no label for {rule}")
        for patient in cohort.patients
        if patient not in placed
    }
    for index, fold in enumerate(folds):
        for part, target, names in (
            ("train", people.target, people.class_names),
            ("valid", people.target, people.class_names),
            ("test", people.test_target, people.test_class_names),
        ):
            hint = "an origin is in one part alone: use fewer folds, or more origins"
            check_classes(fold.parts[part], target, names, 1, f"{cohort.name}: fold {index}: {part}", hint)
    return Plan(dealt.scheme, tuple(folds), excluded)


def _check_given(people: Patients, cohort: Cohort, test: Sequence[str], valid: Sequence[str]) -> None:
    """Refuse ids that are unknown, without a label, or in both parts."""
    faults = []
    for option, ids, allowed in (
        ("--test-patients", test, set(people.tested)),
        ("--valid-patients", valid, set(people.trainable)),
    ):
        for patient in ids:
            if patient not in people.source:
                faults.append(f"{option}: no patient {patient!r} in {cohort.name}; check the id")
            elif patient not in allowed:
                faults.append(f"{option}: patient {patient!r} has no label for that part; leave it out")
    faults += [
        f"--test-patients and --valid-patients both name patient {patient!r}; keep it in one"
        for patient in sorted(set(test) & set(valid))
    ]
    if faults:
        raise InputError(*faults)


def _train_on_unlabelled(
    folds: list[Fold], unlabelled: set[str], cohort: Cohort, people: Patients, by: str | None
) -> list[Fold]:
    """Put patients without a label into train: not where their official part or left-out source forbids it."""
    held_out = {patient for patient, scans in official_parts(cohort).items() if set(scans.values()) - {"train"}}
    extra = unlabelled - held_out
    left_out = tested_sources(people) if by else [""] * len(folds)
    return [
        dataclasses.replace(
            fold, train=tuple(sorted({*fold.train, *(p for p in extra if source not in people.sources[p])}))
        )
        for fold, source in zip(folds, left_out, strict=True)
    ]


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
    resolve: str | None,
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
    if resolve not in (None, "test", "exclude"):
        faults.append(f"--resolve {resolve}: write test (the strictest part wins) or exclude")
    if resolve is not None and not official:
        faults.append("--resolve is about official parts; add --official or leave it out")
    schemes = [name for name, on in (("--by", by), ("--official", official), ("--test-patients", bool(test))) if on]
    if len(schemes) > 1:
        faults.append(f"{' and '.join(schemes)} contradict each other; choose one")
    if schemes and repeats > 1:
        faults.append(f"--repeats {repeats} with {schemes[0]}: only folds that rotate the test part can be repeated")
    if valid and not test:
        faults.append("--valid-patients without --test-patients; name both, or neither")
    if valid and (folds or 1) > 1:
        faults.append(f"--valid-patients with --folds {folds}: named patients make one fold; leave one of them out")
    if (official or test) and (folds or 1) > 1 and valid_fraction is not None:
        faults.append(
            f"--valid-fraction with --folds {folds}: valid rotates over the patients outside test; choose one"
        )
    if valid and valid_fraction is not None:
        faults.append("--valid-patients and --valid-fraction contradict each other; choose one")
    if test_rule is not None and not (test_rule.has_target and rule.has_target):
        faults.append(f"--rule {rule} with --test-rule {test_rule}: with two rules both need a target; none has none")
    if faults:
        raise InputError(*faults)
    check_fraction(valid_fraction)


def patient_sources(cohort: Cohort) -> dict[str, frozenset[str]]:
    """Sources of each patient's scans, by sorted patient id."""
    found: dict[str, set[str]] = {patient: set() for patient in cohort.patients}
    for patient, source in zip(cohort.frame["patient_id"], cohort.frame["source"], strict=True):
        found[patient].add(source)
    return {patient: frozenset(sources) for patient, sources in found.items()}


def check_fraction(fraction: float | None) -> None:
    """Refuse a validation share outside (0, 1).

    Raises:
        InputError: It is not a share.
    """
    if fraction is not None and not (math.isfinite(fraction) and 0 < fraction < 1):
        raise InputError(f"--valid-fraction {fraction:g}: a share between 0 and 1 of the patients outside test")
