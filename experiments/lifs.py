"""The submission of CARE-Liver's LiFS task from one ordinal model a setting: S4, and S1, against the rest."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from callbacks.run_directory import RunDirectory
from datamodules.errors import InputError
from datamodules.files import atomic_path

FILE = "LiFS_pred.csv"
COLUMNS = ("Case", "Setting", "Subtask1_prob_S4", "Subtask2_prob_S1")
CONTRAST, PLAIN = "Contrast", "NonContrast"
GRADES = 4
"""S1 to S4: a model whose split was made with the rule metavir1-4."""


def write_lifs(runs: Sequence[RunDirectory], which: str, data: Path, masks: Path | None, out: Path) -> int:
    """Write ``LiFS_pred.csv``: one row a case and setting.

    The setting follows from what a model sees: ``Contrast`` where it takes one of GED1 to GED4, else ``NonContrast``.
    Several models of one setting (folds, seeds) are averaged. Both probabilities of a case come from the same four
    class probabilities, so that they never contradict each other: together they are at most 1.

    Args:
        runs: Trained models of four classes.
        which: ``best``, ``last`` or a checkpoint's path.
        data: A cohort table; patient ids are the challenge's cases, such as ``1001-A``.
        masks: See ``predict_patients``.
        out: Folder to write to.

    Returns:
        0.

    Raises:
        InputError: A model of another number of classes, a doubled case, or (after all others have been written) scans
            that cannot be read, and cases that lack every sequence of a setting.
    """
    from datamodules.cohort import Cohort
    from experiments.predict_patients import patient_rows, sequences_of

    found: dict[str, list[pd.DataFrame]] = {}
    faults: list[str] = []
    for run in runs:
        setting = CONTRAST if any(name.startswith("GED") for name in sequences_of(run)) else PLAIN
        rows, broken = patient_rows(run, which, data, masks)
        faults += broken
        found.setdefault(setting, []).append(_case_rows(pd.DataFrame(rows), run))
    lines = []
    cases = set(Cohort.load(data).patients)
    for setting, tables in found.items():
        mean = pd.concat(tables).groupby(level=0).mean()
        short = sorted(case for case in mean.index if sum(case in table.index for table in tables) < len(tables))
        faults += [
            f"{case}: only some of the {setting} models could predict it; the row is their mean" for case in short
        ]
        lines += [(case, setting, row["prob_3"], row["prob_0"]) for case, row in mean.iterrows()]
        faults += [
            f"{data}: case {case!r} has no scan of any sequence that the {setting} model sees, so {FILE} has no row of "
            "it; add a prediction by hand"
            for case in sorted(cases - set(mean.index))
        ]
    table = pd.DataFrame(lines, columns=list(COLUMNS)).sort_values(["Case", "Setting"])
    with atomic_path(out / FILE) as temporary:
        table.to_csv(temporary, index=False)
    sys.stdout.write(f"{len(table)} rows ({', '.join(sorted(found))}) in {out / FILE}\n")
    if faults:
        raise InputError(*faults)
    return 0


def _case_rows(rows: pd.DataFrame, run: RunDirectory) -> pd.DataFrame:
    """Class probabilities by case.

    Raises:
        InputError: Another number of classes, or a case twice.
    """
    columns = [name for name in rows.columns if name.startswith("prob")]
    if columns != [f"prob_{index}" for index in range(GRADES)]:
        raise InputError(
            f"{run.path}: --lifs needs a model of S1 to S4, and this one gives {', '.join(columns) or 'nothing'}; "
            "train one on a split made with --rule metavir1-4"
        )
    doubled = sorted(set(rows.loc[rows["patient_id"].duplicated(), "patient_id"]))
    if doubled:
        raise InputError(*(f"case {case!r} has several examinations; keep one in the cohort table" for case in doubled))
    return rows.set_index("patient_id")[columns]
