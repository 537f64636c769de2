"""The life of a cell: trained, killed, tested, refused."""

from __future__ import annotations

import json
from io import BytesIO
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from lightning.pytorch import LightningModule

from callbacks.run_directory import RunDirectory
from datamodules.errors import InputError
from datamodules.records import read_records
from experiments import lightning_cli
from experiments.cli import main
from experiments.grid_resolve import Resolver
from experiments.lightning_cli import fit_and_test, identity_of, parsed, run_command
from tests.tiny import CLASSIFIER, ONE_LOGGER, PREPROCESSING, SEGMENTER, TESTED, Tiny


def run_of(runs: Path, fold: int = 0) -> Path:
    """The tiny segmenter's run directory of a fold."""
    found = [path.parent for path in (runs / "tiny" / "segmenter").glob("*/provenance.json")]
    return next(path for path in found if RunDirectory(path).identity().fold == fold)


def classifier_words(tiny: Tiny, runs: Path, *more: str) -> list[str]:
    return [*tiny.words("direct", runs=runs), *CLASSIFIER, "--study", "s", "--arm", "direct", *more]


def only_run(runs: Path) -> RunDirectory:
    (config,) = runs.glob("*/*/*/config.yaml")
    return RunDirectory(config.parent)


def test_a_run_leaves_all_that_is_promised(segmenters: Path, tiny_cohort: Tiny) -> None:
    run = RunDirectory(run_of(segmenters))
    config = yaml.safe_load(run.config.read_text())
    assert config["trainer"]["max_epochs"] == 12
    assert config["data"]["init_args"]["preprocessing"]["spacing"] == [10.0, 10.0, 20.0]
    record = json.loads(run.provenance.read_text())
    assert record["identity"]["cell"] == run.path.name
    assert record["identity"]["split_sha256"] == tiny_cohort.split.sha256
    assert record["identity"]["cohort_sha256"] == tiny_cohort.table.sha256
    assert {"git", "versions", "hardware", "command", "started", "wandb_id"} <= set(record)
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    assert sum("train/loss" in line for line in lines) == 12
    assert sum("valid/dice" in line for line in lines) == 3
    assert {path.name for path in run.checkpoints.iterdir()} == {"best.ckpt", "last.ckpt"}
    assert set(json.loads(run.done.read_text())) == {"fit", "test"}
    others = [path for path in run.path.rglob("*") if path.is_file() and path != run.done]
    assert run.done.stat().st_mtime_ns >= max(path.stat().st_mtime_ns for path in others)
    rows = read_records(run.predictions)
    assert sorted(rows["patient_id"]) == sorted(TESTED)
    assert (rows["dice"] > 0.6).all(), "the tiny livers are easy: a segmenter that learned finds them"
    assert {path.stem for path in run.overlays.iterdir()} == set(rows["scan_id"])


