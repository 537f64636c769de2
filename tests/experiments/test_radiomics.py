"""The radiomics baseline from the command line to the comparison."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from callbacks.run_directory import RunDirectory
from datamodules.cohort import Cohort
from datamodules.files import sha256_of_file
from datamodules.masks import MaskRecord, MaskSet, Segmenter
from datamodules.records import read_records
from datamodules.splits import make_splits
from experiments import radiomics_table
from experiments.cli import main
from tests.tiny import SPACING, TESTED, WITHOUT_T1W, Tiny

CHEAP = [
    "--spacing",
    "native",
    "--normalisation",
    "none",
    "--families",
    "shape,firstorder",
    "--wavelet",
    "none",
    "--log-sigma",
    "none",
]
ONE = [*CHEAP, "--model", "logistic", "--workers", "1", "--no-progress"]


@pytest.fixture(scope="module")
def study(tiny_cohort: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All three models on one fold of the tiny cohort, T1W and T2W."""
    out = tmp_path_factory.mktemp("radiomics") / "liver"
    words = ["radiomics", str(tiny_cohort.cohort), "--splits", str(tiny_cohort.splits), "--out", str(out)]
    assert main([*words, *CHEAP, "--fold", "0", "--workers", "1", "--no-progress"]) == 0
    return out


def test_what_a_network_leaves_it_leaves(study: Path, tiny_cohort: Tiny) -> None:
    runs = [RunDirectory(path.parent) for path in study.glob("*/*/done.json")]
    assert len(runs) == 3
    for run in runs:
        assert run.identity().study == "liver" and run.identity().cell == run.path.name
        assert set(run.finished()) == {"fit", "test"}
        rows = read_records(run.predictions)
        assert sorted(rows["patient_id"]) == sorted(TESTED) and set(rows["mask_source"]) == {"reference"}
        assert set(rows["split_sha256"]) == {tiny_cohort.split.sha256}
        held = read_records(run.validation)
        assert set(held["part"]) == {"valid"} and not set(held["patient_id"]) & set(TESTED)
        model = json.loads((run.path / "model.json").read_text())
        assert rows["threshold"].unique().tolist() == [model["threshold"]]
        assert model["features"] and all(name[:4] in ("T1W_", "T2W_", "pres") for name in model["features"])
        odd = {patient: int(patient[1:]) % 2 for patient in TESTED}
        assert dict(zip(rows["patient_id"], rows["target"], strict=True)) == odd
    assert main(["compare", str(study), "--out", str(study / "comparison"), "--resamples", "200"]) == 0
    found = json.loads((study / "comparison" / "comparison.json").read_text())
    (family,) = found["families"]
    assert {arm["arm"] for arm in family["arms"]} == {f"radiomics-{m}" for m in ("logistic", "forest", "boosting")}


def test_kept_features_are_those_of_the_voxels(study: Path, tiny_cohort: Tiny) -> None:
    table = pd.read_parquet(study / "radiomics" / "features.parquet")
    means = []
    for scan in tiny_cohort.table:
        assert scan.mask is not None
        inside = np.asarray(nib.load(scan.mask).dataobj) > 0
        means.append(float(np.asarray(nib.load(scan.image).dataobj)[inside].mean()))
    np.testing.assert_allclose(sorted(table["stat_mean"]), sorted(means), rtol=1e-4)
    voxels = table["morph_vol_approx"].to_numpy() / float(np.prod(SPACING))
    np.testing.assert_allclose(voxels, voxels.round(), atol=0.01)


