"""Searches that really train: by ``hepastage fit`` on the tiny cohort, in one process and in two."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from lightning.pytorch import Callback, LightningModule, Trainer

from datamodules.cohort import Cohort
from experiments.search import run_search
from experiments.search_file import Search
from experiments.search_storage import open_study
from tests.experiments.grids import SMALL
from tests.experiments.searches import DECAY, LR, folder_of, states, study_of, write_search
from tests.experiments.wandb_disk import folders, read_back
from tests.tiny import TESTED, Tiny, make

SET: dict[str, Any] = {**SMALL, "model.init_args.network.init_args.backbone": "resnet10t", "trainer.max_epochs": 2}
AUC = {"metric": "valid/auc", "direction": "maximize"}


class Ranks(Callback):
    """Each process leaves how long it trained, with what, and whether it was told to stop."""

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        facts = {
            "epochs": trainer.current_epoch,
            "stop": trainer.should_stop,
            "lr": trainer.optimizers[0].param_groups[0]["lr"],
            "decay": trainer.optimizers[0].param_groups[0]["weight_decay"],
        }
        Path(trainer.default_root_dir, f"rank{trainer.global_rank}.json").write_text(json.dumps(facts))


def search_here(path: Path, workers: int = 1) -> tuple[int, Search]:
    """Drive a search in this process; its trials are processes of their own."""
    search = Search.load(path)
    assert search.cohort is not None and search.splits is not None
    code, _ = run_search(search, search.cohort, search.splits, path.parent / "runs", workers=workers, gpus="none")
    return code, search


def test_trains_without_test_patients(tmp_path: Path) -> None:
    """The mean of two folds; the test patients' scans are torn, and nothing notices."""
    tiny = make(tmp_path / "tiny")
    for scan in Cohort.load(tiny.cohort).scans:
        if scan.patient_id in TESTED:
            Path(scan.image).write_bytes(b"not an image")
            assert scan.mask is not None
            Path(scan.mask).unlink()
    space = {LR: {"low": 1.0e-4, "high": 1.0e-2, "log": True}}
    objectives = [
        AUC,
        {"metric": "valid/loss", "direction": "minimize"},
        {"metric": "minutes", "direction": "minimize"},
    ]
    path = write_search(
        tmp_path, tiny, folds=[0, 1], set=SET, space=space, objective=objectives, trials=1, max_failures=0,
        keep_checkpoints="all",
    )  # fmt: skip
    code, search = search_here(path)
    assert code == 0
    trials = study_of(path).trials
    assert [trial.state.name for trial in trials] == ["COMPLETE"]
    for trial in trials:
        folder = folder_of(path).search / f"trial-{trial.number:04d}"
        runs = sorted(folder.glob("*/done.json"))
        assert len(runs) == 2, "a cell a fold"
        values = []
        for done in runs:
            config = yaml.safe_load((done.parent / "config.yaml").read_text())
            assert config["model"]["init_args"]["optimizer"]["init_args"]["lr"] == trial.params[LR]
            assert not set(TESTED) & set(Cohort.load(config["data"]["init_args"]["cohort"]).patients)
            identity = json.loads((done.parent / "provenance.json").read_text())["identity"]
            assert (identity["study"], identity["arm"]) == (search.name, folder.name), "W&B's group is the search"
            assert (done.parent / "checkpoints" / "best.ckpt").is_file()
            rows = [json.loads(line) for line in (done.parent / "metrics.jsonl").read_text().splitlines()]
            known = [row for row in rows if "valid/auc" in row]
            # the log is the oracle: the best epoch by the monitored metric, the first of equals
            best = max(known, key=lambda row: row["valid/auc"])
            values.append((best["valid/auc"], best["valid/loss"]))
        for index in range(2):
            assert trial.values[index] == pytest.approx(sum(value[index] for value in values) / 2, abs=1e-6)
        assert 0 < trial.values[2] < trial.user_attrs["seconds"] / 60
    # a changed base would make trials that cannot be compared
    path = write_search(tmp_path, tiny, folds=[0], set=SET, space=space, objective=objectives, trials=2)
    with pytest.raises(ValueError, match="folds: has changed since the search tiny was begun"):
        search_here(path)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_trial_of_two_processes_is_one_trial(tiny_cohort: Tiny, tmp_path: Path) -> None:
    """DDP on two processes: one set of parameters, and a pruned trial ends in the same epoch everywhere."""
    chosen = {"filename": "best", "monitor": "valid/loss", "mode": "min", "enable_version_counter": False}
    two = {
        "trainer.devices": 2,
        "trainer.strategy": "ddp",
        "trainer.max_epochs": 6,
        "data.init_args.batch_size": 2,
        "trainer.logger": [
            {"class_path": "callbacks.metrics_log.MetricsLog"},
            {"class_path": "lightning.pytorch.loggers.WandbLogger", "init_args": {"project": "p", "offline": True}},
        ],
        # a loss differs from trial to trial, the AUC of four patients need not
        "trainer.callbacks": [{"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": chosen}],
        "trainer.callbacks+": [{"class_path": "tests.experiments.test_search_runs.Ranks"}],
    }
    space = {
        "kind": {"choices": {"good": {LR: 0.003}, "bad": {LR: 1.0e-12}}},
        DECAY: {"low": 0.001, "high": 0.1},
    }
    path = write_search(
        tmp_path, tiny_cohort, set={**SET, **two}, space=space, pruner={"name": "median", "startup_trials": 1},
        trials=2, max_failures=0, keep_checkpoints="all",
    )  # fmt: skip
    search, folder = Search.load(path), folder_of(path)
    folder.make()
    study = open_study(search, folder, search.facts(tiny_cohort.cohort, tiny_cohort.splits))
    study.enqueue_trial({"kind": "good", DECAY: 0.01})
    # it learns nothing
    study.enqueue_trial({"kind": "bad", DECAY: 0.02})
    code, _ = search_here(path)
    assert code == 0
    trials = study_of(path).trials
    assert len(trials) == 2, "a trial of two processes is one trial"
    assert states(path) == ["COMPLETE", "PRUNED"]
    for trial in trials:
        (run,) = (folder.search / f"trial-{trial.number:04d}").iterdir()
        facts = [json.loads((run / f"rank{rank}.json").read_text()) for rank in range(2)]
        assert facts[0] == facts[1]
        assert facts[0]["decay"] == trial.params[DECAY]
        assert facts[0]["stop"] == (trial.state.name == "PRUNED")
        if trial.state.name == "PRUNED":
            assert facts[0]["epochs"] < 6
        assert (run / "done.json").is_file(), "a pruned training ends as one that has converged"
        (offline,) = folders(run)
        logged = read_back(offline)
        assert (logged.run["run_group"], logged.run["display_name"]) == ("tiny", f"{run.parent.name} fold 0 seed 0")
        assert any("exit" in record for record in logged.records), "its W&B run is finished, pruned or not"


