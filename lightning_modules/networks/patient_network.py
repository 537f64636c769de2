"""What the classifying modules ask of a network, whatever it is made of."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn


class ClassifierOutput(NamedTuple):
    """What a classifier says of a batch.

    Attributes:
        logits: Shape (B, outputs).
        slice_attention: Weight of each slice, shape (B, K), summing to 1; zero where left out.
        location_attention: Weight of each location within its slice, shape (B, K, H, W), zero in
            slices left out; None without attention pooling.
        empty_mask: Whether the fallback for a mask without liver was taken, bool, shape (B,).
    """

    logits: Tensor
    slice_attention: Tensor
    location_attention: Tensor | None
    empty_mask: Tensor


class PatientNetwork(nn.Module):
    """Base of the networks that classify a patient from one volume.

    Attributes:
        ways: Ways of the mask in, as ``check_ways`` gives them; empty for a direct arm's network.
        outputs: Logits that it gives, which the module's loss must ask for.
    """

    ways: tuple[str, ...]
    outputs: int

    @property
    def uses_mask(self) -> bool:
        """Whether the arm sees a mask at all."""
        return bool(self.ways)

    def forward(self, image: Tensor, mask: Tensor | None = None) -> ClassifierOutput:
        """Classify.

        Args:
            image: Normalised volumes, shape (B, C, I, J, K).
            mask: Share of liver in each voxel, in [0, 1], shape (B, 1, I, J, K); None for a direct arm.
        """
        raise NotImplementedError
