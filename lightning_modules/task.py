"""What every learning module shares: how it is optimised, and how per-patient values are pooled."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from typing import Any, Literal, TypeVar

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from lightning_modules.networks.narrow_conv import use_narrow_convolutions

Schedule = Literal["constant", "cosine", "poly"]
Value = TypeVar("Value")


def adamw(parameters: Iterable[torch.nn.Parameter]) -> Optimizer:
    """AdamW with a rate of 1e-3 and weight decay of 1e-2."""
    return torch.optim.AdamW(parameters, lr=1e-3, weight_decay=1e-2)


class TaskModule(LightningModule):
    """Base of the four learning modules: optimiser and schedule.

    Args:
        optimizer: Makes the optimiser from the parameters; in YAML, a ``class_path`` with ``init_args``.
        schedule: ``constant``; ``cosine`` to zero; or ``poly``, nnU-Net's (1 - t)^0.9. The schedule spans
            the whole run, whatever its number of epochs, and moves after each step.
        warmup: Share of the run in which the rate rises linearly from zero, in [0, 1).

    Raises:
        ValueError: ``warmup`` is outside [0, 1).
    """

    def __init__(
        self, optimizer: OptimizerCallable = adamw, schedule: Schedule = "cosine", warmup: float = 0.05
    ) -> None:
        super().__init__()
        if not 0.0 <= warmup < 1.0:
            raise ValueError(f"warmup={warmup}: a share of the run in [0, 1) is expected")
        self.optimizer_factory = optimizer
        self.schedule: Schedule = schedule
        self.warmup = warmup

    def __deepcopy__(self, memo: dict[int, Any]) -> TaskModule:
        """A copy that shares what makes the optimiser: it may hold the command line's parser, which has no copy."""
        memo[id(self.optimizer_factory)] = self.optimizer_factory
        made: TaskModule = type(self).__new__(type(self))
        memo[id(self)] = made
        made.__dict__.update(copy.deepcopy(self.__getstate__(), memo))
        return made

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Name the class, so that a checkpoint is never loaded into another one."""
        checkpoint["model_class"] = f"{type(self).__module__}.{type(self).__qualname__}"

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """See :func:`match_layout`."""
        match_layout(optimizer)

    def on_train_epoch_end(self) -> None:
        """Stop a training whose loss is no number any more.

        Raises:
            ValueError: It has diverged.
        """
        loss = self.trainer.callback_metrics.get("train/loss")
        if loss is not None and not bool(torch.isfinite(loss)):
            raise ValueError("the training loss is not finite: training has diverged; lower the learning rate")

    def optimized(self) -> Iterable[Any]:
        """All trainable parameters, or groups of them; a group's ``lr_scale`` is multiplied onto its rate."""
        return (parameter for parameter in self.parameters() if parameter.requires_grad)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimiser over all trainable parameters, and its schedule by step."""
        use_narrow_convolutions(self)
        optimizer = self.optimizer_factory(self.optimized())
        for group in optimizer.param_groups:
            group["lr"] *= group.get("lr_scale", 1.0)
        use_fused(optimizer)
        steps = max(1, int(self.trainer.estimated_stepping_batches))

        def rate(step: int) -> float:
            return rate_factor(step / steps, self.schedule, self.warmup)

        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": LambdaLR(optimizer, rate), "interval": "step"}}


def use_fused(optimizer: Optimizer) -> None:
    """Let one kernel update all parameters where torch has one: several times faster than one after another.

    Nothing changes where ``fused``, ``foreach`` or another way was asked for, or where torch has no such kernel.
    Lightning refuses clipped gradients with an optimiser that was *built* as fused, because float16's scaling is
    undone within its step; set afterwards, it is not, and clipping holds in every precision.

    Args:
        optimizer: Changed in place.
    """
    for group in optimizer.param_groups:
        asked = any(group.get(key) for key in ("foreach", "capturable", "differentiable"))
        if group.get("fused", False) is None and not asked:
            group["fused"] = all(
                parameter.is_floating_point() and parameter.device.type in ("cpu", "cuda")
                for parameter in group["params"]
            )


def match_layout(optimizer: Optimizer) -> None:
    """Lay gradients and the optimiser's averages out in memory as their parameters are.

    torch's fused kernels walk through memory and do not look at strides: a channels-last weight with a contiguous
    average, as an older checkpoint may hold it, would be updated with other weights' values, in silence. Normally
    there is nothing to do.

    Args:
        optimizer: Before its step; changed in place.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"] if group.get("fused") else ():
            if parameter.grad is not None and parameter.grad.stride() != parameter.stride():
                parameter.grad = torch.empty_like(parameter).copy_(parameter.grad)
            state = optimizer.state.get(parameter, {})
            for name, value in state.items():
                if (
                    isinstance(value, Tensor)
                    and value.shape == parameter.shape
                    and value.stride() != parameter.stride()
                ):
                    state[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def rate_factor(progress: float, schedule: Schedule, warmup: float) -> float:
    """Learning rate relative to its highest.

    Args:
        progress: Share of the run that is behind, in [0, 1].
        schedule: See ``TaskModule``.
        warmup: Share of the run with a rising rate.

    Returns:
        A factor in [0, 1]; never exactly zero during warm-up, so that the first step counts.
    """
    if progress < warmup:
        return max(progress / warmup, 1e-3)
    left = max(0.0, 1.0 - (progress - warmup) / (1.0 - warmup))
    if schedule == "cosine":
        return 0.5 * (1.0 - math.cos(math.pi * left))
    if schedule == "poly":
        return float(left**0.9)
    return 1.0


def gather_by_id(values: dict[str, Value]) -> dict[str, Value]:
    """Bring per-scan values of all ranks together, each scan once.

    A distributed sampler pads uneven data with repeated scans; keyed by scan id, repetition vanishes,
    and the result is that of a single process.

    Args:
        values: This rank's value for each scan id.

    Returns:
        Every rank's values, sorted by scan id, the same on all ranks.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        parts: list[dict[str, Value] | None] = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(parts, values)
        values = {key: value for part in parts if part is not None for key, value in part.items()}
    return dict(sorted(values.items()))
