"""The reference back end: same words, same parameters, TorchIO's arithmetic, the same image within a tolerance."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage

from datamodules.augmentation import (
    BatchedAugmentation,
    BatchedTransform,
    RandomAffine,
    RandomAnisotropy,
    RandomBiasField,
    RandomBlur,
    RandomContrast,
    RandomElasticDeformation,
    RandomFlip,
    RandomGamma,
    RandomNoise,
    RandomOrganSignal,
    segmentation_preset,
)
from datamodules.augmentation_torchio import TorchIOAugmentation

SHAPE, SPACING = (32, 28, 16), (1.5, 1.2, 4.0)
# largest difference of a voxel of an image whose range is 4
PAIRS: list[tuple[BatchedTransform, float]] = [
    (RandomFlip(axes=(0, 1, 2)), 0.0),
    (RandomAffine(scales=0.2, degrees=20.0, translation=5.0), 1e-3),
    # ITK spreads its control points over an eighth of a voxel more at each side: a few percent of the change
    (RandomElasticDeformation(num_control_points=7, max_displacement=4.0), 0.1),
    (RandomBiasField(coefficients=0.5), 1e-4),
    (RandomGamma(0.3), 1e-4),
    (RandomGamma(0.3, invert_probability=1.0), 1e-4),
    (RandomNoise(mean=(0.1, 0.2), std=(0.1, 0.3)), 1e-5),
    (RandomBlur(std=(1.0, 4.0)), 1e-4),
    (RandomContrast((0.5, 0.8)), 0.0),
    (RandomOrganSignal(), 0.0),
]


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    """Two smooth normalised images of two channels, flat near the border, and a mask."""
    noise = np.random.default_rng(0).normal(size=(2, 2, *SHAPE))
    smooth = ndimage.gaussian_filter(noise, (0, 0, 2, 2, 1))
    smooth[..., :3], smooth[..., -3:] = smooth.min(), smooth.min()
    smooth[:, :, :3], smooth[:, :, -3:] = smooth.min(), smooth.min()
    smooth[:, :, :, :3], smooth[:, :, :, -3:] = smooth.min(), smooth.min()
    image = torch.from_numpy(4 * (smooth - smooth.min()) / np.ptp(smooth) - 2).float()
    return image, (image[:, :1] > 0).to(torch.uint8)


@pytest.mark.parametrize(("transform", "tolerance"), PAIRS, ids=lambda value: type(value).__name__)
def test_the_same_image_as_torchio(transform: BatchedTransform, tolerance: float) -> None:
    image, mask = batch()
    pair = [cls([transform], seed=3, spacing=SPACING) for cls in (BatchedAugmentation, TorchIOAugmentation)]
    (ours, our_mask), (theirs, their_mask) = (chain(image, mask, seeds=(5, 6)) for chain in pair)
    assert our_mask is not None and their_mask is not None
    assert (theirs - image).abs().max() > 0.1
    assert (ours - theirs).abs().max() <= tolerance
    assert their_mask.dtype == mask.dtype
    # a place half way between two voxels falls to either side
    assert (our_mask != their_mask).float().mean() < 0.003


def test_a_whole_chain_is_the_same_but_for_a_second_resampling() -> None:
    image, mask = batch()
    transforms = segmentation_preset()
    for transform in transforms:
        transform.p = 1.0
    ours, our_mask = BatchedAugmentation(transforms, spacing=SPACING)(image, mask, seeds=(1, 2))
    theirs, their_mask = TorchIOAugmentation(transforms, spacing=SPACING)(image, mask, seeds=(1, 2))
    assert our_mask is not None and their_mask is not None
    assert (ours - image).abs().mean() > 0.2
    assert torch.corrcoef(torch.stack([ours.flatten(), theirs.flatten()]))[0, 1] > 0.98
    overlap = 2 * (our_mask & their_mask).sum() / (our_mask.sum() + their_mask.sum())
    # a mask that is all border
    assert overlap > 0.9


def test_items_that_are_not_drawn_stay_as_they_are() -> None:
    image, _ = batch()
    chain = TorchIOAugmentation([RandomNoise(p=0.0), RandomAnisotropy(p=0.0)], spacing=SPACING)
    moved, mask = chain(image)
    assert torch.equal(moved, image) and mask is None
    with pytest.raises(ValueError, match="works in mm"):
        TorchIOAugmentation([RandomBlur(std=(1.0, 2.0))])(image)