def test_testing_loads_the_checkpoint_and_not_the_fresh_weights(
    segmenters: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunDirectory(run_of(segmenters))
    before = run.predictions.read_bytes()
    real = lightning_cli.parsed

    def zeroed(command: str, arguments: list[str]) -> lightning_cli.HepastageCLI:
        cli = real(command, arguments)
        with torch.no_grad():
            for parameter in cli.model.parameters():
                parameter.zero_()
        return cli

    monkeypatch.setattr(lightning_cli, "parsed", zeroed)
    assert run_command("test", ["--run", str(run.path)]) == 0
    pd.testing.assert_frame_equal(read_records(run.predictions), pd.read_parquet(BytesIO(before)), check_dtype=False)


def test_zeroed_weights_would_be_noticed(segmenters: Path) -> None:
    """The test above could pass if the network ignored its weights: it does not."""
    cli = parsed("test", ["-c", str(run_of(segmenters) / "config.yaml"), "--runs", str(segmenters)])
    volume = torch.randn(1, 1, 24, 24, 8)
    module = cli.model.eval()
    assert isinstance(module, LightningModule)
    with torch.no_grad():
        fresh = module(volume)
        for parameter in module.parameters():
            parameter.zero_()
        assert not torch.allclose(fresh, module(volume))


def test_run_means_its_own_configuration(segmenters: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = run_of(segmenters)
    assert main(["test", "--run", str(run), "--model.init_args.overlap", "0.25"]) == 2
    message = capsys.readouterr().err.strip()
    assert message.startswith("hepastage: ") and len(message.splitlines()) == 1
    assert str(run) in message and "now means the cell" in message


def test_a_folder_of_runs_may_move(segmenters: Path, tmp_path: Path) -> None:
    import shutil

    moved = tmp_path / "elsewhere"
    shutil.copytree(segmenters, moved)
    run = RunDirectory(run_of(moved))
    run.predictions.unlink()
    # '..' in the path as well
    assert main(["test", "--run", str(run.path / ".." / run.path.name)]) == 0
    assert sorted(read_records(run.predictions)["patient_id"]) == sorted(TESTED)


def test_the_configuration_wins_over_the_checkpoint(segmenters: Path, tmp_path: Path) -> None:
    """Trap 1: a checkpoint's hyperparameters must not overlay what was asked for; it holds none."""
    checkpoint = torch.load(RunDirectory(run_of(segmenters)).checkpoint(), weights_only=True)
    assert not checkpoint.get("hyper_parameters")
    with pytest.raises(InputError, match="ckpt_path"):
        parsed("test", ["-c", str(run_of(segmenters) / "config.yaml"), "--ckpt_path", str(tmp_path / "x.ckpt")])


def test_cell_id_depends_on_what_matters_alone(tiny_cohort: Tiny, tmp_path: Path) -> None:
    resolver = Resolver()

    def cell(*more: str, tiny: Tiny = tiny_cohort, runs: Path = tmp_path) -> str:
        return identity_of(resolver.resolve(classifier_words(tiny, runs, *more))).cell

    base = cell()
    assert base == parsed("fit", classifier_words(tiny_cohort, tmp_path)).identity.cell, "a grid's cell is fit's"
    assert len(base) == 12
    assert cell("--study", "other", "--arm", "b", "--role", "probe") == base
    assert cell("--data.init_args.store", str(tmp_path / "elsewhere"), runs=tmp_path / "b") == base
    assert cell("--trainer.logger", "false") == base
    different = [
        cell("--seed_everything", "1"),
        cell("--data.init_args.fold", "1"),
        cell("--model.init_args.positive_weight", "2.0"),
        cell("--model.init_args.optimizer.init_args.lr", "0.1"),
        cell("--data.init_args.batch_size", "4"),
        cell("--trainer.max_epochs", "2"),
    ]
    assert len({base, *different}) == 7


def test_cell_id_follows_the_content_of_cohort_and_split(tiny_cohort: Tiny, tmp_path: Path) -> None:
    from datamodules.splits import make_splits

    resolved = parsed("fit", classifier_words(tiny_cohort, tmp_path)).resolved
    base = identity_of(resolved).cell
    data = resolved["data"]["init_args"]
    moved = tmp_path / "copy.csv"
    tiny_cohort.table.save(moved)
    data["cohort"] = str(moved)
    assert identity_of(resolved).cell == base, "the same table in another place and format"
    other = tmp_path / "other.json"
    make_splits(tiny_cohort.table, "lsm>12", folds=2, seed=5, official=True).save(other)
    data["splits"] = str(other)
    assert identity_of(resolved).cell != base


def test_a_finished_cell_is_not_trained_twice(
    tiny_cohort: Tiny, segmenters: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*tiny_cohort.words("segmentation", runs=segmenters), "--study", "tiny", "--arm", "segmenter", *SEGMENTER]
    log = RunDirectory(run_of(segmenters)).metrics.read_bytes()
    assert main(["fit", *words]) == 2
    message = capsys.readouterr().err
    assert "already trained" in message and str(run_of(segmenters)) in message
    assert RunDirectory(run_of(segmenters)).metrics.read_bytes() == log
    assert fit_and_test(words), "a grid skips it without a word"


@pytest.mark.slow
def test_a_killed_training_starts_again_with_one_clean_log(
    tiny_cohort: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from callbacks.progress import RunProgress

    words = classifier_words(tiny_cohort, tmp_path, "--trainer.max_epochs", "3")

    class KilledError(Exception):
        pass

    def kill(self: RunProgress, trainer: object, pl_module: object) -> None:
        if trainer.current_epoch == 1:  # type: ignore[attr-defined]  # the hook's own type says nothing of epochs
            raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(RunProgress, "on_train_epoch_end", kill)
        with pytest.raises(KilledError):
            run_command("fit", words)
    run = only_run(tmp_path)
    assert not run.done.exists()
    assert run.metrics.read_text().count("valid/loss") >= 1
    capsys.readouterr()
    assert main(["test", "--run", str(run.path)]) == 2, "half a training is not tested"
    assert "has not ended" in capsys.readouterr().err
    assert not fit_and_test(words)
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    assert sum("valid/loss" in line for line in lines) == 3
    steps = [line["step"] for line in lines if "valid/loss" in line]
    assert steps == sorted(set(steps))
    assert set(run.finished()) == {"fit", "test"}


def test_a_stale_test_result_does_not_survive_a_new_training(tiny_cohort: Tiny, tmp_path: Path) -> None:
    words = classifier_words(tiny_cohort, tmp_path)
    fit_and_test(words)
    run = only_run(tmp_path)
    done = json.loads(run.done.read_text())
    run.done.write_text(json.dumps({"test": done["test"]}))
    run.predictions.write_bytes(b"old")
    fit_and_test(words)
    assert len(read_records(run.predictions)) == len(TESTED)


def test_wrong_data_leave_no_run_directory(tiny_cohort: Tiny, tmp_path: Path) -> None:
    words = classifier_words(tiny_cohort, tmp_path / "runs", "--data.init_args.mask_source", "reference")
    with pytest.raises(InputError, match="a direct arm sees no mask"):
        run_command("fit", words)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("config", "more", "match"),
    [
        ("direct", ["--model.init_args.network.init_args.mask_injection", "[multiply]"], "direct arm sees no mask"),
        ("masked_attention_resnet", ["--data.init_args.mask_source", "none"], "masked arm needs masks"),
        (
            "direct",
            ["--model.init_args.classes", "3", "--model.init_args.network.init_args.classes", "3"],
            "has 2 classes",
        ),
        ("masked_attention_resnet", ["--data.init_args.mask_source", "out_of_fold"], "needs a folder of masks"),
        ("masked_attention_resnet", ["--data.init_args.masks", "somewhere"], "would be ignored"),
        ("direct", ["--data.init_args.rule", "metavir>=3"], "the split was made with"),
        ("direct", ["--data.init_args.fold", "2"], "no fold 2"),
        ("staging", ["--data.init_args.sequences", "[T2W, T1W]"], "give both the same order"),
        ("direct", ["--trainer.enable_progress_bar", "false"], "found `RunProgress`"),
    ],
)
def test_model_and_data_that_contradict_each_other(
    config: str, more: list[str], match: str, tiny_cohort: Tiny, tmp_path: Path
) -> None:
    words = [*tiny_cohort.words(config, runs=tmp_path), *CLASSIFIER, *more]
    with pytest.raises(InputError, match=match) as caught:
        parsed("fit", words)
    assert len(caught.value.faults) == 1
    assert len(caught.value.faults[0]) < 400


@pytest.mark.parametrize(
    ("more", "match"),
    [
        (["--data.init_args.patch", "[10, 16, 8]"], r"patch: \[10, 16, 8\] does not suit .* multiples of \[8, 8, 4\]"),
        (["--data.init_args.preprocessing.shape", "[24, 20, 8]"], r"preprocessing\.shape: \[24, 20, 8\]"),
        (["--model.init_args.window", "[16, 16, 9]"], r"model\.init_args\.window: \[16, 16, 9\]"),
        (["--data.init_args.foreground", "3"], "foreground is 3.0; give a share"),
        (["--data.init_args.batch_size", "0"], "batch_size is 0; give 1 or more"),
        (["--data.init_args.workers", "-1"], "workers is -1; give 0 or more"),
        (["--seed_everything", "false"], "seed_everything: is false"),
    ],
)
def test_values_that_cannot_be(more: list[str], match: str, tiny_cohort: Tiny, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=match):
        parsed("fit", [*tiny_cohort.words("segmentation", runs=tmp_path), *SEGMENTER, *more])


def test_a_segmenter_gets_no_classification_data(tiny_cohort: Tiny, tmp_path: Path) -> None:
    words = tiny_cohort.words("segmentation", runs=tmp_path)
    with pytest.raises(InputError, match="does not serve SegmentationModule"):
        parsed(
            "fit",
            [*words, *PREPROCESSING, *ONE_LOGGER, "--data.init_args.patch", "null", "--data",
             "datamodules.classification.ClassificationDataModule"],
        )  # fmt: skip
