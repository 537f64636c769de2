"""Making splits: disjoint, complete, stratified, repeatable, whatever the scheme."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datamodules.cohort import Cohort
from datamodules.errors import InputError
from datamodules.labels import parse_rule
from datamodules.splits import Splits, make_splits
from tests.datamodules.split_cohorts import cohort_of, hospital

PATIENTS = st.lists(
    st.fixed_dictionaries(
        {
            "source": st.sampled_from(["a", "b", "c + d"]),
            "lsm_kpa": st.sampled_from([None, 5.0, 12.0, 13.0, 40.0]),
            "both": st.booleans(),
        }
    ),
    min_size=2,
    max_size=60,
)


def random_cohort(drawn: list[dict[str, Any]], order: int = 1) -> Cohort:
    rows = [
        {"scan_id": f"{i}_{s}", "patient_id": f"p{i}", "sequence": s, "image": f"{i}{s}.nii"}
        | {"source": patient["source"], "lsm_kpa": patient["lsm_kpa"]}
        for i, patient in enumerate(drawn)
        for s in (("T1W", "T2W") if patient["both"] else ("T2W",))
    ]
    return Cohort(pd.DataFrame(rows[::order]), Path("/nowhere"), "table.csv")


@settings(deadline=None, max_examples=30)
@given(PATIENTS, st.integers(3, 6), st.integers(0, 2**32 - 1), st.integers(1, 2), st.sampled_from(["lsm", "none"]))
def test_folds_are_disjoint_complete_stratified_and_do_not_depend_on_row_order(
    drawn: list[dict[str, Any]], folds: int, seed: int, repeats: int, rule: str
) -> None:
    cohort = random_cohort(drawn)
    target = parse_rule(rule).apply(cohort).target
    usable = set(target) if rule == "lsm" else set(cohort.patients)
    counts = Counter(target.values())
    possible = min(counts[0], counts[1]) >= folds if rule == "lsm" else len(usable) >= folds
    if not possible:
        with pytest.raises(InputError, match=rf"patients?, {folds} are needed"):
            make_splits(cohort, rule, folds, seed, repeats=repeats)
        return
    splits = make_splits(cohort, rule, folds, seed, repeats=repeats)
    assert len(splits.folds) == folds * repeats
    for fold in splits.folds:
        parts = [set(part) for part in fold.parts.values()]
        assert set().union(*parts) == usable
        assert sum(map(len, parts)) == len(usable)
        assert all(list(part) == sorted(part) for part in fold.parts.values())
        for number in counts:
            assert all(any(target[p] == number for p in part) for part in parts)
    assert Counter(p for fold in splits.folds for p in fold.test) == dict.fromkeys(usable, repeats)
    for number in counts:
        shares = [sum(target[p] == number for p in fold.test) for fold in splits.folds]
        # each of at most three strata of a class may differ by one patient
        assert max(shares) - min(shares) <= 3
    assert set(splits.excluded) == set(cohort.patients) - usable
    assert make_splits(random_cohort(drawn, order=-1), rule, folds, seed, repeats=repeats) == splits
    assert splits.overlaps() == splits.mismatches(cohort) == []


SCHEMES = st.sampled_from(
    [
        {"by": "source"},
        {"official": True},
        {"official": True, "resolve": "test"},
        {"official": True, "resolve": "exclude", "folds": 3},
        {"test_patients": ["p0", "p1"]},
        {"test_patients": ["p0"], "valid_patients": ["p1"]},
        {"folds": 2},
        {"folds": 3, "valid_fraction": 0.4},
    ]
)


@settings(deadline=None, max_examples=50)
@given(
    st.data(), PATIENTS, SCHEMES, st.sampled_from(["lsm", "lsm+healthy", "none"]), st.sampled_from(["train", "exclude"])
)
def test_whatever_the_request_a_split_holds_or_is_refused(
    data: st.DataObject, drawn: list[dict[str, Any]], scheme: dict[str, Any], rule: str, unlabelled: str
) -> None:
    frame = random_cohort(drawn).frame
    values = st.sampled_from(["train", "train", "valid", "test", None])
    frame["official_split"] = [data.draw(values) for _ in range(len(frame))]
    patients = frame["patient_id"].unique()
    for column, choices in (("metavir", (None, 1, 4)), ("healthy", (None, True, False))):
        chosen = {patient: data.draw(st.sampled_from(choices)) for patient in patients}
        frame[column] = [chosen[patient] for patient in frame["patient_id"]]
    cohort = Cohort(frame, Path("/nowhere"), "table.csv")
    test_rule = None if rule == "none" else data.draw(st.sampled_from([None, "metavir"]))
    try:
        splits = make_splits(cohort, rule, seed=1, test_rule=test_rule, unlabelled=unlabelled, **scheme)
    except InputError as error:
        assert all("; " in fault or ": " in fault for fault in error.faults)
        return
    assert splits.overlaps() == splits.mismatches(cohort) == []
    placed = {p for fold in splits.folds for part in fold.parts.values() for p in part}
    assert placed | set(splits.excluded) == set(cohort.patients)
    assert not placed & set(splits.excluded)
    labels, test_labels = splits.label_rule.apply(cohort), splits.test_label_rule.apply(cohort)
    for fold in splits.folds:
        assert fold.train
        assert fold.valid
        assert fold.test
        assert not set(fold.valid) & set(labels.missing)
        assert not set(fold.test) & set(test_labels.missing)
        assert unlabelled == "train" or not set(fold.train) & set(labels.missing)
        if labels.class_names:
            assert {labels.target[p] for p in fold.train if p in labels.target} == {0, 1}


def test_another_seed_gives_another_split_and_the_same_seed_the_same() -> None:
    cohort = cohort_of(hospital(20, 20))
    assert make_splits(cohort, "lsm", 5, 1).sha256 == make_splits(cohort, "lsm", 5, 1).sha256
    assert make_splits(cohort, "lsm", 5, 1).folds != make_splits(cohort, "lsm", 5, 2).folds
    repeated = make_splits(cohort, "lsm", 5, 1, repeats=2)
    assert repeated.folds[0].test != repeated.folds[5].test


def test_class_and_source_are_balanced_over_test_and_valid() -> None:
    cohort = cohort_of([*hospital(30, 20, "a", "a"), *hospital(10, 15, "b", "b"), *hospital(1, 1, "tiny", "t")])
    for fold in make_splits(cohort, "lsm", 5, 0).folds:
        for part in (fold.test, fold.valid):
            cells = Counter((p[0], "high" in p) for p in part)
            # one patient of the tiny source joins each class of source a
            assert cells["a", False] in (5, 6, 7)
            assert cells["a", True] in (3, 4, 5)
            assert cells["b", False] == 2
            assert cells["b", True] == 3


def test_from_five_folds_on_every_patient_is_valid_once_too() -> None:
    splits = make_splits(cohort_of(hospital(12, 12)), "lsm", 5, 0)
    assert sorted(p for fold in splits.folds for p in fold.valid) == sorted(
        p for fold in splits.folds for p in fold.test
    )
    assert splits.folds[0].valid == splits.folds[1].test


@pytest.mark.parametrize(("fraction", "expected"), [(0.1, 4), (0.25, 10), (0.5, 20)])
def test_the_valid_fraction_counts_patients_outside_test(fraction: float, expected: int) -> None:
    splits = make_splits(cohort_of(hospital(25, 25)), "lsm", 5, 0, valid_fraction=fraction)
    assert all(len(fold.valid) == expected for fold in splits.folds)


def test_too_few_patients_name_class_and_count() -> None:
    with pytest.raises(
        InputError, match=r"table.csv: class 'LSM > 12 kPa' has 3 patients, 5 are needed; ask for fewer"
    ):
        make_splits(cohort_of(hospital(20, 3)), "lsm", 5, 0)
    with pytest.raises(InputError, match=r"class 'METAVIR F0–F2' has 0 patients, 5 are needed"):
        make_splits(cohort_of(hospital(20, 3)), "metavir", 5, 0)
    with pytest.raises(InputError, match=r"table.csv: 3 patients, 5 are needed"):
        make_splits(cohort_of([{"patient_id": p} for p in "abc"]), "none", 5, 0)


def test_patients_without_the_label_are_excluded_with_the_reason_or_trained_on_when_told() -> None:
    cohort = cohort_of([*hospital(10, 10), {"patient_id": "nobody"}])
    assert make_splits(cohort, "lsm", 5, 0).excluded == {"nobody": "no label for lsm>12"}
    told = make_splits(cohort, "lsm", 5, 0, unlabelled="train")
    assert not told.excluded
    assert all("nobody" in fold.train for fold in told.folds)
    assert told.mismatches(cohort) == []


def test_an_unlabelled_patient_of_an_official_test_part_or_left_out_source_is_never_trained_on() -> None:
    more: list[dict[str, Any]] = [
        {"patient_id": "held", "official_split": "test"},
        {"patient_id": "free", "source": "b"},
    ]
    cohort = cohort_of([*hospital(6, 6, "a", "a"), *hospital(6, 6, "b", "b"), *more])
    splits = make_splits(cohort, "lsm", by="source", unlabelled="train")
    assert ["free" in fold.train for fold in splits.folds] == [True, False]
    assert splits.excluded == {"held": "no label for lsm>12"}


def test_a_cohort_with_masks_alone_can_be_split(tmp_path: Path) -> None:
    cohort = cohort_of([{"patient_id": p} for p in ("1", "2", "3", "5", "8", "10", "13", "15", "19", "20")], ("T2W",))
    splits = make_splits(cohort, "none", seed=3, test_patients=["10", "19", "20"], valid_patients=["15"])
    assert splits.folds[0].parts == {
        "train": ("1", "13", "2", "3", "5", "8"),
        "valid": ("15",),
        "test": ("10", "19", "20"),
    }
    splits.save(tmp_path / "s.json")
    assert Splits.load(tmp_path / "s.json", cohort) == splits


def test_given_test_patients_with_rotating_valid() -> None:
    cohort = cohort_of([{"patient_id": p} for p in "abcdefgh"])
    splits = make_splits(cohort, "none", 3, test_patients=["a", "b"])
    assert [fold.test for fold in splits.folds] == [("a", "b")] * 3
    assert sorted(p for fold in splits.folds for p in fold.valid) == list("cdefgh")


def test_given_ids_are_checked_all_at_once() -> None:
    cohort = cohort_of([*hospital(5, 5), {"patient_id": "nobody"}])
    with pytest.raises(InputError) as error:
        make_splits(cohort, "lsm", test_patients=["ghost", "nobody", "low9"], valid_patients=["low9"])
    assert [fault.split(";")[0] for fault in error.value.faults] == [
        "--test-patients: no patient 'ghost' in table.csv",
        "--test-patients: patient 'nobody' has no label for that part",
        "--test-patients and --valid-patients both name patient 'low9'",
    ]


def test_leave_one_source_out_tests_each_source_alone() -> None:
    cohort = cohort_of([*hospital(6, 6, "a", "a"), *hospital(6, 6, "b", "b"), *hospital(6, 6, "c+c", "c")])
    splits = make_splits(cohort, "lsm", by="source")
    assert splits.scheme == "leave-one-source-out"
    assert [fold.name for fold in splits.folds] == ["source a", "source b", "source c+c"]
    for fold, letter in zip(splits.folds, "abc", strict=True):
        assert {p[0] for p in fold.test} == {letter}
        assert letter not in {p[0] for p in (*fold.train, *fold.valid)}
        assert {p[0] for p in fold.valid} == set("abc") - {letter}


def test_a_patient_of_two_sources_is_never_trained_on_when_either_is_left_out() -> None:
    traveller = {"patient_id": "traveller", "lsm_kpa": 5.0, "source": {"T1W": "a", "T2W": "b"}}
    splits = make_splits(
        cohort_of([*hospital(6, 6, "a", "a"), *hospital(6, 6, "b", "b"), traveller]), "lsm", by="source"
    )
    assert all("traveller" in fold.test for fold in splits.folds)


def test_a_source_that_is_the_class_cannot_be_left_out() -> None:
    cohort = cohort_of(
        [{"patient_id": f"v{i}", "healthy": True, "source": "volunteers"} for i in range(6)]
        + [{"patient_id": f"p{i}", "healthy": False, "source": "hospital"} for i in range(6)]
    )
    with pytest.raises(
        InputError, match=r"source hospital: outside test: class 'patient' has 0 patients.*leave --by out"
    ):
        make_splits(cohort, "healthy", by="source")
    with pytest.raises(InputError, match=r"--by source needs two sources or more.*it has a"):
        make_splits(cohort_of(hospital(6, 6)), "lsm", by="source")


def official(part: str, count: int, **more: Any) -> list[dict[str, Any]]:
    return [{"patient_id": f"{part}{i}", "official_split": part, **more} for i in range(count)]


def test_official_parts_are_used_as_they_are() -> None:
    cohort = cohort_of([*official("train", 8), *official("valid", 2), *official("test", 3), {"patient_id": "other"}])
    splits = make_splits(cohort, "none", official=True)
    assert splits.scheme == "official"
    assert {part: len(ids) for part, ids in splits.folds[0].parts.items()} == {"train": 8, "valid": 2, "test": 3}
    assert all(p.startswith(part) for part, ids in splits.folds[0].parts.items() for p in ids)
    assert splits.excluded == {"other": "no official part"}


def test_the_official_test_part_stays_fixed_while_valid_rotates() -> None:
    for others in (official("train", 9), [{"patient_id": f"p{i}"} for i in range(9)]):
        cohort = cohort_of([*others, *official("test", 3)])
        splits = make_splits(cohort, "none", 3, official=True)
        assert splits.scheme == "fixed-test"
        assert {fold.test for fold in splits.folds} == {("test0", "test1", "test2")}
        assert sorted(p for fold in splits.folds for p in fold.valid) == sorted(p["patient_id"] for p in others)
        assert len(make_splits(cohort, "none", official=True).folds[0].valid) == 2
        assert not splits.excluded


def conflicting() -> Cohort:
    return cohort_of(
        [
            *official("train", 8),
            *official("valid", 2),
            *official("test", 3),
            {"patient_id": "47", "official_split": {"T1W": "valid", "T2W": "train"}},
            {"patient_id": "56", "official_split": {"T1W": "test", "T2W": "valid"}},
        ]
    )


def test_conflicting_official_parts_are_refused_or_resolved() -> None:
    with pytest.raises(InputError) as error:
        make_splits(conflicting(), "none", official=True)
    assert len(error.value.faults) == 2
    assert "patient 47: official parts differ (T1W valid, T2W train)" in error.value.faults[0]
    assert "--resolve test" in error.value.faults[0]
    strict = make_splits(conflicting(), "none", official=True, resolve="test").folds[0]
    assert "47" in strict.valid
    assert "56" in strict.test
    without = make_splits(conflicting(), "none", official=True, resolve="exclude")
    assert without.excluded == {
        "47": "official parts differ: T1W valid, T2W train",
        "56": "official parts differ: T1W test, T2W valid",
    }


def test_official_needs_the_column() -> None:
    with pytest.raises(InputError, match="--official needs the column official_split, which is empty"):
        make_splits(cohort_of(hospital(5, 5)), "lsm", official=True)


def two_stage() -> Cohort:
    """Paper-like: LSM in most, histology in some, a few with both."""
    return cohort_of(
        [{"patient_id": f"lsm{i}", "lsm_kpa": 6.0 + i} for i in range(14)]
        + [{"patient_id": f"histo{i}", "metavir": i % 5} for i in range(10)]
        + [{"patient_id": f"both{i}", "metavir": i % 5, "lsm_kpa": 6.0 + i} for i in range(10)]
    )


def test_training_on_lsm_and_testing_on_histology() -> None:
    cohort = two_stage()
    splits = make_splits(cohort, "lsm", 4, 0, test_rule="metavir")
    assert (splits.rule, splits.test_rule) == ("lsm>12", "metavir>=3")
    assert splits.mismatches(cohort) == []
    assert sorted(p for fold in splits.folds for p in fold.test) == sorted(
        p for p in cohort.patients if not p.startswith("lsm")
    )
    for fold in splits.folds:
        assert not any(p.startswith("histo") for p in (*fold.train, *fold.valid))
        assert {p for p in cohort.patients if p.startswith("lsm")} <= {*fold.train, *fold.valid}
    assert make_splits(cohort, "lsm", 4, 0, test_rule="lsm>12").test_rule is None


def test_two_rules_with_official_parts_list_whoever_lacks_the_label_of_the_part() -> None:
    people = [{"patient_id": f"t{i}", "lsm_kpa": 6.0 + 2 * i, "official_split": "train"} for i in range(9)]
    people += [{"patient_id": f"h{i}", "metavir": i, "official_split": "test"} for i in range(5)]
    people += [{"patient_id": "lost", "lsm_kpa": 9.0, "official_split": "test"}]
    splits = make_splits(cohort_of(people), "lsm", official=True, test_rule="metavir")
    assert splits.folds[0].test == ("h0", "h1", "h2", "h3", "h4")
    assert splits.excluded == {"lost": "officially test, but without the label that part needs"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"folds": 1}, "--folds 1: at least 2; for one fixed split use"),
        ({"folds": 0}, "--folds 0"),
        ({"seed": -1}, "--seed -1"),
        ({"repeats": 0}, "--repeats 0"),
        ({"by": "scanner"}, "--by scanner: only source"),
        ({"by": "source", "official": True}, "--by and --official contradict"),
        ({"by": "source", "repeats": 2}, "can be repeated"),
        ({"valid_patients": ["low9"]}, "--valid-patients without --test-patients"),
        ({"valid_fraction": 1.0}, "--valid-fraction 1: a share between 0 and 1"),
        ({"valid_fraction": float("nan")}, "--valid-fraction nan"),
        ({"test_patients": ["low9"], "valid_patients": ["low8"], "folds": 3}, "named patients make one fold"),
        ({"official": True, "folds": 3, "valid_fraction": 0.1}, "valid rotates"),
        ({"resolve": "test"}, "--resolve is about official parts"),
        ({"resolve": "guess", "official": True}, "--resolve guess"),
        ({"rule": "none", "test_rule": "lsm"}, "both need a target"),
        ({"unlabelled": "guess"}, "--unlabelled guess"),
    ],
)
def test_requests_that_contradict_themselves_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_splits(cohort_of(hospital(8, 8)), **{"rule": "lsm", **options})
