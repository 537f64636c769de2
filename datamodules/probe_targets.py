"""Targets of probes: what should not be predictable, or should not matter."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence

import numpy as np

from datamodules.cohort import Cohort
from datamodules.errors import InputError
from datamodules.split_making import patient_sources


def source_names(cohort: Cohort) -> tuple[str, ...]:
    """The sources of a cohort, sorted: the classes of a source predictor."""
    return tuple(sorted(set(cohort.frame["source"])))


def source_targets(cohort: Cohort, trained_on: Sequence[str]) -> Mapping[str, int]:
    """Number of each patient's source, counted from 0 in sorted order.

    Args:
        cohort: The scans that are used.
        trained_on: The training patients; each source needs one of them.

    Raises:
        InputError: There is one source alone, a patient has several, or a source is in no training patient.
    """
    names = source_names(cohort)
    if len(names) < 2:
        raise InputError(f"{cohort.name}: all scans come from {names[0]!r}: there is no source to predict")
    sources = patient_sources(cohort)
    faults = [
        f"{cohort.name}: patient {patient!r} has scans of several sources ({', '.join(sorted(found))}): no one source "
        "to predict; leave the scans of one out"
        for patient, found in sources.items()
        if len(found) > 1
    ]
    learned = {name for patient in trained_on for name in sources.get(patient, ())}
    faults += [
        f"{cohort.name}: no training patient comes from the source {name!r}: it cannot be learned; use another split"
        for name in names
        if name not in learned
    ]
    if faults:
        raise InputError(*faults)
    return {patient: names.index(next(iter(found))) for patient, found in sources.items()}


def permuted_targets(target: Mapping[str, int], patients: Sequence[str], part: str, seed: int) -> Mapping[str, int]:
    """Targets dealt anew among the patients of one part; how many there are of each class stays.

    Args:
        target: True class by patient.
        patients: The part's patients; only they are in the result.
        part: Its name: parts are dealt independently.
        seed: The run's seed.
    """
    ordered = sorted(patient for patient in patients if patient in target)
    rng = np.random.default_rng([seed, zlib.crc32(part.encode())])
    return {
        patient: target[ordered[place]] for patient, place in zip(ordered, rng.permutation(len(ordered)), strict=True)
    }
