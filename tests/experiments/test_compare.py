from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import cohen_kappa_score, roc_auc_score

from datamodules.errors import InputError
from datamodules.records import read_records, write_records
from experiments.commands.compare import parse_map, register
from experiments.compare import compare
from experiments.compare_metrics import BY_CLASS
from experiments.compare_tables import as_csv
from experiments.statistics import delong_test, wilson_interval
from tests.experiments.study import add_segmenter, make_study

QUICK = 300


def rows_of(study: Path, arm: str) -> pd.DataFrame:
    return pd.concat([read_records(path) for path in sorted(study.glob(f"{arm}/*/predictions.parquet"))])


def change(study: Path, pattern: str, **columns: object) -> None:
    for path in study.glob(pattern + "/predictions.parquet"):
        write_records(read_records(path).assign(**columns), path)  # type: ignore[arg-type]  # any column may be set


def test_one_seed_is_pooled_over_folds_and_tested_by_delong(tmp_path: Path) -> None:
    study = make_study(tmp_path, seeds=1)
    (found,) = compare([study], resamples=QUICK).families
    first, second = (rows_of(study, arm).sort_values("patient_id") for arm in ("segmentation_first", "direct"))
    target = first["target"].to_numpy(dtype=int)
    assert found.reference == "direct"
    for arm, rows in (("segmentation_first", first), ("direct", second)):
        result = found.result(arm)
        assert result.pooling == "pooled over folds"
        area = result.metrics["auc"]
        assert area is not None
        assert area.estimate == pytest.approx(roc_auc_score(target, rows["prob"]))
        assert area.low < area.estimate < area.high
        right = int((rows["prob"].to_numpy() >= 0.5).astype(int)[target == 1].sum())
        sensitivity = result.metrics["sensitivity"]
        assert sensitivity is not None
        assert list(sensitivity) == pytest.approx(list(wilson_interval(right, int(target.sum()))))
    (item,) = found.differences
    expected = delong_test(target, first["prob"], second["prob"])
    assert item.test == "DeLong"
    assert item.p_value == pytest.approx(expected.p_value)
    assert item.interval.estimate == pytest.approx(expected.auc_a - expected.auc_b)
    assert found.majority == 0.5


def test_a_fixed_test_set_is_averaged_over_folds(tmp_path: Path) -> None:
    study = make_study(tmp_path, fixed_test=True, seeds=1)
    (found,) = compare([study], resamples=QUICK).families
    mean = rows_of(study, "direct").groupby("patient_id")[["target", "prob"]].mean()
    area = found.result("direct").metrics["auc"]
    assert area is not None
    assert area.estimate == pytest.approx(roc_auc_score(mean["target"], mean["prob"]))
    assert found.result("direct").pooling == "averaged over folds"


def test_all_seeds_are_shown_and_the_arm_is_their_mean(tmp_path: Path) -> None:
    (found,) = compare([make_study(tmp_path, seeds=3)], resamples=QUICK).families
    result = found.result("segmentation_first")
    areas = [values["auc"].estimate for values in result.per_seed if values["auc"] is not None]
    assert result.seeds == [0, 1, 2]
    assert result.metrics["auc"] is not None
    assert result.metrics["auc"].estimate == pytest.approx(np.mean(areas))
    assert found.differences[0].test == "bootstrap"
    assert [seed for seed, _ in found.differences[0].mcnemar] == [0, 1, 2]


def test_differences_are_adjusted_over_their_family_and_probes_stay_outside(tmp_path: Path) -> None:
    strengths = {"direct": 1.0, "masked": 2.2, "two_channel": 1.2, "probe_outside": 2.0, "probe_shape": 0.0}
    (found,) = compare([make_study(tmp_path, seeds=1, strengths=strengths)], resamples=QUICK).families
    assert [item.arm for item in found.differences] == ["masked", "two_channel"]
    raw = sorted(item.p_value for item in found.differences)
    assert sorted(item.p_holm for item in found.differences) == pytest.approx([2 * raw[0], max(2 * raw[0], raw[1])])
    assert (found.result("probe_outside").light, found.result("probe_shape").light) == ("red", "green")
    assert any("gives the label away" in sentence for sentence in found.sentences)


