"""Official parts: read from the table, checked across a patient's scans, made into folds."""

from __future__ import annotations

from datamodules.cohort import Cohort
from datamodules.errors import InputError
from datamodules.split_schemes import PARTS, Fold, Patients, fixed_test


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


def official_folds(
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
        return "official", fixed_test(people, test, rest, 1, seed, None, valid)
    return "fixed-test", fixed_test(people, test, rest, folds or 1, seed, valid_fraction)
