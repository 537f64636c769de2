"""How far a label can be read off where a patient comes from: the contingency table, in words."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

NOTEWORTHY_V = 0.1
"""Bias-corrected Cramér's V from which a confound is put into words (a small effect by Cohen 1988)."""


@dataclasses.dataclass(frozen=True, slots=True)
class Confound:
    """One factor (the source, say) against the classes of one label rule, counted in patients.

    Attributes:
        factor: ``source``, or ``sequences``: which sequences a patient has.
        rule: The label rule.
        levels: Values of the factor: the table's rows.
        class_names: The table's columns.
        table: Number of patients, shape (levels, classes).
        cramers_v: Cramér's V, in [0, 1]; None where the table has one row or one column with patients.
        cramers_v_corrected: Without its bias (Bergsma 2013), in [0, 1]; None likewise.
        guessed_from_factor: Patients whose class is the commonest one of their level.
        guessed_majority: Patients of the commonest class.
        messages: What a reader should know, in words; empty where nothing stands out.
    """

    factor: str
    rule: str
    levels: tuple[str, ...]
    class_names: tuple[str, ...]
    table: tuple[tuple[int, ...], ...]
    cramers_v: float | None
    cramers_v_corrected: float | None
    guessed_from_factor: int
    guessed_majority: int
    messages: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """All attributes; the table keyed by level and class name."""
        value = {
            key: list(entry) if isinstance(entry, tuple) else entry for key, entry in dataclasses.asdict(self).items()
        }
        value["table"] = {
            level: dict(zip(self.class_names, row, strict=True))
            for level, row in zip(self.levels, self.table, strict=True)
        }
        return value


def cramers_v(table: Sequence[Sequence[int]], *, corrected: bool = True) -> float | None:
    """Cramér's V of a contingency table: 0 no association, 1 one variable fixes the other.

    Args:
        table: Counts, shape (rows, columns). Empty rows and columns do not count.
        corrected: Take off the bias that makes V of independent variables positive in small samples.

    Returns:
        V in [0, 1]; None where fewer than two rows or columns hold anything.

    Source: Bergsma 2013, J. Korean Stat. Soc. 42(3):323–328, eq. 4: with phi² = chi²/n,
    phi²₊ = max(0, phi² - (r-1)(c-1)/(n-1)), r' = r - (r-1)²/(n-1), c' likewise,
    V = sqrt(phi²₊ / min(r'-1, c'-1)). Uncorrected: Cramér 1946, sqrt(phi² / min(r-1, c-1)).
    """
    counts = np.asarray(table, dtype=float).reshape(len(table), -1)
    counts = counts[counts.sum(axis=1) > 0]
    counts = counts[:, counts.sum(axis=0) > 0] if counts.size else counts
    rows, columns = counts.shape
    if min(rows, columns) < 2:
        return None
    from scipy.stats import chi2_contingency

    total = float(counts.sum())
    # no Yates correction: V is defined on Pearson's statistic
    phi2 = float(chi2_contingency(counts, correction=False).statistic) / total
    if not corrected:
        return min(1.0, math.sqrt(phi2 / min(rows - 1, columns - 1)))
    phi2 = max(0.0, phi2 - (rows - 1) * (columns - 1) / (total - 1))
    smaller = min(size - (size - 1) ** 2 / (total - 1) for size in (rows, columns)) - 1
    # two patients in two cells leave no room for a correction
    return min(1.0, math.sqrt(phi2 / smaller)) if smaller > 0 else None


def confound_of(
    factor: str, rule: str, level_of: Mapping[str, str], target: Mapping[str, int], class_names: Sequence[str]
) -> Confound:
    """Compare a factor with a label.

    Args:
        factor: What the factor is called.
        rule: The label rule.
        level_of: Value of the factor of each patient.
        target: Class of each labelled patient, from 0.
        class_names: Names of the classes.

    Returns:
        The table over the labelled patients, its Cramér's V, and what stands out.
    """
    levels = sorted({level_of[patient] for patient in target})
    counts = np.zeros((len(levels), len(class_names)), dtype=int)
    for patient, number in target.items():
        counts[levels.index(level_of[patient]), number] += 1
    table = tuple(tuple(int(count) for count in row) for row in counts)
    from_factor = int(counts.max(axis=1).sum()) if counts.size else 0
    majority = int(counts.sum(axis=0).max()) if counts.size else 0
    corrected = cramers_v(table)
    messages = _one_sided(factor, levels, class_names, counts)
    total = int(counts.sum())
    if corrected is not None and corrected >= NOTEWORTHY_V:
        messages.append(
            f"{factor} and label go together (Cramér's V {corrected:.2f}, bias-corrected): guessing each "
            f"{_single(factor)}'s commonest class is right for {from_factor} of {total} patients, always guessing the "
            f"commonest class for {majority}; report results by {_single(factor)}, and run the probe that predicts it"
        )
    return Confound(
        factor,
        rule,
        tuple(levels),
        tuple(class_names),
        table,
        cramers_v(table, corrected=False),
        corrected,
        from_factor,
        majority,
        tuple(messages),
    )


def _one_sided(factor: str, levels: Sequence[str], class_names: Sequence[str], counts: np.ndarray) -> list[str]:
    """One sentence for each level that holds patients of one class alone, where the others lie elsewhere."""
    totals = counts.sum(axis=0)
    if len(levels) < 2 or int((totals > 0).sum()) < 2:
        return []
    names = (
        ["negatives", "positives"] if len(class_names) == 2 else [f"patients of class '{name}'" for name in class_names]
    )
    out = []
    for level, row in zip(levels, counts, strict=True):
        present = np.flatnonzero(row)
        if len(present) != 1:
            continue
        mine = int(present[0])
        others = [number for number in range(len(class_names)) if number != mine and totals[number] > 0]
        if len(class_names) == 2:
            rest = f"none of the {totals[others[0]]} {names[others[0]]} {'do' if factor == 'source' else 'have'}"
        else:
            rest = f"none of the {int(totals[others].sum())} patients of other classes "
            rest += "do" if factor == "source" else "have"
        share = f"{int(row[mine])} of {int(totals[mine])} {names[mine]}"
        verb = f"come from source '{level}'" if factor == "source" else f"have the sequences {level} alone"
        out.append(f"{share} {verb}, {rest}: a classifier can score by recognising the {_single(factor)}")
    return out


def _single(factor: str) -> str:
    return "source" if factor == "source" else "missing sequences" if factor == "sequences" else factor
