"""What was given, where, and what a replaced class leaves behind: seen in words and files alone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from datamodules.errors import InputError
from experiments.cli_given import class_changes, given_of, located
from experiments.cli_precheck import precheck
from experiments.cli_words import with_shipped

MODEL = "lightning_modules.direct_classification.DirectClassificationModule"


@pytest.fixture
def overlay(tmp_path: Path) -> Path:
    path = tmp_path / "own.yaml"
    path.write_text("trainer: {max_epochs: 3}\nmodel:\n  class_path: b.Second\n  init_args: {depth: 4}\n")
    return path


def test_files_and_words_in_order(overlay: Path) -> None:
    words = ["--model", "a.First", "--model.init_args.width=7", "-c", str(overlay), "--trainer.devices", "-1"]
    words += ["--trainer.callbacks+", "{class_path: x.Y}", "--print_config"]
    found = [(item.key, item.value, item.where) for item in given_of(words)]
    assert found == [
        ("model", "a.First", "the command line"),
        ("model.init_args.width", 7, "the command line"),
        ("trainer.max_epochs", 3, "own.yaml"),
        ("model.class_path", "b.Second", "own.yaml"),
        ("model.init_args.depth", 4, "own.yaml"),
        ("trainer.devices", -1, "the command line"),
        ("trainer.callbacks.+0.class_path", "x.Y", "the command line"),
        ("print_config", None, "the command line"),
    ]


def test_a_replaced_class(overlay: Path) -> None:
    given = given_of(
        ["--model", "a.First", "--model.init_args.width=7", "--model.init_args.old", "1", "-c", str(overlay)]
    )
    resolved = {"model": {"class_path": "b.Second", "init_args": {"depth": 4, "width": 7}}}
    assert class_changes(given, resolved) == [
        "model: own.yaml puts Second for First; carried over: width; dropped: old"
    ]
    assert class_changes(given[:3], resolved) == []


def test_a_fault_names_file_and_whole_key(overlay: Path) -> None:
    given = given_of(["-c", str(overlay), "--data.init_args.batch_size", "x"])
    assert located("batch_size: 'x' is not a whole number; correct it", given).startswith(
        "--data.init_args.batch_size: 'x'"
    )
    assert (
        located("model: unknown key 'depth'; nothing", given)
        == "own.yaml: model.init_args.depth: unknown key 'depth'; nothing"
    )
    assert located("elsewhere: 'x' is not text; correct it", given) == "elsewhere: 'x' is not text; correct it"


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (["--trainer.max_epoch", "3"], r"unknown key 'trainer.max_epoch'; did you mean 'trainer.max_epochs'\?"),
        (["--traner.max_epochs", "3"], "unknown key 'traner.max_epochs'"),
        (["--model.init_args.netwrok", "3"], r"unknown key 'netwrok'; did you mean 'network'\?"),
        (["--model", f"{MODEL}s"], r"there is no class .* did you mean 'DirectClassificationModule'\?"),
        (["--data.init_args.foldd", "3"], r"did you mean 'fold'\?"),
        (["--resume", "x"], "'hepastage fit' goes on by itself"),
    ],
)
def test_faults_that_the_words_show(words: list[str], match: str) -> None:
    with pytest.raises(InputError, match=match):
        precheck(given_of(with_shipped(["-c", "direct", *words])))


@pytest.mark.parametrize(
    "words",
    [
        ["--trainer.max_epochs", "3", "--part_size", "2", "--wandb.patients", "true", "--study", "s"],
        ["--model", "somebody.elses.Module", "--model.init_args.anything", "3"],
        # an argument of the class that the overlay replaces
        ["--model.init_args.optimizer", "{class_path: torch.optim.SGD, init_args: {momentum: 0.9}}"],
        ["--trainer.callbacks+", "lightning.pytorch.callbacks.EarlyStopping"],
        ["--data.init_args.preprocessing.spacing", "[2, 2, 6]"],
        ["--trainer.strategy.class_path", "lightning.pytorch.strategies.FSDPStrategy"],
    ],
)
def test_what_may_be_right_is_left_to_the_parser(words: list[str]) -> None:
    precheck(given_of(with_shipped(["-c", "direct", *words])))


def test_nothing_heavy_is_imported() -> None:
    code = (
        "import sys; from experiments.cli import main\n"
        "assert main(['fit', '-c', 'direct', '--trainer.max_epoch', '3']) == 2\n"
        "print([name for name in ('torch', 'lightning', 'pandas', 'jsonargparse') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["[]"]
