"""The audit: every leak by name, the confound in words, Cramér's V against SciPy and hand."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats.contingency import association

from datamodules.cohort import Cohort
from datamodules.labels import parse_rule
from datamodules.phantom_plan import plan_patients
from datamodules.split_audit import audit
from datamodules.split_confound import confound_of, cramers_v
from datamodules.splits import make_splits

CONFLICTS = {
    **dict.fromkeys(("460", "463", "464", "47", "471"), ("valid", "train")),
    "393": ("train", "valid"),
    "56": ("test", "valid"),
}
"""Official parts (T1W, T2W) of the patients of CirrMRI600+ who would leak."""


def cohort_of(rows: list[dict[str, Any]]) -> Cohort:
    filled = [
        {"scan_id": f"s{i}", "sequence": "T1W", "image": f"{i}.nii.gz", "source": "hospital", **row}
        for i, row in enumerate(rows)
    ]
    return Cohort(pd.DataFrame(filled), Path("/nowhere"), "table.csv")


def paper_one(positives: int = 84) -> Cohort:
    """56 healthy volunteers of another source among 116 negatives, none among the positives."""
    return cohort_of(
        [{"patient_id": f"v{i}", "healthy": True, "source": "volunteers"} for i in range(56)]
        + [{"patient_id": f"n{i}", "healthy": False, "lsm_kpa": 6.0} for i in range(60)]
        + [{"patient_id": f"p{i}", "healthy": False, "lsm_kpa": 20.0} for i in range(positives)]
    )


def cirrmri_like() -> Cohort:
    rows = []
    for i in range(30):
        part = "test" if i < 6 else "valid" if i < 12 else "train"
        for sequence in ("T1W", "T2W"):
            rows.append({"patient_id": f"1{i:03}", "sequence": sequence, "official_split": part, "stage": i % 3 + 1})
    for patient, parts in CONFLICTS.items():
        for sequence, part in zip(("T1W", "T2W"), parts, strict=True):
            rows.append({"patient_id": patient, "sequence": sequence, "official_split": part, "stage": 2})
    return cohort_of(rows)


def test_the_confound_of_paper_one_is_said_in_words() -> None:
    found = audit(paper_one(), rules=["lsm+healthy"])
    assert not found.leaks
    assert (
        "56 of 116 negatives come from source 'volunteers', none of the 84 positives do: "
        "a classifier can score by recognising the source" in found.sentences
    )
    assert any("56 of 116 negatives are healthy volunteers without a measurement" in line for line in found.sentences)
    (confound,) = found.confounds
    assert confound.table == ((60, 84), (56, 0))
    assert confound.cramers_v == pytest.approx(association(np.array(confound.table), method="cramer"))
    assert confound.guessed_from_factor == 84 + 56
    assert confound.guessed_majority == 116


def test_without_the_switch_there_is_one_source_and_no_confound_but_volunteers_are_listed() -> None:
    found = audit(paper_one(), rules=["lsm"])
    assert found.sentences == ()
    assert found.confounds[0].cramers_v is None
    assert len(found.missing["lsm>12"]) == 56


def test_without_a_rule_every_rule_that_applies_is_looked_at() -> None:
    assert audit(paper_one()).rules == ("lsm>12", "lsm>12+healthy", "healthy")
    assert audit(cirrmri_like()).rules == ("stage",)
    assert audit(cohort_of([{"patient_id": "a"}])).rules == ()


def test_labels_that_disagree_become_a_warning_when_no_rule_was_asked_for() -> None:
    rows = [{"patient_id": "p", "lsm_kpa": 5.0}, {"patient_id": "p", "lsm_kpa": 50.0}]
    found = audit(cohort_of(rows))
    assert any("patient 'p': scans disagree" in line for line in found.warnings)


def test_the_seven_patients_of_cirrmri_are_named() -> None:
    found = audit(cirrmri_like())
    assert {leak.patient_id for leak in found.leaks} == set(CONFLICTS)
    for leak in found.leaks:
        one, two = CONFLICTS[leak.patient_id]
        assert leak.where == f"T1W {one}, T2W {two}"
        assert f"patient {leak.patient_id}: official parts differ between scans ({leak.where})" in leak.message
        assert "--resolve" in leak.message


def test_a_split_that_resolves_the_conflict_does_not_leak_and_says_so() -> None:
    cohort = cirrmri_like()
    for resolve in ("test", "exclude"):
        found = audit(cohort, make_splits(cohort, "stage", official=True, resolve=resolve))
        assert not found.leaks
        assert any("official parts differ between scans for 7 patients (393, 460" in line for line in found.warnings)
        assert len(found.excluded) == (7 if resolve == "exclude" else 0)


def test_a_patient_in_two_parts_is_a_leak_that_names_fold_and_parts() -> None:
    cohort = paper_one()
    splits = make_splits(cohort, "lsm+healthy", 5, 0)
    fold = splits.folds[2]
    leaking = dataclasses.replace(fold, train=(*fold.train, fold.test[0], fold.valid[0]))
    broken = dataclasses.replace(splits, folds=(*splits.folds[:2], leaking, *splits.folds[3:]))
    found = audit(cohort, broken)
    assert [(leak.patient_id, leak.fold, leak.where) for leak in found.leaks] == sorted(
        [(fold.test[0], 2, "train, test"), (fold.valid[0], 2, "train, valid")]
    )
    assert (
        f"patient {fold.test[0]}: in " in found.leaks[[leak.where for leak in found.leaks].index("train, test")].message
    )
    assert audit(cohort, splits).leaks == ()


def test_a_split_of_another_table_is_a_mismatch() -> None:
    found = audit(paper_one(84), make_splits(paper_one(60), "lsm+healthy", 5, 0))
    assert "another table" in found.mismatches[0]


def test_the_balance_counts_every_patient_of_every_part() -> None:
    cohort = paper_one()
    splits = make_splits(cohort, "lsm+healthy", 3, 0)
    found = audit(cohort, splits)
    for index, fold in enumerate(splits.folds):
        for part, patients in fold.parts.items():
            cells = [cell for cell in found.balance if (cell.fold, cell.part) == (index, part)]
            assert sum(cell.patients for cell in cells) == len(patients)
    assert all(cell.source == "hospital" for cell in found.balance if "> 12" in cell.class_name)


def test_cells_too_small_to_test_are_named() -> None:
    rows = [{"patient_id": f"n{i}", "lsm_kpa": 6.0} for i in range(40)]
    rows += [{"patient_id": f"p{i}", "lsm_kpa": 20.0} for i in range(8)]
    rows += [{"patient_id": f"q{i}", "lsm_kpa": 6.0 + 10 * (i > 2), "source": "clinic"} for i in range(9)]
    cohort = cohort_of(rows)
    found = audit(cohort, make_splits(cohort, "lsm", 4, 0))
    assert any("source 'clinic' has 3 patients of class 'LSM ≤ 12 kPa' (lsm>12)" in line for line in found.small)
    assert (
        "test has 3 to 4 patients of class 'LSM > 12 kPa' in each fold: "
        "one patient's result moves the rate by up to 33 percentage points" in found.small
    )
    one_class = make_splits(cohort, "lsm", test_patients=["n0", "n1", "n2", "n3", "n4"])
    assert any(
        "test has no patient of class 'LSM > 12 kPa': AUC cannot be computed there" in line
        for line in audit(cohort, one_class).small
    )


def test_small_official_parts_are_named_without_splits() -> None:
    found = audit(cirrmri_like())
    assert (
        "official test has 2 patients of class 'mild': one patient's result moves the rate by 50 percentage points"
        in (line.removesuffix(" (stage)") for line in found.small)
    )


def test_all_rules_and_the_audit_on_the_phantom() -> None:
    plans = plan_patients(
        80, 3, sources=("a", "b"), sequences=("T2W", "T1W"), test_fraction=0.4, shortcut=False, shortcut_agreement=1.0
    )
    rows = [
        {"patient_id": plan.patient_id, "sequence": sequence, "source": plan.source, "healthy": False}
        | {"lsm_kpa": plan.findings.lsm_kpa, "metavir": plan.findings.metavir, "stage": plan.findings.stage}
        | {"official_split": "test" if plan.test else "train"}
        for plan in plans
        for sequence in plan.sequences
    ]
    cohort = cohort_of(rows)
    for rule in ("lsm>12", "metavir>=3", "stage", "stage>=2", "lsm+healthy"):
        labels = parse_rule(rule).apply(cohort)
        assert not labels.missing
        assert all(labels.counts().values())
        splits = make_splits(cohort, rule, 3, 0)
        assert audit(cohort, splits).leaks == ()
    two_rules = make_splits(cohort, "lsm", 3, 0, official=True, test_rule="metavir")
    assert len(two_rules.folds[0].test) == 32
    found = audit(cohort)
    assert not found.leaks
    # patients are dealt to the sources in turn: no confound was planted
    assert all((confound.cramers_v_corrected or 0.0) < 0.3 for confound in found.confounds)


def test_missing_sequences_that_go_with_the_label_are_a_confound_too() -> None:
    rows = []
    for i in range(40):
        for sequence in ("T1W", "T2W") if i < 20 else ("T2W",):
            rows.append({"patient_id": f"p{i}", "sequence": sequence, "lsm_kpa": 20.0 if i < 20 else 6.0})
    found = audit(cohort_of(rows))
    assert any(
        "20 of 20 negatives have the sequences T2W alone, none of the 20 positives have" in s for s in found.sentences
    )


def test_three_classes_are_called_by_name() -> None:
    level = {f"p{i}": "one" if i < 6 else "two" for i in range(12)}
    target = {f"p{i}": 0 if i < 6 else 1 + i % 2 for i in range(12)}
    confound = confound_of("source", "stage", level, target, ("mild", "moderate", "severe"))
    assert confound.messages[0].startswith(
        "6 of 6 patients of class 'mild' come from source 'one', none of the 6 patients of other classes do"
    )


def test_the_json_is_stable_and_survives_the_round_trip() -> None:
    cohort = paper_one()
    value = audit(cohort, make_splits(cohort, "lsm+healthy", 3, 0)).as_json()
    assert json.loads(json.dumps(value, allow_nan=False)) == value
    assert list(value) == [
        "format", "cohort", "cohort_sha256", "split_sha256", "rules", "leaks", "mismatches", "confounds",
        "small_cells", "warnings", "missing_labels", "excluded", "balance",
    ]  # fmt: skip
    assert value["confounds"][0]["table"]["volunteers"]["LSM > 12 kPa"] == 0


TABLES = st.integers(2, 5).flatmap(
    lambda columns: st.lists(st.lists(st.integers(0, 40), min_size=columns, max_size=columns), min_size=2, max_size=5)
)


@given(TABLES)
def test_cramers_v_agrees_with_scipy_and_its_correction_only_lowers_it(table: list[list[int]]) -> None:
    counts = np.array(table)
    counts = counts[counts.sum(axis=1) > 0]
    counts = counts[:, counts.sum(axis=0) > 0] if counts.size else counts
    plain, corrected = cramers_v(table, corrected=False), cramers_v(table)
    if min(counts.shape) < 2:
        assert plain is None
        assert corrected is None
        return
    assert plain == pytest.approx(association(counts, method="cramer"), abs=1e-9)
    if corrected is not None:
        assert 0 <= corrected <= 1
        if plain is not None and plain < 0.999 and counts.sum() > 50:
            assert corrected <= plain + 1e-9


def test_cramers_v_of_a_table_worked_by_hand() -> None:
    # a 2×2 table a, b / c, d has phi = (ad - bc) / sqrt of the product of its margins = (625 - 25) / 900
    assert cramers_v([[25, 5], [5, 25]], corrected=False) == pytest.approx(2 / 3)
    phi2, size = 4 / 9 - 1 / 59, 2 - 1 / 59
    assert cramers_v([[25, 5], [5, 25]]) == pytest.approx(math.sqrt(phi2 / (size - 1)))
    assert cramers_v([[10, 0], [0, 10]]) == pytest.approx(1.0)
    assert cramers_v([[10, 10], [10, 10]]) == 0.0


def test_the_correction_takes_off_the_bias_of_independent_variables() -> None:
    rng = np.random.default_rng(0)
    tables = [np.histogram2d(rng.integers(0, 4, 40), rng.integers(0, 3, 40), bins=(4, 3))[0] for _ in range(300)]
    plain = np.mean([cramers_v(table.astype(int).tolist(), corrected=False) or 0.0 for table in tables])
    corrected = np.mean([cramers_v(table.astype(int).tolist()) or 0.0 for table in tables])
    assert plain > 0.2
    assert corrected < 0.1