def test_a_second_run_computes_nothing(
    study: Path, tiny_cohort: Tiny, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def never(*_: object) -> None:
        raise AssertionError("a feature was computed again")

    monkeypatch.setattr(radiomics_table, "features_of", never)
    words = ["radiomics", str(tiny_cohort.cohort), "--splits", str(tiny_cohort.splits), "--out", str(study)]
    assert main([*words, *ONE, "--fold", "0"]) == 0
    said = capsys.readouterr().out
    assert "0 computed now" in said and said.count("done before") == 1
    assert "1 of 12 examinations have no T1W" in said and WITHOUT_T1W in tiny_cohort.table.patients
    table = pd.read_parquet(study / "radiomics" / "features.parquet")
    assert len(table) == 23 and table["key"].is_unique and not list((study / "radiomics" / "parts").iterdir())


def test_stages_of_one_sequence(study: Path, tiny_cohort: Tiny, tmp_path: Path) -> None:
    splits = tmp_path / "splits.json"
    make_splits(tiny_cohort.table, "stage", folds=4, seed=0).save(splits)
    words = ["radiomics", str(tiny_cohort.cohort), "--splits", str(splits), "--out", str(tmp_path / "stages")]
    # features of the other study are found by their content
    assert main([*words, *ONE, "--sequence", "T2W", "--fold", "1", "--features", str(study / "radiomics")]) == 0
    (path,) = tmp_path.glob("stages/*/*/predictions.parquet")
    rows = read_records(path)
    assert {"prob_0", "prob_1", "prob_2"} <= set(rows) and "prob" not in rows
    assert set(rows["sequence"]) == {"T2W"} and set(rows["target"]) <= {0, 1, 2}
    assert RunDirectory(path.parent).identity().role == "staging"


def predicted_masks(tiny: Tiny, folder: Path, trained_on: tuple[str, ...], empty: str = "") -> Path:
    """The reference masks of T2W, recorded as one segmenter's; one scan's may be emptied."""
    folder.mkdir()
    masks = {}
    for scan in tiny.table.select(sequences=["T2W"]):
        assert scan.mask is not None
        file = folder / f"{scan.scan_id}.nii.gz"
        image = nib.load(scan.mask)
        data = np.asarray(image.dataobj) * (scan.scan_id != empty)
        nib.save(nib.Nifti1Image(data.astype(np.uint8), image.affine), file)
        masks[scan.scan_id] = MaskRecord(file.name, sha256_of_file(file), ("c" * 64,), 0.9, 2, "reference")
    MaskSet(folder, {"c" * 64: Segmenter("s", "a", 0, "f" * 64, trained_on)}, masks).save()
    return folder


def test_masks_that_leak_are_refused(tiny_cohort: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    masks = predicted_masks(tiny_cohort, tmp_path / "masks", ("P01",))
    words = ["radiomics", str(tiny_cohort.cohort), "--splits", str(tiny_cohort.splits), "--out", str(tmp_path / "o")]
    assert main([*words, *ONE, "--sequence", "T2W", "--masks", str(masks)]) == 2
    assert "the mask of patient 'P01'" in capsys.readouterr().err
    assert not (tmp_path / "o").exists(), "nothing is computed before"
    assert main([*words, *ONE, "--mask-source", "reference", "--masks", str(masks)]) == 2
    assert main([*words, *ONE, "--mask-source", "out_of_fold"]) == 2


def test_an_empty_mask_is_said_and_recorded(
    tiny_cohort: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    masks = predicted_masks(tiny_cohort, tmp_path / "masks", (), empty="P03_T2W")
    words = ["radiomics", str(tiny_cohort.cohort), "--splits", str(tiny_cohort.splits), "--out", str(tmp_path / "o")]
    assert main([*words, *ONE, "--sequence", "T2W", "--fold", "0", "--masks", str(masks)]) == 0
    assert "1 examinations with an empty mask have no features of it: P03_T2W" in capsys.readouterr().out
    (path,) = tmp_path.glob("o/*/*/predictions.parquet")
    rows = read_records(path).set_index("patient_id")
    assert rows["x_empty_mask"].to_dict() == {patient: patient == "P03" for patient in TESTED}
    assert set(rows["mask_source"]) == {"out_of_fold"} and set(rows["quality"]) == {2}


def test_wrong_requests(tiny_cohort: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bare = tiny_cohort.table
    frame = bare.frame.assign(mask=None, mask_labels=None)
    Cohort(frame, bare.root).save(tmp_path / "bare.parquet")
    make_splits(Cohort.load(tmp_path / "bare.parquet"), "lsm>12", folds=2).save(tmp_path / "splits.json")
    words = ["radiomics", str(tmp_path / "bare.parquet"), "--splits", str(tmp_path / "splits.json")]
    assert main([*words, "--out", str(tmp_path / "o"), *ONE]) == 2
    assert "scan 'P01_T1W' has no reference mask" in capsys.readouterr().err
    words = ["radiomics", str(tiny_cohort.cohort), "--splits", str(tiny_cohort.splits), "--out", str(tmp_path / "o")]
    assert main([*words, *ONE, "--fold", "7"]) == 2
    assert "folds 0 to 1" in capsys.readouterr().err
    assert main([*words, *ONE, "--arm", "a/b"]) == 2
    assert main([*words, *ONE, "--workers", "0"]) == 2


def test_the_baseline_needs_no_torch() -> None:
    code = "import experiments.radiomics, sys; assert 'torch' not in sys.modules and 'mirp' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
