"""Label rules: what is understood, what each gives, what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datamodules.cohort import Cohort
from datamodules.errors import InputError
from datamodules.labels import LabelRule, parse_rule


def cohort_of(*rows: dict[str, Any]) -> Cohort:
    """A cohort of the given rows, each one T1W scan unless it says otherwise."""
    filled = [
        {"scan_id": f"scan{number}", "sequence": "T1W", "image": f"{number}.nii.gz", "source": "a", **row}
        for number, row in enumerate(rows)
    ]
    return Cohort(pd.DataFrame(filled), Path("/nowhere"), "table.csv")


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("lsm", "lsm>12"),
        ("lsm>12", "lsm>12"),
        (" LSM > 12 ", "lsm>12"),
        ("lsm_kpa>12", "lsm>12"),
        ("lsm>=9.5", "lsm>=9.5"),
        ("metavir", "metavir>=3"),
        ("metavir>=F3", "metavir>=3"),
        ("METAVIR ≥ F4", "metavir>=4"),
        ("metavir>2", "metavir>=3"),
        ("metavir1-4", "metavir1-4"),
        ("METAVIR F0-F4", "metavir0-4"),
        ("stage", "stage"),
        ("stage>=2", "stage>=2"),
        ("stage>2", "stage>=3"),
        ("healthy", "healthy"),
        ("none", "none"),
        ("lsm+healthy", "lsm>12+healthy"),
        ("metavir>=2 + healthy", "metavir>=2+healthy"),
        ("stage+healthy", "stage+healthy"),
    ],
)
def test_every_form_has_one_canonical_spelling(text: str, canonical: str) -> None:
    rule = parse_rule(text)
    assert str(rule) == canonical
    assert parse_rule(canonical) == rule


@pytest.mark.parametrize(
    "text", ["", "lsm<12", "lsm>", "lsm>F12x", "fibroscan>8", "lsm+sick", "lsm+", "stage>=two", "metavir==3", "lsm>nan"]
)
def test_anything_else_is_refused_with_the_forms(text: str) -> None:
    with pytest.raises(InputError, match=r"not a rule; write one of: lsm>12 .*metavir>=3.*stage.*healthy.*none"):
        parse_rule(text)


@pytest.mark.parametrize("text", ["lsm>0", "lsm>500", "metavir>=0", "metavir>=5", "metavir>4", "stage>=1", "stage>3"])
def test_a_threshold_that_leaves_a_class_empty_is_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"leaves one class empty by definition; choose one between"):
        parse_rule(text)


def test_other_nonsense_is_refused() -> None:
    with pytest.raises(InputError, match="whole number"):
        parse_rule("metavir>=2.5")
    with pytest.raises(InputError, match="needs a measure before it"):
        parse_rule("healthy+healthy")


def test_lsm_above_twelve_is_positive_and_twelve_is_not() -> None:
    cohort = cohort_of(
        {"patient_id": "low", "lsm_kpa": 11.9},
        {"patient_id": "edge", "lsm_kpa": 12.0},
        {"patient_id": "high", "lsm_kpa": 12.1},
        {"patient_id": "unmeasured", "metavir": 4},
    )
    labels = parse_rule("lsm").apply(cohort)
    assert labels.target == {"edge": 0, "high": 1, "low": 0}
    assert labels.missing == ("unmeasured",)
    assert labels.class_names == ("LSM ≤ 12 kPa", "LSM > 12 kPa")
    assert labels.counts() == {"LSM ≤ 12 kPa": 2, "LSM > 12 kPa": 1}
    assert parse_rule("lsm>=12").apply(cohort).target["edge"] == 1


def test_metavir_from_f3_on_is_positive() -> None:
    cohort = cohort_of(*({"patient_id": f"f{grade}", "metavir": grade} for grade in range(5)))
    assert list(parse_rule("metavir").apply(cohort).target.values()) == [0, 0, 0, 1, 1]
    assert parse_rule("metavir").class_names == ("METAVIR F0–F2", "METAVIR F3–F4")
    assert list(parse_rule("metavir>=4").apply(cohort).target.values()) == [0, 0, 0, 0, 1]
    assert parse_rule("metavir>=4").class_names == ("METAVIR F0–F3", "METAVIR F4")


def test_metavir_as_a_scale() -> None:
    cohort = cohort_of(*({"patient_id": f"p{grade}", "metavir": grade} for grade in (1, 2, 4)))
    assert parse_rule("metavir1-4").apply(cohort).target == {"p1": 0, "p2": 1, "p4": 3}
    assert parse_rule("metavir0-4").apply(cohort).target == {"p1": 1, "p2": 2, "p4": 4}
    assert parse_rule("metavir1-4").class_names == ("METAVIR F1", "METAVIR F2", "METAVIR F3", "METAVIR F4")
    with pytest.raises(InputError, match="patient 'p0': METAVIR F0 is no class of the rule metavir1-4; use metavir0-4"):
        parse_rule("metavir1-4").apply(cohort_of({"patient_id": "p0", "metavir": 0}))
    with pytest.raises(InputError, match="does not go with it"):
        parse_rule("metavir1-4+healthy")


def test_stage_is_ordinal_or_binarised() -> None:
    cohort = cohort_of(*({"patient_id": f"s{stage}", "stage": stage} for stage in (1, 2, 3)))
    assert parse_rule("stage").apply(cohort).target == {"s1": 0, "s2": 1, "s3": 2}
    assert parse_rule("stage").class_names == ("mild", "moderate", "severe")
    assert parse_rule("stage>=2").apply(cohort).target == {"s1": 0, "s2": 1, "s3": 1}
    assert parse_rule("stage>=3").apply(cohort).target == {"s1": 0, "s2": 0, "s3": 1}
    assert parse_rule("stage>=3").class_names == ("stage 1–2", "stage 3")


def test_volunteers_count_as_negative_only_under_the_switch() -> None:
    cohort = cohort_of(
        {"patient_id": "volunteer", "healthy": True},
        {"patient_id": "stiff volunteer", "healthy": True, "lsm_kpa": 15.0},
        {"patient_id": "patient", "healthy": False, "lsm_kpa": 20.0},
        {"patient_id": "unmeasured", "healthy": False},
        {"patient_id": "unknown"},
    )
    without, switched = parse_rule("lsm").apply(cohort), parse_rule("lsm+healthy").apply(cohort)
    assert without.target == {"patient": 1, "stiff volunteer": 1}
    assert switched.target == {"patient": 1, "stiff volunteer": 1, "volunteer": 0}
    assert without.missing == ("unknown", "unmeasured", "volunteer")
    assert switched.missing == ("unknown", "unmeasured")
    assert "healthy volunteer" in switched.class_names[0]


def test_healthy_against_patients_and_the_unknown_are_listed() -> None:
    cohort = cohort_of({"patient_id": "v", "healthy": True}, {"patient_id": "p", "healthy": False}, {"patient_id": "u"})
    labels = parse_rule("healthy").apply(cohort)
    assert labels.target == {"p": 1, "v": 0}
    assert labels.missing == ("u",)


def test_volunteers_are_a_grade_of_their_own_on_the_ordinal_scale() -> None:
    cohort = cohort_of({"patient_id": "v", "healthy": True}, *({"patient_id": f"s{s}", "stage": s} for s in (1, 2, 3)))
    labels = parse_rule("stage+healthy").apply(cohort)
    assert labels.target == {"s1": 1, "s2": 2, "s3": 3, "v": 0}
    assert labels.class_names == ("healthy volunteer", "mild", "moderate", "severe")


def test_none_has_no_target_and_nobody_is_missing() -> None:
    labels = parse_rule("none").apply(cohort_of({"patient_id": "a"}))
    assert (labels.target, labels.class_names, labels.missing) == ({}, (), ())
    assert not parse_rule("none").has_target
    assert parse_rule("lsm").has_target


def test_a_label_may_stand_on_any_scan_of_the_patient() -> None:
    cohort = cohort_of({"patient_id": "p"}, {"patient_id": "p", "lsm_kpa": 14.0}, {"patient_id": "p", "lsm_kpa": 13.0})
    assert parse_rule("lsm").apply(cohort).target == {"p": 1}


def test_scans_that_disagree_are_refused_with_patient_scans_and_values() -> None:
    cohort = cohort_of(
        {"patient_id": "p1", "lsm_kpa": 8.0},
        {"patient_id": "p1", "lsm_kpa": 14.5},
        {"patient_id": "p2", "lsm_kpa": 30.0},
        {"patient_id": "p2", "lsm_kpa": 2.0},
    )
    with pytest.raises(InputError) as error:
        parse_rule("lsm").apply(cohort)
    assert len(error.value.faults) == 2
    assert "patient 'p1'" in error.value.faults[0]
    assert "scan0 has lsm_kpa 8, scan1 has lsm_kpa 14.5" in error.value.faults[0]
    # 8 and 14.5 kPa lie on the same side of 7
    assert parse_rule("lsm>7").apply(cohort.select(patients=["p1"])).target == {"p1": 1}


def test_a_patient_both_healthy_and_not_is_refused() -> None:
    cohort = cohort_of({"patient_id": "p", "healthy": True}, {"patient_id": "p", "healthy": False})
    for text in ("healthy", "lsm+healthy"):
        with pytest.raises(InputError, match=r"patient 'p': scans disagree .*scan0 has healthy 1"):
            parse_rule(text).apply(cohort)


@given(st.floats(0.5, 100.0), st.floats(0.5, 100.0))
def test_higher_stiffness_never_lowers_the_class(low: float, high: float) -> None:
    rule = LabelRule("lsm_kpa", ">", 12.0)
    assert rule.class_of(min(low, high)) <= rule.class_of(max(low, high))
