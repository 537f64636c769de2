"""Instance normalisation that keeps a processor's convolutions in their fast memory format."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class InstanceNorm3d(nn.InstanceNorm3d):
    """torch's ``InstanceNorm3d``, computed in channels-last order on a processor.

    On processors 3D convolutions are fastest with channels last, but torch's instance norm brings its input
    back to channels first, and every later layer with it. Normalising each item as a batch of its own is the
    same arithmetic, and its kernel keeps the order: what follows (activation, convolution, concatenation)
    stays channels last to the end of the network. On an accelerator torch's own is used: there channels-first
    volumes are at least as fast. Parameters and their names are torch's, so weights can be exchanged.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Normalise each channel of each item over its voxels.

        Args:
            input: Shape (B, C, I, J, K), with more than one voxel.

        Returns:
            The same shape and type, mean 0 and variance 1 before scale and shift.
        """
        if input.device.type != "cpu" or input.ndim != 5:
            return super().forward(input)
        ordered = input.contiguous(memory_format=torch.channels_last_3d)
        items = [
            nn.functional.batch_norm(
                item, None, None, self.weight, self.bias, training=True, momentum=0.0, eps=self.eps
            )
            for item in torch.split(ordered, 1)
        ]
        return torch.cat(items) if len(items) > 1 else items[0]
