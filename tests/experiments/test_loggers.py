"""Other loggers by swapping one line; each test needs its package and skips without it."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from callbacks.run_directory import RunDirectory
from datamodules.errors import InputError
from experiments import run_logging
from experiments.lightning_cli import fit_and_test
from experiments.run_logging import check_loggers, without_paths
from tests.tiny import CLASSIFIER, ONE_LOGGER, Tiny

OWN = "{class_path: callbacks.metrics_log.MetricsLog}"
LIGHTNING = "lightning.pytorch.loggers"


def needs(package: str) -> None:
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"the package {package} is not installed")


def trained_with(logger: str, tiny: Tiny, runs: Path) -> RunDirectory:
    """Train and test a cell with another logger in the place of W&B."""
    words = [*tiny.words("direct", runs=runs), *CLASSIFIER]
    words[words.index(ONE_LOGGER[0]) + 1] = f"[{OWN}, {logger}]"
    assert not fit_and_test(words)
    (path,) = runs.glob("*/*/*/provenance.json")
    return RunDirectory(path.parent)


def lines_of(run: RunDirectory) -> list[dict[str, Any]]:
    return [json.loads(line) for line in run.metrics.read_text().splitlines()]


def test_tensorboard(tiny_cohort: Tiny, tmp_path: Path) -> None:
    needs("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = f"{{class_path: {LIGHTNING}.TensorBoardLogger, init_args: {{save_dir: .}}}}"
    run = trained_with(logger, tiny_cohort, tmp_path)
    (first, *_) = sorted(path.parent for path in run.path.rglob("events.out.tfevents.*"))
    found: dict[str, list[float]] = {}
    for folder in sorted({path.parent for path in run.path.rglob("events.out.tfevents.*")}):
        events = EventAccumulator(str(folder))
        events.Reload()
        for name in events.Tags()["scalars"]:
            found.setdefault(name, []).extend(event.value for event in events.Scalars(name))
    for key in ("train/loss", "valid/auc", "test/auc"):
        expected = [line[key] for line in lines_of(run) if key in line]
        assert found[key] == pytest.approx(expected), key
    assert "split_sha256" in (first / "hparams.yaml").read_text()
    assert not (run.path / "wandb").exists()


def test_mlflow(tiny_cohort: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needs("mlflow")
    from mlflow import MlflowClient

    address = f"sqlite:///{tmp_path / 'mlflow.db'}"
    logger = (
        f"{{class_path: {LIGHTNING}.MLFlowLogger, init_args: {{experiment_name: liver, tracking_uri: '{address}'}}}}"
    )
    run = trained_with(logger, tiny_cohort, tmp_path / "runs")
    client = MlflowClient(address)
    experiment = client.get_experiment_by_name("liver")
    assert experiment is not None
    logged = client.search_runs([experiment.experiment_id])
    metrics = {key: value for item in logged for key, value in item.data.metrics.items()}
    for key in ("train/loss", "valid/auc", "test/auc"):
        assert metrics[key] == pytest.approx([line[key] for line in lines_of(run) if key in line][-1]), key
    assert any("split_sha256" in item.data.params for item in logged)


def test_none_but_our_own(tiny_cohort: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither callbacks nor command line assume W&B: the package is not even asked for."""
    monkeypatch.setitem(__import__("sys").modules, "wandb", None)
    words = [*tiny_cohort.words("direct", runs=tmp_path), *CLASSIFIER]
    assert not fit_and_test(words)
    (path,) = tmp_path.glob("*/*/*/predictions.parquet")
    assert not (path.parent / "wandb").exists()


@pytest.mark.parametrize(
    ("class_path", "package"),
    [
        (f"{LIGHTNING}.TensorBoardLogger", "tensorboard"),
        (f"{LIGHTNING}.MLFlowLogger", "mlflow"),
        (f"{LIGHTNING}.comet.CometLogger", "comet-ml"),
        (f"{LIGHTNING}.WandbLogger", "wandb"),
    ],
)
def test_a_missing_package_is_one_line(class_path: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("experiments.run_logging.importlib.util.find_spec", lambda name: None)
    name = class_path.rsplit(".", 1)[-1]
    expected = f"trainer.logger: {name} needs the package {package}; install it with 'pip install {package}'"
    with pytest.raises(InputError) as caught:
        check_loggers([class_path, "callbacks.metrics_log.MetricsLog"])
    assert caught.value.faults == (expected,) or list(caught.value.faults) == [expected]


def test_the_command_line_says_so_before_it_trains(
    tiny_cohort: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(run_logging.PACKAGES, "CSVLogger", ("no_such_package",))
    with pytest.raises(InputError, match=r"trainer\.logger: CSVLogger needs the package no-such-package"):
        trained_with(f"{{class_path: {LIGHTNING}.CSVLogger, init_args: {{save_dir: .}}}}", tiny_cohort, tmp_path)
    assert not list(tmp_path.iterdir())


def test_no_path_of_this_machine_wherever_it_stands() -> None:
    told = without_paths(
        {
            "model": {"weights_file": "/data/ward 3/resnet.pt", "dropout": 0.2, "ways": ["multiply", "~/x.yaml"]},
            "n": None,
        }
    )
    assert told == {"model": {"weights_file": "resnet.pt", "dropout": 0.2, "ways": ["multiply", "x.yaml"]}, "n": None}
    assert without_paths("a/relative one") == "a/relative one"
