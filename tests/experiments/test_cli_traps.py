"""Traps of LightningCLI: each is shown to be one, on the plain class, and then not to be one here.

The numbers are those of the list in ``docs/command-line.md``.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from jsonargparse import ArgumentError
from lightning.pytorch.callbacks import ModelSummary
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.demos.boring_classes import BoringDataModule, BoringModel
from torch.utils.data.distributed import DistributedSampler

from callbacks.run_directory import RunDirectory
from datamodules.errors import InputError
from experiments.cli import main
from experiments.lightning_cli import HepastageCLI, parsed, run_command
from lightning_modules.task import gather_by_id
from tests.tiny import CLASSIFIER, ONE_LOGGER, PREPROCESSING, Tiny

QUIET = [
    "--trainer.max_epochs=1", "--trainer.limit_train_batches=1", "--trainer.limit_val_batches=1",
    "--trainer.limit_test_batches=1", "--trainer.accelerator=cpu", "--trainer.logger=false",
    "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false",
]  # fmt: skip

pytestmark = pytest.mark.filterwarnings("ignore")


class Plain(BoringModel):
    """A model of somebody's, with a choice that a study is about."""

    def __init__(self, mask_source: str = "none", width: int = 1) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.mask_source = mask_source


class Other(BoringModel):
    """Another class with the same layer, one argument of the same name, and one of its own."""

    def __init__(self, width: int = 2, depth: int = 3) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.width, self.depth = width, depth


class Linked(LightningCLI):
    """One argument follows another."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.link_arguments("trainer.max_epochs", "model.init_args.width")


def plain(*words: str, cls: type[LightningCLI] = LightningCLI, **settings: Any) -> LightningCLI:
    """LightningCLI as its manual says, with any model."""
    return cls(BoringModel, BoringDataModule, subclass_mode_model=True, args=list(words), **settings)


def base(cls: type[BoringModel]) -> str:
    return f"--model={__name__}.{cls.__name__}"


def direct(tiny: Tiny, runs: Path, *more: str) -> list[str]:
    return [*tiny.words("direct", runs=runs), *CLASSIFIER, "--study", "s", "--arm", "direct", *more]


def cell_of(runs: Path, arm: str) -> RunDirectory:
    (config,) = runs.glob(f"s/{arm}/*/config.yaml")
    return RunDirectory(config.parent)


@pytest.fixture(scope="module")
def trained(tiny_cohort: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A runs folder with a direct and a masked cell."""
    runs = tmp_path_factory.mktemp("trained")
    assert run_command("fit", direct(tiny_cohort, runs)) == 0
    masked = [*tiny_cohort.words("masked_attention_resnet", runs=runs), *CLASSIFIER, "--study", "s", "--arm", "masked"]
    assert run_command("fit", masked) == 0
    return runs


