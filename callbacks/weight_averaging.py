"""A moving average of the weights, which is what is validated, kept in the checkpoints and tested."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.strategies import FSDPStrategy
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import Tensor

from datamodules.errors import InputError

CHOSEN = ("threshold", "temperature")
"""Buffers that are chosen on validation patients, for the averaged weights: they are not averaged themselves."""


class EMAWeights(WeightAveraging):
    """Average the weights exponentially over the steps (EMA), as Lightning's own callback, with a warm-up.

    Validation, ``best.ckpt``, ``last.ckpt`` and the test use the average; a training that goes on after a kill
    goes on from both, average and current weights.

    Args:
        decay: Share of the average that stays at each step; in the n-th step at most (1 + n) / (10 + n), so that the
            first, random weights are soon forgotten.
    """

    def __init__(self, decay: float = 0.999) -> None:
        if not 0.0 <= decay < 1.0:
            raise ValueError(f"decay={decay}: must lie in [0, 1)")
        self.decay = decay
        super().__init__(avg_fn=self._average)

    def _average(self, average: Tensor, current: Tensor, count: Tensor | int) -> Tensor:
        """One step of the average, without waiting for the device."""
        if not torch.is_floating_point(average):
            return current  # such as a batch norm's counter
        seen = torch.as_tensor(count, device=average.device)
        decay = torch.clamp((1 + seen) / (10 + seen), max=self.decay)
        return average + (1 - decay).to(average.dtype) * (current - average)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Make room for the average.

        Raises:
            InputError: The weights lie in parts on several devices.
        """
        if isinstance(trainer.strategy, FSDPStrategy):
            raise InputError("trainer.callbacks: EMAWeights cannot average weights that FSDP holds in parts; use ddp")
        super().setup(trainer, pl_module, stage)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: STEP_OUTPUT, batch: Any, batch_idx: int
    ) -> None:
        """Take a step's weights into the average."""
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        self._keep_chosen(pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give the average what was chosen on its validation; the module has chosen after the weights went back."""
        self._keep_chosen(pl_module)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Go on from both weights; a test needs the averaged ones alone."""
        if self._average_model is not None:
            super().on_load_checkpoint(trainer, pl_module, checkpoint)

    def _keep_chosen(self, pl_module: LightningModule) -> None:
        if self._average_model is None:
            return
        averaged, current = dict(self._average_model.module.named_buffers()), dict(pl_module.named_buffers())
        for name in CHOSEN:
            if name in current:
                averaged[name].copy_(current[name])
