"""Patients derived from one person: all of them in one part of a fold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from datamodules.cohort import Cohort
from datamodules.split_schemes import PARTS, Fold


def as_origins(cohort: Cohort) -> Cohort:
    """The cohort with origins in the place of the patients derived from them, so that they are dealt as one."""
    frame = cohort.frame.copy()
    frame["patient_id"] = [cohort.origins.get(patient, patient) for patient in frame["patient_id"]]
    frame["origin"] = None
    return Cohort(frame, cohort.root, cohort.name)


def expanded(folds: Sequence[Fold], cohort: Cohort, usable: Mapping[str, Sequence[str]]) -> list[Fold]:
    """Folds of patients from folds of origins.

    Args:
        folds: Their parts name origins, or patients who have none.
        cohort: The patients.
        usable: By part: the patients with the label that it needs.
    """
    of_origin: dict[str, list[str]] = {}
    for patient in cohort.patients:
        of_origin.setdefault(cohort.origins.get(patient, patient), []).append(patient)
    out = []
    for fold in folds:
        parts = {
            part: tuple(
                sorted(patient for origin in fold.parts[part] for patient in of_origin[origin] if patient in allowed)
            )
            for part, allowed in ((part, set(usable[part])) for part in PARTS)
        }
        out.append(Fold(**parts, name=fold.name))
    return out


def shared_origins(fold: Fold, origins: Mapping[str, str]) -> dict[str, dict[str, list[str]]]:
    """Origins whose patients are in two parts of a fold: by origin, the patients of each part."""
    found: dict[str, dict[str, list[str]]] = {}
    for part, patients in fold.parts.items():
        for patient in patients:
            # the person may stand in the table beside those derived from him or her
            found.setdefault(origins.get(patient, patient), {}).setdefault(part, []).append(patient)
    return {origin: parts for origin, parts in sorted(found.items()) if len(parts) > 1}


def origin_words(origin: str, parts: Mapping[str, Sequence[str]]) -> str:
    """``patients derived from '7' are in train ('7~1') and in test ('7~2')``: one example a part."""
    where = " and in ".join(f"{part} ({patients[0]!r})" for part, patients in parts.items())
    return f"patients derived from {origin!r} are in {where}, and they are one person"
