"""Transposed convolution as a matrix product, which processors are faster at."""

from __future__ import annotations

from torch import Tensor, nn


class TransposedConv3d(nn.ConvTranspose3d):
    """torch's ``ConvTranspose3d`` where windows do not overlap (kernel = stride), computed as one product.

    Each voxel then gives its own small block of the output: a matrix product over channels and a rearrangement. On
    processors its gradient takes little more than half the time of torch's. On an accelerator torch's own is used.
    Parameters and their names are torch's, so weights can be exchanged.
    """

    @classmethod
    def of(cls, other: nn.ConvTranspose3d) -> TransposedConv3d:
        """The same layer with the same parameters.

        Args:
            other: Kernel and stride are equal, nothing is padded, dilated or grouped.
        """
        made = cls(
            other.in_channels, other.out_channels, _triple(other.kernel_size), _triple(other.stride),
            bias=other.bias is not None, device="meta",
        )  # fmt: skip
        made.weight, made.bias = other.weight, other.bias
        return made

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        """Enlarge.

        Args:
            input: Shape (B, C, I, J, K).
            output_size: Not of use here: without overlap there is one size.

        Returns:
            Shape (B, C', I * a, J * b, K * c) for the kernel (a, b, c); channels last on a processor.
        """
        if input.device.type != "cpu" or input.ndim != 5:
            return super().forward(input, output_size)
        batch, _, i, j, k = input.shape
        a, b, c = _triple(self.kernel_size)
        # (C, C', a, b, c) to rows of (a, b, c, C')
        weight = self.weight.permute(2, 3, 4, 1, 0).reshape(-1, self.in_channels)
        bias = None if self.bias is None else self.bias.repeat(a * b * c)
        blocks = nn.functional.linear(input.permute(0, 2, 3, 4, 1), weight, bias)
        blocks = blocks.view(batch, i, j, k, a, b, c, self.out_channels).permute(0, 1, 4, 2, 5, 3, 6, 7)
        return blocks.reshape(batch, i * a, j * b, k * c, self.out_channels).permute(0, 4, 1, 2, 3)


def use_products(network: nn.Module) -> None:
    """Replace a network's transposed convolutions without overlap by :class:`TransposedConv3d`; weights stay."""
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.ConvTranspose3d and _has_no_overlap(child):
                setattr(parent, name, TransposedConv3d.of(child))


def _has_no_overlap(layer: nn.ConvTranspose3d) -> bool:
    plain = {*layer.padding, *layer.output_padding} == {0} and set(layer.dilation) == {1} and layer.groups == 1
    return plain and layer.kernel_size == layer.stride


def _triple(value: tuple[int, ...]) -> tuple[int, int, int]:
    a, b, c = value
    return a, b, c
