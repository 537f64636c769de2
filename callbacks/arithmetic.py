"""How much arithmetic a training step is, and how much the device can do in a second: measured once each."""

from __future__ import annotations

import time
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch.utils.flop_counter import FlopCounterMode

from lightning_modules.classification import PatientClassifier

_EDGE = {"cpu": 1024, "cuda": 8192}
"""Edge of the matrices: large enough for full speed, small enough for some hundredths of a second."""


def peak_flops(device: torch.device, dtype: torch.dtype, repeats: int = 5) -> float:
    """The device's speed in a matrix product, the best of a few, in floating-point operations a second.

    On a processor on as many threads as torch uses; a busy machine gives less.

    Args:
        device: Where to measure.
        dtype: The network's number format.
        repeats: Products to take the best of.
    """
    edge = _EDGE.get(device.type, 1024)
    left, right = (torch.ones(edge, edge, device=device, dtype=dtype) for _ in range(2))
    best = float("inf")
    for _ in range(repeats + 1):
        _wait(device)
        began = time.perf_counter()
        left @ right
        _wait(device)
        best = min(best, time.perf_counter() - began)
    return 2 * edge**3 / best


def step_flops(module: LightningModule, batch: Any) -> float:
    """Floating-point operations of a training step on one batch: three times those of the forward pass.

    The gradient of a layer with respect to its input and to its weights costs as much each as the layer itself.
    Counted are the convolutions, matrix products and attention that a forward pass in evaluation mode does, which
    draws nothing at random and changes no running statistics. Where only a part of the network trains, it is more
    than is done.

    Args:
        module: One of ours.
        batch: On the module's device.

    Source: Chowdhery et al. 2022 (PaLM), appendix B, for counting so.
    """
    network: Any = module.network
    modes = {part: part.training for part in network.modules()}
    network.eval()
    counter = FlopCounterMode(display=False)
    try:
        # what is compiled cannot be looked into
        with torch.no_grad(), torch.compiler.set_stance("force_eager"), counter:
            module.outputs(batch) if isinstance(module, PatientClassifier) else network(batch["image"])
    finally:
        for part, mode in modes.items():
            part.training = mode
    return 3.0 * counter.get_total_flops()


def number_format(precision: str) -> torch.dtype:
    """What the network's products are computed in, from Lightning's name of a precision."""
    if precision.startswith("bf16"):
        return torch.bfloat16
    return torch.float16 if precision.startswith("16") else torch.float32


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