def test_a_probe_may_predict_another_target(tmp_path: Path) -> None:
    study = make_study(tmp_path, seeds=1, strengths={"direct": 1.0, "source_predictor": 1.0})
    change(study, "source_predictor/*", role="probe")
    for path in study.glob("source_predictor/*/predictions.parquet"):
        rows = read_records(path)
        write_records(rows.assign(target=(rows["source"] == "site B").astype(int)), path)
    (found,) = compare([study], resamples=QUICK).families
    assert found.result("source_predictor").note == "predicts another target"
    assert found.result("source_predictor").metrics["auc"] is not None


def test_the_same_call_gives_the_same_answer(tmp_path: Path) -> None:
    study = make_study(tmp_path, patients=24)
    first, second = (json.dumps(compare([study], resamples=QUICK).as_json()) for _ in range(2))
    assert first == second
    assert json.dumps(compare([study], resamples=QUICK, seed=1).as_json()) != first


def test_several_classes(tmp_path: Path) -> None:
    study = make_study(tmp_path, classes=3, seeds=1, patients=90)
    (found,) = compare([study], resamples=QUICK).families
    rows = rows_of(study, "direct")
    called = rows[["prob_0", "prob_1", "prob_2"]].to_numpy().argmax(axis=1)
    kappa = found.result("direct").metrics["kappa"]
    assert kappa is not None
    assert kappa.estimate == pytest.approx(cohen_kappa_score(rows["target"].astype(int), called, weights="quadratic"))
    assert set(found.result("direct").metrics) == {"kappa", "accuracy", "macro_f1", "auc_ovr", "mae_stages"}
    assert found.majority == pytest.approx(1 / 3)
    truth = rows["target"].to_numpy(dtype=int)
    assert len(found.result("direct").by_class) == 3
    for index, values in enumerate(found.result("direct").by_class):
        member, said = truth == index, called == index
        hits, passed = int((member & said).sum()), int((~member & ~said).sum())
        # one seed: the closed forms
        assert values["sensitivity"] == wilson_interval(hits, int(member.sum()))
        assert values["specificity"] == wilson_interval(passed, int((~member).sum()))
        area = values["auc"]
        assert area is not None and area.low < area.estimate < area.high
        assert area.estimate == pytest.approx(roc_auc_score(member, rows[f"prob_{index}"]))
    # in this study each band holds one stage only: kappa says nothing there, and 0 would be a lie
    bands = [item for item in found.strata if item.variable == "quality"]
    assert len(bands) == 3
    assert all(set(item.intervals.values()) == {None} and "one class" in item.reason for item in bands)


def test_each_class_of_several_seeds_and_one_that_is_always_right(tmp_path: Path) -> None:
    study = make_study(tmp_path, classes=3, seeds=2, folds=1, patients=60, strengths={"direct": 1.0, "sure": 40.0})
    comparison = compare([study], resamples=QUICK)
    (found,) = comparison.families
    for values in found.result("direct").by_class:
        assert all(value is not None and value.low < value.estimate < value.high for value in values.values())
    for values in found.result("sure").by_class:
        # all resamples agree: a closed form still says how sure one may be
        assert all(value is not None and value.estimate == 1 and 0.7 < value.low < 1 for value in values.values())
    table = as_csv(comparison)
    assert all(f"direct,reference,mean,60,{name}_{index}," in table for name in BY_CLASS for index in range(3))


def test_strata_stand_beside_the_pooled_result_and_one_class_is_not_estimable(tmp_path: Path) -> None:
    study = make_study(tmp_path, seeds=1)
    for path in study.glob("*/*/predictions.parquet"):
        rows = read_records(path)
        write_records(rows.assign(source=rows["source"].where(rows["target"] == 0, "site A")), path)
    (found,) = compare([study], resamples=QUICK).families
    by_source = {item.value: item for item in found.strata if item.variable == "source"}
    assert set(by_source["site B"].intervals.values()) == {None}
    assert by_source["site B"].reason == "not estimable: one class only"
    assert all(value is not None for value in by_source["site A"].intervals.values())
    # the direct arm saw no mask: its rows borrow the scan's band
    bands = [item for item in found.strata if item.variable == "quality"]
    assert [item.value for item in bands] == ["band 1", "band 2", "band 3"]
    assert all(set(item.intervals) == {"direct", "segmentation_first"} for item in bands)
    assert sum(item.patients for item in bands) == 60


