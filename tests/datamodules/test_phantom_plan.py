"""Labels, split and marker of many phantom patients, without voxels."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import spearmanr

from datamodules.phantom_plan import PatientPlan, plan_patients
from datamodules.phantom_severity import expected_lsm_kpa


def planned(patients: int = 600, seed: int = 1, **changes: object) -> list[PatientPlan]:
    options: dict[str, object] = {
        "sources": ("a", "b"),
        "sequences": ("T2W", "T1W"),
        "test_fraction": 0.4,
        "shortcut": True,
        "shortcut_agreement": 0.95,
    }
    options.update(changes)
    return plan_patients(patients, seed, **options)  # type: ignore[arg-type]  # options of several types


def test_lsm_follows_severity_within_human_range() -> None:
    curve = [expected_lsm_kpa(s) for s in np.linspace(0.0, 1.0, 11)]
    assert curve == sorted(curve) and curve[0] == pytest.approx(3.6) and curve[-1] == pytest.approx(46.0)
    plans = planned()
    lsm = np.array([plan.findings.lsm_kpa for plan in plans])
    severity = [plan.findings.severity for plan in plans]
    assert 2.0 <= lsm.min() < 4.0 and 30.0 < lsm.max() <= 75.0
    assert 0.38 <= float((lsm > 12.0).mean()) <= 0.52
    assert 0.90 < spearmanr(severity, lsm).statistic < 0.99
    for name in ("metavir", "stage"):
        read = [getattr(plan.findings, name) for plan in plans]
        assert 0.75 < spearmanr(read, lsm).statistic < 0.95
    assert {plan.findings.metavir for plan in plans} == {0, 1, 2, 3, 4}
    assert {plan.findings.stage for plan in plans} == {1, 2, 3}


def test_signs_inside_the_liver_tell_more_than_those_outside() -> None:
    plans = planned()
    severity = [plan.findings.severity for plan in plans]
    tells = {
        name: spearmanr(severity, [getattr(plan.findings, name) for plan in plans]).statistic
        for name in ("texture", "nodularity", "shape", "spleen", "ascites")
    }
    assert tells["texture"] > 0.85
    assert min(tells["texture"], tells["nodularity"]) > tells["shape"] > tells["spleen"] > 0.3
    assert 0.1 < tells["ascites"] < tells["texture"]


@pytest.mark.parametrize(("patients", "fraction"), [(1, 0.4), (5, 0.5), (24, 0.4), (37, 0.33), (100, 0.0)])
def test_the_test_set_has_exactly_its_share(patients: int, fraction: float) -> None:
    plans = planned(patients, test_fraction=fraction)
    assert sum(plan.test for plan in plans) == round(fraction * patients)


def test_the_test_set_is_stratified() -> None:
    plans = planned(200)
    for label in (False, True):
        for source in (0, 1):
            group = [plan.test for plan in plans if plan.positive is label and plan.source_index == source]
            assert abs(sum(group) - 0.4 * len(group)) <= 1.0


@pytest.mark.parametrize("patients", [40, 101, 400])
def test_the_marker_goes_with_the_label_in_training_only(patients: int) -> None:
    plans = planned(patients)
    train = [plan for plan in plans if not plan.test]
    agree = sum(plan.marker == plan.positive for plan in train)
    assert agree == len(train) - round(0.05 * len(train))
    for label in (False, True):
        test = [plan.marker for plan in plans if plan.test and plan.positive is label]
        assert abs(sum(test) - len(test) / 2) <= 0.5


def test_without_shortcut_nobody_is_marked_and_nothing_else_changes() -> None:
    with_it, without = planned(60), planned(60, shortcut=False)
    assert not any(plan.marker for plan in without)
    assert [(p.findings, p.test, p.sequences) for p in with_it] == [(p.findings, p.test, p.sequences) for p in without]


def test_some_patients_lack_t1w() -> None:
    plans = planned()
    share = float(np.mean(["T1W" not in plan.sequences for plan in plans]))
    assert 0.11 <= share <= 0.19
    assert all("T2W" in plan.sequences for plan in plans)
    assert all(plan.sequences == ("T1W",) for plan in planned(40, sequences=("T1W",)))


def test_streams_make_patients_independent_of_their_number() -> None:
    few, many = planned(3), planned(30)
    assert [plan.findings for plan in few] == [plan.findings for plan in many[:3]]
    assert planned(3, seed=2)[0].findings != few[0].findings
