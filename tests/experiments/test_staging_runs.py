"""Staging from a public archive's folder to its report and its submission, through the command line."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from callbacks.run_directory import RunDirectory
from datamodules.cohort import Cohort
from datamodules.patients import PARTS
from datamodules.preprocessing import Preprocessing
from datamodules.records import read_records
from datamodules.splits import Splits, make_splits
from datamodules.staging import StagingDataModule
from experiments.cli import main
from experiments.predict_patients import patient_rows
from experiments.trained_segmenter import load_weights, module_of, saved_config
from tests.datamodules.readers import test_cirrmri
from tests.tiny import ONE_LOGGER, PREPROCESSING, affine_of, phantom, write

SMALL = [
    *PREPROCESSING, *ONE_LOGGER, "--trainer.max_epochs", "1", "--trainer.accelerator", "cpu",
    "--data.init_args.augmentation", "null", "--model.init_args.network.init_args.backbone", "test_resnet",
]  # fmt: skip


def fit(cohort: Path, splits: Path, runs: Path, arm: str, *words: str, configs: tuple[str, ...] = ("staging",)) -> Path:
    """Train one arm through the front door; its run directory."""
    places = ["--data.init_args.cohort", str(cohort), "--data.init_args.splits", str(splits)]
    places += ["--data.init_args.store", str(runs.parent / "store"), "--runs", str(runs), "--arm", arm]
    called = [word for config in configs for word in ("-c", config)]
    assert main(["fit", *called, *places, *SMALL, *words]) == 0
    (run,) = [path.parent for path in (runs / "study" / arm).glob("*/config.yaml")]
    return run


def grown(root: Path, bright: dict[int, float]) -> None:
    """Put a body and a liver into every volume of a reader's tree: by patient, as bright as the stage says."""
    for path in sorted(root.rglob("*_images/*.nii.gz")):
        number = int(path.name.split(".")[0])
        image, liver = phantom(number, bright.get(number, 160.0))
        write(path, image, affine_of("ras"))
        write(path.parent.with_name(path.parent.name.replace("images", "masks")) / path.name, liver, affine_of("ras"))


def test_cirrmri_from_the_folder_to_the_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The archive's own split leaks over sequences; ours does not, and what was tested is what is compared."""
    everyone = sorted({*test_cirrmri.patients(test_cirrmri.T1), *test_cirrmri.patients(test_cirrmri.T2)})
    # few patients: all stages alike
    monkeypatch.setattr(test_cirrmri, "STAGE", {patient: 1 + place % 3 for place, patient in enumerate(everyone)})
    root = test_cirrmri.write_tree(tmp_path / "CirrMRI600+", doubled=False, metadata=".")
    grown(root, {patient: 120.0 + 40 * stage for patient, stage in test_cirrmri.STAGE.items()})
    cohort, splits, runs = tmp_path / "cirrmri.parquet", tmp_path / "stages.json", tmp_path / "runs"
    assert main(["cohort", "cirrmri", str(root), "--out", str(cohort)]) == 0
    # the archive puts patients into train with one sequence and into valid or test with the other
    assert main(["split", "audit", str(cohort)]) == 1
    made = ["split", "make", str(cohort), "--rule", "stage", "--folds", "2", "--seed", "0", "--valid-fraction", "0.3"]
    assert main([*made, "--out", str(splits)]) == 0
    assert main(["split", "audit", str(cohort), "--splits", str(splits)]) == 0
    table = Cohort.load(cohort)
    split = Splits.load(splits, table)
    for fold in split.folds:
        parts = [set(fold.train), set(fold.valid), set(fold.test)]
        assert not (parts[0] & parts[1] or parts[0] & parts[2] or parts[1] & parts[2])
    leaking = set(test_cirrmri.SEVEN)
    sequences = {name: {scan.sequence for scan in table if scan.patient_id == name} for name in leaking}
    assert all(found == {"T1W", "T2W"} for found in sequences.values()), "people who are in two parts of the archive"
    for number in (0, 1):
        run = fit(cohort, splits, runs / f"fold{number}", "both", "--data.init_args.fold", str(number))
        assert main(["test", "--run", str(run)]) == 0
    records = pd.concat([read_records(path) for path in sorted(runs.rglob("predictions.parquet"))])
    labelled = {scan.patient_id for scan in table if scan.stage is not None}
    assert sorted(records["patient_id"]) == sorted(labelled), "each patient once, with all sequences together"
    assert set(records["sequence"]) == {"T1W", "T2W", "T1W+T2W"}
    stages = {scan.patient_id: scan.stage for scan in table}
    assert [stages[name] for name in records["patient_id"]] == [int(target) + 1 for target in records["target"]]
    out = tmp_path / "comparison"
    both = [str(path) for path in runs.glob("*/study/both")]
    assert main(["compare", *both, "--out", str(out), "--resamples", "200"]) == 0
    (found,) = json.loads((out / "comparison.json").read_text())["families"]
    assert (found["kind"], found["patients"], sum(found["class_counts"])) == (
        "multiclass",
        len(labelled),
        len(labelled),
    )
    page = (out / "report.html").read_text(encoding="utf-8")
    assert page.count('<table class="matrix">') == 1
    assert "Each class against the rest" in page


