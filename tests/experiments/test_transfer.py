"""Weights of the segmenter of the same fold: found and loaded, not needed to predict, refused where they leak."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
import yaml

from callbacks.run_directory import RunDirectory
from datamodules.errors import InputError
from experiments.lightning_cli import HepastageCLI, parsed
from experiments.trained_segmenter import module_of
from tests.tiny import ONE_LOGGER, PREPROCESSING, Tiny


def overlay(segmenters: Path, folder: Path) -> Path:
    """A direct arm by the segmenters' own encoder."""
    config = next(segmenters.glob("tiny/segmenter/*/config.yaml"))
    network = yaml.safe_load(config.read_text())["model"]["init_args"]["network"]
    whole = {
        "class_path": "lightning_modules.networks.whole_volume_classifier.WholeVolumeClassifier",
        "init_args": {"encoder": network, "pooling": "attention"},
    }
    path = folder / "whole.yaml"
    path.write_text(yaml.safe_dump({"model": {"init_args": {"network": whole}}}))
    return path


def cell(tiny: Tiny, segmenters: Path, folder: Path, weights: Path, fold: int = 0) -> HepastageCLI:
    words = tiny.words("direct", str(overlay(segmenters, folder)), runs=folder / "runs")
    words += [*PREPROCESSING, *ONE_LOGGER, "--trainer.accelerator", "cpu", "--data.init_args.fold", str(fold)]
    return parsed("fit", [*words, "--model.init_args.network.init_args.weights_from", str(weights)])


def runs_by_fold(segmenters: Path) -> dict[int, RunDirectory]:
    runs = [RunDirectory(path.parent) for path in segmenters.glob("tiny/segmenter/*/config.yaml")]
    return {run.identity().fold or 0: run for run in runs}


def test_the_segmenter_of_the_same_fold_is_found_and_loaded(
    tiny_cohort: Tiny, segmenters: Path, tmp_path: Path
) -> None:
    runs = runs_by_fold(segmenters)
    for fold in (0, 1):
        cli = cell(tiny_cohort, segmenters, tmp_path, segmenters / "tiny", fold)
        named = cli.resolved["model"]["init_args"]["network"]["init_args"]["weights_from"]
        assert Path(named) == runs[fold].checkpoint("best"), "the saved configuration names the checkpoint itself"
        weights = torch.load(named, weights_only=True)["state_dict"]
        first = next(name for name in weights if "encoder.stages.0" in name and name.endswith("conv.weight"))
        assert torch.equal(next(cli.model.network.encoder.stages[0].parameters()), weights[first])
    moved = tmp_path / "moved"
    shutil.copytree(runs[1].path, moved)
    again = cell(tiny_cohort, segmenters, tmp_path, moved, 1)
    assert again.identity.cell == cli.identity.cell, "a cell is named by the weights, not by where they lie"
    shutil.rmtree(moved)
    built = module_of(again.resolved)
    assert built.network.uses_mask is False, "a prediction needs no segmenter"  # type: ignore[union-attr]  # it has one


def test_a_segmenter_that_saw_held_out_patients_is_refused(tiny_cohort: Tiny, segmenters: Path, tmp_path: Path) -> None:
    other = runs_by_fold(segmenters)[1]
    with pytest.raises(InputError) as caught:
        cell(tiny_cohort, segmenters, tmp_path, other.path)
    (fault,) = caught.value.faults
    held = set(tiny_cohort.split.folds[0].valid) & set(tiny_cohort.split.folds[1].train)
    assert held and f"trained on {len(held)} patients that fold 0 holds out: {min(held)}" in fault
    assert "model.init_args.network.init_args.weights_from" in fault
    assert not (tmp_path / "runs").exists()


def test_what_is_no_segmenter_of_the_fold(tiny_cohort: Tiny, segmenters: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no trained segmenter of fold 0; train it first"):
        cell(tiny_cohort, segmenters, tmp_path, tmp_path / "nothing")
    loose = tmp_path / "loose.ckpt"
    shutil.copy(runs_by_fold(segmenters)[0].checkpoint("best"), loose)
    with pytest.raises(InputError, match="nothing says on which patients it was trained"):
        cell(tiny_cohort, segmenters, tmp_path, loose)
