"""The metric against the Dice of the masks, signed ranks of segmenters, and arms of several studies."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score

from datamodules.records import read_records, write_records
from experiments.compare import compare
from experiments.compare_provenance import totals
from experiments.compare_tables import as_csv, as_markdown
from experiments.statistics import auc_interval, delong_test, holm, square_and_add_interval
from tests.experiments.study import add_segmenter, make_study

QUICK = 200


def all_rows(study: Path, arm: str) -> pd.DataFrame:
    return pd.concat([read_records(path) for path in sorted(study.glob(f"{arm}/*/predictions.parquet"))])


def test_each_arm_stands_against_the_dice_of_its_masks(tmp_path: Path) -> None:
    study = make_study(tmp_path, seeds=1)
    (found,) = compare([study], resamples=QUICK).families
    rows = all_rows(study, "segmentation_first").sort_values("mask_dice")
    points = [point for point in found.mask_points if point.arm == "segmentation_first"]
    assert [point.part for point in points] == [0, 1, 2, 3]
    assert points[0].dice == pytest.approx(rows["mask_dice"].mean())
    assert all(point.masked and point.mask_source == "out_of_fold" for point in points)
    worst = rows.head(20)
    assert points[1].dice == pytest.approx(worst["mask_dice"].mean())
    assert points[1].interval is not None
    assert points[1].interval.estimate == pytest.approx(roc_auc_score(worst["target"].astype(int), worst["prob"]))
    # the arm without masks borrows the Dice of the same scans, and says so
    direct = [point for point in found.mask_points if point.arm == "direct"]
    assert [point.dice for point in direct] == pytest.approx([point.dice for point in points])
    assert not any(point.masked for point in direct)


def test_reference_masks_have_a_dice_of_one_and_without_any_dice_nothing_is_drawn(tmp_path: Path) -> None:
    study = make_study(tmp_path, seeds=1, strengths={"direct": 1.0, "masked": 1.5, "reference_masks": 2.0})
    for path in study.glob("reference_masks/*/predictions.parquet"):
        write_records(read_records(path).assign(mask_source="reference", mask_dice=np.nan), path)
    (found,) = compare([study], resamples=QUICK).families
    (point,) = [point for point in found.mask_points if point.arm == "reference_masks"]
    assert (point.dice, point.part, point.patients) == (1.0, 0, 60)
    for path in study.glob("*/*/predictions.parquet"):
        write_records(read_records(path).drop(columns="mask_dice"), path)
    assert compare([study], resamples=QUICK).families[0].mask_points == []


def test_masks_that_were_perturbed_say_nothing_of_who_is_hard_to_segment(tmp_path: Path) -> None:
    study = make_study(tmp_path, seeds=1, strengths={"direct": 1.0, "masked": 1.5, "worse": 1.2})
    for path in study.glob("worse/*/predictions.parquet"):
        rows = read_records(path)
        write_records(rows.assign(mask_source="perturbed", mask_dice=0.6, quality=1), path)
    (found,) = compare([study], resamples=QUICK).families
    points = {point.arm: point for point in found.mask_points if point.part == 0}
    assert points["worse"].dice == pytest.approx(0.6)
    assert points["direct"].dice == pytest.approx(points["masked"].dice), "not the mean with the worse masks"
    bands = [item for item in found.strata if item.variable == "quality"]
    assert [item.patients for item in bands] == [20, 20, 20], "the same patients for all arms"
    assert all(set(item.intervals) == {"direct", "masked", "worse"} for item in bands)


def test_every_measurement_of_a_segmenter_is_tested_by_signed_ranks(tmp_path: Path) -> None:
    study = make_study(tmp_path, seeds=1)
    add_segmenter(study)
    add_segmenter(study, "weaker", shift=0.05)
    for path in study.glob("weaker/*/predictions.parquet"):
        rows = read_records(path)
        noise = np.random.default_rng(len(rows)).normal(0, 0.03, len(rows))
        dice = (rows["dice"] + noise).clip(0, 1)
        write_records(rows.assign(dice=dice, hd95_mm=80 * (1 - dice), assd_mm=20 * (1 - dice)), path)
    found = compare([study], resamples=QUICK).families[1]
    ours, base = (all_rows(study, arm).sort_values("patient_id") for arm in ("weaker", "segmenter"))
    by_metric = {row.metric: row for row in found.ranks}
    assert set(by_metric) == {"dice", "iou", "hd95_mm", "assd_mm", "volume_error_ml"}
    for name in ("dice", "hd95_mm", "assd_mm"):
        tested = stats.wilcoxon(ours[name].to_numpy() - base[name].to_numpy())
        assert by_metric[name].ranks.p_value == pytest.approx(tested.pvalue)
        assert by_metric[name].better is False, "a longer distance is worse, and so is a lower Dice"
    assert by_metric["hd95_mm"].ranks.effect > 0 > by_metric["dice"].ranks.effect
    adjusted = holm([row.ranks.p_value for row in found.ranks])
    assert [row.p_holm for row in found.ranks] == pytest.approx(list(adjusted))


def test_the_interval_of_a_difference_is_built_from_both_intervals(tmp_path: Path) -> None:
    study = make_study(tmp_path, seeds=1, strengths={"direct": 1.0, "masked": 4.0})
    (found,) = compare([study], resamples=QUICK).families
    first, second = (all_rows(study, arm).sort_values("patient_id") for arm in ("masked", "direct"))
    target = first["target"].to_numpy(dtype=int)
    ends = [auc_interval(target, rows["prob"]) for rows in (first, second)]
    expected = square_and_add_interval(ends[0], ends[1], delong_test(target, first["prob"], second["prob"]).correlation)
    (item,) = found.differences
    assert list(item.interval) == pytest.approx(list(expected))
    assert "square and add" in item.interval.method
    area = found.result("masked").metrics["auc"]
    assert area is not None and list(area) == pytest.approx(list(ends[0]))


def test_two_arms_that_rank_alike_differ_by_nothing(tmp_path: Path) -> None:
    study = make_study(tmp_path, seeds=1)
    for path in study.glob("segmentation_first/*/predictions.parquet"):
        twin = read_records(Path(str(path).replace("segmentation_first", "direct")))
        write_records(read_records(path).assign(prob=twin["prob"] ** 2), path)
    (item,) = compare([study], resamples=QUICK).families[0].differences
    assert (item.interval.estimate, item.interval.low, item.interval.high, item.p_value) == (0, 0, 0, 1)


def test_operating_points_calibration_and_brier_parts_are_in_every_table(tmp_path: Path) -> None:
    comparison = compare([make_study(tmp_path)], resamples=QUICK)
    result = comparison.families[0].result("direct")
    assert result.brier_parts is not None and result.calibration is not None and result.metrics["brier"] is not None
    parts = result.brier_parts
    assert parts.reliability - parts.resolution + parts.uncertainty == pytest.approx(
        result.metrics["brier"].estimate, abs=0.02
    )
    text = as_markdown(comparison)
    for words in ("Sensitivity at 90 % specificity", "Calibration slope", "Brier reliability", "McNemar, exact"):
        assert words in text
    table = pd.read_csv(io.StringIO(as_csv(comparison)))
    slope = table[(table["metric"] == "calibration_slope") & (table["arm"] == "direct")].iloc[0]
    assert slope["low"] < slope["estimate"] < slope["high"]
    assert {"sensitivity_at_90_specificity", "calibration_intercept", "brier_resolution"} <= set(table["metric"])


def test_a_perfect_arm_has_no_point_for_an_interval(tmp_path: Path) -> None:
    study = make_study(tmp_path, seeds=1, patients=24, strengths={"direct": 60.0, "masked": 1.0})
    result = compare([study], resamples=QUICK).families[0].result("direct")
    fixed = result.metrics["sensitivity_at_90_specificity"]
    assert fixed is not None and fixed.estimate == 1.0 and fixed.low < 0.9
    staged = make_study(tmp_path, seeds=1, patients=24, classes=3, name="staged", strengths={"direct": 60.0})
    kappa = compare([staged], resamples=QUICK).families[0].result("direct").metrics["kappa"]
    assert kappa is not None and kappa.estimate == 1.0 and np.isnan(kappa.low)


def test_a_fixed_specificity_of_few_negatives_is_not_estimable(tmp_path: Path) -> None:
    comparison = compare([make_study(tmp_path, seeds=1, patients=18, folds=1)], resamples=QUICK)
    assert "sensitivity_at_90_specificity" not in comparison.families[0].result("direct").metrics
    assert "not estimable" in as_markdown(comparison)


def test_arms_of_several_studies_stand_side_by_side(tmp_path: Path) -> None:
    first = make_study(tmp_path, seeds=1, name="one")
    second = make_study(tmp_path, seeds=1, name="two", strengths={"direct": 1.4, "masked": 2.0})
    comparison = compare([first, second], resamples=QUICK)
    (found,) = comparison.families
    assert {arm.arm for arm in found.arms} == {"one/direct", "one/segmentation_first", "two/direct", "two/masked"}
    assert (comparison.title, found.reference) == ("one, two", "one/direct")
    assert len(found.differences) == 3, "one family: Holm's rule counts the arms of both studies"


def test_a_patient_with_several_scans_counts_once(tmp_path: Path) -> None:
    study = make_study(tmp_path, seeds=1)
    single = compare([study], resamples=QUICK).families[0]
    for path in study.glob("*/*/predictions.parquet"):
        rows = read_records(path)
        again = rows.assign(scan_id=rows["patient_id"] + "_T1W", sequence="T1W")
        write_records(pd.concat([rows, again]), path)
    double = compare([study], resamples=QUICK).families[0]
    assert double.counts == single.counts == [30, 30]
    for name, value in single.result("direct").metrics.items():
        other = double.result("direct").metrics[name]
        assert value is not None and other is not None
        assert (other.low, other.high) == pytest.approx((value.low, value.high)), "copies add no certainty"
    # by sequence every scan counts, patients still once in each
    assert [item.patients for item in double.strata if item.variable == "sequence"] == [60, 60]


def test_hours_and_energy_are_summed_over_runs(tmp_path: Path) -> None:
    study = make_study(tmp_path, seeds=1)
    for path in study.glob("direct/*/done.json"):
        done = json.loads(path.read_text())
        done["fit"]["energy_kwh"] = 0.5
        path.write_text(json.dumps(done))
    comparison = compare([study], resamples=QUICK)
    assert [record["hours"] for record in comparison.provenance] == [0.5] * 6
    (_, hours), (_, energy) = totals(comparison.provenance)
    assert hours.startswith("3.0 h, from start to end")
    assert energy == "1.5 kWh (3 of 6 runs), measured"
    assert totals([]) == []
