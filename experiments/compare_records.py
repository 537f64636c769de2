"""From prediction files to arms that may be compared: find, read, check, and bring to one row per patient."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from datamodules.errors import InputError
from datamodules.records import EXTRA_PREFIX, RECORD_COLUMNS, class_columns, read_records, read_table, validated

RUN = "x_run"
"""Column with the run directory that a row came from; empty for a plain file."""
LEAK = "x_leak"
"""True in rows of an arm whose training had slices of its test patients, on purpose."""
UNKNOWN_SPLIT = "not given"
_SHOWN = 8


@dataclass(frozen=True, slots=True)
class Unit:
    """What one seed of one arm said about each patient of the test set.

    Attributes:
        arm: Name of the arm.
        seed: Training seed.
        target: Class per patient, shape (n,).
        scores: Probability of class 1, shape (n,), or of each class, shape (n, k).
        threshold: Operating point chosen on validation patients, shape (n,); NaN where none was recorded.
        pooling: ``pooled over folds``, ``averaged over folds`` or empty for a single fold.
    """

    arm: str
    seed: int
    target: NDArray[np.int64]
    scores: NDArray[np.float64]
    threshold: NDArray[np.float64]
    pooling: str

    @property
    def classes(self) -> int:
        """Number of classes."""
        return 2 if self.scores.ndim == 1 else self.scores.shape[1]

    @property
    def predicted(self) -> NDArray[np.int64]:
        """Class called for each patient: by the threshold for two classes, else the most probable. Shape (n,)."""
        called = self.scores >= self.threshold if self.scores.ndim == 1 else self.scores.argmax(axis=1)
        return np.asarray(called, dtype=np.int64)

    @property
    def has_threshold(self) -> bool:
        """Whether an operating point is known for every patient (always, for several classes)."""
        return self.scores.ndim > 1 or bool(np.isfinite(self.threshold).all())


@dataclass
class Family:
    """Arms that answer the same question about the same patients.

    Attributes:
        kind: ``binary``, ``multiclass`` or ``segmentation``.
        classes: Number of classes; 0 for segmentation.
        frame: All test rows of the family.
        arms: Names, in alphabetical order.
        patients: Ids in the order of all arrays.
        probes: Arms that should fail where there is no shortcut, and those that leak.
        leaks: Of these, the arms whose training had slices of their test patients, on purpose.
    """

    kind: str
    classes: int
    frame: pd.DataFrame
    arms: list[str]
    patients: list[str]
    probes: list[str] = field(default_factory=list)
    leaks: list[str] = field(default_factory=list)


def load(
    paths: Sequence[Path], mapping: Mapping[str, str], notes: list[str], threshold: float | None
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Read every prediction record under study folders, and plain files.

    Args:
        paths: Study folders (searched for ``predictions.parquet``) and ``.parquet`` or ``.csv`` files.
        mapping: For plain files: record column to the file's own column.
        notes: Sentences for the report are added here.
        threshold: Operating point for rows that recorded none.

    Returns:
        All test rows, and all validation rows (few columns are promised of those; often there are none).

    Raises:
        InputError: A path is missing, holds no record, or a record is broken; all faults together.
    """
    faults: list[str] = []
    frames = []
    for path in paths:
        try:
            if path.is_dir():
                frames += _study(path, notes)
            else:
                frames.append(_plain_file(path, mapping, notes))
        except InputError as error:
            faults += error.faults
    if faults:
        raise InputError(*faults)
    everything = _named_by_study(pd.concat(frames, ignore_index=True))
    frame = everything[everything["part"] == "test"].reset_index(drop=True)
    if frame.empty:
        raise InputError(f"{', '.join(map(str, paths))}: no row of part 'test'; run 'hepastage test' first")
    frame = _scored(frame, notes)
    if threshold is not None:
        given = frame["threshold"] if "threshold" in frame else pd.Series(np.nan, index=frame.index)
        filled = int(given.isna().sum())
        if filled:
            notes.append(f"{filled} rows recorded no threshold and were judged at {threshold:g}, as asked.")
        frame["threshold"] = given.fillna(threshold)
    return frame, everything[everything["part"] == "valid"].reset_index(drop=True)


def _scored(frame: pd.DataFrame, notes: list[str]) -> pd.DataFrame:
    """Leave out masks of scans without a reference: there is nothing to score them against."""
    probabilities = [column for column in ("prob", *class_columns(frame)) if column in frame]
    judged = frame[probabilities].notna().any(axis=1)
    if "dice" in frame:
        judged |= frame["dice"].notna()
    if judged.all():
        return frame
    arms = sorted(frame.loc[~judged, "arm"].unique())
    notes.append(f"{int((~judged).sum())} masks of {_few(arms)} have no reference mask and are not scored.")
    if not judged.any():
        raise InputError(f"arms {_few(arms)}: no scan has a reference mask; give some in the cohort table to compare")
    return frame[judged].reset_index(drop=True)


