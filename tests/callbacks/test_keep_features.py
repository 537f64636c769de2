"""Frozen features are shared by runs, leave the cell's id alone, and are refused where they would be wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
import timm
import torch

from datamodules.errors import InputError
from experiments.cli import main
from experiments.lightning_cli import parsed
from experiments.run_stages import evaluate, fit
from tests.tiny import CLASSIFIER, Tiny

NETWORK = "--model.init_args.network.init_args"
KEEP = ["--trainer.callbacks+", json.dumps({"class_path": "callbacks.keep_features.KeepFeatures"})]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "resnet10t.pth"
    torch.manual_seed(0)
    torch.save(timm.create_model("resnet10t", in_chans=1).state_dict(), path)
    return path


def cell(tiny: Tiny, folder: Path, *more: str) -> tuple[str, pd.DataFrame]:
    """Train and test; the cell's id and its record."""
    words = [*tiny.words("direct", runs=folder / "runs"), *CLASSIFIER, "--data.init_args.store", str(folder / "store")]
    cli = parsed("fit", [*words, *more, "--trainer.max_epochs", "2"])
    fit(cli)
    evaluate(parsed("test", ["-c", str(cli.directory.config), "--runs", str(folder / "runs")]), "test", "last")
    return cli.directory.path.name, pd.read_parquet(cli.directory.path / "predictions.parquet")


def test_a_run_with_memory_is_the_cell_that_it_is_without(
    weights: Path, tiny_cohort: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    frozen = [f"{NETWORK}.weights_file", str(weights), f"{NETWORK}.freeze", "true"]
    plain, expected = cell(tiny_cohort, tmp_path / "plain", *frozen)
    kept, found = cell(tiny_cohort, tmp_path / "kept", *frozen, *KEEP)
    assert kept == plain
    assert found["prob"].to_numpy() == pytest.approx(expected["prob"].to_numpy(), abs=1e-5)
    said = capsys.readouterr()
    assert "volumes computed" in said.out + said.err
    entries = list((tmp_path / "kept" / "store" / "features").rglob("*.pt"))
    assert len(entries) == expected["scan_id"].nunique() + 8, "each scan of the cohort once, over epochs and test"
    # another cell on the same store computes nothing
    before = {path: path.stat().st_mtime_ns for path in entries}
    cell(tiny_cohort, tmp_path / "kept", *frozen, *KEEP, "--model.init_args.warmup", "0.2")
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "kept").rglob("features/*/*.pt")} == before


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ([], "the backbone is trained; set model.init_args.network.init_args.freeze: true"),
        (["freeze", "-c", "direct"], "augmented images never come again"),
        (["freeze", "--model.init_args.mixup", "0.2"], "mixed images never come again"),
        (["freeze", "masked"], "gates between the backbone's stages are trained"),
    ],
)
def test_what_would_be_wrong_is_refused(
    more: list[str], expected: str, weights: Path, tiny_cohort: Tiny, tmp_path: Path
) -> None:
    base = "masked_attention_resnet" if "masked" in more else "direct"
    words = [*tiny_cohort.words(base, runs=tmp_path), *CLASSIFIER, *KEEP, f"{NETWORK}.weights_file", str(weights)]
    if "freeze" in more:
        words += [f"{NETWORK}.freeze", "true"]
    if "-c" in more:
        place = words.index("--data.init_args.augmentation")
        del words[place : place + 2]
    words += [word for word in more if word.startswith("--") or word == "0.2"]
    with pytest.raises(InputError, match=expected):
        fit(parsed("fit", words))


def test_the_front_door_says_it_in_one_line(
    tiny_cohort: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fit", *tiny_cohort.words("direct", runs=tmp_path), *CLASSIFIER, *KEEP]) == 2
    assert "the backbone is trained" in capsys.readouterr().err
