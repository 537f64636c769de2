"""A run that is killed and resumed is one run, for ``metrics.jsonl`` and for W&B alike."""

from __future__ import annotations

import json
import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest

from experiments.cli import main
from experiments.wandb_runs import SUPERSEDED
from experiments.wandb_sync import offline_runs
from tests.experiments.killing import run_killed
from tests.experiments.test_resume import EPOCHS, lines_of, only_run, words_of
from tests.experiments.wandb_disk import OnDisk, folders, offline, read_back, without_one_logger
from tests.tiny import Tiny


def words_with_wandb(tiny: Tiny, runs: Path) -> list[str]:
    """The words of the other tests of resuming, with the shipped loggers."""
    return [*without_one_logger(words_of(tiny, runs)), "--study", "liver", "--arm", "killed"]


def rows_of(found: OnDisk) -> list[dict[str, Any]]:
    """W&B's rows as lines of ``metrics.jsonl``, without what time itself changes."""
    own = {"_runtime", "_timestamp", "_step", "trainer/global_step"}
    return [
        {"step": row["trainer/global_step"]}
        | {key: value for key, value in row.items() if key not in own and not key.startswith("speed/")}
        for row in found.history
    ]


def test_a_service_of_the_calling_program_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """There the id of a killed run would stay in use: a notebook that uses W&B and calls ``hepastage fit``."""
    monkeypatch.setenv("WANDB_SERVICE", "3-1-tcp-localhost-1")
    with pytest.raises(SystemExit):
        main(["--version"])
    assert "WANDB_SERVICE" not in os.environ


def test_killed_and_resumed_is_one_run(tiny_cohort: Tiny, tmp_path: Path) -> None:
    with offline():
        log = tmp_path / "log"
        whole = tmp_path / "whole"
        assert run_killed(words_with_wandb(tiny_cohort, whole), log=log) == 0, log.read_text()
        count = re.search(r"events: (\d+)", log.read_text())
        assert count
        runs = tmp_path / "killed"
        words = words_with_wandb(tiny_cohort, runs)
        assert run_killed(words, at=int(count[1]) * 2 // 3) == -signal.SIGKILL
        run = only_run(runs)
        before = json.loads(run.provenance.read_text())["wandb_id"]
        (torn,) = folders(run.path)
        logged = len(lines_of(run))
        assert 0 < logged < len(lines_of(only_run(whole))), "killed amid the training"
        assert run_killed(words, log=log) == 0, log.read_text()
    assert "going on after epoch" in log.read_text()
    assert lines_of(run) == lines_of(only_run(whole)), "no gap and nothing twice"
    assert [line["epoch"] for line in lines_of(run) if "train/loss" in line] == list(range(EPOCHS))
    assert json.loads(run.provenance.read_text())["wandb_id"] == before
    (folder,) = folders(run.path)
    assert not torn.exists() and torn.with_name(SUPERSEDED + torn.name).is_dir(), "set aside, not lost"
    found = read_back(folder)
    assert found.run["run_id"] == before and found.run["resume"] is True
    assert [row["_step"] for row in found.history] == list(range(len(found.history)))
    expected = lines_of(run)
    assert len(rows_of(found)) == len(expected)
    for row, line in zip(rows_of(found), expected, strict=True):
        assert row == pytest.approx(line, nan_ok=True)
    times = [row["_timestamp"] for row in found.history]
    assert times == sorted(times), "the rows keep the time at which they were logged"
    assert [item.folder for item in offline_runs([runs])] == [folder], "what a sync would send"