def _study(folder: Path, notes: list[str]) -> list[pd.DataFrame]:
    inside = [path for path in folder.rglob("predictions.parquet") if "wandb" not in path.relative_to(folder).parts]
    if not inside:
        raise InputError(f"{folder}: no predictions.parquet below it; run 'hepastage grid run' or 'hepastage test'")
    runs = {path.parent for path in folder.rglob("provenance.json")}
    waiting = sorted(str(run.relative_to(folder)) for run in runs - {path.parent for path in inside})
    if waiting:
        notes.append(f"{len(waiting)} runs have no predictions and are not part of this: {_few(waiting)}.")
    faults: list[str] = []
    frames = []
    for path in sorted(inside):
        try:
            frames.append(read_records(path).assign(**{RUN: str(path.parent)}))
            beside = path.with_name("validation.parquet")
            if beside.is_file():
                frames.append(read_records(beside).assign(**{RUN: str(path.parent)}))
        except InputError as error:
            faults += error.faults
    if faults:
        raise InputError(*faults)
    return frames


def _plain_file(path: Path, mapping: Mapping[str, str], notes: list[str]) -> pd.DataFrame:
    table = read_table(path)
    unknown = [column for column in mapping.values() if column not in table.columns]
    if unknown:
        raise InputError(f"{path}: no column {', '.join(unknown)} as --map says; it has {', '.join(map(str, table))}")
    for column, own in mapping.items():
        table[column] = table[own]
    spare = [own for own in mapping.values() if own not in RECORD_COLUMNS and own not in class_columns(table)]
    if mapping:
        known = {*RECORD_COLUMNS, *class_columns(table), *class_columns(table, "logit")}
        extra = [str(column) for column in table if column not in known and not str(column).startswith(EXTRA_PREFIX)]
        left = [column for column in extra if column not in spare]
        if left:
            notes.append(f"{path.name}: columns not used: {', '.join(left)}.")
        table = table.drop(columns=extra)
    defaults: dict[str, str | int] = {
        "arm": path.stem,
        "seed": 0,
        "fold": 0,
        "part": "test",
        "split_sha256": UNKNOWN_SPLIT,
    }
    missing = [column for column in defaults if column not in table.columns]
    if missing:
        words = ", ".join(f"{column} {defaults[column]}" for column in missing)
        notes.append(f"{path.name} does not say {', '.join(missing)}; taken as {words}.")
    for column in missing:
        table[column] = defaults[column]
    return validated(table, str(path))


def _named_by_study(frame: pd.DataFrame) -> pd.DataFrame:
    """Prefix arms with their study where the same name stands in several studies."""
    if "study" not in frame:
        return frame
    names = frame[["study", "arm"]].drop_duplicates()
    if names["arm"].duplicated().any():
        frame["arm"] = frame["study"].fillna("?") + "/" + frame["arm"]
    return frame


def families(frame: pd.DataFrame) -> list[Family]:
    """Sort arms into families by what they predict, and refuse what cannot be compared.

    Raises:
        InputError: Doubled rows, folds that are neither disjoint nor the same, arms on different patients, split
            hashes or targets: all of them, each naming arm and patients.
    """
    classes = class_columns(frame)
    kind = pd.Series("segmentation", index=frame.index)
    if "prob" in frame:
        kind[frame["prob"].notna()] = "binary"
    if classes:
        several = frame[classes].notna().sum(axis=1)
        kind = kind.mask(several > 0, "multiclass-" + several.astype(str))
    kinds = kind.groupby(frame["arm"]).nunique()
    faults = [
        f"arm {arm}: rows of different kinds ({', '.join(sorted(kind[frame['arm'] == arm].unique()))}); "
        "give the parts different arm names"
        for arm in kinds.index[kinds != 1]
    ]
    faults += _doubles(frame)
    result = []
    for name, rows in frame.groupby(kind, sort=True):
        label = str(name)
        family = _family(rows.reset_index(drop=True), label)
        faults += _faults(family)
        result.append(family)
    if faults:
        raise InputError(*faults)
    return result


def _family(rows: pd.DataFrame, label: str) -> Family:
    kind, _, count = label.partition("-")
    classes = {"binary": 2, "segmentation": 0}.get(kind, int(count or 0))
    if classes > 2:
        # other families' classes may be more; theirs are all empty here
        rows = rows.drop(columns=[column for column in class_columns(rows) if int(column[5:]) >= classes])
    arms = sorted(rows["arm"].unique())
    marked = set(rows.loc[rows["role"] == "probe", "arm"]) if "role" in rows else set()
    # whatever its role says: it must never be the reference, nor win
    leaks = sorted(set(rows.loc[rows[LEAK].fillna(False).astype(bool), "arm"])) if LEAK in rows else []
    marked |= set(leaks)
    probes = [arm for arm in arms if arm in marked or arm.rpartition("/")[2].startswith("probe")]
    patients = sorted(rows["patient_id"].unique())
    return Family(kind, classes, rows, arms, patients, probes, leaks)


