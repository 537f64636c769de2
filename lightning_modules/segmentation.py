"""The first stage: a liver segmenter."""

from __future__ import annotations

from typing import TypedDict

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn

from datamodules.batch import Batch
from lightning_modules.losses.segmentation import DeepSupervisionLoss, DiceCELoss
from lightning_modules.task import Schedule, TaskModule, adamw, gather_by_id


class SegmentationOutput(TypedDict):
    """What a test or prediction step hands to the callbacks.

    Keys:
        logits: float32, shape (B, classes, I, J, K), on the preprocessed grid.
        scan_id: The scans' ids.
    """

    logits: Tensor
    scan_id: list[str]


class SegmentationModule(TaskModule):
    """Learn to segment the liver, and predict by Gaussian-weighted sliding windows.

    Args:
        network: Maps (B, 1, I, J, K) to logits (B, 2, I, J, K): background and liver. While training it may
            return a list of logits, finest first, for deep supervision.
        loss: Of (logits or list of logits, mask (B, 1, I, J, K)); Dice + cross-entropy with deep supervision
            where not given.
        window: Size of the sliding window in voxels (I, J, K); None predicts the whole volume at once,
            zero-padded to multiples of ``divisible_by``.
        overlap: Overlap of neighbouring windows, in [0, 1).
        mirror_axes: Test-time mirroring over these of the axes 0, 1, 2, and all their combinations.
        optimizer: See ``TaskModule``.
        schedule: See ``TaskModule``.
        warmup: See ``TaskModule``.
        divisible_by: What the network needs each edge to be a multiple of, in voxels, for a network that does not
            say so itself by an attribute of this name: 32 for MONAI's SwinUNETR, 8 for its SegResNet.

    Raises:
        ValueError: An axis is not 0, 1 or 2, a divisor or an edge of the window is below 1, or the overlap is no share
            in [0, 1).
    """

    def __init__(
        self,
        network: nn.Module,
        loss: nn.Module | None = None,
        window: tuple[int, int, int] | None = None,
        overlap: float = 0.5,
        mirror_axes: tuple[int, ...] = (),
        optimizer: OptimizerCallable = adamw,
        schedule: Schedule = "poly",
        warmup: float = 0.02,
        divisible_by: tuple[int, int, int] | None = None,
    ) -> None:
        super().__init__(optimizer, schedule, warmup)
        if not set(mirror_axes) <= {0, 1, 2}:
            raise ValueError(f"mirror_axes={mirror_axes}: axes are 0, 1 and 2")
        if divisible_by is not None and min(divisible_by) < 1:
            raise ValueError(f"divisible_by={divisible_by}: give three whole numbers from 1 on")
        if window is not None and min(window) < 1:
            raise ValueError(f"window={window}: give three whole numbers from 1 on")
        if not 0.0 <= overlap < 1.0:
            raise ValueError(f"overlap={overlap}: a share of the window in [0, 1) is expected")
        self.network = network
        own: tuple[int, ...] = getattr(network, "divisible_by", (1, 1, 1))
        self.divisible_by: tuple[int, ...] = own if divisible_by is None else divisible_by
        self.loss = loss if loss is not None else DeepSupervisionLoss(DiceCELoss())
        self.window = window
        self.overlap = overlap
        self.mirror_axes = mirror_axes
        self._dice: dict[str, float] = {}

    def forward(self, image: Tensor) -> Tensor:
        """Logits of whole volumes, mirrored and windowed as configured.

        Args:
            image: Shape (B, 1, I, J, K), any size.

        Returns:
            float32 logits, shape (B, classes, I, J, K).
        """
        variants: list[tuple[int, ...]] = [()]
        for axis in self.mirror_axes:
            variants += [(*variant, axis + 2) for variant in variants]
        total = torch.zeros(())
        for variant in variants:
            logits = self._windowed(image.flip(variant)).float().flip(variant)
            total = logits if variant == () else total + logits
        return total / len(variants)

    def _windowed(self, image: Tensor) -> Tensor:
        """Logits of whole volumes, by Gaussian-weighted windows or at once: all that inference computes is here."""
        if self.window is not None:
            # MONAI takes a second to import
            from monai.inferers import SlidingWindowInferer

            inferer = SlidingWindowInferer(self.window, sw_batch_size=2, overlap=self.overlap, mode="gaussian")
            windowed: Tensor = inferer(image, self.network)
            return windowed
        size = image.shape[2:]
        padding: list[int] = []
        for extent, divisor in zip(reversed(size), reversed(self.divisible_by), strict=True):
            padding += [0, -extent % divisor]
        logits: Tensor = self.network(nn.functional.pad(image, padding))
        return logits[..., : size[0], : size[1], : size[2]]

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Loss of one batch of patches."""
        loss: Tensor = self.loss(self.network(batch["image"]), batch["mask"])
        self.log("train/loss", loss, on_step=False, on_epoch=True, batch_size=len(batch["scan_id"]), sync_dist=True)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Collect each scan's Dice on the preprocessed grid."""
        predicted = self(batch["image"]).argmax(1) == 1
        reference = batch["mask"][:, 0] > 0.5
        for index, scan_id in enumerate(batch["scan_id"]):
            self._dice[scan_id] = overlap_dice(predicted[index], reference[index])

    def on_validation_epoch_end(self) -> None:
        """Log the mean Dice over scans, each counted once on any number of ranks."""
        values = list(gather_by_id(self._dice).values())
        self._dice = {}
        if values:
            # already the same on all ranks
            self.log("valid/dice", sum(values) / len(values), rank_zero_only=False)

    def test_step(self, batch: Batch, batch_idx: int) -> SegmentationOutput:
        """Logits for the callbacks, which bring them to the native grid and measure there."""
        return {"logits": self(batch["image"]), "scan_id": batch["scan_id"]}

    def predict_step(self, batch: Batch, batch_idx: int) -> SegmentationOutput:
        """The same as a test step."""
        return self.test_step(batch, batch_idx)


def overlap_dice(predicted: Tensor, reference: Tensor) -> float:
    """Dice of two boolean masks of one shape; 1 where both are empty."""
    total = int(predicted.sum() + reference.sum())
    return 1.0 if total == 0 else 2.0 * int((predicted & reference).sum()) / total
