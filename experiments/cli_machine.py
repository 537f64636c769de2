"""What a trainer's configuration asks of this machine that it cannot give: known before anything is built.

Light: torch is imported where a machine's GPUs must be counted, Lightning never.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from datamodules.errors import InputError
from experiments.cli_given import Given
from experiments.cli_hints import no_processes, not_a_choice, step_too_large, too_few, wrong_choice
from experiments.cli_source import is_written_in

if TYPE_CHECKING:
    from datamodules.splits import Splits

LAUNCHERS = ("TORCHELASTIC_RUN_ID", "SLURM_NTASKS", "LSB_JOBID", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "NODE_RANK")
"""Variables by which a launcher, or a person who starts each node's command, says which node this is."""


LEAST = {
    "max_epochs": -1, "max_steps": -1, "accumulate_grad_batches": 1, "check_val_every_n_epoch": 1, "num_nodes": 1,
    "num_sanity_val_steps": -1, "log_every_n_steps": 0, "reload_dataloaders_every_n_epochs": 0,
}  # fmt: skip
"""The smallest values; Lightning refuses others when it is built, or divides by them in the training."""
WORDS = {
    "gradient_clip_algorithm": ("norm", "value"), "profiler": ("simple", "advanced", "pytorch", "xla"),
}  # fmt: skip
"""Words that Lightning's trainer knows, without regard to case, where it takes any text."""
SHARES = ("limit_train_batches", "limit_val_batches", "limit_test_batches", "limit_predict_batches", "overfit_batches")
"""A share in [0, 1], or a whole number of batches."""
DURATION = re.compile(r"\d+(:\d\d){3}")
"""Days, hours, minutes and seconds, as Lightning writes them."""
LARGEST_SEED = 2**32 - 1


def check_machine(given: Sequence[Given]) -> None:
    """Refuse what the trainer would refuse on this machine, before Lightning is imported.

    Args:
        given: All that was given, which ``precheck`` has found nothing wrong with.

    Raises:
        InputError: All faults, one line each.
    """
    if any(item.key == "print_config" for item in given):
        return
    trainer: dict[str, Any] = {}
    for item in given:
        if item.key == "seed_everything" and type(item.value) is int and not 0 <= item.value <= LARGEST_SEED:
            raise InputError(f"seed_everything: is {item.value}; give a whole number from 0 to {LARGEST_SEED}")
        part, _, key = item.key.partition(".")
        if part == "trainer" and "." not in key:
            trainer[key] = item.value
        elif item.key == "trainer.strategy.class_path":
            trainer["strategy"] = {"class_path": item.value}
    if faults := trainer_faults(trainer):
        raise InputError(*faults)


def trainer_faults(trainer: Mapping[str, Any]) -> list[str]:
    """Faults of the trainer's configuration on this machine, one line each; nothing has been built yet.

    Args:
        trainer: The ``trainer`` part of the parsed configuration.
    """
    strategy, accelerator = _name(trainer.get("strategy", "auto")), str(trainer.get("accelerator", "auto"))
    faults = [*_number_faults(trainer), *_accelerator_faults(trainer.get("accelerator", "auto"))]
    if faults:
        # known without torch, which takes seconds to import
        return faults
    gpus, on_cpu = 0, accelerator == "cpu"
    if not on_cpu:
        import torch

        # other accelerators than CUDA's answer for themselves when the trainer is built
        gpus = torch.cuda.device_count()
        on_cpu = accelerator == "auto" and gpus == 0 and not torch.backends.mps.is_available()
    faults = [
        *_strategy_faults(strategy, accelerator, on_cpu, trainer),
        *_device_faults(trainer.get("devices", "auto"), accelerator, gpus, on_cpu),
        *_node_faults(trainer),
    ]
    if on_cpu:
        faults += _precision_faults(str(trainer.get("precision") or "32-true"))
        if trainer.get("sync_batchnorm") and (processes_of(trainer) or 2) > 1:
            faults.append(
                "trainer.sync_batchnorm: works on GPUs alone; leave it out, or use a network with group or layer norm"
            )
    return faults


