"""Clinical covariates (age, sex, columns of the user's own) as numbers: as measured, NaN where unknown. No torch."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd

from datamodules.cohort import EXTRA_PREFIX, Cohort
from datamodules.errors import InputError

CLINICAL = ("age", "sex")
"""Columns of the cohort table that may be covariates, beside the user's own."""
SEX = {"F": 0.0, "M": 1.0}

Floats = npt.NDArray[np.float64]


def covariate_table(cohort: Cohort, names: Sequence[str]) -> dict[str, Floats]:
    """Covariates of every scan.

    Args:
        cohort: The table.
        names: ``age`` (years), ``sex`` (0 female, 1 male), or numeric columns that begin with ``x_``.

    Returns:
        By scan id, float64 of shape (names,), NaN where the table's cell is empty.

    Raises:
        InputError: An unknown or doubled name, a column that the table lacks, or a value that is no number.
    """
    faults = _name_faults(cohort, names)
    columns: list[Floats] = []
    for name in names if not faults else ():
        cells = cohort.frame[name]
        if name == "sex":
            columns.append(np.array([SEX.get(str(cell), np.nan) for cell in cells], dtype=float))
            continue
        empty = cells.isna() | (cells.astype("string").str.strip() == "").fillna(False)
        numbers = np.array(pd.to_numeric(cells.where(~empty), errors="coerce").astype("float64"), dtype=np.float64)
        wrong = np.flatnonzero((~np.isfinite(numbers)) & ~empty.to_numpy(dtype=bool))
        faults += [
            f"{cohort.name}: row {row + 1}: {name} {cells.iloc[row]!r} is not a number; correct it or leave it empty"
            for row in wrong
        ]
        columns.append(numbers)
    if faults:
        raise InputError(*faults)
    table = np.stack(columns, axis=1) if columns else np.zeros((len(cohort.frame), 0))
    return dict(zip(cohort.frame["scan_id"].astype(str), table, strict=True))


def examination_values(table: dict[str, Floats], scan_ids: Sequence[str], names: Sequence[str], name: str) -> Floats:
    """One examination's covariates: the value that its scans agree on.

    Args:
        table: As ``covariate_table`` gives it.
        scan_ids: The examination's scans.
        names: The covariates, for the error.
        name: What the error calls the cohort.

    Returns:
        float64, shape (names,); NaN where no scan has the value.

    Raises:
        InputError: Two scans of one examination have different values.
    """
    rows = np.stack([table[scan_id] for scan_id in scan_ids])
    found = np.full(len(names), np.nan)
    for place, column in enumerate(rows.T):
        values = np.unique(column[~np.isnan(column)])
        if len(values) > 1:
            told = ", ".join(f"{scan} has {value:g}" for scan, value in zip(scan_ids, column, strict=True))
            raise InputError(f"{name}: {names[place]} differs within one examination: {told}; correct the table")
        if len(values):
            found[place] = values[0]
    return found


def statistics(values: Floats, names: Sequence[str], name: str) -> tuple[Floats, Floats]:
    """Mean and standard deviation of each covariate over training patients.

    Args:
        values: Shape (patients, names), NaN where unknown; training patients alone, each once.
        names: The covariates.
        name: What errors call the cohort.

    Returns:
        Both of shape (names,), finite; the standard deviation is positive.

    Raises:
        InputError: A covariate that no training patient has, or that is the same in all who have it.
    """
    faults = []
    for covariate, column in zip(names, values.T, strict=True):
        known = column[~np.isnan(column)]
        if len(known) == 0:
            faults.append(f"{name}: no training patient has {covariate}; leave it out of data.init_args.covariates")
        elif np.ptp(known) == 0:
            faults.append(
                f"{name}: {covariate} is {known[0]:g} in all training patients that have it, so nothing can be learned "
                "from it; leave it out of data.init_args.covariates"
            )
    if faults:
        raise InputError(*faults)
    return np.nanmean(values, axis=0), np.nanstd(values, axis=0)


def _name_faults(cohort: Cohort, names: Sequence[str]) -> list[str]:
    extras = sorted(str(column) for column in cohort.frame.columns if str(column).startswith(EXTRA_PREFIX))
    faults = [f"data.init_args.covariates: {name!r} is there twice; remove one" for name in _doubled(names)]
    for name in dict.fromkeys(names):
        if name not in CLINICAL and name not in extras:
            known = ", ".join([*CLINICAL, *extras])
            faults.append(
                f"data.init_args.covariates: {name!r} is no covariate of {cohort.name}; it has {known} "
                f"(columns of your own begin with {EXTRA_PREFIX!r})"
            )
    return faults


def _doubled(names: Collection[str]) -> list[str]:
    seen = list(names)
    return sorted({name for name in seen if seen.count(name) > 1})