def care_tree(root: Path, patients: int, labelled: bool) -> Path:
    """CARE-Liver's layout with images that can be learned from; cases lack phases in turn."""
    for number in range(1, patients + 1):
        stage = number % 4 + 1
        case = f"{number:04d}-A-S{stage}" if labelled else f"{number:04d}-A"
        phases = ["T1", "T2", "GED4"] if number % 3 else ["T2", "GED4"]
        # one case has the contrast phase alone
        phases = ["GED4"] if number == 7 else phases
        for phase in phases:
            image, _ = phantom(number, 100.0 + 40 * stage)
            write(root / "Vendor_A" / case / f"{phase}.nii.gz", image, affine_of("ras"))
    return root


@pytest.fixture(scope="module")
def care(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A trained model of each setting, and the cohort of an unlabelled tree."""
    folder = tmp_path_factory.mktemp("care")
    labelled, blind = folder / "care.parquet", folder / "blind.parquet"
    assert main(["cohort", "care-liver", str(care_tree(folder / "train", 16, True)), "--out", str(labelled)]) == 0
    assert main(["cohort", "care-liver", str(care_tree(folder / "valid", 7, False)), "--out", str(blind)]) == 0
    splits = folder / "splits.json"
    # test_patients: one a stage, so that validation has all classes as well
    make_splits(Cohort.load(labelled), "metavir1-4", folds=2, seed=0, valid_fraction=0.5).save(splits)
    found = {"blind": blind, "labelled": labelled, "splits": splits}
    for name, sequences in {"plain": "[T1W, T2W]", "contrast": "[T1W, T2W, GED4]"}.items():
        words = ["--data.init_args.sequences", sequences, "--model.init_args.network.init_args.sequences", sequences]
        words += ["--model.init_args.classes", "4", "--model.init_args.network.init_args.classes", "3"]
        words += ["--model.init_args.loss", "lightning_modules.losses.ordinal.CornLoss"]
        found[name] = fit(labelled, splits, folder / name, "corn", *words, "--model.init_args.loss.classes", "4")
    return found


def test_both_tasks_of_care_liver_from_one_ordinal_head(
    care: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["predict", "--run", str(care["plain"]), "--run", str(care["contrast"]), "--data", str(care["blind"])]
    assert main([*words, "--out", str(tmp_path), "--lifs"]) == 2, "one case has no scan without contrast"
    said = capsys.readouterr()
    assert "case '0007-A' has no scan of any sequence that the NonContrast model sees" in said.err
    text = (tmp_path / "LiFS_pred.csv").read_text()
    assert text.splitlines()[0] == "Case,Setting,Subtask1_prob_S4,Subtask2_prob_S1"
    table = pd.read_csv(tmp_path / "LiFS_pred.csv")
    cases = [f"{number:04d}-A" for number in range(1, 8)]
    assert table.loc[table["Setting"] == "Contrast", "Case"].tolist() == cases
    assert table.loc[table["Setting"] == "NonContrast", "Case"].tolist() == cases[:-1]
    numbers = table[["Subtask1_prob_S4", "Subtask2_prob_S1"]].to_numpy()
    assert ((numbers > 0) & (numbers < 1)).all()
    assert (numbers.sum(axis=1) <= 1 + 1e-6).all(), "S4 and S1 are two classes of one model"
    rows = pd.DataFrame(patient_rows(RunDirectory.existing(care["plain"]), "best", care["blind"], None)[0])
    own = table[table["Setting"] == "NonContrast"]
    np.testing.assert_allclose(own["Subtask1_prob_S4"], rows.sort_values("patient_id")["prob_3"], rtol=1e-6)
    np.testing.assert_allclose(own["Subtask2_prob_S1"], rows.sort_values("patient_id")["prob_0"], rtol=1e-6)


def test_models_of_one_setting_are_averaged(care: dict[str, Path], tmp_path: Path) -> None:
    words = ["predict", "--run", str(care["contrast"]), "--data", str(care["blind"]), "--lifs"]
    assert main([*words, "--out", str(tmp_path / "one")]) == 0
    assert main([*words, "--run", str(care["contrast"]), "--out", str(tmp_path / "two")]) == 0
    one, two = (pd.read_csv(tmp_path / name / "LiFS_pred.csv") for name in ("one", "two"))
    pd.testing.assert_frame_equal(one, two)


def test_a_missing_sequence_is_a_masked_one_exactly(care: dict[str, Path], tmp_path: Path) -> None:
    """A patient whose T2W is not in the table is predicted as one whose T2W is there and not ``present``."""
    table = Cohort.load(care["labelled"])
    with_t1 = {scan.patient_id for scan in table if scan.sequence == "T1W"}
    lacking = table.frame[(table.frame["sequence"] != "T2W") | ~table.frame["patient_id"].isin(with_t1)]
    Cohort(lacking.reset_index(drop=True), table.root, "t1").save(tmp_path / "t1.parquet")
    run = RunDirectory.existing(care["plain"])
    module: Any = module_of(saved_config(run))
    load_weights(module, run.checkpoint("best"))
    module.eval()
    alone = examined(tmp_path / "t1.parquet", tmp_path / "store", ("T1W", "T2W"))
    both = examined(care["labelled"], tmp_path / "store", ("T1W", "T2W"))
    turned = examined(care["labelled"], tmp_path / "store", ("T2W", "T1W"))
    complete = [patient for patient, item in both.items() if bool(item["present"].all())]
    assert len(complete) >= 8
    with torch.inference_mode():
        for patient in complete:
            only, hidden = ({key: data[patient][key][None] for key in ("image", "present")} for data in (alone, both))
            assert only["present"].tolist() == [[True, False]]
            assert bool(hidden["image"][0, 1].any()), "T2W is there"
            seen = module.class_logits(hidden)[0]
            hidden["present"] = only["present"]
            assert torch.equal(module.class_logits(hidden)[0], module.class_logits(only)[0])
            assert not torch.equal(module.class_logits(hidden)[0], seen)
        # a batch in which one has T1W, one T2W and one both, in any order; the sequences by name in any order
        mixed = [both[patient] for patient in complete[:3]]
        batch = {key: torch.stack([item[key] for item in mixed]) for key in ("image", "present")}
        batch["present"] = torch.tensor([[True, False], [False, True], [True, True]])
        logits = module.class_logits(batch)[0]
        shuffled = {key: value[[2, 0, 1]] for key, value in batch.items()}
        torch.testing.assert_close(module.class_logits(shuffled)[0], logits[[2, 0, 1]], rtol=1e-5, atol=1e-6)
        other: Any = module_of(swapped_sequences(saved_config(run)))
        load_weights(other, run.checkpoint("best"))
        other.eval()
        batch["image"] = torch.stack([turned[patient]["image"] for patient in complete[:3]])
        batch["present"] = batch["present"].flip(1)
        torch.testing.assert_close(other.class_logits(batch)[0], logits, rtol=1e-5, atol=1e-6)


def examined(cohort: Path, store: Path, sequences: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """Every examination of a table as it reaches the batch, by patient."""
    grid = Preprocessing(spacing=(10.0, 10.0, 20.0), shape=(24, 24, 8))
    splits = cohort.with_suffix(".json")
    make_splits(Cohort.load(cohort), "metavir1-4", folds=2, seed=0, valid_fraction=0.5).save(splits)
    data = StagingDataModule(str(cohort), str(splits), str(store), grid, sequences)
    data.prepare_data()
    items: list[dict[str, Any]] = []
    for part in PARTS:
        items += [data.dataset(part)[index] for index in range(len(data.items(part)))]
    return {item["patient_id"]: item for item in items}


def swapped_sequences(config: dict[str, Any]) -> dict[str, Any]:
    """A configuration whose network names T2W before T1W."""
    swapped = copy.deepcopy(config)
    swapped["model"]["init_args"]["network"]["init_args"]["sequences"] = ["T2W", "T1W"]
    return swapped
