"""Convolutions over two planes, whose gradient processors get wrong in bfloat16."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ShortConv3d(nn.Conv3d):
    """torch's ``Conv3d``, computed in float32 where a processor's bfloat16 gradient is wrong.

    Found with torch 2.15 on a processor with avx512_bf16: where the first spatial axis has two voxels and the kernel
    more than one along it, the gradient of the weights reads memory that nobody has written. It differs from call to
    call and at times is not finite. One voxel, three and more are right, so is float32. Such maps are the lowest of
    a network on small volumes: what is lost in speed is little.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Convolve (B, C, I, J, K)."""
        half = input.dtype is torch.bfloat16 or torch.is_autocast_enabled("cpu")
        if not half or input.device.type != "cpu" or input.shape[-3] != 2 or self.kernel_size[0] == 1:
            return super().forward(input)
        with torch.autocast("cpu", enabled=False):
            bias = None if self.bias is None else self.bias.float()
            result: Tensor = self._conv_forward(input.float(), self.weight.float(), bias)
        return result.to(input.dtype)


def mend_short_convolutions(network: nn.Module) -> None:
    """Let a network's 3D convolutions be :class:`ShortConv3d`; parameters, their names and hooks stay.

    Args:
        network: Changed in place.
    """
    for layer in network.modules():
        if type(layer) is nn.Conv3d:
            layer.__class__ = ShortConv3d
