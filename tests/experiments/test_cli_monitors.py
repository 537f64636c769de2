"""A metric that is not logged is refused at once; the names are those that the modules log."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from datamodules.errors import InputError
from experiments.cli import main
from experiments.cli_given import given_of
from experiments.cli_monitors import LOGGED, STAGES, check_monitors
from experiments.cli_words import shipped_names, with_shipped
from experiments.lightning_cli import parsed
from experiments.run_stages import fit
from tests.tiny import CLASSIFIER, ONE_LOGGER, SEGMENTER, Tiny

STOP = "lightning.pytorch.callbacks.EarlyStopping"


def stopping(**arguments: object) -> list[str]:
    return ["--trainer.callbacks+", json.dumps({"class_path": STOP, "init_args": arguments})]


@pytest.mark.parametrize(
    ("config", "arguments", "expected"),
    [
        ("direct", {"monitor": "valid/aucc"}, "'valid/aucc' is not logged by DirectClassificationModule; did you mean"),
        ("segmentation", {"monitor": "valid/auc"}, "'valid/auc' is not logged by SegmentationModule"),
        ("staging", {"monitor": "val_loss"}, "'val_loss' is not logged by StagingModule"),
        ("direct", {"monitor": "valid/auc", "mode": "maxx"}, "'maxx' is not one of them; choose one of min, max"),
    ],
)
def test_refused(config: str, arguments: dict[str, object], expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        check_monitors(given_of(with_shipped(["-c", config, *stopping(**arguments)])))


def test_right_ones_and_shipped_configurations_pass() -> None:
    check_monitors(given_of(with_shipped(["-c", "direct", *stopping(monitor="valid/loss", mode="min")])))
    check_monitors(given_of(with_shipped(["-c", "direct", *stopping(monitor="speed/step_s")])))
    own = json.dumps({"class_path": "own.Watch", "init_args": {"monitor": "anything", "mode": "any"}})
    check_monitors(
        given_of(
            with_shipped(["-c", "direct", "--trainer.callbacks+", own, *stopping(monitor="valid/auc", mode="max")])
        )
    )
    for name in shipped_names():
        check_monitors(given_of(with_shipped(["-c", name])))
        check_monitors(given_of(with_shipped(["-c", "direct", "-c", name])))


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ("segmentation", [*SEGMENTER, "--trainer.max_epochs", "1", "--trainer.check_val_every_n_epoch", "1"]),
        ("direct", CLASSIFIER),
        ("masked_attention_resnet", CLASSIFIER),
    ],
)
def test_names_are_those_that_are_logged(config: str, words: list[str], tiny_cohort: Tiny, tmp_path: Path) -> None:
    cli = parsed("fit", [*tiny_cohort.words(config, runs=tmp_path), *words, *ONE_LOGGER])
    fit(cli)
    found = {name for name in cli.trainer.callback_metrics if name.startswith("valid/")}
    path = f"{type(cli.model).__module__}.{type(cli.model).__name__}"
    # those of stages come with more than two classes
    assert found == {name for name in LOGGED[path] if name.removeprefix("valid/") not in STAGES}


def test_the_front_door_says_it(tiny_cohort: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [*tiny_cohort.words("direct", runs=tmp_path), *stopping(monitor="valid/aucc")]
    assert main(["fit", *words]) == 2
    assert "did you mean 'valid/auc'?" in capsys.readouterr().err
