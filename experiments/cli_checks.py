"""What will not work with the processes, devices and precision asked for: said in one line before anything is built."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer

from datamodules.base import CohortDataModule, Part
from datamodules.segmentation import SegmentationDataModule
from datamodules.staging import StagingDataModule

LAUNCHERS = ("TORCHELASTIC_RUN_ID", "SLURM_NTASKS", "LSB_JOBID", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "NODE_RANK")
"""Variables by which a launcher, or a person who starts each node's command, says which node this is."""


def trainer_faults(trainer: Mapping[str, Any]) -> list[str]:
    """Faults of the trainer's configuration on this machine, one line each; nothing has been built yet.

    Args:
        trainer: The ``trainer`` part of the parsed configuration.
    """
    strategy, accelerator = _name(trainer.get("strategy", "auto")), str(trainer.get("accelerator", "auto"))
    # other accelerators than CUDA's answer for themselves when the trainer is built
    gpus = torch.cuda.device_count()
    on_cpu = accelerator == "cpu" or (accelerator == "auto" and gpus == 0 and not torch.backends.mps.is_available())
    faults = [
        *_strategy_faults(strategy, accelerator, on_cpu, trainer),
        *_device_faults(trainer.get("devices", "auto"), accelerator, gpus),
        *_node_faults(trainer),
    ]
    if on_cpu:
        faults += _precision_faults(str(trainer.get("precision") or "32-true"))
        if trainer.get("sync_batchnorm") and (_count(trainer) or 2) > 1:
            faults.append(
                "trainer.sync_batchnorm: works on GPUs alone; leave it out, or use a network with group or layer norm"
            )
    return faults


def process_faults(model: LightningModule, datamodule: CohortDataModule, trainer: Trainer) -> list[str]:
    """Ways in which the data are too few for the processes, or would halt them; one line each.

    Args:
        model: The learning module.
        datamodule: The data module.
        trainer: The trainer, which has trained nothing yet.
    """
    if trainer.world_size == 1 or datamodule.splits is None:
        return []
    ranks, faults = trainer.world_size, []
    parts: tuple[Part, ...] = ("train", "valid", "test")
    for part in parts:
        patients = len(getattr(datamodule.fold, part))
        # a sealed split has no test patients
        if patients < ranks and (patients or part != "test"):
            faults.append(
                f"trainer.devices: {ranks} processes, but the {part} part of fold {datamodule.fold_number} has only "
                f"{patients} patients; use at most {patients}, or fewer folds"
            )
    step = datamodule.batch_size * ranks * trainer.accumulate_grad_batches
    patients = len(datamodule.fold.train)
    patches = isinstance(datamodule, SegmentationDataModule) and datamodule.patch is not None
    if not patches and patients >= ranks and step > patients:
        faults.append(
            f"data.init_args.batch_size: counts for each process; {ranks} processes take {step} items a step, more "
            f"than the {patients} training patients; set it to at most "
            f"{max(1, patients // (ranks * trainer.accumulate_grad_batches))}"
        )
    if isinstance(datamodule, StagingDataModule):
        faults += waiting_faults(model, datamodule, trainer._accelerator_connector._layer_sync is not None)
    return faults


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


def _device_faults(devices: Any, accelerator: str, gpus: int) -> list[str]:
    if accelerator not in ("gpu", "cuda"):
        return []
    if gpus == 0:
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
    processes = _count(trainer)
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
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def waiting_faults(model: LightningModule, datamodule: StagingDataModule, synchronised: bool) -> list[str]:
    """A batch norm over processes waits for all: one whose batch lacks a sequence does not come to it."""
    if not synchronised or getattr(getattr(model, "network", None), "fusion", None) == "early":
        return []
    visits: dict[tuple[str, str], set[str]] = {}
    for scan in datamodule.cohort.scans:
        visits.setdefault((scan.patient_id, scan.visit), set()).add(scan.sequence)
    lacking = sum(len(found) < len(datamodule.sequences) for found in visits.values())
    if lacking == 0:
        return []
    return [
        f"trainer.sync_batchnorm: {lacking} examinations lack a sequence, and a process whose batch lacks it would "
        "let the others wait for ever; leave it out, or use a backbone with layer norm"
    ]


def _count(trainer: Mapping[str, Any]) -> int | None:
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