def test_a_small_set_is_called_small(tmp_path: Path) -> None:
    (found,) = compare([make_study(tmp_path, patients=24, folds=2)], resamples=QUICK).families
    assert "small test set: 24 patients (12 positive, 12 negative)" in found.sentences[-1]


def test_segmentation_arms_have_their_own_table(tmp_path: Path) -> None:
    study = make_study(tmp_path, seeds=1)
    add_segmenter(study)
    add_segmenter(study, "weaker", shift=0.05)
    classes, masks = compare([study], resamples=QUICK).families
    assert (classes.family.kind, masks.family.kind) == ("binary", "segmentation")
    rows = rows_of(study, "segmenter")
    dice = masks.result("segmenter").metrics["dice"]
    assert dice is not None
    assert dice.estimate == pytest.approx(rows["dice"].mean())
    median = masks.result("segmenter").medians["dice"]
    assert median is not None
    assert median.low <= rows["dice"].median() <= median.high
    assert masks.differences[0].test == "Wilcoxon"
    assert masks.worst[0]["dice"] == rows_of(study, "weaker")["dice"].min()


def test_other_splits_are_refused(tmp_path: Path) -> None:
    study = make_study(tmp_path, seeds=1)
    change(study, "direct/fold0seed0", split_sha256="ff" * 32)
    with pytest.raises(InputError, match=r"trained on different splits: .* ffffffffffff in direct"):
        compare([study], resamples=QUICK)


def test_other_targets_are_refused(tmp_path: Path) -> None:
    study = make_study(tmp_path, seeds=1)
    change(study, "direct/fold0seed0", target=0)
    with pytest.raises(InputError, match=r"10 patients have different targets in different arms \(P001, "):
        compare([study], resamples=QUICK)


def test_doubled_rows_are_refused(tmp_path: Path) -> None:
    study = make_study(tmp_path, seeds=1)
    first, second = (study / "direct" / f"fold{fold}seed0" / "predictions.parquet" for fold in (0, 1))
    write_records(read_records(first), second)
    with pytest.raises(InputError, match=r"arm direct: 20 patients have doubled rows .* \(P000, P001"):
        compare([study], resamples=QUICK)


def test_missing_patients_are_listed(tmp_path: Path) -> None:
    study = make_study(tmp_path, seeds=1)
    path = study / "direct" / "fold0seed0" / "predictions.parquet"
    rows = read_records(path)
    write_records(rows[~rows["patient_id"].isin(["P000", "P006"])], path)
    with pytest.raises(InputError, match=r"arm direct, seed 0: 2 patients .* missing \(P000, P006\)"):
        compare([study], resamples=QUICK)


def test_folds_that_share_some_patients_are_refused(tmp_path: Path) -> None:
    study = make_study(tmp_path, seeds=1)
    first, second = (study / "direct" / f"fold{fold}seed0" / "predictions.parquet" for fold in (0, 1))
    extra = read_records(first).head(1).assign(fold=1)
    write_records(pd.concat([read_records(second), extra]), second)
    with pytest.raises(InputError, match=r"folds share some test patients but not all \(P000\)"):
        compare([study], resamples=QUICK)


def test_a_nan_probability_is_refused(tmp_path: Path) -> None:
    study = make_study(tmp_path, seeds=1)
    path = study / "direct" / "fold0seed0" / "predictions.parquet"
    rows = pd.read_parquet(path)
    rows.loc[0, "prob"] = np.nan
    rows.to_parquet(path)
    with pytest.raises(InputError, match=r"row 1 \(patient P000\): prob is NaN"):
        compare([study], resamples=QUICK)