def _doubles(frame: pd.DataFrame) -> list[str]:
    keys = [key for key in ("arm", "seed", "fold", "patient_id", "scan_id", "sequence") if key in frame]
    rows = frame[frame.duplicated(keys, keep=False)]
    return [
        f"arm {arm}: {group['patient_id'].nunique()} patients have doubled rows in one fold and seed "
        f"({_few(group['patient_id'].unique())}); keep one run of each cell"
        for arm, group in rows.groupby("arm")
    ]


def _faults(family: Family) -> list[str]:
    faults = []
    frame = family.frame
    for (arm, seed), rows in frame.groupby(["arm", "seed"]):
        if pooling(rows) is None:
            faults.append(
                f"arm {arm}, seed {seed}: folds share some test patients but not all ({_few(_partly_shared(rows))}); "
                "folds must rotate over disjoint patients or test one fixed set: test all folds of one split file"
            )
    sets = {key: frozenset(rows["patient_id"]) for key, rows in frame.groupby(["arm", "seed"])}
    everyone = frozenset(family.patients)
    for (arm, seed), members in sets.items():
        if members != everyone:
            absent = sorted(everyone - members)
            faults.append(
                f"arm {arm}, seed {seed}: {len(absent)} patients of other arms or seeds are missing ({_few(absent)}); "
                "finish its folds, or compare arms on the same patients only"
            )
    known = frame[frame["split_sha256"] != UNKNOWN_SPLIT]
    hashes = known.groupby("split_sha256")["arm"].unique()
    if len(hashes) > 1:
        words = "; ".join(f"{str(value)[:12]} in {_few(arms)}" for value, arms in hashes.items())
        faults.append(f"arms were trained on different splits: {words}; run them again on one split file")
    if family.kind != "segmentation":
        faults += _target_faults(family)
    return faults


def _target_faults(family: Family) -> list[str]:
    rows = family.frame
    spread = rows.groupby(["arm", "patient_id"])["target"].nunique()
    faults = [
        f"arm {arm}: patients with more than one target ({_few(group.index.get_level_values('patient_id'))}); "
        "correct the cohort table"
        for arm, group in spread[spread > 1].groupby(level="arm")
    ]
    if faults:
        return faults
    others = {*family.arms} - {*family.probes}
    rows = rows[rows["arm"].isin(others)]
    spread = rows.groupby("patient_id")["target"].nunique()
    differing = sorted(spread.index[spread > 1])
    if differing:
        faults.append(
            f"arms {_few(sorted(others))}: {len(differing)} patients have different targets in different arms "
            f"({_few(differing)}); compare arms of one label rule at a time"
        )
    return faults


def pooling(rows: pd.DataFrame) -> str | None:
    """How the folds of one arm and seed make one answer per patient.

    Returns:
        Empty for one fold, ``pooled over folds`` where each patient was tested in one fold, ``averaged over folds``
        where every fold tested all; None for a mixture, which cannot be compared.
    """
    folds = rows["fold"].nunique()
    if folds == 1:
        return ""
    seen = rows.groupby("patient_id")["fold"].nunique()
    if (seen == 1).all():
        return "pooled over folds"
    return "averaged over folds" if (seen == folds).all() else None


def _partly_shared(rows: pd.DataFrame) -> list[str]:
    seen = rows.groupby("patient_id")["fold"].nunique()
    return [str(patient) for patient in seen.index[(seen > 1)]]


def units(family: Family, frame: pd.DataFrame | None = None, arms: Iterable[str] | None = None) -> list[Unit]:
    """One unit per arm and seed; a patient's scans and folds are averaged to one probability.

    Args:
        family: The family, already checked.
        frame: Rows to use in place of all (a stratum).
        arms: Restrict to these.
    """
    rows = family.frame if frame is None else frame
    rows = rows if arms is None else rows[rows["arm"].isin(list(arms))]
    columns = ["prob"] if family.kind == "binary" else class_columns(rows)
    rows = rows.assign(threshold=rows.get("threshold", np.nan))
    result = []
    for (arm, seed), group in rows.groupby(["arm", "seed"]):
        per_patient = group.groupby("patient_id", sort=True)
        scores = per_patient[columns].mean().to_numpy(dtype=float)
        result.append(
            Unit(
                arm=str(arm),
                seed=int(str(seed)),
                target=per_patient["target"].first().to_numpy(dtype=np.int64),
                scores=scores[:, 0] if family.kind == "binary" else scores,
                threshold=per_patient["threshold"].mean().to_numpy(dtype=float),
                pooling=pooling(group) or "",
            )
        )
    return result


def _few(values: Iterable[object]) -> str:
    items = [str(value) for value in values]
    more = f" and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""
    return ", ".join(items[:_SHOWN]) + more
