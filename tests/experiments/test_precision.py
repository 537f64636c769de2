"""The line about bf16: only where the hardware has it and nothing was asked for."""

from __future__ import annotations

import pytest
from torch import nn

from experiments.lightning_cli import run_command
from experiments.precision import faster_precision, slow_convolutions
from tests.tiny import CLASSIFIER, Tiny


@pytest.mark.parametrize(
    ("best", "asked", "said"),
    [
        ("bf16-mixed", None, True),
        ("bf16-mixed", "32-true", False),
        ("bf16-mixed", "bf16-mixed", False),
        ("bf16-mixed", 32, False),
        ("32-true", None, False),
    ],
)
def test_said_where_it_helps(best: str, asked: str | int | None, said: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("experiments.precision.best_precision", lambda device: best)
    line = faster_precision(asked, "cpu")
    assert (line is not None) is said
    if line is not None:
        assert "trainer/bf16" in line


def test_a_run_says_it_once(
    tiny_cohort: Tiny, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("experiments.precision.best_precision", lambda device: "bf16-mixed")
    monkeypatch.chdir(tiny_cohort.folder)
    words = [
        "-c", "direct", *CLASSIFIER, "--study", "precision", "--data.init_args.cohort", str(tiny_cohort.cohort),
        "--data.init_args.splits", str(tiny_cohort.splits),
    ]  # fmt: skip
    assert run_command("fit", [*words, "--arm", "open"]) == 0
    assert capsys.readouterr().err.count("-c trainer/bf16") == 1
    assert run_command("fit", [*words, "--arm", "asked", "--trainer.precision", "32-true"]) == 0
    assert "trainer/bf16" not in capsys.readouterr().err


def test_a_run_on_the_processor_is_not_told_of_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation: True)
    monkeypatch.setattr("torch.cpu.get_capabilities", dict, raising=False)
    assert faster_precision(None, "cpu") is None
    assert faster_precision(None, "cuda") is not None


@pytest.mark.parametrize(
    ("version", "asked", "device", "layer", "said"),
    [
        (91300, "bf16-mixed", "cuda", nn.Conv3d(1, 1, 3), True),
        (91300, "16-mixed", "cuda", nn.Conv3d(1, 1, 3), True),
        (91500, "bf16-mixed", "cuda", nn.Conv3d(1, 1, 3), False),
        (91300, None, "cuda", nn.Conv3d(1, 1, 3), False),
        (91300, "32-true", "cuda", nn.Conv3d(1, 1, 3), False),
        (91300, "bf16-mixed", "cuda", nn.Conv2d(1, 1, 3), False),
        (91300, "bf16-mixed", "cpu", nn.Conv3d(1, 1, 3), False),
        (None, "bf16-mixed", "cuda", nn.Conv3d(1, 1, 3), False),
    ],
)
def test_an_old_cudnn_is_named(
    version: int | None, asked: str | None, device: str, layer: nn.Module, said: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.backends.cudnn.version", lambda: version)
    monkeypatch.setattr("torch.version.cuda", "13.2")
    line = slow_convolutions(nn.Sequential(layer), asked, device)
    assert (line is not None) is said
    if line is not None:
        assert "cuDNN 9.13.0" in line and "nvidia-cudnn-cu13>=9.15" in line
