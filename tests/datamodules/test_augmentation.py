"""Batched augmentation: parity with TorchIO, determinism, and laws."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torchio
from scipy import ndimage
from torch import Tensor

from datamodules.augmentation import (
    BatchedAugmentation,
    BatchedTransform,
    Drawn,
    RandomAffine,
    RandomAnisotropy,
    RandomBiasField,
    RandomBlur,
    RandomBrightness,
    RandomContrast,
    RandomElasticDeformation,
    RandomFlip,
    RandomGamma,
    RandomIntensityRemap,
    RandomLowResolution,
    RandomNoise,
    classification_preset,
    segmentation_preset,
)

tio: Any = torchio  # only partly typed
SHAPE, SPACING = (40, 36, 20), (1.5, 1.2, 4.0)
ALL = [
    *segmentation_preset(),
    RandomFlip(axes=(0, 1, 2)),
    RandomAnisotropy(),
    *classification_preset(),
]


def phantom() -> Tensor:
    """A smooth image that begins at 0 and ends at 1, zero near its border as a body in air is."""
    noise = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=SHAPE), (3, 3, 1.5))
    noise = (noise - noise.min()) / (noise.max() - noise.min())
    window = np.ones(SHAPE)
    for axis, edge in enumerate(SHAPE):
        place = np.arange(edge)
        ramp = np.clip((np.minimum(place, edge - 1 - place) - 1) / (edge / 8), 0, 1)
        window *= np.expand_dims(ramp, tuple(a for a in range(3) if a != axis))
    image = noise * window
    return torch.from_numpy(image / image.max()).float()


def subject(image: Tensor, mask: Tensor | None = None) -> Any:
    affine = np.diag([*SPACING, 1.0])
    parts = {"image": tio.ScalarImage(tensor=image[None].clone(), affine=affine)}
    if mask is not None:
        parts["mask"] = tio.LabelMap(tensor=mask[None].clone(), affine=affine)
    return tio.Subject(**parts)


def ours(transform: BatchedTransform, params: dict[str, Tensor], image: Tensor, mask: Tensor | None = None) -> Any:
    chain = BatchedAugmentation([transform], spacing=SPACING)
    drawn = [Drawn(torch.tensor([0]), params)]
    moved, moved_mask = chain.apply(image[None, None], None if mask is None else mask[None, None], drawn)
    return moved[0, 0], None if moved_mask is None else moved_mask[0, 0]


AFFINES = [
    ((1.1, 0.9, 1.2), (5.0, -7.0, 12.0), (2.0, -3.0, 4.0)),
    ((1.0, 1.0, 1.0), (25.0, 0.0, 0.0), (0.0, 0.0, 0.0)),
    ((1.0, 1.0, 1.0), (0.0, 0.0, 0.0), (3.0, 2.4, -8.0)),
    ((0.8, 1.3, 1.0), (0.0, 20.0, -30.0), (0.0, 5.0, 0.0)),
]


@pytest.mark.parametrize(("scales", "degrees", "translation"), AFFINES)
def test_affine_equals_torchio(scales: Any, degrees: Any, translation: Any) -> None:
    image = phantom()
    mask = (image > 0.5).to(torch.uint8)
    reference = tio.Affine(scales=scales, degrees=degrees, translation=translation)(subject(image, mask))
    params = {"scales": scales, "degrees": degrees, "translation": translation}
    moved, moved_mask = ours(RandomAffine(), {k: torch.tensor([v]) for k, v in params.items()}, image, mask)
    assert (reference["image"].data[0] - image).abs().mean() > 0.01
    torch.testing.assert_close(moved, reference["image"].data[0], atol=1e-4, rtol=0)
    # voxels whose place lies half way between two fall to either side
    assert (moved_mask != reference["mask"].data[0]).float().mean() < 0.002


def test_elastic_deformation_equals_torchio() -> None:
    image = phantom()
    transform = RandomElasticDeformation(num_control_points=7, max_displacement=(4.0, 3.0, 6.0))
    params = transform.make_params(1, 1, torch.Generator().manual_seed(1))
    # SimpleITK counts the first two axes backwards, and displaces along left and posterior
    points = params["control_points"][0].flip([0, 1]) * torch.tensor([-1.0, -1.0, 1.0])
    reference = tio.ElasticDeformation(points.numpy(), (4.0, 3.0, 6.0))(subject(image))["image"].data[0]
    moved, _ = ours(transform, params, image)
    assert (reference - image).abs().max() > 0.1
    torch.testing.assert_close(moved, reference, atol=5e-3, rtol=0)


def test_bias_field_equals_torchio() -> None:
    image = phantom()
    transform = RandomBiasField(coefficients=0.5, order=3)
    params = transform.make_params(1, 1, torch.Generator().manual_seed(1))
    c = params["coefficients"][0]
    flat = [c[x, y, z].item() for x in range(4) for y in range(4 - x) for z in range(4 - x - y)]
    reference = tio.BiasField(flat, 3)(subject(image))["image"].data[0]
    torch.testing.assert_close(ours(transform, params, image)[0], reference, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("gamma", [0.6, 1.5])
def test_gamma_equals_torchio(gamma: float) -> None:
    image = phantom()
    reference = tio.Gamma(gamma)(subject(image))["image"].data[0]
    params = {"gamma": torch.tensor([[gamma]]), "invert": torch.tensor([False])}
    torch.testing.assert_close(ours(RandomGamma(), params, image)[0], reference)


@pytest.mark.parametrize("std", [(2.0, 1.0, 5.0), (0.0, 6.0, 0.0), (9.0, 9.0, 30.0)])
def test_blur_equals_torchio(std: tuple[float, float, float]) -> None:
    image = phantom()
    reference = tio.Blur(std)(subject(image))["image"].data[0]
    blurred, _ = ours(RandomBlur(), {"std": torch.tensor([std])}, image)
    torch.testing.assert_close(blurred, reference, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("axis", "factor"), [(0, 2.0), (1, 2.7), (2, 3.0)])
def test_anisotropy_equals_torchio_within_the_coarse_grid(axis: int, factor: float) -> None:
    image = phantom()
    reference = tio.RandomAnisotropy(axes=axis, downsampling=(factor, factor))(subject(image))["image"].data[0]
    factors = torch.ones(1, 3)
    factors[0, axis] = factor
    coarse, _ = ours(RandomAnisotropy(), {"downsampling": factors}, image)
    # beyond the outermost coarse voxels TorchIO writes a constant, and we repeat the last voxel
    inside = (slice(2, -2),) * 3
    torch.testing.assert_close(coarse[inside], reference[inside], atol=1e-5, rtol=1e-4)


def test_flip_equals_torchio() -> None:
    image = torch.randn(SHAPE)
    mask = (image > 0).to(torch.uint8)
    reference = tio.Flip(axes=(0, 2))(subject(image, mask))
    flipped, flipped_mask = ours(RandomFlip(), {"flip": torch.tensor([[True, False, True]])}, image, mask)
    assert torch.equal(flipped, reference["image"].data[0])
    assert torch.equal(flipped_mask, reference["mask"].data[0])


def test_affine_then_elastic_equals_one_after_the_other() -> None:
    image = phantom()
    affine, elastic = RandomAffine(degrees=15), RandomElasticDeformation(max_displacement=3.0)
    generator = torch.Generator().manual_seed(2)
    drawn = [Drawn(torch.tensor([0]), t.make_params(1, 1, generator)) for t in (affine, elastic)]
    fused, _ = BatchedAugmentation([affine, elastic], spacing=SPACING).apply(image[None, None], None, drawn)
    step, _ = BatchedAugmentation([affine], spacing=SPACING).apply(image[None, None], None, drawn[:1])
    apart, _ = BatchedAugmentation([elastic], spacing=SPACING).apply(step, None, drawn[1:])
    # interpolating twice smooths a little
    assert (fused - apart).abs().mean() < 0.005
    assert (fused - image).abs().mean() > 0.02


@pytest.mark.parametrize("transform", ALL, ids=lambda t: type(t).__name__)
def test_each_transform_alone(transform: BatchedTransform) -> None:
    image = torch.randn(3, 2, 16, 14, 10)
    mask = (torch.rand(3, 1, 16, 14, 10) > 0.5).to(torch.uint8)
    before, before_mask = image.clone(), mask.clone()
    transform.p = 1.0
    chain = BatchedAugmentation([transform], seed=1, spacing=SPACING)
    moved, moved_mask = chain(image, mask, seeds=(4, 5, 6))
    again, again_mask = chain(image, mask, seeds=(4, 5, 6))
    assert moved_mask is not None
    assert again_mask is not None
    assert torch.equal(moved, again)
    assert torch.equal(moved_mask, again_mask)
    assert not torch.equal(moved, image)
    assert moved.shape == image.shape
    assert bool(torch.isfinite(moved).all())
    assert set(moved_mask.flatten().tolist()) <= {0, 1}
    assert moved_mask.dtype == torch.uint8
    # the batch that was given is left alone
    assert torch.equal(image, before)
    assert torch.equal(mask, before_mask)
    transform.p = 0.0
    still, still_mask = BatchedAugmentation([transform], spacing=SPACING)(image, mask)
    assert torch.equal(still, image)
    assert still_mask is not None
    assert torch.equal(still_mask, mask)


def test_the_seeds_of_chain_and_item_each_count() -> None:
    image = torch.randn(2, 1, 16, 14, 10)
    chain = BatchedAugmentation([RandomNoise(std=(0.1, 0.2))], seed=1)
    first = chain(image, seeds=(7, 8))[0]
    assert not torch.equal(first[0], chain(image, seeds=(9, 8))[0][0])
    assert torch.equal(first[1], chain(image, seeds=(9, 8))[0][1])
    assert not torch.equal(first, BatchedAugmentation(chain.transforms, seed=2)(image, seeds=(7, 8))[0])
    torch.manual_seed(123)  # the process's own generator has no say
    assert torch.equal(first, chain(image, seeds=(7, 8))[0])
    with pytest.raises(ValueError, match="1 seeds for 2 items"):
        chain(image, seeds=(7,))


@pytest.mark.parametrize("preset", [segmentation_preset, classification_preset])
def test_an_item_is_augmented_alike_in_any_batch(preset: Callable[[], list[BatchedTransform]]) -> None:
    image = torch.randn(8, 2, 16, 14, 10)
    mask = (torch.rand(8, 1, 16, 14, 10) > 0.5).float()
    seeds = [2**62 + 5 * item for item in range(8)]
    chain = BatchedAugmentation(preset(), seed=3, spacing=SPACING)
    whole, whole_mask = chain(image, mask, seeds)
    assert whole_mask is not None
    # every other item, as one of two processes gets them
    for places in ([0, 2, 4, 6], [1, 3, 5, 7], [5]):
        part, part_mask = chain(image[places], mask[places], [seeds[place] for place in places])
        assert part_mask is not None
        # sums of another length round otherwise, and a random curve of intensities is steep in places
        assert (part - whole[places]).abs().max() < 1e-4
        assert (part - whole[places]).abs().mean() < 1e-6
        assert torch.equal(part_mask, whole_mask[places])


def test_items_get_parameters_of_their_own() -> None:
    image = torch.randn(1, 1, 16, 14, 10).repeat(4, 1, 1, 1, 1)
    moved, _ = BatchedAugmentation(segmentation_preset(), seed=0, spacing=SPACING)(image)
    assert len({moved[n].sum().item() for n in range(4)}) >= 3


def test_an_item_left_out_is_unchanged_bit_for_bit() -> None:
    image = torch.randn(8, 1, 16, 14, 10)
    chain = BatchedAugmentation([RandomAffine(p=0.5)], spacing=SPACING)
    active = chain.make_params(range(8), 1)[0].active.tolist()
    moved, _ = chain(image)
    assert 0 < len(active) < 8
    for item in range(8):
        assert torch.equal(moved[item], image[item]) == (item not in active)


def test_rotation_is_in_mm_so_a_turn_of_a_ball_stays_a_ball() -> None:
    shape = (48, 48, 16)
    place = [torch.arange(n) - (n - 1) / 2 for n in shape]
    grid = torch.stack(torch.meshgrid(*place, indexing="ij")) * torch.tensor([1.0, 1.0, 3.0]).view(3, 1, 1, 1)
    ball = torch.sigmoid(15 - grid.square().sum(0).sqrt())[None, None]
    params = {
        "scales": torch.ones(1, 3),
        "degrees": torch.tensor([[40.0, 25.0, 10.0]]),
        "translation": torch.zeros(1, 3),
    }
    chain = BatchedAugmentation([RandomAffine()], spacing=(1.0, 1.0, 3.0))
    turned, _ = chain.apply(ball, None, [Drawn(torch.tensor([0]), params)])
    assert (turned - ball).abs().max() < 0.15
    wrong, _ = chain.apply(ball, None, [Drawn(torch.tensor([0]), params)], spacing=(1.0, 1.0, 1.0))
    assert (wrong - ball).abs().max() > 0.5


def test_spacing_may_differ_by_item() -> None:
    image = phantom()[None, None].repeat(2, 1, 1, 1, 1)
    chain = BatchedAugmentation([RandomAffine(degrees=20), RandomBlur(std=(2.0, 3.0))], seed=3)
    both, _ = chain(image, spacing=torch.tensor([[1.0, 1.0, 1.0], SPACING]))
    single, _ = chain(image, spacing=SPACING)
    torch.testing.assert_close(both[1], single[1])
    assert not torch.allclose(both[0], single[0], atol=1e-3)


@pytest.mark.parametrize("label_interpolation", ["nearest", "linear"])
def test_the_mask_moves_with_the_image(label_interpolation: Any) -> None:
    image = phantom()
    body = (image > 0.4).float()[None, None]
    chain = BatchedAugmentation(
        [RandomAffine(degrees=20, translation=5), RandomElasticDeformation(max_displacement=4)],
        seed=5,
        spacing=SPACING,
        label_interpolation=label_interpolation,
    )
    moved, moved_mask = chain(body, body.to(torch.uint8))
    assert moved_mask is not None
    expected = moved > 0.5
    overlap = 2 * (expected & (moved_mask > 0)).sum() / (expected.sum() + moved_mask.sum())
    assert overlap > (0.97 if label_interpolation == "nearest" else 0.999)


def test_a_soft_mask_stays_soft_with_linear_interpolation() -> None:
    mask = phantom()[None, None]
    chain = BatchedAugmentation([RandomAffine(degrees=20)], spacing=SPACING, label_interpolation="linear")
    moved, moved_mask = chain(mask, mask)
    assert moved_mask is not None
    torch.testing.assert_close(moved, moved_mask, atol=1e-5, rtol=0)


def test_outside_is_the_minimum_or_the_number_given() -> None:
    image = torch.rand(1, 1, 16, 14, 10) + 3
    shift = RandomAffine(scales=0, degrees=0, translation=(100.0, 100.0))
    assert bool((BatchedAugmentation([shift], spacing=SPACING)(image)[0] == image.min()).all())
    filled, _ = BatchedAugmentation([shift], spacing=SPACING, default_pad_value=-7.0)(image)
    assert bool((filled == -7.0).all())


def test_gamma_and_contrast_keep_the_range() -> None:
    image = torch.randn(2, 1, 16, 14, 10)
    for transform in (RandomGamma(0.4, invert_probability=0.5), RandomContrast()):
        moved, _ = BatchedAugmentation([transform])(image)
        assert bool((moved.amin((2, 3, 4)) >= image.amin((2, 3, 4)) - 1e-5).all())
        assert bool((moved.amax((2, 3, 4)) <= image.amax((2, 3, 4)) + 1e-5).all())
    torch.testing.assert_close(
        ours(RandomGamma(), {"gamma": torch.ones(1, 1), "invert": torch.tensor([True])}, image[0, 0])[0], image[0, 0]
    )


def test_a_straight_curve_changes_nothing_and_a_random_one_keeps_mean_and_spread() -> None:
    image = torch.randn(2, 1, 16, 14, 10)
    straight = {"curve": torch.linspace(0, 1, 5).expand(1, 1, 5)}
    torch.testing.assert_close(ours(RandomIntensityRemap(5), straight, image[0, 0])[0], image[0, 0], atol=1e-5, rtol=0)
    moved, _ = BatchedAugmentation([RandomIntensityRemap(6, 0.5)])(image)
    torch.testing.assert_close(moved.mean((2, 3, 4)), image.mean((2, 3, 4)), atol=1e-5, rtol=0)
    torch.testing.assert_close(moved.std((2, 3, 4)), image.std((2, 3, 4)), atol=1e-4, rtol=0)
    assert (moved - image).abs().mean() > 0.05


def test_noise_has_the_drawn_spread() -> None:
    image = torch.zeros(2, 1, 32, 32, 16)
    noisy, _ = BatchedAugmentation([RandomNoise(mean=(0.5, 0.5), std=(0.2, 0.2))])(image)
    torch.testing.assert_close(noisy.std((1, 2, 3, 4)), torch.full((2,), 0.2), atol=0.005, rtol=0)
    torch.testing.assert_close(noisy.mean((1, 2, 3, 4)), torch.full((2,), 0.5), atol=0.01, rtol=0)
    assert not torch.equal(noisy[0], noisy[1])


def test_brightness_multiplies_and_low_resolution_smooths() -> None:
    image = torch.randn(1, 1, 16, 14, 10)
    bright, _ = BatchedAugmentation([RandomBrightness((2.0, 2.0))])(image)
    torch.testing.assert_close(bright, image * 2)
    coarse, _ = BatchedAugmentation([RandomLowResolution(downsampling=(2.0, 2.0))])(image)
    assert coarse.diff(dim=2).abs().mean() < 0.8 * image.diff(dim=2).abs().mean()


def make(kind: Any, **options: Any) -> Any:
    return lambda: kind(**options)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (make(BatchedAugmentation, transforms=[RandomNoise(), RandomAffine()]), "stand first"),
        (make(BatchedAugmentation, transforms=[RandomAffine(), RandomAffine()]), "at most once"),
        (make(BatchedAugmentation, transforms=[], label_interpolation="cubic"), "label_interpolation"),
        (make(BatchedAugmentation, transforms=[], default_pad_value="mean"), "default_pad_value"),
        (make(RandomAffine, scales=(1.2, 0.8)), "upside down"),
        (make(RandomAffine, degrees=(1.0, 2.0, 3.0, 4.0)), "1, 2, 3 or 6"),
        (make(RandomAffine, p=1.5), "p=1.5"),
        (make(RandomElasticDeformation, num_control_points=3), "at least 4"),
        (make(RandomElasticDeformation, num_control_points=4), "locked_borders"),
        (make(RandomAnisotropy, downsampling=(0.5, 2.0)), "below 1"),
        (make(RandomFlip, axes=3), "among 0, 1, 2"),
        (make(RandomNoise, std=(0.3, 0.1)), "smaller first"),
        (make(RandomBlur, std=(-1.0, 1.0)), "below 0"),
        (make(RandomGamma, log_gamma=float("nan")), "finite"),
    ],
)
def test_bad_requests_are_named(request_: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        request_()


def test_an_unknown_spacing_is_never_guessed() -> None:
    image = torch.randn(1, 1, 16, 14, 10)
    for transform in (RandomAffine(), RandomElasticDeformation(), RandomBlur()):
        with pytest.raises(ValueError, match="works in mm"):
            BatchedAugmentation([transform])(image)
    with pytest.raises(ValueError, match="does not fit"):
        BatchedAugmentation([])(image, torch.zeros(1, 1, 16, 14, 9))
    with pytest.raises(ValueError, match="spacing of shape"):
        BatchedAugmentation([], spacing=(1.0, 1.0))(image)
