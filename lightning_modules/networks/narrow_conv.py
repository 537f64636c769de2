"""Convolutions over narrow maps in bfloat16, whose weights' gradient processors get wrong or are slow at."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

NARROW, WIDE = 7, 128
"""Largest last axis of a result, and least number of channels, from which a product of matrices is the faster one.

From benchmarks/narrow_conv.py on a processor with amx_bf16.
"""

_CAPABILITIES: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
MATRIX_UNIT = bool(_CAPABILITIES.get("amx_bf16"))
"""Whether the processor multiplies matrices of bfloat16 in a unit of its own (Intel's); torch 2.11 cannot tell."""


def columns(image: Tensor, kernel: tuple[int, ...], stride: tuple[int, ...], padding: tuple[int, ...]) -> Tensor:
    """The neighbourhood of each place of a convolution's result, as rows of one matrix.

    Args:
        image: Shape (B, C, ...) with two or three spatial axes.
        kernel: Edges of the neighbourhood in voxels.
        stride: Steps between the places in voxels.
        padding: Zeros in front of and behind each axis in voxels.

    Returns:
        Shape (B * places, neighbours * C), channels running fastest.
    """
    ends = [edge for each in reversed(padding) for edge in (each, each)]
    windows = pad(image.movedim(1, -1), (0, 0, *ends))
    for axis, (edge, step) in enumerate(zip(kernel, stride, strict=True), start=1):
        windows = windows.unfold(axis, edge, step)
    return windows.movedim(len(kernel) + 1, -1).flatten(len(kernel) + 1).flatten(0, len(kernel))


def weight_gradient(
    image: Tensor, gradient: Tensor, kernel: tuple[int, ...], stride: tuple[int, ...], padding: tuple[int, ...]
) -> Tensor:
    """The gradient of a convolution's weights, as one product of matrices.

    Args:
        image: What was convolved, shape (B, C, ...) with two or three spatial axes.
        gradient: Of the result, shape (B, C', ...).
        kernel: See :func:`columns`.
        stride: See :func:`columns`.
        padding: See :func:`columns`.

    Returns:
        Shape (C', C, *kernel), channels last.
    """
    product = gradient.movedim(1, -1).flatten(0, -2).t() @ columns(image, kernel, stride, padding)
    return product.view(-1, *kernel, image.shape[1]).movedim(-1, 1)


def product_pays(channels: int, last: int) -> bool:
    """Whether the product is the faster way here.

    Args:
        channels: Of the image.
        last: Edge of the result along its last axis, in voxels.
    """
    return MATRIX_UNIT and channels >= WIDE and last <= NARROW


class _Convolution(torch.autograd.Function):
    """torch's convolution, with the gradient of the weights as one product of matrices."""

    @staticmethod
    def forward(
        ctx: Any, image: Tensor, weight: Tensor, bias: Tensor | None, stride: tuple[int, ...], padding: tuple[int, ...]
    ) -> Tensor:
        ctx.save_for_backward(image, weight)
        ctx.stride, ctx.padding = stride, padding
        convolve: Any = nn.functional.conv2d if image.ndim == 4 else nn.functional.conv3d
        result: Tensor = convolve(image, weight, bias, stride, padding)
        return result

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None]:
        image, weight = ctx.saved_tensors
        of_image, of_weight, of_bias = ctx.needs_input_grad[:3]
        rest = len(ctx.stride)
        image_gradient, _, bias_gradient = torch.ops.aten.convolution_backward(
            gradient, image, weight, [len(weight)], ctx.stride, ctx.padding, [1] * rest, False, [0] * rest, 1,
            [of_image, False, of_bias],
        )  # fmt: skip
        product = weight_gradient(image, gradient, weight.shape[2:], ctx.stride, ctx.padding) if of_weight else None
        return image_gradient, product, bias_gradient, None, None


class _NarrowConv(nn.modules.conv._ConvNd):
    """What both widths of space share: where the product is taken."""

    def forward(self, input: Tensor) -> Tensor:
        """Convolve (B, C, ...), by torch in all but the gradient of the weights."""
        if self._by_product(input):
            with torch.autocast("cpu", enabled=False):
                half = input.bfloat16(), self.weight.bfloat16(), None if self.bias is None else self.bias.bfloat16()
                result: Tensor = _Convolution.apply(*half, self.stride, self.padding)
                return result
        whole: Tensor = super().forward(input)
        return whole

    def _by_product(self, input: Tensor) -> bool:
        mixed = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") is torch.bfloat16
        if not (mixed or input.dtype is torch.bfloat16) or input.device.type != "cpu":
            return False
        if not (torch.is_grad_enabled() and self.weight.requires_grad):
            return False
        plain = self.groups == 1 and self.padding_mode == "zeros" and set(self.dilation) == {1}
        if not plain or isinstance(self.padding, str) or input.ndim != len(self.kernel_size) + 2:
            return False
        if input.ndim == 5 and input.shape[2] == 2 and self.kernel_size[0] > 1:
            return True
        last = (input.shape[-1] + 2 * int(self.padding[-1]) - self.kernel_size[-1]) // self.stride[-1] + 1
        return product_pays(self.in_channels, last)


class NarrowConv2d(_NarrowConv, nn.Conv2d):
    """torch's ``Conv2d`` with the gradient of narrow maps as a product, on processors with a bfloat16 matrix unit.

    oneDNN's own gradient of the weights takes up to eight times as long there: the lowest stages of a ResNet over
    slices spend a quarter of the training step in it.
    """


class NarrowConv3d(_NarrowConv, nn.Conv3d):
    """The same of ``Conv3d``; on every processor where torch's own gradient is wrong.

    Found with torch 2.15 on processors with avx512_bf16: where the first spatial axis has two voxels and the kernel
    more than one along it, the gradient of the weights in bfloat16 reads memory that nobody has written. It differs
    from call to call and at times is not finite. One voxel, three and more are right, so is the gradient of the input.
    """


def use_narrow_convolutions(network: nn.Module) -> None:
    """Let a network's convolutions be :class:`NarrowConv2d` and :class:`NarrowConv3d`; parameters and hooks stay.

    Args:
        network: Changed in place.
    """
    kinds: dict[type[nn.Module], type[nn.Module]] = {nn.Conv2d: NarrowConv2d, nn.Conv3d: NarrowConv3d}
    for layer in network.modules():
        layer.__class__ = kinds.get(type(layer), layer.__class__)
