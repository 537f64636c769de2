"""The organ's signal is scaled by the drawn factor, and nothing else changes."""

from __future__ import annotations

import pytest
import torch

from datamodules.augmentation import BatchedAugmentation, Drawn, RandomNoise, RandomOrganSignal


def scene() -> tuple[torch.Tensor, torch.Tensor]:
    image = torch.rand(2, 1, 16, 16, 8) * 100 - 20
    mask = torch.zeros(2, 1, 16, 16, 8)
    mask[:, :, 4:12, 4:12, 2:6] = 1
    return image, mask


def test_inside_is_scaled_outside_is_untouched_and_border_lies_between() -> None:
    image, mask = scene()
    chain = BatchedAugmentation([RandomOrganSignal()])
    factor = torch.tensor([[0.5], [1.5]])
    result, same = chain.apply(image, mask, [Drawn(torch.tensor([0, 1]), {"factor": factor})])
    assert same is not None
    assert torch.equal(same, mask)
    low = image.amin((2, 3, 4), keepdim=True)
    inside = (slice(None), slice(None), slice(5, 11), slice(5, 11), slice(3, 5))
    expected = (image - low) * factor[:, :, None, None, None] + low
    torch.testing.assert_close(result[inside], expected[inside])
    torch.testing.assert_close(result[:, :, :3], image[:, :, :3])
    border = (slice(None), slice(None), 4, 8, 4)
    ratio = (result[border] - low[:, :, 0, 0, 0]) / (image[border] - low[:, :, 0, 0, 0])
    torch.testing.assert_close(ratio, 1 + (factor - 1) * 18 / 27)


def test_only_drawn_items_change_and_the_input_is_kept() -> None:
    image, mask = scene()
    before = image.clone()
    chain = BatchedAugmentation([RandomOrganSignal(log_factor=(-1.0, -0.5), p=0.5)])
    result, _ = chain(image, mask, seeds=range(2))
    assert torch.equal(image, before)
    again, _ = chain(image, mask, seeds=range(2))
    assert torch.equal(result, again)
    changed = [not torch.equal(result[item], image[item]) for item in range(2)]
    active = chain.make_params(range(2), 1)[0].active.tolist()
    assert [item for item in range(2) if changed[item]] == active


def test_without_a_mask_it_says_so() -> None:
    chain = BatchedAugmentation([RandomOrganSignal(), RandomNoise()])
    with pytest.raises(ValueError, match="needs the organ's mask"):
        chain(scene()[0], None)


def test_an_empty_mask_changes_nothing() -> None:
    image, mask = scene()
    result, _ = BatchedAugmentation([RandomOrganSignal(log_factor=(-1.0, -1.0))])(image, mask * 0)
    torch.testing.assert_close(result, image)
