"""Our instance norm is torch's, in value and gradient, and leaves channels last."""

from __future__ import annotations

import pytest
import torch

from lightning_modules.networks.instance_norm import InstanceNorm3d, as_channels_last


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("affine", [True, False])
def test_equals_torch_in_value_and_gradient(batch: int, affine: bool) -> None:
    torch.manual_seed(0)
    ours, theirs = InstanceNorm3d(6, affine=affine), torch.nn.InstanceNorm3d(6, affine=affine)
    if affine:
        torch.nn.init.normal_(ours.weight)
        torch.nn.init.normal_(ours.bias)
        theirs.load_state_dict(ours.state_dict())
    image = (5 * torch.randn(batch, 6, 5, 4, 7) + 3).requires_grad_()
    twin = image.detach().clone().requires_grad_()
    weights = torch.randn(batch, 6, 5, 4, 7)
    first, second = ours(image), theirs(twin)
    torch.testing.assert_close(first, second, atol=1e-5, rtol=1e-5)
    (first * weights).sum().backward()
    (second * weights).sum().backward()
    torch.testing.assert_close(image.grad, twin.grad, atol=1e-5, rtol=1e-4)
    if affine:
        torch.testing.assert_close(ours.weight.grad, theirs.weight.grad, atol=1e-4, rtol=1e-4)


def test_evaluation_normalises_by_the_item_too() -> None:
    image = torch.randn(2, 3, 4, 4, 4)
    torch.testing.assert_close(InstanceNorm3d(3).eval()(image), torch.nn.InstanceNorm3d(3).eval()(image))


def test_without_gradients_it_is_the_same_and_stays_channels_last() -> None:
    ours = InstanceNorm3d(6, affine=True)
    torch.nn.init.normal_(ours.weight)
    image = 5 * torch.randn(2, 6, 16, 16, 12) + 3
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        quick, half = ours(image), ours(image.bfloat16())
    torch.testing.assert_close(quick, ours(image), atol=1e-5, rtol=1e-5)
    assert half.dtype == torch.bfloat16
    assert half.is_contiguous(memory_format=torch.channels_last_3d)


def test_result_is_channels_last_on_a_processor_and_bfloat16_stays() -> None:
    result = InstanceNorm3d(4, affine=True)(torch.randn(2, 4, 6, 6, 6, dtype=torch.bfloat16))
    assert result.dtype == torch.bfloat16
    assert result.is_contiguous(memory_format=torch.channels_last_3d)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_convolution_of_a_volume_said_to_be_channels_last_is_so(channels: int) -> None:
    image = torch.randn(2, channels, 6, 5, 4)
    said = as_channels_last(image)
    assert torch.equal(said, image)
    convolution = torch.nn.Conv3d(channels, 4, 3, padding=1)
    assert convolution(said).is_contiguous(memory_format=torch.channels_last_3d)
    torch.testing.assert_close(convolution(said), convolution(image))
    gradient = as_channels_last(image.requires_grad_()).square().sum()
    torch.testing.assert_close(torch.autograd.grad(gradient, image)[0], 2 * image)
