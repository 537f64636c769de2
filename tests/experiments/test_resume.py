"""A run that is killed at any moment and resumed ends as one that was not, to the last bit."""

from __future__ import annotations

import json
import random
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from callbacks.run_directory import RunDirectory
from tests.experiments.killing import run_killed
from tests.tiny import ONE_LOGGER, PREPROCESSING, Tiny

EPOCHS = 4


def words_of(tiny: Tiny, runs: Path, *more: str) -> list[str]:
    """A small run with all that is random: shuffling, dropout, augmentation; a checkpoint after each epoch."""
    watcher = "{class_path: callbacks.last_checkpoint.LastCheckpoint, init_args: {every_s: 0}}"
    return [
        "fit", *tiny.words("direct", runs=runs), *PREPROCESSING, *ONE_LOGGER, "--trainer.callbacks+", watcher,
        "--model.init_args.network.init_args.backbone", "test_resnet", "--data.init_args.batch_size", "2",
        "--trainer.max_epochs", str(EPOCHS), "--trainer.accelerator", "cpu", "--trainer.deterministic", "true", *more,
    ]  # fmt: skip


def only_run(runs: Path) -> RunDirectory:
    (config,) = runs.glob("*/*/*/config.yaml")
    return RunDirectory(config.parent)


def lines_of(run: RunDirectory) -> list[dict[str, Any]]:
    """What was logged, without what time itself changes."""
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "time" and not k.startswith("speed/")} for line in lines]


def assert_same(run: RunDirectory, other: RunDirectory) -> None:
    """Weights, optimizer, schedule, best model and log are the same."""
    for name in ("last", "best"):
        first, second = (torch.load(r.checkpoint(name), weights_only=True) for r in (run, other))
        torch.testing.assert_close(first["state_dict"], second["state_dict"], rtol=0, atol=0)
        torch.testing.assert_close(first["optimizer_states"], second["optimizer_states"], rtol=0, atol=0)
        assert first["lr_schedulers"] == second["lr_schedulers"]
        assert first["epoch"] == second["epoch"] and first["global_step"] == second["global_step"]
    assert lines_of(run) == lines_of(other)
    assert {path.name for path in run.checkpoints.iterdir()} == {"best.ckpt", "last.ckpt"}
    assert run.finished()["fit"]["metrics"] == other.finished()["fit"]["metrics"]


@pytest.fixture(scope="module")
def whole(tiny_cohort: Tiny, tmp_path_factory: pytest.TempPathFactory) -> tuple[RunDirectory, int]:
    """An uninterrupted run, and the number of its events."""
    runs = tmp_path_factory.mktemp("whole")
    log = runs / "log"
    assert run_killed(words_of(tiny_cohort, runs), log=log) == 0, log.read_text()
    found = re.search(r"events: (\d+)", log.read_text())
    assert found
    return only_run(runs), int(found.group(1))


def check_kills(tiny: Tiny, folder: Path, whole: tuple[RunDirectory, int], seeds: range, *more: str) -> None:
    """Kill at a random event for each seed, resume, compare."""
    run, events = whole
    for seed in seeds:
        runs = folder / str(seed)
        at = random.Random(seed).randint(1, events)
        assert run_killed(words_of(tiny, runs, *more), at) == -signal.SIGKILL, (seed, at)
        log = folder / "log"
        assert run_killed(words_of(tiny, runs, *more), log=log) == 0, (seed, at, log.read_text())
        assert_same(only_run(runs), run)
        epochs = [line["epoch"] for line in lines_of(only_run(runs)) if "train/loss" in line]
        assert epochs == list(range(EPOCHS)), "no epoch twice, none left out"
        shutil.rmtree(runs)


def test_killed_and_resumed_is_as_never_killed(
    tiny_cohort: Tiny, tmp_path: Path, whole: tuple[RunDirectory, int]
) -> None:
    check_kills(tiny_cohort, tmp_path, whole, range(1))


@pytest.mark.slow  # seven processes
def test_averaged_weights_and_mixup_come_back_too(tiny_cohort: Tiny, tmp_path: Path) -> None:
    more = ("-c", "training/ema", "--model.init_args.mixup", "0.2", "--model.init_args.layer_decay", "0.5")
    log = tmp_path / "log"
    assert run_killed(words_of(tiny_cohort, tmp_path / "whole", *more), log=log) == 0, log.read_text()
    found = re.search(r"events: (\d+)", log.read_text())
    assert found
    whole = only_run(tmp_path / "whole")
    assert "current_model_state" in torch.load(whole.checkpoint("last"), weights_only=True)
    check_kills(tiny_cohort, tmp_path / "killed", (whole, int(found.group(1))), range(3), *more)


def test_a_torn_checkpoint_is_noticed_and_the_previous_one_used(
    tiny_cohort: Tiny, tmp_path: Path, whole: tuple[RunDirectory, int]
) -> None:
    words, log = words_of(tiny_cohort, tmp_path / "runs"), tmp_path / "log"
    assert run_killed(words, whole[1] * 9 // 10) == -signal.SIGKILL
    run = only_run(tmp_path / "runs")
    last = run.checkpoints / "last.ckpt"
    # one wrong byte in the middle of the weights: the archive still opens
    content = bytearray(last.read_bytes())
    content[len(content) // 2] ^= 0xFF
    last.write_bytes(content)
    assert run_killed(words, log=log) == 0
    text = log.read_text()
    assert "last.ckpt is torn" in text and "it is not used" in text
    assert re.search(r"going on after epoch \d, from .*previous\.ckpt", text)
    assert_same(run, whole[0])


def test_sigterm_ends_cleanly_and_the_run_goes_on(
    tiny_cohort: Tiny, tmp_path: Path, whole: tuple[RunDirectory, int]
) -> None:
    words, log = words_of(tiny_cohort, tmp_path / "runs"), tmp_path / "log"
    assert run_killed(words, whole[1] * 6 // 10, signal.SIGTERM, log) == 143
    assert "stopped by SIGTERM; the same command goes on" in log.read_text()
    run = only_run(tmp_path / "runs")
    assert not run.done.exists() and not re.search("Traceback", log.read_text())
    assert run_killed(words, log=log) == 0
    assert re.search(r"going on after epoch \d, from .*last\.ckpt", log.read_text())
    record = json.loads(run.provenance.read_text())
    assert [entry["epoch"] for entry in record["resumed"]] == [2]
    assert_same(run, whole[0])


@pytest.mark.slow
def test_twenty_kills(tiny_cohort: Tiny, tmp_path: Path, whole: tuple[RunDirectory, int]) -> None:
    check_kills(tiny_cohort, tmp_path, whole, range(100, 120))


@pytest.mark.slow
def test_loader_processes_change_nothing(tiny_cohort: Tiny, tmp_path: Path, whole: tuple[RunDirectory, int]) -> None:
    words = words_of(tiny_cohort, tmp_path / "runs", "--data.init_args.workers", "2")
    assert run_killed(words, whole[1] * 6 // 10) == -signal.SIGKILL
    log = tmp_path / "log"
    assert run_killed(words, log=log) == 0, log.read_text()
    assert "going on after epoch 2" in log.read_text()
    assert_same(only_run(tmp_path / "runs"), whole[0])
