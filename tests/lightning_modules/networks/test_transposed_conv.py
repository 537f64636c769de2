"""A transposed convolution as a matrix product is torch's, in value and gradient, with torch's own weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lightning_modules.networks.transposed_conv import TransposedConv3d, use_products


@pytest.mark.parametrize("kernel", [(2, 2, 2), (2, 2, 1), (3, 1, 2)])
@pytest.mark.parametrize("bias", [True, False])
def test_equals_torch_in_value_and_gradient(kernel: tuple[int, int, int], bias: bool) -> None:
    torch.manual_seed(0)
    theirs = nn.ConvTranspose3d(6, 4, kernel, kernel, bias=bias)
    ours = TransposedConv3d.of(theirs)
    assert ours.weight is theirs.weight and ours.bias is theirs.bias
    image = torch.randn(2, 6, 3, 4, 5, requires_grad=True)
    twin = image.detach().clone().requires_grad_()
    first, second = ours(image), theirs(twin)
    torch.testing.assert_close(first, second, atol=1e-6, rtol=1e-5)
    weights = torch.randn_like(first)
    inputs = [theirs.weight, *([theirs.bias] if theirs.bias is not None else [])]
    own = torch.autograd.grad((first * weights).sum(), [image, *inputs])
    other = torch.autograd.grad((second * weights).sum(), [twin, *inputs])
    torch.testing.assert_close(own, other, atol=1e-5, rtol=1e-4)


def test_result_is_channels_last_and_bfloat16_stays() -> None:
    layer = TransposedConv3d(4, 2, (2, 2, 1), (2, 2, 1)).bfloat16()
    result = layer(torch.randn(1, 4, 3, 3, 3, dtype=torch.bfloat16))
    assert result.dtype == torch.bfloat16
    assert result.is_contiguous(memory_format=torch.channels_last_3d)


def test_only_layers_without_overlap_are_replaced_and_the_weights_keep_their_names() -> None:
    network = nn.Sequential(
        nn.ConvTranspose3d(2, 2, 2, 2), nn.Sequential(nn.ConvTranspose3d(2, 2, 3, 2)), nn.ConvTranspose3d(2, 2, 2, 2, 1)
    )
    before = network.state_dict()
    use_products(network)
    assert [type(network[0]), type(network[1][0]), type(network[2])] == [  # type: ignore[index]  # a Sequential
        TransposedConv3d, nn.ConvTranspose3d, nn.ConvTranspose3d,
    ]  # fmt: skip
    torch.testing.assert_close(network.state_dict(), before, atol=0, rtol=0)