def rank_faults(ranks: int, splits: Splits, fold: int, batch_size: int | None, accumulated: int) -> list[str]:
    """Parts that are too small for the processes, and a step that is larger than the training part; one line each.

    Args:
        ranks: Processes.
        splits: The split.
        fold: The fold, counted from 0.
        batch_size: Of each process; None where a step takes patches, of which there are as many as are wanted.
        accumulated: Batches of a step.
    """
    faults = []
    parts = splits.folds[fold]
    for name, found in (("train", parts.train), ("valid", parts.valid), ("test", parts.test)):
        # a sealed split has no test patients
        if len(found) < ranks and (found or name != "test"):
            faults.append(too_few(ranks, name, fold, len(found)))
    patients = len(parts.train)
    if batch_size is not None and patients >= ranks and batch_size * ranks * accumulated > patients:
        step = batch_size * ranks * accumulated
        faults.append(step_too_large(ranks, step, patients, max(1, patients // (ranks * accumulated))))
    return faults


def _number_faults(trainer: Mapping[str, Any]) -> list[str]:
    faults = []
    for key, least in LEAST.items():
        value = trainer.get(key)
        if isinstance(value, (int, float)) and not isinstance(value, bool) and value < least:
            faults.append(f"trainer.{key}: is {value}; give {least} or more")
    for key, words in WORDS.items():
        value = trainer.get(key)
        if isinstance(value, str) and value.lower() not in words:
            faults.append(f"trainer.{key}: {wrong_choice(value, [', '.join(words)])}")
    every, longest = trainer.get("val_check_interval"), trainer.get("max_time")
    if isinstance(every, float) and not 0 <= every <= 1:
        faults.append(
            f"trainer.val_check_interval: is {every}; give a share from 0.0 to 1.0, or a whole number of steps"
        )
    if isinstance(longest, str) and not DURATION.fullmatch(longest.strip()):
        faults.append(
            f"trainer.max_time: {longest!r} is no duration; give days, hours, minutes, seconds: '00:12:00:00'"
        )
    if trainer.get("barebones") is True:
        faults.append(
            "trainer.barebones: is true, and leaves out logs and checkpoints, which a run needs; leave it out"
        )
    if _whole(trainer.get("devices")) == 0:
        faults.append(no_processes(trainer["devices"]))
    for key in SHARES:
        value = trainer.get(key)
        if isinstance(value, (int, float)) and (value < 0 or (value > 1 and value % 1)):
            faults.append(f"trainer.{key}: is {value}; give a share from 0.0 to 1.0, or a whole number of batches")
    return faults


def _accelerator_faults(accelerator: Any) -> list[str]:
    """Accelerators are registered under names: one that stands nowhere in Lightning's source is none."""
    if not isinstance(accelerator, str) or accelerator in ("auto", "cpu", "gpu", "cuda", "mps", "tpu"):
        return []
    # hpu: an accelerator of another package
    if "hpu" in accelerator or (
        "." not in accelerator and is_written_in(accelerator, "lightning.pytorch.accelerators")
    ):
        return []
    return [f"trainer.accelerator: {not_a_choice('trainer.accelerator', accelerator)}"]


def _strategy_faults(strategy: str, accelerator: str, on_cpu: bool, trainer: Mapping[str, Any]) -> list[str]:
    fsdp = "fsdp" in strategy.lower()
    if fsdp and on_cpu:
        why = "the accelerator is cpu" if accelerator == "cpu" else "this machine has none"
        return [f"trainer.strategy: FSDP needs GPUs, and {why}; use ddp, or auto for one process"]
    clip = trainer.get("gradient_clip_val")
    if fsdp and clip and trainer.get("gradient_clip_algorithm") != "value":
        return [
            "trainer.gradient_clip_val: FSDP cannot clip by norm; set it to null, or gradient_clip_algorithm to value"
        ]
    if any(word in strategy.lower() for word in ("spawn", "fork", "notebook")):
        return [f"trainer.strategy: {strategy} is for scripts and notebooks, which start no command; use ddp"]
    return []


def _device_faults(devices: Any, accelerator: str, gpus: int, on_cpu: bool) -> list[str]:
    if on_cpu and isinstance(devices, (list, tuple)):
        return [f"trainer.devices: {list(devices)} names GPUs, and the accelerator is cpu; give a number of processes"]
    if on_cpu and (_whole(devices) or 1) < 1:
        return [no_processes(devices)]
    if accelerator not in ("gpu", "cuda"):
        return []
    if gpus == 0:
        import torch

        if accelerator == "gpu" and torch.backends.mps.is_available():
            return []
        return [f"trainer.accelerator: {accelerator}, but this machine has no GPU that PyTorch can use; set it to cpu"]
    wanted = [int(n) for n in devices] if isinstance(devices, (list, tuple)) else _whole(devices)
    there = f"this machine has {gpus} (numbered from 0)"
    if isinstance(wanted, list) and any(not 0 <= n < gpus for n in wanted):
        return [f"trainer.devices: names the GPUs {wanted}, and {there}; name others"]
    if isinstance(wanted, int) and wanted > gpus:
        return [f"trainer.devices: asks for {wanted} GPUs, and {there}; ask for at most {gpus}"]
    return []


def _node_faults(trainer: Mapping[str, Any]) -> list[str]:
    nodes = _whole(trainer.get("num_nodes", 1)) or 1
    if nodes > 1 and not any(name in os.environ for name in LAUNCHERS):
        return [
            f"trainer.num_nodes: is {nodes}, but nothing says which node this is, and it would wait for the others for "
            "ever; start it with torchrun or srun on each node"
        ]
    processes = processes_of(trainer)
    size = _whole(os.environ.get("WORLD_SIZE", ""))
    if "TORCHELASTIC_RUN_ID" in os.environ and processes is not None and size is not None and processes != size:
        return [
            f"trainer.devices: {processes // nodes} on each of {nodes} nodes, but torchrun started {size} processes; "
            "set trainer.num_nodes to --nnodes and trainer.devices to --nproc_per_node"
        ]
    return []


def _precision_faults(precision: str) -> list[str]:
    if precision in ("16", "16-mixed", "16-true", "half"):
        return [
            f"trainer.precision: {precision} needs a GPU; set it to 32-true, or bf16-mixed on a processor that has it"
        ]
    if precision.startswith("bf16") and not fast_bf16():
        warnings.warn(
            f"trainer.precision: {precision} on a processor without bfloat16 instructions (avx512_bf16 or amx) is "
            "computed by way of 32 bits, 2 times (avx512) to 26 times (avx2) slower than 32-true where measured; "
            "set it to 32-true",
            stacklevel=2,
        )
    return []


def fast_bf16() -> bool:
    """Whether this processor computes in bfloat16 itself."""
    import torch

    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def processes_of(trainer: Mapping[str, Any]) -> int | None:
    """Processes asked for; None where the machine decides."""
    devices = trainer.get("devices", "auto")
    here = len(devices) if isinstance(devices, (list, tuple)) else _whole(devices)
    return None if here is None or here < 1 else here * (_whole(trainer.get("num_nodes", 1)) or 1)


def _whole(value: Any) -> int | None:
    try:
        return int(value)
    except (TypeError, ValueError):
        return None


def _name(strategy: Any) -> str:
    """A strategy's name, or its class's."""
    if isinstance(strategy, str):
        return strategy
    path = strategy.get("class_path") if hasattr(strategy, "get") else type(strategy).__name__
    return str(path).rsplit(".", 1)[-1]
