"""What an offline W&B run holds, read back from disk by W&B's own reader."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from callbacks.run_directory import RunDirectory
from experiments.lightning_cli import run_command
from tests.tiny import CLASSIFIER, ONE_LOGGER, Tiny


@pytest.fixture(scope="module")
def logged(tiny_cohort: Tiny, tmp_path_factory: pytest.TempPathFactory) -> tuple[RunDirectory, list[dict[str, Any]]]:
    """A cell trained with the shipped loggers, and the records of its ``.wandb`` file."""
    runs = tmp_path_factory.mktemp("wandb")
    place = CLASSIFIER.index(ONE_LOGGER[0])
    small = [*CLASSIFIER[:place], *CLASSIFIER[place + 2 :]]
    words = [*tiny_cohort.words("direct", runs=runs), *small, "--study", "liver", "--arm", "plain", "--role", "probe"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        patch.setenv("WANDB_SILENT", "true")
        run_command("fit", [*words, "--seed_everything", "5"])
    (config,) = runs.glob("*/*/*/config.yaml")
    (log,) = config.parent.rglob("*.wandb")
    words = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(log)]
    environment = {**os.environ, "WANDB_ERROR_REPORTING": "false", "WANDB_MODE": "offline"}
    done = subprocess.run(words, capture_output=True, text=True, check=True, timeout=120, env=environment)
    records = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return RunDirectory(config.parent), records


def found(value: object, key: str) -> list[Any]:
    """Every value of a key, at any depth."""
    if isinstance(value, dict):
        return [*([value[key]] if key in value else []), *(hit for item in value.values() for hit in found(item, key))]
    return [hit for item in value for hit in found(item, key)] if isinstance(value, list) else []


def test_group_job_type_and_tags(logged: tuple[RunDirectory, list[dict[str, Any]]]) -> None:
    run, records = logged
    (group, *_), (job, *_), (tags, *_) = (found(records, key) or [None] for key in ("run_group", "job_type", "tags"))
    assert (group, job, tags) == ("liver", "probe", ["plain"]), [list(record) for record in records]
    assert json.loads(run.provenance.read_text())["wandb_id"] in found(records, "run_id")


def test_it_lies_in_the_run_directory(logged: tuple[RunDirectory, list[dict[str, Any]]]) -> None:
    run, _ = logged
    assert (run.path / "wandb").is_dir()
    assert not (Path.cwd() / "wandb" / run.path.name).exists()


def test_the_whole_configuration_without_paths(
    logged: tuple[RunDirectory, list[dict[str, Any]]], tiny_cohort: Tiny
) -> None:
    run, records = logged
    config: dict[str, Any] = {}
    for record in records:
        config.update(record.get("config", {}).get("update", {}))
    assert config["model"]["init_args"]["network"]["init_args"]["backbone"] == "resnet10t"
    assert config["trainer"]["max_epochs"] == 1
    assert config["seed_everything"] == config["seed"] == 5
    assert config["cell"] == run.path.name
    assert config["split_sha256"] == tiny_cohort.split.sha256
    assert {"cohort", "splits", "store"}.isdisjoint(config["data"]["init_args"])
    text = json.dumps(config)
    for path in (tiny_cohort.folder, run.path.parents[2]):
        assert str(path) not in text