def test_checkpoints_must_be_chosen_by_the_objective(tiny_cohort: Tiny, tmp_path: Path) -> None:
    """The metric of monitor, pruner and objective is one: another one ends the search at its first trial."""
    space = {LR: {"low": 1.0e-4, "high": 1.0e-2, "log": True}}
    path = write_search(tmp_path, tiny_cohort, set=SET, space=space, trials=3)
    shutil.rmtree(tmp_path / "runs", ignore_errors=True)
    code, _ = search_here(path)
    assert code == 2
    (trial,) = study_of(path).trials
    assert "the best checkpoint is chosen by valid/auc (max)" in trial.user_attrs["reason"]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_training_whose_worker_is_killed_goes_on(tiny_cohort: Tiny, tmp_path: Path) -> None:
    """By the command line: the second try goes on from the last checkpoint, and gives what an unbroken one gives."""
    often = [{"class_path": "callbacks.last_checkpoint.LastCheckpoint", "init_args": {"every_s": 0.0}}]
    path = write_search(
        tmp_path, tiny_cohort, set={**SET, "trainer.max_epochs": 40, "trainer.callbacks+": often}, trials=1,
        space={LR: {"low": 1.0e-4, "high": 1.0e-2, "log": True}}, objective=AUC, pruner="none", max_failures=0,
    )  # fmt: skip
    words = ["search", "run", str(path), "--runs", str(tmp_path / "runs"), "--gpus", "none"]
    driver = subprocess.Popen(
        [sys.executable, "-m", "experiments.cli", *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    report = folder_of(path).trial("trial-0000") / "fold-0" / "report.jsonl"
    end = time.monotonic() + 120
    while not report.is_file() or len(report.read_text().splitlines()) < 5:
        assert driver.poll() is None and time.monotonic() < end, driver.communicate()[0]
        time.sleep(0.02)
    (worker,) = Path(f"/proc/{driver.pid}/task/{driver.pid}/children").read_text().split()
    os.kill(int(worker), signal.SIGKILL)
    output, _ = driver.communicate(timeout=300)
    assert driver.returncode == 0 and "trial 0: its worker has ended; it is queued again" in output, output
    assert states(path) == ["FAIL", "COMPLETE"]
    (run,) = (folder_of(path).search / "trial-0000").iterdir()
    (resumed,) = json.loads((run / "provenance.json").read_text())["resumed"]
    lines = [json.loads(line) for line in report.read_text().splitlines()]
    sessions = list(dict.fromkeys(line["session"] for line in lines))
    second = [line["epoch"] for line in lines if line["session"] == sessions[1]]
    assert len(sessions) == 2 and second == list(range(resumed["epoch"], 40)) and resumed["epoch"] > 0
    by_epoch = {line["epoch"]: line["metrics"] for line in lines if line["session"] == sessions[0]}
    again = [line for line in lines if line["session"] == sessions[1] and line["epoch"] in by_epoch]
    assert all(line["metrics"] == by_epoch[line["epoch"]] for line in again)
    best = max(line["metrics"]["valid/auc"] for line in lines)
    assert study_of(path).best_value == pytest.approx(best, abs=1e-6)