def test_another_groups_table_is_a_row(tmp_path: Path) -> None:
    study = make_study(tmp_path, seeds=1)
    rows = rows_of(study, "direct")
    theirs = pd.DataFrame({"case": rows["patient_id"], "label": rows["target"], "score": 0.5, "site": "x"})
    theirs.to_csv(tmp_path / "theirs.csv", index=False)
    mapping = parse_map("prob=score,target=label,patient_id=case")
    comparison = compare([study, tmp_path / "theirs.csv"], resamples=QUICK, mapping=mapping, threshold=0.5)
    (found,) = comparison.families
    area = found.result("theirs").metrics["auc"]
    assert area is not None
    assert area.estimate == 0.5
    assert any("theirs.csv does not say arm" in note for note in comparison.notes)
    assert any("columns not used: site" in note for note in comparison.notes)
    with pytest.raises(InputError, match="no column nothing"):
        compare([tmp_path / "theirs.csv"], mapping={"prob": "nothing"})


def test_a_perfect_arm_still_has_an_interval(tmp_path: Path) -> None:
    study = make_study(tmp_path, seeds=1, patients=24, strengths={"direct": 60.0, "masked": 1.0})
    (found,) = compare([study], resamples=QUICK).families
    area = found.result("direct").metrics["auc"]
    assert area is not None
    assert (area.estimate, area.high, area.method) == (1.0, 1.0, "Newcombe method 5")
    assert 0.7 < area.low < 0.99


def test_a_margin_is_judged_by_the_interval(tmp_path: Path) -> None:
    study = make_study(tmp_path, seeds=1)
    for margin in (0.001, 0.9):
        (found,) = compare([study], resamples=QUICK, margin=margin, reference="segmentation_first").families
        judged = found.differences[0].non_inferiority
        assert judged is not None
        assert judged.shown == (found.differences[0].interval.low > -margin) == (margin == 0.9)
        assert f"worse by less than {margin:g}" in found.sentences[0]


def test_bad_requests_are_named(tmp_path: Path) -> None:
    study = make_study(tmp_path, seeds=1, patients=12, folds=2)
    with pytest.raises(InputError, match=r"--reference dirct: no such arm; there are direct"):
        compare([study], reference="dirct")
    with pytest.raises(InputError, match=r"no predictions\.parquet below it"):
        compare([_empty(tmp_path)])
    with pytest.raises(InputError) as error:
        compare([study], level=95, resamples=3, metric="acu", margin=-1)
    assert len(error.value.faults) == 4
    with pytest.raises(InputError, match="--map prob"):
        parse_map("prob")


def _empty(folder: Path) -> Path:
    (folder / "empty").mkdir()
    return folder / "empty"


def test_the_command_writes_all_files_and_imports_no_torch(tmp_path: Path) -> None:
    study = make_study(tmp_path, patients=24, folds=2)
    script = (
        "import argparse, sys\n"
        "from experiments.commands.compare import register\n"
        "assert 'numpy' not in sys.modules, 'the parser alone must stay light'\n"
        "parser = argparse.ArgumentParser(); register(parser.add_subparsers())\n"
        "args = parser.parse_args(sys.argv[1:]); code = args.run(args)\n"
        "assert 'torch' not in sys.modules\n"
        "sys.exit(code)\n"
    )
    out = tmp_path / "out"
    done = subprocess.run(
        [sys.executable, "-c", script, "compare", str(study), "--out", str(out), "--resamples", "200"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    names = {"report.html", "table.csv", "table.md", "table.tex", "comparison.json"}
    assert names <= {path.name for path in out.iterdir()}
    assert not list(out.rglob(".writing-*"))
    assert "segmentation_first" in done.stdout
    content = json.loads((out / "comparison.json").read_text())
    assert content["families"][0]["arms"][0]["arm"] == "direct"
    table = pd.read_csv(out / "table.csv")
    assert set(table["seed"]) == {"mean", "0", "1"}
    latex = (out / "table.tex").read_text()
    assert r"\toprule" in latex
    assert r"segmentation\_first" in latex


def test_the_parser_takes_no_abbreviation() -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    register(parser.add_subparsers())
    with pytest.raises(SystemExit):
        parser.parse_args(["compare", "x", "--out", "y", "--resample", "5"])
