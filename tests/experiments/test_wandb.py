"""A study with the shipped loggers, offline, read back from disk: configuration, summary, media and lineage."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from callbacks.run_directory import RunDirectory
from datamodules.files import sha256_of_file
from datamodules.records import read_records
from experiments.cli import main
from experiments.lightning_cli import fit_and_test, run_command
from tests.experiments.wandb_disk import OnDisk, folders, offline, read_back, without_one_logger
from tests.tiny import CLASSIFIER, PATIENTS, SEGMENTER, TESTED, Tiny

SHARED = ["--wandb.patients", "true", "--wandb.checkpoint", "true"]


@dataclasses.dataclass
class Logged:
    """The study on disk.

    Attributes:
        study: Its folder.
        out: The comparison's folder.
        segmenter: The first fold's segmenter.
        direct: The direct arm, nothing of patients shared.
        masked: The masked arm, all shared.
        masks: The folder of masks.
        read: What W&B's file of each holds: ``segmenter``, ``segmenter test``, ``masks``, ``direct``, ...
    """

    study: Path
    out: Path
    segmenter: RunDirectory
    direct: RunDirectory
    masked: RunDirectory
    masks: Path
    read: dict[str, OnDisk]


def only(study: Path, arm: str, which: int = 0) -> RunDirectory:
    found = [RunDirectory(path.parent) for path in study.glob(f"{arm}/*/provenance.json")]
    return sorted(found, key=lambda run: run.identity().fold or 0)[which]


@pytest.fixture(scope="module")
def logged(tiny_cohort: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Logged:
    """Two segmenters, masks, a direct and a masked arm, and their comparison; one process, as a grid runs them."""
    runs = tmp_path_factory.mktemp("wandb")
    study, masks, out = runs / "liver", runs / "liver" / "masks", runs / "liver" / "report"
    with offline():
        for fold in range(2):
            words = [*tiny_cohort.words("segmentation", runs=runs), *without_one_logger(SEGMENTER)]
            words += ["--study", "liver", "--arm", "segmenter", "--data.init_args.fold", str(fold)]
            if fold:
                run_command("fit", words)
            else:
                fit_and_test([*words, *SHARED])
        assert main(["masks", str(study / "segmenter"), "--out", str(masks), "--wandb-patients"]) == 0
        small = [*without_one_logger(CLASSIFIER), "--study", "liver", "--seed_everything", "5"]
        fit_and_test([*tiny_cohort.words("direct", runs=runs), *small, "--arm", "direct"])
        masked = [
            "--arm",
            "masked",
            "--data.init_args.mask_source",
            "out_of_fold",
            "--data.init_args.masks",
            str(masks),
        ]
        fit_and_test([*tiny_cohort.words("masked_attention_resnet", runs=runs), *small, *masked, *SHARED])
        options = ["--resamples", "200", "--wandb", "--wandb-report"]
        assert main(["compare", str(study), "--out", str(out), *options]) == 0
    segmenter, direct, arm = only(study, "segmenter"), only(study, "direct"), only(study, "masked")
    read = {"masks": read_back(*folders(masks)), "compare": read_back(*folders(out))}
    for name, run in (("segmenter", segmenter), ("direct", direct), ("masked", arm)):
        fit, test = folders(run.path)
        read |= {name: read_back(fit), f"{name} test": read_back(test)}
    return Logged(study, out, segmenter, direct, arm, masks, read)


def facts_of(artifact: dict[str, Any]) -> dict[str, Any]:
    return dict(json.loads(artifact["metadata"]))


def test_group_job_type_tags_and_id(logged: Logged) -> None:
    jobs = {name: (found.run["run_group"], found.run["job_type"]) for name, found in logged.read.items()}
    assert jobs["direct"] == jobs["direct test"] == ("liver", "classifier")
    assert (jobs["segmenter"], jobs["masks"], jobs["compare"]) == (
        ("liver", "segmenter"), ("liver", "masks"), ("liver", "compare"),
    )  # fmt: skip
    assert logged.read["direct"].run["tags"] == ["direct"]
    for run, name in ((logged.direct, "direct"), (logged.masked, "masked"), (logged.segmenter, "segmenter")):
        recorded = json.loads(run.provenance.read_text())["wandb_id"]
        assert logged.read[name].run["run_id"] == logged.read[f"{name} test"].run["run_id"] == recorded


def test_it_lies_in_the_run_directory(logged: Logged) -> None:
    assert not (Path.cwd() / "wandb" / logged.direct.path.name).exists()
    for found in logged.read.values():
        for record in found.records:
            for file in record.get("artifact", {}).get("manifest", {}).get("contents", []):
                assert Path(file["local_path"]).is_relative_to(logged.study), "what is staged lies beside its run"
                assert Path(file["local_path"]).is_file()


def test_the_whole_configuration_with_hashes_and_git_without_paths(logged: Logged, tiny_cohort: Tiny) -> None:
    config = logged.read["direct"].config
    assert config["model"]["init_args"]["network"]["init_args"]["backbone"] == "resnet10t"
    assert config["trainer"]["max_epochs"] == 1
    assert config["seed_everything"] == config["seed"] == 5
    assert config["cell"] == logged.direct.path.name
    assert config["split_sha256"] == tiny_cohort.split.sha256
    assert config["cohort_sha256"] == tiny_cohort.table.sha256
    provenance = json.loads(logged.direct.provenance.read_text())
    assert config["provenance"]["git"] == provenance["git"]
    assert config["provenance"]["config_sha256"] == provenance["config_sha256"]
    assert config["provenance"]["versions"]["lightning"] == provenance["versions"]["lightning"]
    assert {"cohort", "splits", "store", "masks"}.isdisjoint(config["data"]["init_args"])


def test_no_path_and_unasked_no_patient(logged: Logged, tiny_cohort: Tiny) -> None:
    """All text that a sync would send, staged artifacts and tables with it, from runs that share nothing."""
    for name in ("direct", "direct test", "compare"):
        found = logged.read[name]
        records = [record for record in found.records if record["type"] not in ("header", "stats")]
        for record in records:
            # where a file lies here is not sent: the client reads the file
            for file in record.get("artifact", {}).get("manifest", {}).get("contents", []):
                file = dict(file)
                sent = Path(file.pop("local_path")).read_bytes()
                assert not [patient for patient in PATIENTS if patient.encode() in sent], f"{name}: {file['path']}"
        text = json.dumps([{**record, "artifact": None} for record in records])
        for path in (found.folder / "files").rglob("*"):
            if path.suffix in (".json", ".yaml", ".txt"):
                text += path.read_text()
        assert str(tiny_cohort.folder) not in text and str(logged.study) not in text
        assert not [patient for patient in PATIENTS if patient in text], name
        assert found.run["host"] == "not-recorded"
        assert not (found.folder / "files" / "requirements.txt").exists()


def test_summary_and_media(logged: Logged) -> None:
    test = logged.read["direct test"]
    assert test.summary["test/auc"] == pytest.approx(auc_of(logged.direct))
    assert test.summary["test/roc_table._type"] == test.summary["test/confusion_table._type"] == "table-file"
    picture = test.folder / "files" / test.summary["test/roc_and_confusion.path"]
    assert picture.is_file()
    assert not [key for key in test.summary if key.startswith(("test/predictions", "test/overlays"))]


def auc_of(run: RunDirectory) -> float:
    from sklearn.metrics import roc_auc_score

    rows = read_records(run.predictions)
    return float(roc_auc_score(rows["target"], rows["prob"]))


def table_of(found: OnDisk, key: str) -> dict[str, Any]:
    return dict(json.loads((found.folder / "files" / found.summary[f"{key}.path"]).read_text()))


def test_confusion_counts_every_scan_once(logged: Logged) -> None:
    cells = table_of(logged.read["direct test"], "test/confusion_table")["data"]
    rows = read_records(logged.direct.predictions)
    called = (rows["prob"] >= rows["threshold"]).astype(int)
    for actual, predicted, count in cells:
        assert count == ((rows["target"] == int(actual)) & (called == int(predicted))).sum()


def test_asked_for_patients_are_there(logged: Logged) -> None:
    test = logged.read["masked test"]
    table = table_of(test, "test/predictions")
    place = table["columns"].index("patient_id")
    assert sorted(row[place] for row in table["data"]) == sorted(TESTED)
    assert test.summary["test/attention_worst._type"] == "images/separated"
    overlays = logged.read["segmenter test"]
    for which in ("worst", "best"):
        assert overlays.summary[f"test/overlays_{which}._type"] == "images/separated"
    captions = overlays.summary["test/overlays_worst.captions"]
    rows = read_records(logged.segmenter.predictions).sort_values("dice")
    assert [caption.split(":")[0] for caption in captions] == list(rows["scan_id"])[: len(captions)]


def test_segmenter_masks_classifier_comparison_are_one_line(logged: Logged) -> None:
    """The lineage from artifact to artifact: each use names what another run has made."""
    makes: dict[str, str] = {}
    for name, found in logged.read.items():
        for artifact in found.artifacts:
            assert "latest" in artifact["aliases"]
            (version,) = set(artifact["aliases"]) - {"latest"}
            makes[f"{artifact['name']}:{version}"] = name
    assert sorted(makes.values()) == ["compare", "direct test", "masked test", "masks", "segmenter", "segmenter test"]
    uses = {name: found.config.get("lineage", {}).get("uses", []) for name, found in logged.read.items()}
    assert uses["segmenter"] == uses["direct"] == []
    assert [makes[use] for use in uses["masked"]] == ["masks"]
    assert uses["masked test"] == uses["masked"] or not uses["masked test"]
    checkpoint = sha256_of_file(logged.segmenter.checkpoint())
    assert f"liver-segmenter-checkpoint:{checkpoint[:12]}" in uses["masks"]
    assert len(uses["masks"]) == 2, "the segmenters of both folds"
    assert {makes[use] for use in uses["compare"] if use in makes} >= {"direct test", "masked test"}
    (segmenter,) = logged.read["segmenter"].artifacts
    assert segmenter["type"] == "segmenter"
    assert facts_of(segmenter)["sha256"] == checkpoint
    assert {file["path"] for file in segmenter["manifest"]["contents"]} == {"best.ckpt", "facts.json"}
    (masks,) = logged.read["masks"].artifacts
    assert {file["path"] for file in masks["manifest"]["contents"]} == {"facts.json", "masks.json"}
    (direct,) = logged.read["direct test"].artifacts
    assert {file["path"] for file in direct["manifest"]["contents"]} == {"facts.json"}, "not the record itself"
    (masked,) = logged.read["masked test"].artifacts
    assert {file["path"] for file in masked["manifest"]["contents"]} == {"facts.json", "predictions.parquet"}


def test_the_same_lineage_lies_on_disk(logged: Logged) -> None:
    record = json.loads((logged.masked.path / "wandb" / "lineage.json").read_text())
    assert record["run"] == logged.read["masked"].run["run_id"]
    assert record["uses"] == logged.read["masked"].config["lineage"]["uses"]
    assert record["project"] == "hepastage"


def test_the_comparison_holds_its_table(logged: Logged) -> None:
    found = logged.read["compare"]
    tables = [key for key in found.summary if key.startswith("table") and key.endswith(".path")]
    assert tables
    names = {row[0] for key in tables for row in table_of(found, key.removesuffix(".path"))["data"]}
    assert {"direct", "masked"} <= names
    assert "direct/auc" in found.summary
    (artifact,) = found.artifacts
    paths = {file["path"] for file in artifact["manifest"]["contents"]}
    assert "table.csv" in paths and "report.html" not in paths and "comparison.json" not in paths


def test_steps_go_on_from_fit_to_test(logged: Logged) -> None:
    """W&B's step is the line of ``metrics.jsonl``, over both folders of the run."""
    lines = [json.loads(line) for line in logged.direct.metrics.read_text().splitlines()]
    rows = [*logged.read["direct"].history, *logged.read["direct test"].history]
    steps = [row["_step"] for row in rows]
    assert steps == sorted(set(steps)), "no step twice"
    for row in rows[: len(lines)]:
        line = lines[row["_step"]]
        assert all(row.get(key) == pytest.approx(value) for key, value in line.items() if key not in ("step", "time"))
        assert row["trainer/global_step"] == line["step"]


def test_a_report_is_written_and_not_sent(logged: Logged) -> None:
    spec = json.loads((logged.out / "wandb-report.json").read_text())
    assert spec["project"] == "hepastage"
    assert not [patient for patient in PATIENTS if patient in json.dumps(spec)]
