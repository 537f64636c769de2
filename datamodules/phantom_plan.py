"""Who is in a phantom cohort: findings, source, sequences, split and marker, before any voxel is made."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from datamodules.phantom_severity import LSM_THRESHOLD_KPA, Findings, draw_findings

MISSING_T1W_SHARE = 0.15
STREAMS = {"findings": 0, "body": 1, "tissue": 2, "position": 3, "T1W": 4, "T2W": 5, "T1W grid": 6, "T2W grid": 7}
COHORT_STREAM = 2**31
"""Spawn key of the draws that look at all patients together; above any patient's number."""


@dataclasses.dataclass(frozen=True, slots=True)
class PatientPlan:
    """One patient before any voxel is made.

    Attributes:
        number: Position in the cohort from 0; with the seed, all that the patient's streams depend on.
        patient_id: ``P0001`` for number 0.
        findings: Severity and what it led to.
        source: Name of the source.
        source_index: Its position in the list of sources, which chooses the scanner.
        sequences: What was acquired.
        test: In the official test set.
        marker: The shortcut's skin marker is there.
    """

    number: int
    patient_id: str
    findings: Findings
    source: str
    source_index: int
    sequences: tuple[str, ...]
    test: bool = False
    marker: bool = False

    @property
    def positive(self) -> bool:
        """LSM above 12 kPa."""
        return self.findings.lsm_kpa > LSM_THRESHOLD_KPA


def stream(seed: int, number: int, purpose: str) -> np.random.Generator:
    """The random stream of one patient for one purpose; independent of all others.

    Args:
        seed: The cohort's seed.
        number: The patient's position in the cohort.
        purpose: A key of ``STREAMS``.
    """
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(number, STREAMS[purpose])))


def plan_patients(
    patients: int,
    seed: int,
    *,
    sources: Sequence[str],
    sequences: Sequence[str],
    test_fraction: float,
    shortcut: bool,
    shortcut_agreement: float,
    shortcut_in_test: bool = False,
) -> list[PatientPlan]:
    """Draw all patients, then deal test set and markers.

    Args:
        patients: How many.
        seed: Seed of everything.
        sources: Names, dealt in turn.
        sequences: What may be acquired; T1W is missing in some patients if it is not the only one.
        test_fraction: Share of test patients, met exactly after rounding.
        shortcut: Whether markers are dealt at all.
        shortcut_agreement: Share of training patients whose marker agrees with LSM > 12 kPa, met after rounding.
        shortcut_in_test: The marker agrees with the label in the test set as well.
    """
    plans = []
    for number in range(patients):
        rng = stream(seed, number, "findings")
        findings = draw_findings(rng)
        missing = rng.random() < MISSING_T1W_SHARE and len(sequences) > 1
        at = number % len(sources)
        plans.append(
            PatientPlan(
                number=number,
                patient_id=f"P{number + 1:04d}",
                findings=findings,
                source=sources[at],
                source_index=at,
                sequences=tuple(name for name in sequences if not (missing and name == "T1W")),
            )
        )
    deal = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(COHORT_STREAM, 0)))
    tested = set(_stratified_sample(plans, round(test_fraction * patients), deal))
    plans = [dataclasses.replace(plan, test=plan.number in tested) for plan in plans]
    if not shortcut:
        return plans
    marks = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(COHORT_STREAM, 1)))
    marked = _marked_patients(plans, shortcut_agreement, marks, shortcut_in_test)
    return [dataclasses.replace(plan, marker=plan.number in marked) for plan in plans]


def _stratified_sample(plans: Sequence[PatientPlan], count: int, rng: np.random.Generator) -> list[int]:
    """Exactly ``count`` patients, each stratum (label × source) by its share, largest remainders first."""
    strata: dict[tuple[bool, int], list[int]] = {}
    for plan in plans:
        strata.setdefault((plan.positive, plan.source_index), []).append(plan.number)
    keys = sorted(strata)
    exact = {key: count * len(strata[key]) / len(plans) for key in keys}
    taken = {key: int(exact[key]) for key in keys}
    by_remainder = sorted(keys, key=lambda key: (taken[key] - exact[key], key))
    for key in by_remainder[: count - sum(taken.values())]:
        taken[key] += 1
    return [int(n) for key in keys for n in rng.permutation(strata[key])[: taken[key]]]


def _marked_patients(
    plans: Sequence[PatientPlan], agreement: float, rng: np.random.Generator, in_test: bool
) -> set[int]:
    """Patients with the marker: nearly the label in training; half of either class in the test set, or as there."""
    marked = _agreeing([plan for plan in plans if not plan.test], agreement, rng)
    if in_test:
        return marked | _agreeing([plan for plan in plans if plan.test], agreement, rng)
    rest = rng.permutation(2)
    for label in (False, True):
        numbers = [plan.number for plan in plans if plan.test and plan.positive is label]
        # an odd patient out falls to either side, not both classes to the same
        half = (len(numbers) + int(rest[int(label)])) // 2
        marked |= {int(n) for n in rng.permutation(numbers)[:half]}
    return marked


def _agreeing(plans: Sequence[PatientPlan], agreement: float, rng: np.random.Generator) -> set[int]:
    """Numbers of the patients with the marker, where it agrees with the label in a share of them."""
    order = rng.permutation(len(plans))
    against = {int(i) for i in order[: round((1.0 - agreement) * len(plans))]}
    return {plan.number for i, plan in enumerate(plans) if plan.positive != (i in against)}
