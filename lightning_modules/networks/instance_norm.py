"""Instance normalisation that keeps a processor's convolutions in their fast memory format."""

from __future__ import annotations

import torch
from torch import Tensor, nn

_MANY_VOXELS = 2048


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
        # below some thousand voxels group norm takes another path, which is slow with one channel a group
        if not torch.is_grad_enabled() and input[0, 0].numel() >= _MANY_VOXELS:
            return nn.functional.group_norm(ordered, input.shape[1], self.weight, self.bias, self.eps)
        items = [
            nn.functional.batch_norm(
                item, None, None, self.weight, self.bias, training=True, momentum=0.0, eps=self.eps
            )
            for item in torch.split(ordered, 1)
        ]
        return torch.cat(items) if len(items) > 1 else items[0]


def as_channels_last(image: Tensor) -> Tensor:
    """Say that a volume on a processor is channels last, so that the first convolution already goes by it.

    With one channel both orders are the same in memory, and torch takes it for channels first; the strides tell it.

    Args:
        image: Shape (B, C, I, J, K); anything else, and what lies on an accelerator, is left as it is.
    """
    if image.device.type != "cpu" or image.ndim != 5:
        return image
    if image.shape[1] > 1:
        return image.contiguous(memory_format=torch.channels_last_3d)
    _, _, i, j, k = image.shape
    return image.contiguous().as_strided(image.shape, (i * j * k, 1, j * k, k, 1))
