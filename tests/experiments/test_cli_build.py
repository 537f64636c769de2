"""What constructors refuse is said without Lightning, in the words of the run itself."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from datamodules.errors import InputError
from experiments.cli_build import check_buildable
from experiments.cli_given import given_of
from experiments.cli_machine import trainer_faults
from experiments.cli_words import with_shipped
from experiments.lightning_cli import parsed
from tests.tiny import ONE_LOGGER, PREPROCESSING, Tiny

NETWORK, OPTIMIZER = "--model.init_args.network.init_args", "--model.init_args.optimizer.init_args"
FOCAL = "lightning_modules.losses.classification.FocalLoss"
WRONG = {
    "dropout above 1": ("direct", [f"{NETWORK}.dropout", "2"]),
    "neighbours below 0": ("direct", [f"{NETWORK}.neighbours", "-1"]),
    "betas of one": ("direct", [f"{OPTIMIZER}.betas", "0.9"]),
    "a stage too few": ("segmentation", [f"{NETWORK}.features", "[16]"]),
    "a loss's word": (
        "direct",
        ["--model.init_args.loss", json.dumps({"class_path": FOCAL, "init_args": {"class_weights": "even"}})],
    ),
}
RIGHT = {
    "a backbone": ("direct", [f"{NETWORK}.backbone", "swin_tiny_patch4_window7_224"]),
    "ways of the mask": ("masked_attention_resnet", [f"{NETWORK}.mask_injection", "[multiply, gate]"]),
    "a rate": ("direct", [f"{OPTIMIZER}.lr", "0.01"]),
    "a network of MONAI": (
        "segmentation",
        [
            "--model.init_args.network",
            json.dumps(
                {
                    "class_path": "monai.networks.nets.SegResNet",
                    "init_args": {"spatial_dims": 3, "in_channels": 1, "out_channels": 2},
                }
            ),
        ],
    ),
    "staging": ("staging", [f"{NETWORK}.fusion", "gated", f"{NETWORK}.sequence_dropout", "0.3"]),
    "a loss": ("direct", ["--model.init_args.loss", json.dumps({"class_path": FOCAL, "init_args": {"gamma": 1.0}})]),
    "a class that replaced another": (
        "direct",
        ["-c", "model/volume_densenet121", f"{NETWORK}.dropout", "0.3"],
    ),
    "a class within that replaced another": (
        "direct",
        ["-c", "model/volume_densenet121", "-c", "model/volume_swin", f"{NETWORK}.dropout", "0.3"],
    ),
    "an optimiser that replaced another": (
        "direct",
        [f"{OPTIMIZER[:-10]}.class_path", "torch.optim.SGD", f"{OPTIMIZER}.momentum", "0.9"],
    ),
    "only a list is added to": (
        "direct",
        ["--trainer.callbacks+", '{"class_path": "callbacks.grad_cam.GradCamWriter"}'],
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_said_as_the_run_says_it(name: str, tiny_cohort: Tiny, tmp_path: Path) -> None:
    config, more = WRONG[name]
    words = [*tiny_cohort.words(config, runs=tmp_path), *PREPROCESSING, *ONE_LOGGER, *more]
    with pytest.raises(InputError) as early:
        check_buildable(given_of(with_shipped(words)))
    with pytest.raises(InputError) as late:
        parsed("fit", words)
    assert early.value.faults == late.value.faults
    assert not (tmp_path / "study").exists()


def test_an_optimiser_is_built_before_the_data_are_read() -> None:
    with pytest.raises(InputError, match="Invalid beta parameter at index 1: 2"):
        check_buildable(given_of(with_shipped(["-c", "direct", f"{OPTIMIZER}.betas", "[0.9, 2.0]"])))


@pytest.mark.parametrize("name", RIGHT)
def test_what_is_right_passes(name: str) -> None:
    config, more = RIGHT[name]
    check_buildable(given_of(with_shipped(["-c", config, *more])))


def test_neither_lightning_nor_timm_is_imported() -> None:
    script = """
import sys
from datamodules.errors import InputError
from experiments.cli_build import check_buildable
from experiments.cli_given import given_of
from experiments.cli_words import with_shipped
words = ["-c", "masked_attention_resnet", "--model.init_args.network.init_args.dropout", "2"]
try:
    check_buildable(given_of(with_shipped(words)))
except InputError as error:
    heavy = [name for name in ("lightning", "timm", "torchmetrics", "torchvision", "monai") if name in sys.modules]
    sys.exit(str(heavy) if heavy or "dropout" not in error.faults[0] else 0)
sys.exit("nothing was refused")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("key", "value"), [("gradient_clip_algorithm", "nrom"), ("profiler", "simpel")])
def test_words_that_the_trainer_does_not_know(key: str, value: str) -> None:
    (fault,) = trainer_faults({"accelerator": "cpu", key: value})
    assert fault.startswith(f"trainer.{key}: '{value}' is not one of them")


def test_what_a_run_has_saved_is_not_built_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what stands beside it is: a second of imports for nothing otherwise."""
    built: list[str] = []
    monkeypatch.setattr("experiments.cli_build._build", lambda owner, *unused: built.append(owner))
    saved = tmp_path / "config.yaml"
    network = "{class_path: lightning_modules.networks.unet.NNUNet, init_args: {features: [4, 8]}}"
    saved.write_text(f"model: {{init_args: {{network: {network}}}}}\n")
    words = ["-c", str(saved)]
    check_buildable(given_of(words), ["config.yaml"])
    assert built == []
    check_buildable(given_of([*words, f"{NETWORK}.classes", "3"]), ["config.yaml"])
    assert built == ["model.init_args.network"]
    check_buildable(given_of(words))
    assert len(built) == 2
