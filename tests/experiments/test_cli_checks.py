"""What cannot work with the processes, devices and precision asked for is said before anything is built."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from datamodules.errors import InputError
from experiments import cli_checks, cli_machine
from experiments.cli_machine import trainer_faults
from experiments.lightning_cli import parsed
from tests.tiny import CLASSIFIER, Tiny

FSDP = {"class_path": "lightning.pytorch.strategies.FSDPStrategy", "init_args": {}}
TORCHRUN = {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "8"}


@pytest.mark.parametrize(
    ("trainer", "gpus", "environment", "match"),
    [
        ({"strategy": "fsdp"}, 0, {}, r"trainer\.strategy: FSDP needs GPUs, and this machine has none"),
        ({"strategy": FSDP}, 0, {}, "FSDP needs GPUs"),
        ({"strategy": "fsdp", "accelerator": "cpu"}, 2, {}, "the accelerator is cpu"),
        ({"strategy": FSDP, "gradient_clip_val": 1.0}, 2, {}, "FSDP cannot clip by norm"),
        ({"strategy": FSDP, "gradient_clip_val": 1.0, "gradient_clip_algorithm": "value"}, 2, {}, None),
        ({"strategy": FSDP}, 2, {}, None),
        ({"strategy": "ddp_spawn"}, 0, {}, "start no command; use ddp"),
        ({"strategy": "ddp_notebook"}, 0, {}, "start no command; use ddp"),
        ({"strategy": "ddp", "devices": 1}, 0, {}, None),
        ({"strategy": "ddp", "devices": 2, "accelerator": "cpu"}, 0, {}, None),
        ({"accelerator": "gpu"}, 0, {}, r"trainer\.accelerator: gpu, but this machine has no GPU"),
        ({"accelerator": "gpu", "devices": 3}, 2, {}, r"asks for 3 GPUs, and this machine has 2"),
        ({"accelerator": "cuda", "devices": [0, 2]}, 2, {}, r"names the GPUs \[0, 2\]"),
        ({"accelerator": "gpu", "devices": "auto"}, 2, {}, None),
        ({"accelerator": "gpu", "devices": -1}, 2, {}, None),
        ({"precision": "16-mixed"}, 0, {}, r"trainer\.precision: 16-mixed needs a GPU"),
        ({"precision": "16-mixed", "accelerator": "cpu"}, 2, {}, "16-mixed needs a GPU"),
        ({"precision": "16-mixed", "accelerator": "gpu"}, 2, {}, None),
        ({"sync_batchnorm": True, "devices": 2, "strategy": "ddp"}, 0, {}, "works on GPUs alone"),
        ({"sync_batchnorm": True, "devices": 1}, 0, {}, None),
        ({"num_nodes": 2, "strategy": "ddp"}, 0, {}, "start it with torchrun or srun"),
        ({"num_nodes": 2, "devices": 1}, 0, {"SLURM_NTASKS": "2"}, None),
        ({"num_nodes": 2, "devices": 2}, 0, TORCHRUN, "2 on each of 2 nodes, but torchrun started 8 processes"),
        ({"num_nodes": 2, "devices": 4}, 0, TORCHRUN, None),
        ({"accelerator": "gpuu"}, 0, {}, r"trainer\.accelerator: gpuu is not one; choose one of auto, cpu"),
        ({"accelerator": "hpu"}, 0, {}, None),
        ({"accelerator": "cpu", "devices": 0}, 0, {}, r"trainer\.devices: is 0; give a number of processes from 1 on"),
        ({"accelerator": "cpu", "devices": [0, 1]}, 2, {}, r"\[0, 1\] names GPUs, and the accelerator is cpu"),
        ({"accumulate_grad_batches": 0}, 0, {}, r"trainer\.accumulate_grad_batches: is 0; give 1 or more"),
        ({"overfit_batches": 2.0}, 0, {}, None),
        ({"devices": "-1"}, 0, {}, r"trainer\.devices: is -1; give"),
        ({"accelerator": "cpu", "devices": "2"}, 0, {}, None),
    ],
)
def test_on_this_machine(
    trainer: dict[str, Any], gpus: int, environment: dict[str, str], match: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    import re

    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    for name in (*cli_machine.LAUNCHERS, "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    faults = trainer_faults(trainer)
    if match is None:
        assert faults == []
    else:
        (fault,) = faults
        assert re.search(match, fault), fault
        assert ";" in fault and len(fault) < 250, "what to do next, in one line"


@pytest.mark.parametrize(
    "values",
    [
        {"max_epochs": -2}, {"max_steps": -2}, {"num_nodes": 0}, {"limit_train_batches": 1.5},
        {"limit_val_batches": -1}, {"overfit_batches": 1.5}, {"devices": 0}, {"devices": [0, 1]},
        {"accelerator": "gpuu"},
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.filterwarnings("ignore")
def test_what_is_refused_early_is_what_the_trainer_refuses(values: dict[str, Any]) -> None:
    from lightning.pytorch import Trainer

    assert len(trainer_faults({"accelerator": "cpu", **values})) == 1
    with pytest.raises((ValueError, TypeError, MisconfigurationException)):
        Trainer(**{"accelerator": "cpu", "logger": False, **values})


@pytest.mark.parametrize("there", [True, False])
def test_bfloat16_that_the_processor_lacks(there: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli_machine, "fast_bf16", lambda: there)
    import warnings

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert trainer_faults({"precision": "bf16-mixed", "accelerator": "cpu"}) == []
    assert [("slower than 32-true" in str(warning.message)) for warning in caught] == ([] if there else [True])


def test_fsdp_is_refused_before_anything_is_built(
    tiny_cohort: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU: nothing to refuse")
    from datamodules.base import CohortDataModule
    from lightning_modules.task import TaskModule

    for built in (CohortDataModule, TaskModule):
        monkeypatch.setattr(built, "__init__", lambda *args, **kwargs: pytest.fail("was built"))
    words = [*tiny_cohort.words("direct", "trainer/fsdp", runs=tmp_path), "--trainer.accelerator", "auto"]
    with pytest.raises(InputError) as caught:
        parsed("fit", words)
    assert "FSDP needs GPUs, and this machine has none" in caught.value.faults[0]
    assert len(caught.value.faults) == 1
    assert not (tmp_path / "study").exists()


@pytest.mark.parametrize(
    ("config", "more", "matches"),
    [
        ("direct", ["--trainer.devices", "5"], ["train part of fold 0 has only 4", "valid part", "test part"]),
        ("direct", ["--trainer.devices", "2", "--data.init_args.batch_size", "3"], ["take 6 items a step.*at most 2"]),
        ("direct", ["--trainer.devices", "2", "--data.init_args.batch_size", "2"], []),
        (
            "direct",
            ["--trainer.devices", "2", "--data.init_args.batch_size", "1", "--trainer.accumulate_grad_batches", "3"],
            ["take 6 items a step"],
        ),
        ("direct", ["--trainer.devices", "1", "--data.init_args.batch_size", "9"], []),
    ],
)
def test_too_few_patients_for_the_processes(
    config: str, more: list[str], matches: list[str], tiny_cohort: Tiny, tmp_path: Path
) -> None:
    import re

    words = [*tiny_cohort.words(config, runs=tmp_path), *CLASSIFIER, "--trainer.strategy", "ddp", *more]
    if not matches:
        parsed("fit", words)
        return
    with pytest.raises(InputError) as caught:
        parsed("fit", words)
    assert len(caught.value.faults) == len(matches)
    for fault, match in zip(caught.value.faults, matches, strict=True):
        assert re.search(match, fault), fault


def test_a_batch_norm_that_would_wait_for_ever(tiny_cohort: Tiny, tmp_path: Path) -> None:
    """P05 has no T1W: a process whose batch is P05 alone never comes to T1W's batch norm."""
    words = tiny_cohort.words("staging", runs=tmp_path)
    words += [*CLASSIFIER, "--model.init_args.classes", "2", "--model.init_args.network.init_args.classes", "1"]
    cli = parsed("fit", words)
    from datamodules.staging import StagingDataModule

    assert isinstance(cli.datamodule, StagingDataModule)
    (fault,) = cli_checks.waiting_faults(cli.model, cli.datamodule, synchronised=True)
    assert "1 examinations lack a sequence" in fault
    assert cli_checks.waiting_faults(cli.model, cli.datamodule, synchronised=False) == []
