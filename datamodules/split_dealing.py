"""Dealing patients: strata of class × source, equal parts, a drawn validation part."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from datamodules.errors import InputError


def strata(patients: Sequence[str], target: Mapping[str, int], source: Mapping[str, str], least: int) -> list[str]:
    """Stratum of each patient: class × source, small ones merged within their class.

    Sources with fewer than ``least`` patients of a class are put together; if these are still too few,
    they join the class's largest stratum, where they disturb least. Classes are never merged.

    Args:
        patients: Patient ids.
        target: Class of each; a patient without one counts as of one common class.
        source: Source of each.
        least: Fewest patients that a stratum should have.

    Returns:
        One label a patient, in the order given.
    """
    cells = Counter((target.get(patient, -1), source[patient]) for patient in patients)
    name = {cell: f"{cell[0]}|{cell[1]}" for cell in cells}
    for number in {cell[0] for cell in cells}:
        mine = {cell: count for cell, count in cells.items() if cell[0] == number}
        small = sorted(cell for cell, count in mine.items() if count < least)
        large = sorted((count, cell) for cell, count in mine.items() if count >= least)
        if not small:
            continue
        enough = sum(mine[cell] for cell in small) >= least
        home = f"{number}|(small sources)" if enough or not large else name[large[-1][1]]
        name.update(dict.fromkeys(small, home))
    return [name[target.get(patient, -1), source[patient]] for patient in patients]


def deal(patients: Sequence[str], labels: Sequence[str], folds: int, seed: int) -> list[tuple[str, ...]]:
    """Deal patients into parts of equal size and equal share of each stratum (scikit-learn's StratifiedKFold).

    Args:
        patients: Sorted ids.
        labels: Stratum of each.
        folds: Number of parts, at least 2 and at most ``len(patients)``.
        seed: 0 to 2^32 - 1.

    Returns:
        The parts, each sorted; every patient is in exactly one.
    """
    from sklearn.model_selection import StratifiedKFold

    splitter = StratifiedKFold(folds, shuffle=True, random_state=seed)
    ids = np.asarray(patients, dtype=object)
    # whole numbers, as a label that looks like a number must not be read as one
    number = {label: code for code, label in enumerate(sorted(set(labels)))}
    codes = [number[label] for label in labels]
    return [tuple(sorted(ids[test].tolist())) for _, test in splitter.split(ids, codes)]


def carve(
    patients: Sequence[str], target: Mapping[str, int], source: Mapping[str, str], fraction: float, seed: int
) -> tuple[str, ...]:
    """Draw a stratified validation part.

    Each class gives its share, at least one patient where it has two; within a class each source gives
    its share as far as whole patients allow.

    Args:
        patients: Sorted ids to draw from.
        target: Class of each; patients without one count as of one common class.
        source: Source of each.
        fraction: Share to draw, in (0, 1).
        seed: Seed of the draw.

    Returns:
        The drawn ids, sorted.
    """
    rng = np.random.default_rng(seed)
    drawn: list[str] = []
    for number in sorted({target.get(patient, -1) for patient in patients}):
        mine = [patient for patient in patients if target.get(patient, -1) == number]
        wanted = min(max(1, round(fraction * len(mine))), len(mine) - 1)
        groups: dict[str, list[str]] = {}
        for index in rng.permutation(len(mine)):
            groups.setdefault(source[mine[index]], []).append(mine[index])
        # the middle of each patient's place within its source: taking the smallest is proportional
        places = [
            ((rank + 0.5) / len(group), order, patient)
            for order, group in enumerate(groups.values())
            for rank, patient in enumerate(group)
        ]
        drawn += [patient for _, _, patient in sorted(places)[:wanted]]
    return tuple(sorted(drawn))


def seed_of(seed: int, *steps: int) -> int:
    """An independent seed for one step of a procedure, from the user's seed."""
    return int(np.random.SeedSequence([seed, *steps]).generate_state(1)[0])


def check_classes(
    patients: Sequence[str], target: Mapping[str, int], names: Sequence[str], least: int, where: str, hint: str
) -> None:
    """Refuse a division in which a class cannot be in every part.

    Raises:
        InputError: A class has fewer than ``least`` patients: one line a class with its count.
    """
    counts = Counter(target[patient] for patient in patients if patient in target)
    faults = [
        f"{where}: class {name!r} has {counts[number]} patient{'' if counts[number] == 1 else 's'}, "
        f"{least} are needed; {hint}"
        for number, name in enumerate(names)
        if counts[number] < least
    ]
    if not names and len(patients) < least:
        faults = [f"{where}: {len(patients)} patients, {least} are needed; {hint}"]
    if faults:
        raise InputError(*faults)
