"""Several cohort tables as one: two centres, or a public data set beside one's own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from datamodules.cohort import Cohort
from datamodules.errors import InputError
from datamodules.readers._common import listed, natural_key


def join(cohorts: Sequence[Cohort], *, shared_patients: bool = False) -> Cohort:
    """Put the rows of several cohorts into one.

    Args:
        cohorts: Two or more.
        shared_patients: A patient id that occurs in two cohorts is one person. Without it such an id
            is refused: ``7`` of one centre is rarely ``7`` of another, and a person counted as two
            leaks between the parts of a split.

    Returns:
        The cohort, with absolute paths, in the order given.

    Raises:
        InputError: Fewer than two cohorts, a scan id in two of them, or an unexplained shared
            patient id: all faults together.
    """
    if len(cohorts) < 2:
        raise InputError("cohort join: there is nothing to join in one table; name two or more")
    owners: dict[tuple[str, str], str] = {}
    clashes: dict[tuple[str, str, str], list[str]] = {}
    for cohort in cohorts:
        for kind in ("scan_id", "patient_id"):
            for value in map(str, cohort.frame[kind].unique()):
                first = owners.setdefault((kind, value), cohort.name)
                if first != cohort.name:
                    clashes.setdefault((kind, first, cohort.name), []).append(value)
    faults = []
    for (kind, first, second), values in clashes.items():
        if kind == "patient_id" and shared_patients:
            continue
        ordered = sorted(values, key=natural_key)
        remedy = "give each scan its own id"
        if kind == "patient_id":
            remedy = "rename them, or say --shared-patients if these are the same people"
        faults.append(f"{first} and {second}: {len(values)} {kind}s are in both: {listed(ordered)}; {remedy}")
    names = [cohort.name for cohort in cohorts]
    faults += [
        f"{name}: is named twice; name each table once" for name in dict.fromkeys(names) if names.count(name) > 1
    ]
    if faults:
        raise InputError(*faults)
    frames = []
    for cohort in cohorts:
        frame = cohort.frame.astype(object)
        frame["image"] = [str(scan.image) for scan in cohort.scans]
        frame["mask"] = [None if scan.mask is None else str(scan.mask) for scan in cohort.scans]
        frames.append(frame)
    return Cohort(pd.concat(frames, ignore_index=True), Path.cwd(), "the joined cohort")
