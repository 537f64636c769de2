"""Segmentation losses: soft Dice with cross-entropy, and their sum over a decoder's levels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F  # noqa: N812  # torch's own habit
from torch import Tensor, nn


class DiceCELoss(nn.Module):
    """Cross-entropy minus soft Dice of the foreground classes, as nnU-Net trains.

    Per class, Dice = (2 Σ p·t + s) / max(Σ p + Σ t + s, 1e-8) with softmax probabilities p and the
    one-hot target t. With batch Dice, the sums run over the whole batch before the ratio is taken,
    which is steadier where a patch holds little or no liver. Under several processes they run over the
    batches of all, so that the ratio is that of the whole batch on one device.

    Args:
        batch_dice: Sum over the batch before taking the ratio.
        smooth: s in the formula, in voxels.
        dice_weight: Weight of the Dice term.
        ce_weight: Weight of the cross-entropy.

    Source: Isensee et al. 2021, Nature Methods 18; nnU-Net v2 ``DC_and_CE_loss`` with
    ``MemoryEfficientSoftDiceLoss(smooth=1e-5, do_bg=False)``, whose value is this one.
    """

    def __init__(
        self, batch_dice: bool = True, smooth: float = 1e-5, dice_weight: float = 1.0, ce_weight: float = 1.0
    ) -> None:
        super().__init__()
        self.batch_dice = batch_dice
        self.smooth = smooth
        self.dice_weight = dice_weight
        self.ce_weight = ce_weight

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Compute the loss.

        Args:
            logits: Shape (B, classes, I, J, K), or without K.
            target: Class of each voxel, integers (or floats holding them), shape (B, 1, I, J, K).

        Returns:
            The loss, a scalar in float32; -``dice_weight`` at best.

        Raises:
            ValueError: The shapes do not fit.
        """
        if target.shape != (logits.shape[0], 1, *logits.shape[2:]):
            raise ValueError(f"target {tuple(target.shape)} does not fit logits {tuple(logits.shape)}")
        labels = target[:, 0].long()
        logits = logits.float()
        cross_entropy = F.cross_entropy(logits, labels)
        dice = soft_dice(logits.softmax(1), labels, self.batch_dice, self.smooth)
        return self.ce_weight * cross_entropy - self.dice_weight * dice.mean()


class DeepSupervisionLoss(nn.Module):
    """Weigh a loss over the decoder's levels: 1, 1/2, 1/4, …, the lowest 0, summing to 1.

    The target is brought to each level by nearest neighbour. A single tensor, as a network gives in
    evaluation mode, gets the plain loss. MONAI's ``DynUNet`` stacks its levels into one tensor of shape
    (B, levels, classes, …), all brought to full resolution: they are weighed in the same way.

    Args:
        loss: The loss of one level, called with logits and target.

    Source: nnU-Net v2, ``DeepSupervisionWrapper`` and ``_build_loss``.
    """

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, logits: Tensor | Sequence[Tensor], target: Tensor) -> Tensor:
        """Compute the loss.

        Args:
            logits: Logits of each level, highest resolution first, as a sequence or stacked along axis 1; or of
                the highest only.
            target: Class of each voxel at full resolution, shape (B, 1, I, J, K).

        Returns:
            The loss, a scalar.
        """
        if isinstance(logits, Tensor):
            if logits.ndim != target.ndim + 1:
                single: Tensor = self.loss(logits, target)
                return single
            logits = logits.unbind(1)
        total = torch.zeros((), device=target.device)
        for weight, level in zip(deep_supervision_weights(len(logits)), logits, strict=True):
            if weight > 0:
                total = total + weight * self.loss(level, resize_target(target, level.shape[2:]))
            elif _processes() > 1:
                # DDP waits for a gradient of every parameter, the lowest level's head included: give it zeros
                total = total + 0.0 * level.flatten()[0].float()
        return total


def deep_supervision_weights(levels: int) -> tuple[float, ...]:
    """Weights of the decoder's levels, highest resolution first: halved each time, the last 0, sum 1.

    With a single level its weight is 1.
    """
    if levels < 1:
        raise ValueError(f"levels={levels}: there must be at least one")
    raw = [0.5**level for level in range(levels)]
    if levels > 1:
        raw[-1] = 0.0
    return tuple(weight / sum(raw) for weight in raw)


def soft_dice(probabilities: Tensor, labels: Tensor, batch_dice: bool = True, smooth: float = 1e-5) -> Tensor:
    """Soft Dice of each foreground class.

    Args:
        probabilities: Shape (B, classes, …), float.
        labels: Class of each voxel, int64, shape (B, …).
        batch_dice: Sum over the batch, of all processes, before taking the ratio.
        smooth: Added to both sides of the ratio, in voxels.

    Returns:
        Dice in [0, 1], shape (classes - 1,) with batch Dice, else (B, classes - 1).
    """
    classes = probabilities.shape[1]
    flat = probabilities[:, 1:].flatten(2)
    truth = torch.stack([labels == c for c in range(1, classes)], 1).flatten(2).to(flat.dtype)
    overlap, predicted, actual = (flat * truth).sum(2), flat.sum(2), truth.sum(2)
    if batch_dice:
        overlap, predicted, actual = (_over_processes(n.sum(0)) for n in (overlap, predicted, actual))
    return (2 * overlap + smooth) / (predicted + actual + smooth).clamp(min=1e-8)


def _processes() -> int:
    there = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_world_size() if there else 1


def _over_processes(value: Tensor) -> Tensor:
    """Sum over all processes, with gradients; DDP's mean over ranks then gives the whole batch's gradient."""
    if _processes() == 1 or not torch.is_grad_enabled():
        return value
    from torch.distributed.nn.functional import all_reduce

    total: Tensor = all_reduce(value)  # type: ignore[no-untyped-call]  # torch's own
    return total


def resize_target(target: Tensor, shape: Sequence[int]) -> Tensor:
    """Bring an integer target (B, 1, …) to a level's edges by nearest neighbour, from voxel centres."""
    if tuple(target.shape[2:]) == tuple(shape):
        return target
    return F.interpolate(target.float(), size=list(shape), mode="nearest-exact").to(target.dtype)