@pytest.mark.usefixtures("trained")
def test_1_a_checkpoint_overrules_what_was_asked_for(
    trained: Path, tiny_cohort: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain("fit", base(Plain), *QUIET, f"--trainer.default_root_dir={tmp_path}")
    (checkpoint,) = tmp_path.rglob("*.ckpt")
    unsaved: dict[str, Any] = {"save_config_callback": None}
    words = ["test", *QUIET, f"--ckpt_path={checkpoint}"]
    cli = plain(*words, base(Plain), "--model.init_args.mask_source=reference", **unsaved)
    assert cli.model.mask_source == "none", "plain: the command line's word is lost, without a word"
    cli = plain(*words, base(Other), **unsaved)
    assert type(cli.model) is Plain, "plain: the checkpoint's class is tested in place of the one asked for"

    run, masked = cell_of(trained, "direct"), cell_of(trained, "masked")
    capsys.readouterr()
    assert main(["test", "--run", str(run.path), "--ckpt", str(masked.checkpoint())]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("hepastage")]
    assert "holds a MaskedClassificationModule, not the configured DirectClassificationModule" in line
    more = ["--model.init_args.network.init_args.dropout", "0.5", "--arm", "dropped"]
    assert run_command("fit", direct(tiny_cohort, trained, *more)) == 0
    dropped = cell_of(trained, "dropped")
    capsys.readouterr()
    assert main(["test", "--run", str(dropped.path), "--ckpt", str(run.checkpoint())]) == 0
    text = capsys.readouterr().err
    assert "model.init_args.network.init_args.dropout 0.2, configured is 0.5, which is used" in text
    words = ["test", "--run", str(run.path), "--ckpt", str(run.checkpoint()), "--trainer.limit_test_batches", "1"]
    assert main(words) == 2, "another configuration is another cell"
    backbone = ["--model.init_args.network.init_args.backbone", "test_resnet", "--arm", "small"]
    assert run_command("fit", direct(tiny_cohort, trained, *backbone)) == 0
    capsys.readouterr()
    assert main(["test", "--run", str(cell_of(trained, "small").path), "--ckpt", str(run.checkpoint())]) == 2
    assert "does not fit the configured network" in capsys.readouterr().err


def test_2_a_changed_class_keeps_arguments_of_the_old_one(
    tiny_cohort: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = tmp_path / "a.yaml", tmp_path / "b.yaml"
    model = {"class_path": f"{__name__}.Plain", "init_args": {"mask_source": "reference", "width": 9}}
    first.write_text(yaml.safe_dump({"model": model}))
    second.write_text(yaml.safe_dump({"model": {"class_path": f"{__name__}.Other"}}))
    cli = plain(f"--config={first}", f"--config={second}", run=False)
    assert cli.model.width == 9, "plain: carried over"
    said = capsys.readouterr()
    assert "mask_source" not in said.out + said.err, "plain: dropped without a word"

    overlay = tmp_path / "masked.yaml"
    overlay.write_text("model:\n  class_path: lightning_modules.masked_classification.MaskedClassificationModule\n")
    more = ["-c", str(overlay), "--model.init_args.network.init_args.mask_injection", "[multiply]"]
    words = [*tiny_cohort.words("direct", runs=tmp_path), *PREPROCESSING, *ONE_LOGGER, *more]
    capsys.readouterr()
    parsed("fit", [*words, "--data.init_args.mask_source", "reference"])
    assert (
        "model: masked.yaml puts MaskedClassificationModule for DirectClassificationModule; carried over: "
        "optimizer; dropped: nothing"
    ) in capsys.readouterr().err.replace("network, ", "")
    sgd = ["--model.init_args.optimizer", "{class_path: torch.optim.SGD, init_args: {momentum: 0.9}}"]
    adam = ["--model.init_args.optimizer.class_path", "torch.optim.Adam"]
    parsed("fit", [*tiny_cohort.words("direct", runs=tmp_path), *CLASSIFIER, *sgd, *adam])
    text = capsys.readouterr().err
    assert "puts SGD for AdamW; carried over: lr, weight_decay; dropped: nothing" in text
    assert "puts Adam for SGD; carried over: lr, weight_decay; dropped: momentum" in text


def test_3_values_for_linked_keys_and_abbreviations(tiny_cohort: Tiny, tmp_path: Path) -> None:
    cli = plain(base(Plain), "--model.init_args.width=7", "--trainer.max_epochs=3", cls=Linked, run=False)
    assert cli.model.hparams["width"] == 3, "plain: 7 was accepted and is ignored"
    assert plain(base(Plain), "--trainer.max_epoch=5", run=False).trainer.max_epochs == 5, "plain: abbreviated"

    ours = parsed("fit", direct(tiny_cohort, tmp_path))
    # nothing is linked, so nothing that is given can be lost; what must agree is checked by 'misfits'
    assert not [action for action in ours.parser._actions if "ActionLink" in type(action).__name__]
    assert not ours.parser._links_group if hasattr(ours.parser, "_links_group") else True
    with pytest.raises(InputError, match=r"unknown key 'trainer\.max_epoch'; did you mean 'trainer\.max_epochs'"):
        parsed("fit", direct(tiny_cohort, tmp_path, "--trainer.max_epoch", "5"))


def test_4_every_rank_asks_for_a_trial_of_its_own(tmp_path: Path) -> None:
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    def script() -> int:
        # what a search inside the training script does; DDP runs the script once a rank
        storage = JournalStorage(JournalFileBackend(str(tmp_path / "journal")))
        study = optuna.create_study(storage=storage, study_name="s", load_if_exists=True)
        return study.ask().number

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    assert [script() for _ in range(2)] == [0, 1], "plain: two ranks of one training, two trials"
    check = (
        "import sys, experiments.lightning_cli\n"
        "ours = [module for name, module in list(sys.modules.items()) if name.split('.')[0] in "
        "('experiments', 'callbacks', 'datamodules', 'lightning_modules')]\n"
        "print([module.__name__ for module in ours if hasattr(module, 'optuna')], len(ours) > 20)"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["[]", "True"], "what a rank runs knows nothing of searches: they are decided outside"


def test_5_padded_samplers_count_patients_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    values = {f"p{index}": float(index) for index in range(5)}
    names = list(values)
    samplers: list[Any] = [DistributedSampler(names, 2, rank, shuffle=False) for rank in range(2)]  # type: ignore[arg-type]  # a list is a dataset
    ranks = [[names[index] for index in sampler] for sampler in samplers]
    means = [sum(values[name] for name in rank) / len(rank) for rank in ranks]
    assert sum(means) / 2 != pytest.approx(2.0), "plain: the mean of the ranks' means is not the patients' mean"

    parts = [{name: values[name] for name in rank} for rank in ranks]

    def gather(out: list[Any], own: Any) -> None:
        out[:] = parts

    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_gather_object", gather)
    assert gather_by_id(parts[0]) == values


def test_6_interpolation_is_resolved_before_overlays(tiny_cohort: Tiny, tmp_path: Path) -> None:
    pytest.importorskip("omegaconf", reason="the plain half needs omegaconf, which hepastage does not")
    first, second = tmp_path / "a.yaml", tmp_path / "b.yaml"
    model = {"class_path": f"{__name__}.Plain", "init_args": {"width": "${trainer.max_epochs}"}}
    first.write_text(yaml.safe_dump({"trainer": {"max_epochs": 3}, "model": model}))
    second.write_text("trainer: {max_epochs: 8}\n")
    settings: dict[str, Any] = {"run": False, "parser_kwargs": {"parser_mode": "omegaconf"}}
    cli = plain(f"--config={first}", f"--config={second}", **settings)
    assert (cli.trainer.max_epochs, cli.model.hparams["width"]) == (8, 3), "plain: the overlay came too late"


def test_6_there_is_no_interpolation_here(tiny_cohort: Tiny, tmp_path: Path) -> None:
    assert HepastageCLI is not None
    assert parsed("fit", direct(tiny_cohort, tmp_path)).parser.parser_mode == "yaml"
    with pytest.raises(InputError, match="is not a whole number"):
        parsed("fit", direct(tiny_cohort, tmp_path, "--data.init_args.batch_size", "${trainer.max_epochs}"))


def test_7_the_saved_configuration_is_whole_and_kept(
    trained: Path, tiny_cohort: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    defaults: dict[str, Any] = {"trainer_defaults": {"callbacks": [ModelSummary(max_depth=7)]}}
    words = [base(Plain), *QUIET, f"--trainer.default_root_dir={tmp_path}"]
    words.remove("--trainer.enable_model_summary=false")
    plain("fit", *words, "--trainer.logger=true", **defaults)
    (saved,) = tmp_path.rglob("config.yaml")
    assert "ModelSummary" not in saved.read_text(), "plain: a callback that ran is not in the saved configuration"
    settings = f"save_dir: {tmp_path}, name: '', version: ''"
    logger = f"--trainer.logger={{class_path: lightning.pytorch.loggers.CSVLogger, init_args: {{{settings}}}}}"
    again = [word for word in words if "logger" not in word]
    plain("fit", *again, logger)
    with pytest.raises(RuntimeError, match="to NOT exist"):
        plain("validate", *again, logger)

    run = cell_of(trained, "direct")
    before = run.config.read_bytes()
    for command in ("test", "validate", "test"):
        assert main([command, "--run", str(run.path)]) == 0
    assert run.config.read_bytes() == before, "one directory for all commands; fit alone writes its configuration"
    cli = parsed("test", ["-c", str(run.config), "--runs", str(trained)])
    assert cli.directory.path == run.path
    classes = [type(callback).__name__ for callback in vars(cli.trainer)["callbacks"]]
    assert {"LastCheckpoint", "Throughput", "RunProgress", "ModelCheckpoint", "PredictionWriter"} <= set(classes)
    assert all(name in before.decode() for name in ("LastCheckpoint", "Throughput", "RunProgress", "PredictionWriter"))
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main(["fit", *direct(tiny_cohort, tmp_path), "--print_config"])
    assert stop.value.code == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert [item["class_path"] for item in printed["trainer"]["callbacks"]] == [
        item["class_path"] for item in yaml.safe_load(before)["trainer"]["callbacks"]
    ]


def test_the_saved_configuration_alone_reproduces_the_run(trained: Path, tmp_path: Path) -> None:
    run = cell_of(trained, "direct")
    assert run_command("fit", ["-c", str(run.config), "--runs", str(tmp_path)]) == 0
    other = cell_of(tmp_path, "direct")
    assert other.path.name == run.path.name, "the same cell"
    first, second = (torch.load(item.checkpoint("last"), weights_only=True)["state_dict"] for item in (run, other))
    torch.testing.assert_close(first, second, rtol=0, atol=0)


def test_plain_lightning_says_fifty_lines_where_three_are_enough(
    tiny_cohort: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises((SystemExit, ArgumentError)):
        plain(base(Plain), "--trainer.max_epocs=3", run=False)
    theirs = capsys.readouterr().err
    assert main(["fit", *direct(tiny_cohort, tmp_path, "--trainer.max_epocs", "3")]) == 2
    ours = capsys.readouterr().err
    assert len(ours.splitlines()) <= 3 and "did you mean 'trainer.max_epochs'?" in ours
    assert len(theirs) > 2 * len(ours) or "max_epochs" not in theirs
