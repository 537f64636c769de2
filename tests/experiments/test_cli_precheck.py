"""Faults that are found without torch, in the parser's own words; and nothing right is ever called wrong."""

from __future__ import annotations

import importlib
import importlib.resources
import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from datamodules.errors import InputError
from experiments.cli_files import check_files
from experiments.cli_given import given_of
from experiments.cli_guards import check_guards, check_trainer
from experiments.cli_precheck import precheck
from experiments.cli_words import with_shipped
from experiments.grid_resolve import Resolver
from tests.tiny import CLASSIFIER, SEGMENTER, Tiny

CONFIGS = sorted(Path(str(importlib.resources.files("experiments.configs"))).rglob("*.yaml"))
COMPLETE = ("direct", "masked_attention_resnet", "segmentation", "staging")
MODEL = "lightning_modules.direct_classification.DirectClassificationModule"
VALUES = [
    ["--trainer.max_epochs", "many"],
    ["--trainer.accumulate_grad_batches", "two"],
    ["--trainer.precision", "16bit"],
    ["--trainer.strategy", "ddpp"],
    ["--data.init_args.fold", "first"],
    ["--data.init_args.batch_size", "2.5"],
    ["--data.init_args.mask_source", "referenc"],
    ["--data.init_args.preprocessing.spacing", "2x2x6"],
    ["--data.init_args.preprocessing.bias_correction", "perhaps"],
    ["--model.init_args.network.init_args.pooling", "maximum"],
    ["--model.init_args.network.init_args.pretrained", "perhaps"],
    ["--model.init_args.warmup", "short"],
    ["--role", "king"],
    ["--part_size", "small"],
]
FILES = [
    ["--data.init_args.cohort", "livers.parquet"],
    ["--data.init_args.splits", "split.json"],
    ["--data.init_args.fold", "5"],
    ["--data.init_args.fold", "-1"],
    ["--data.init_args.sequence", "PD"],
    ["--data.init_args.rule", "metavir>=3"],
    ["--data.init_args.rule", "lsm>"],
    ["--data.init_args.mask_source", "reference"],
    ["--data.init_args.mask_source", "out_of_fold"],
    ["--data.init_args.masks", "masks"],
    ["--data.init_args.batch_size", "0"],
    ["--data.init_args.workers", "-1"],
    ["--model.init_args.network.init_args.backbone", "resnet81"],
    ["--seed_everything", "false"],
    ["--data.init_args.preprocessing.normalisation", "z"],
    ["--data.init_args.preprocessing.spacing", "[1, 2, 300]"],
    ["--data.init_args.preprocessing.shape", "[1, 2, -3]"],
    ["--data", "datamodules.segmentation.SegmentationDataModule"],
    ["--study", "liver T2"],
    ["--model.init_args.classes", "4", "--model.init_args.network.init_args.classes", "4"],
    ["--trainer.devices", "2", "--trainer.strategy", "ddp", "--data.init_args.batch_size", "3"],
]
RIGHT = [
    ["--trainer.max_epochs", "-1"],
    ["--trainer.max_epochs", "null"],
    ["--trainer.max_epochs=3"],
    ["--trainer.max_time", "00:12:00:00"],
    ["--trainer.devices", "[0,1]"],
    ["--trainer.devices", "auto"],
    ["--trainer.devices", "0,1"],
    ["--trainer.devices", "-1"],
    ["--trainer.precision", "32"],
    ["--trainer.precision", "bf16"],
    ["--trainer.precision", "null"],
    ["--trainer.limit_train_batches", "0.5"],
    ["--trainer.limit_train_batches", "1"],
    ["--trainer.overfit_batches", "1e-2"],
    ["--trainer.check_val_every_n_epoch", "null"],
    ["--trainer.val_check_interval", "0.25"],
    ["--trainer.val_check_interval", "00:00:10:00"],
    ["--trainer.gradient_clip_val", "1e-3"],
    ["--trainer.gradient_clip_val", "1"],
    ["--trainer.logger", "false"],
    ["--trainer.logger", "true"],
    ["--trainer.callbacks", "null"],
    ["--trainer.fast_dev_run", "true"],
    ["--trainer.fast_dev_run", "3"],
    ["--trainer.deterministic", "warn"],
    ["--trainer.deterministic", "yes"],
    ["--trainer.enable_progress_bar", "off"],
    ["--trainer.strategy", "ddp_find_unused_parameters_true"],
    ["--trainer.strategy", "deepspeed_stage_3_offload"],
    ["--trainer.strategy", "fsdp_cpu_offload"],
    ["--trainer.strategy", "ddp_spawn"],
    ["--trainer.profiler", "simple"],
    ["--trainer.default_root_dir", "12"],
    ["--seed_everything", "7"],
    ["--seed_everything", "true"],
    ["--part_size", "null"],
    ["--study", "2024"],
    ["--data.init_args.fold", "'1'"],
    ["--data.init_args.fold", "1_0"],
    ["--data.init_args.cohort", "2024"],
    ["--data.init_args.rule", "null"],
    ["--data.init_args.preprocessing", "null"],
    ["--data.init_args.preprocessing.spacing", "null"],
    ["--data.init_args.preprocessing.spacing", "[2, null, 6.5]"],
    ["--data.init_args.preprocessing.shape", "(1, 2, 3)"],
    ["--data.init_args.augmentation", "null"],
    ["--model.init_args.warmup", "0"],
    ["--model.init_args.warmup", "5e-2"],
    ["--model.init_args.network.init_args.mask_injection+", "channel"],
    ["--model.init_args.network.init_args.weights_file", "null"],
    ["--model.init_args.optimizer.class_path", "SGD"],
    ["--model.init_args.optimizer.class_path", "torch.optim.adamw.AdamW"],
    ["--model.init_args.optimizer.class_path", "torch.optim.Adagrad"],
    ["--model.init_args.optimizer.class_path", "timm.optim.Lamb"],
    ["--trainer.logger.class_path", "lightning.pytorch.loggers.CSVLogger"],
    ["--trainer.strategy.class_path", "lightning.pytorch.strategies.DDPStrategy"],
    ["--trainer.profiler.class_path", "lightning.pytorch.profilers.SimpleProfiler"],
    ["--data.init_args.preprocessing.normalisation", "nyul"],
    ["--model.init_args.optimizer.init_args.betas", "[0.9, 0.95]"],
    ["--wandb.patients", "true"],
    # the last one counts
    ["--trainer.max_epochs", "many", "--trainer.max_epochs", "3"],
    # another class may take another type
    ["--data.init_args.fold", "first", "--data", "somebody.elses.Data"],
]


def fault_of(words: list[str], files: bool) -> str:
    """What the check before the imports says."""
    given = given_of(with_shipped(words))
    with pytest.raises(InputError) as caught:
        precheck(given)
        if files:
            check_files(given)
    assert len(caught.value.faults) == 1
    return caught.value.faults[0]


def words_of(tiny: Tiny, runs: Path) -> list[str]:
    """A right command, which the faults are added to."""
    return [*tiny.words("direct", runs=runs), *CLASSIFIER]


@pytest.fixture(scope="module")
def run(tiny_cohort: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Resolver:
    """What parses and builds as a run does; its parser is built once, which takes as long as parsing."""
    made = Resolver()
    made.resolve(words_of(tiny_cohort, tmp_path_factory.mktemp("runs")))
    return made


@pytest.mark.parametrize("words", [*VALUES, *FILES], ids=" ".join)
@pytest.mark.filterwarnings("ignore")
def test_the_parser_says_the_same(
    words: list[str], run: Resolver, tiny_cohort: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    whole = [*words_of(tiny_cohort, tmp_path), *words]
    early = fault_of(whole, words in FILES)
    with pytest.raises(InputError) as late:
        run.build(whole)
    # the run makes paths absolute first
    said = late.value.faults[0].replace(f"{tmp_path}/", "")
    if "near names" in early:
        early, said = early.split("near names")[0], said.split("near names")[0]
    assert early == said


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ("segmentation", ["--data.init_args.patch", "[12, 16, 8]"]),
        ("segmentation", ["--model.init_args.window", "[16, 16, 6]", "--data.init_args.patch", "[16, 16, 8]"]),
        ("direct", ["--trainer.devices", "5", "--trainer.strategy", "ddp"]),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_all_faults_of_a_kind_are_said_at_once(
    config: str, words: list[str], tiny_cohort: Tiny, tmp_path: Path
) -> None:
    from experiments.lightning_cli import parsed

    more = SEGMENTER if config == "segmentation" else CLASSIFIER
    whole = [*tiny_cohort.words(config, runs=tmp_path), *more, *words]
    with pytest.raises(InputError) as early:
        check_files(given_of(with_shipped(whole)))
    with pytest.raises(InputError) as late:
        parsed("fit", whole)
    assert early.value.faults == late.value.faults


def test_a_class_that_another_package_does_not_have() -> None:
    fault = fault_of(["-c", "direct", "--model.init_args.optimizer.class_path", "torch.optim.AdamWW"], False)
    assert fault.endswith("there is no class 'torch.optim.AdamWW' for model.init_args.optimizer; did you mean 'AdamW'?")


@pytest.mark.parametrize("key", ["--data.init_args.patch", "--model.init_args.window"])
def test_a_list_of_another_length(key: str) -> None:
    with pytest.raises(InputError, match=rf"^{key}: \[64, 64\] has 2 values; give 3$"):
        precheck(given_of(with_shipped(["-c", "segmentation", key, "[64, 64]"])))


@pytest.mark.parametrize("key", ["--study", "--arm"])
def test_an_empty_name(key: str) -> None:
    assert fault_of(["-c", "direct", key, ""], True).startswith(f"{key} '': cannot name a folder")


def test_no_cohort() -> None:
    assert fault_of(["-c", "direct"], True).startswith("data.init_args.cohort: is required and not given; set it in")


@pytest.mark.parametrize("more", [VALUES[0], FILES[2], FILES[12]], ids=" ".join)
def test_nothing_heavy_is_imported(more: list[str], tiny_cohort: Tiny, tmp_path: Path) -> None:
    words = ["fit", *words_of(tiny_cohort, tmp_path), *more]
    code = (
        f"import sys, json; from experiments.cli import main\nassert main(json.loads({json.dumps(words)!r})) == 2\n"
        "print([name for name in ('torch', 'lightning', 'jsonargparse', 'timm') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["[]"], done.stderr


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_no_shipped_configuration_is_called_wrong(path: Path) -> None:
    given = given_of(["-c", str(path)])
    precheck(given)
    check_guards(given)
    check_trainer(given)


@pytest.mark.parametrize("name", COMPLETE)
@pytest.mark.filterwarnings("ignore")
def test_no_resolved_configuration_is_called_wrong(
    name: str, tiny_cohort: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from experiments.lightning_cli import parsed

    with pytest.raises(SystemExit):
        # the tiny cohort's rule has two classes
        more = ["--model.init_args.classes", "2"] if name == "staging" else []
        parsed("fit", [*tiny_cohort.words(name, runs=tmp_path), *more, "--print_config"])
    text = capsys.readouterr().out
    assert yaml.safe_load(text)["data"]["init_args"]["cohort"] == str(tiny_cohort.cohort)
    (tmp_path / "resolved.yaml").write_text(text)
    given = given_of(["-c", str(tmp_path / "resolved.yaml")])
    precheck(given)
    if name != "masked_attention_resnet":
        check_files(given)
    check_guards(given)
    check_trainer(given)


@pytest.mark.parametrize("words", RIGHT, ids=" ".join)
def test_no_right_value_is_called_wrong(words: list[str]) -> None:
    given = given_of(with_shipped(["-c", "direct", *words]))
    precheck(given)
    check_guards(given)
    check_trainer(given)


def test_a_right_command_passes(tiny_cohort: Tiny, tmp_path: Path) -> None:
    given = given_of(with_shipped(words_of(tiny_cohort, tmp_path)))
    precheck(given)
    check_files(given)
    check_guards(given)


@pytest.mark.parametrize(
    "words",
    [
        ["--print_config"],
        ["--data", "somebody.elses.Data"],
        ["--data.cohort", "x.parquet"],
        ["--data", f"{MODEL}"],
    ],
)
def test_what_the_words_do_not_say_for_certain_is_left_to_the_run(words: list[str]) -> None:
    check_files(given_of(with_shipped(["-c", "direct", *words])))


def chain(**arguments: object) -> dict[str, object]:
    noise = {"class_path": "datamodules.augmentation.RandomNoise", "init_args": arguments}
    augmentation = {"class_path": "datamodules.augmentation.BatchedAugmentation", "init_args": {"transforms": [noise]}}
    return {"data": {"init_args": {"augmentation": augmentation}}}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"stdd": [0.0, 0.1]}, r"transforms\.0\.init_args\.stdd: unknown key 'stdd'; did you mean 'std'\?"),
        ({"p": "much"}, r"transforms\.0\.init_args\.p: 'much' is not a number; correct it"),
    ],
)
def test_members_of_lists_are_judged_too(arguments: dict[str, object], message: str, tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(yaml.safe_dump(chain(**arguments)))
    with pytest.raises(InputError, match=message):
        precheck(given_of(with_shipped(["-c", "segmentation", "-c", str(path)])))
    # a list that a later file replaces is not used
    right = tmp_path / "right.yaml"
    right.write_text(yaml.safe_dump(chain(std=[0.0, 0.1], p=0.5)))
    precheck(given_of(with_shipped(["-c", "segmentation", "-c", str(path), "-c", str(right)])))


def test_a_mistyped_member_is_named(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(yaml.safe_dump(chain()).replace("RandomNoise", "RandomNoize"))
    with pytest.raises(InputError, match=r"own\.yaml: .*transforms\.0\.class_path: there is no class .*RandomNoize"):
        precheck(given_of(with_shipped(["-c", "segmentation", "-c", str(path)])))


def test_a_refusal_names_its_key(tmp_path: Path) -> None:
    words = ["-c", "segmentation", "--model.init_args.mirror_axes", "[7]"]
    with pytest.raises(InputError) as caught:
        check_guards(given_of(with_shipped(words)))
    (fault,) = caught.value.faults
    assert fault.startswith("--model.init_args.mirror_axes: mirror_axes=(7,): axes are 0, 1 and 2; 'hepastage fit")
    # what is appended to a list is not the list
    check_guards(
        given_of(with_shipped(["-c", "direct", "--model.init_args.network.init_args.mask_injection+", "gate"]))
    )
