"""Preprocessing against TorchIO, and the laws of the way back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torchio as tio
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import map_coordinates
from scipy.spatial.transform import Rotation

from datamodules.errors import InputError
from datamodules.geometry import geometry_of
from datamodules.images import Volume, read_image, read_mask
from datamodules.preprocessing import Geometry, Preprocessing, bounding_box, preprocess, to_native
from datamodules.resampling import interpolate

Array = np.ndarray[Any, Any]
LAWS = settings(max_examples=60, deadline=None, derandomize=True, database=None)


@st.composite
def affines(draw: st.DrawFn) -> Array:
    """Voxel to mm: any axis order, any flips, oblique by up to 25°, 0.6 to 8 mm."""
    order = draw(st.permutations(range(3)))
    signs = np.array(draw(st.tuples(*[st.sampled_from([-1.0, 1.0])] * 3)))
    spacing = np.array(draw(st.tuples(st.floats(0.6, 2.5), st.floats(0.6, 2.5), st.floats(0.6, 8.0))))
    angles = draw(st.tuples(*[st.floats(-25.0, 25.0)] * 3))
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", angles, degrees=True).as_matrix() @ np.eye(3)[:, order]
    affine[:3, :3] *= signs * spacing
    affine[:3, 3] = draw(st.tuples(*[st.floats(-200.0, 200.0)] * 3))
    return affine


SHAPES = st.tuples(st.integers(20, 44), st.integers(20, 44), st.sampled_from([2, 3, 9, 24]))


def world(affine: Array, voxel: Array) -> Array:
    out: Array = affine[:3, :3] @ np.asarray(voxel, dtype=float) + affine[:3, 3]
    return out


def subject_of(image: Array, mask: Array, affine: Array) -> tio.Subject:
    return tio.Subject(
        image=tio.ScalarImage(tensor=image[None], affine=affine), mask=tio.LabelMap(tensor=mask[None], affine=affine)
    )


@LAWS
@given(
    affines(), SHAPES, st.tuples(*[st.floats(0.8, 4.0)] * 3), st.tuples(*[st.integers(6, 60)] * 3), st.integers(0, 99)
)
def test_voxels_are_those_of_torchio(
    affine: Array, shape: tuple[int, int, int], spacing: tuple[float, ...], target: tuple[int, ...], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    image = rng.uniform(0, 100, shape).astype(np.float32)
    mask = (rng.uniform(size=shape) > 0.5).astype(np.uint8)
    canonical = tio.ToCanonical()(subject_of(image, mask, affine))
    if any(
        round(n * s / w, 3) < 1 for n, s, w in zip(canonical.spatial_shape, canonical.spacing, spacing, strict=True)
    ):
        return  # TorchIO leaves no voxel of such an axis, we leave one
    resampled = tio.Resample(spacing, label_interpolation="linear")(
        tio.Subject(
            image=canonical.image, mask=tio.LabelMap(tensor=canonical.mask.data.float(), affine=canonical.image.affine)
        )
    )
    theirs = tio.CropOrPad(target)(resampled)
    params = Preprocessing(spacing=spacing, shape=target, normalisation="none")  # type: ignore[arg-type]  # drawn
    ours, our_mask, geometry = preprocess(Volume(image, affine), Volume(mask, affine), params)
    np.testing.assert_allclose(np.array(geometry.affine), theirs.image.affine, atol=1e-8)
    np.testing.assert_allclose(ours, theirs.image.data.numpy()[0], atol=2e-3)
    share = theirs.mask.data.numpy()[0]
    sure = np.abs(share - 0.5) > 1e-4
    assert our_mask is not None
    np.testing.assert_array_equal(our_mask[sure], share[sure] > 0.5)


def test_nearest_masks_are_those_of_torchio_on_whole_spacings() -> None:
    mask = (np.random.default_rng(0).uniform(size=(64, 60, 20)) > 0.5).astype(np.uint8)
    affine = np.diag([-1.0, -1.0, 5.0, 1.0])
    theirs = tio.Resample((2.0, 2.0, 2.5))(tio.ToCanonical()(subject_of(mask.astype(np.float32), mask, affine)))
    params = Preprocessing(spacing=(2.0, 2.0, 2.5), normalisation="none", mask_interpolation="nearest")
    ours = preprocess(Volume(mask, affine), Volume(mask, affine), params)[1]
    np.testing.assert_array_equal(ours, theirs.mask.data.numpy()[0])


def test_zscore_is_torchios_over_the_voxels_above_the_mean() -> None:
    image = np.random.default_rng(0).gamma(2.0, 100.0, (30, 28, 12)).astype(np.float32)
    affine = np.diag([1.5, 1.5, 4.0, 1.0])
    chain = tio.Compose(
        [
            tio.Resample((2.0, 2.0, 3.0)),
            tio.CropOrPad((20, 18, 14)),
            tio.ZNormalization(masking_method=tio.ZNormalization.mean),
        ]
    )
    theirs = chain(tio.Subject(image=tio.ScalarImage(tensor=image[None], affine=affine))).image.data.numpy()[0]
    ours, _, _ = preprocess(Volume(image, affine), None, Preprocessing(spacing=(2.0, 2.0, 3.0), shape=(20, 18, 14)))
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_padding_is_air_and_is_left_out_of_the_statistics() -> None:
    image = np.random.default_rng(0).uniform(50, 100, (10, 10, 10)).astype(np.float32)
    small, _, _ = preprocess(Volume(image, np.eye(4)), None, Preprocessing())
    large, _, geometry = preprocess(Volume(image, np.eye(4)), None, Preprocessing(shape=(16, 16, 16)))
    np.testing.assert_array_equal(large[geometry.content], small)
    assert large[0, 0, 0] < small.min()
    raw, _, _ = preprocess(Volume(image, np.eye(4)), None, Preprocessing(shape=(16, 16, 16), normalisation="none"))
    assert raw[0, 0, 0] == 0
    raw, _, _ = preprocess(Volume(image - 80, np.eye(4)), None, Preprocessing(shape=(16, 16, 16), normalisation="none"))
    assert raw[0, 0, 0] == (image - 80).min()


def test_rounding_of_a_header_costs_no_slice() -> None:
    affine = np.diag(np.array([1.2, 1.2, 3.6, 1.0], dtype=np.float32)).astype(np.float64)
    geometry = geometry_of((320, 260, 80), affine, (1.2, 1.2, 3.6))
    assert geometry.shape == (320, 260, 80)
    assert geometry_of((320, 260, 80), affine, (1.2, 1.2, 1.8)).shape == (320, 260, 160)


@LAWS
@given(
    affines(),
    st.tuples(st.integers(40, 64), st.integers(40, 64), st.sampled_from([2, 3, 9, 24])),
    st.tuples(st.floats(0.5, 1.25), st.floats(0.5, 1.25), st.floats(0.4, 1.0)),
    st.floats(0.28, 0.42),
)
def test_there_and_back_keeps_geometry_and_mask(
    affine: Array, shape: tuple[int, int, int], factors: tuple[float, ...], radius: float
) -> None:
    """An ellipsoid across few slices is lost to a coarser grid, whatever one does: along slices the grid is finer."""
    grid = np.stack(np.meshgrid(*(np.linspace(-0.5, 0.5, n) for n in shape), indexing="ij"), axis=-1)
    mask = ((grid / np.where(np.array(shape) < 4, 2.0, radius)) ** 2).sum(axis=-1) <= 1
    axes = geometry_of(shape, affine).axes
    spacing = tuple(float(np.linalg.norm(affine[:3, axis]) * factors[axis]) for axis in axes)
    volume = Volume(mask.astype(np.float32), affine)
    params = Preprocessing(spacing=spacing, normalisation="none")  # type: ignore[arg-type]  # drawn
    image, prepared, geometry = preprocess(volume, Volume(mask.view(np.uint8), affine), params)
    assert prepared is not None
    assert geometry == Geometry.from_json(json.loads(json.dumps(geometry.as_json())))
    assert geometry.native_shape == shape
    np.testing.assert_array_equal(np.array(geometry.native_affine), affine)
    back = to_native(prepared, geometry, "label")
    assert back.shape == shape
    assert back.dtype == np.uint8
    assert set(np.unique(back)) <= {0, 1}
    assert 2 * np.sum(back.astype(bool) & mask) / (back.sum() + mask.sum()) >= 0.97
    smooth = to_native(np.stack([image, 1 - image]), geometry)
    assert smooth.shape == (2, *shape)
    assert 2 * np.sum((smooth[0] >= 0.5) & mask) / ((smooth[0] >= 0.5).sum() + mask.sum()) >= 0.97


@LAWS
@given(affines(), SHAPES, st.tuples(*[st.floats(0.8, 3.0)] * 3), st.tuples(*[st.integers(12, 50)] * 3))
def test_right_stays_right(
    affine: Array, shape: tuple[int, int, int], spacing: tuple[float, ...], target: tuple[int, ...]
) -> None:
    """An image of world coordinates: wherever a voxel goes, it says where it came from."""
    voxels = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), axis=-1)
    places = voxels @ affine[:3, :3].T + affine[:3, 3]
    params = Preprocessing(spacing=spacing, shape=target, normalisation="none")  # type: ignore[arg-type]  # drawn
    images = []
    for axis in range(3):
        image, _, geometry = preprocess(Volume(places[..., axis].astype(np.float32), affine), None, params)
        images.append(image)
    new = np.array(geometry.affine)
    assert nib.aff2axcodes(new) == ("R", "A", "S")
    # next to the border the edge's value stands in for what lies beyond
    inner = [
        np.arange(part.start, part.stop)[(place >= 0) & (place <= size - 1)]
        for part, place, size in zip(geometry.content, geometry.positions(), canonical_shape(geometry), strict=True)
    ]
    index = np.stack(np.meshgrid(*inner, indexing="ij"), axis=-1)
    expected = index @ new[:3, :3].T + new[:3, 3]
    found = np.stack([image[np.ix_(*inner)] for image in images], axis=-1)
    np.testing.assert_allclose(found, expected, atol=0.02)


def canonical_shape(geometry: Geometry) -> tuple[int, ...]:
    return tuple(geometry.native_shape[axis] for axis in geometry.axes)


def test_cropped_voxels_come_back_as_fill_and_padding_is_dropped() -> None:
    image = np.random.default_rng(0).uniform(1, 2, (20, 10, 9)).astype(np.float32)
    affine = np.diag([-1.0, 1.0, 2.0, 1.0])
    array, _, geometry = preprocess(Volume(image, affine), None, Preprocessing(shape=(11, 16, 9), normalisation="none"))
    back = to_native(array, geometry, fill=-7.0)
    kept = back != -7.0
    np.testing.assert_array_equal(back[kept], image[kept])
    assert kept.any(axis=(1, 2)).sum() == 11
    assert kept.any(axis=(0, 2)).all()
    np.testing.assert_array_equal(to_native(array.astype(np.int16), geometry, "nearest", fill=9)[~kept], 9)


def test_labels_come_back_as_the_same_set() -> None:
    labels = np.zeros((30, 30, 12), dtype=np.int16)
    labels[3:15, 3:25, 2:9], labels[15:27, 3:25, 2:9] = 7, 300
    geometry = geometry_of((30, 30, 12), np.diag([1.0, -1.0, 3.0, 1.0]), (1.0, 1.0, 3.0))
    back = to_native(labels, geometry, "label")
    np.testing.assert_array_equal(back, labels[:, ::-1])
    finer = geometry_of((25, 41, 7), np.diag([1.2, 0.73, 5.1, 1.0]), (1.0, 1.0, 3.0))
    assert set(np.unique(to_native(np.resize(labels, finer.shape), finer, "label"))) <= {0, 7, 300}


@pytest.mark.parametrize("interpolation", ["linear", "nearest"])
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0), (2, 1, 0)])
def test_interpolation_is_that_of_scipy(interpolation: str, order: tuple[int, int, int]) -> None:
    rng = np.random.default_rng(0)
    array = rng.normal(size=(13, 40, 70)).astype(np.float32).transpose(order)[::-1, :, ::-1]
    positions = tuple(np.sort(rng.uniform(-2, n + 1, m)) for n, m in zip(array.shape, (33, 17, 80), strict=True))
    grid = np.meshgrid(*positions, indexing="ij")
    wanted = map_coordinates(array, grid, order=1 if interpolation == "linear" else 0, mode="nearest")
    ours = interpolate(array, (positions[0], positions[1], positions[2]), interpolation)
    np.testing.assert_allclose(ours, wanted, atol=1e-4)
    assert ours.flags.c_contiguous


def test_a_lone_voxel_and_a_lone_slice_survive() -> None:
    image = np.arange(8, dtype=np.int16).reshape(1, 8, 1)
    array, _, geometry = preprocess(
        Volume(image, np.diag([8.0, 1.0, 8.0, 1.0])), None, Preprocessing(spacing=(3.0, 1.0, 20.0))
    )
    assert array.shape == (1, 8, 1)
    np.testing.assert_allclose(to_native(array, geometry)[0, :, 0], array[0, :, 0])


def test_parameters_are_checked_all_at_once() -> None:
    with pytest.raises(InputError) as caught:
        Preprocessing(spacing=(0.0, 1.0, 1.0), shape=(0, 1, 1), normalisation="z", mask_interpolation="cubic")
    assert len(caught.value.faults) == 4
    with pytest.raises(InputError, match="landmarks"):
        Preprocessing(normalisation="nyul")
    assert Preprocessing(spacing=(1, 1, None)).as_json() == Preprocessing(spacing=(1.0, 1.0, None)).as_json()
    listed = Preprocessing(spacing=[1, 1, 3], shape=[8, 8, 8])  # type: ignore[arg-type]  # as YAML gives it
    assert hash(listed) == hash(Preprocessing(spacing=(1, 1, 3), shape=(8, 8, 8)))


def test_a_constant_image_is_named() -> None:
    with pytest.raises(InputError, match=r"flat\.nii\.gz: .*same intensity"):
        preprocess(Volume(np.zeros((4, 4, 4)), np.eye(4), Path("flat.nii.gz")), None, Preprocessing())


def test_an_array_of_another_grid_does_not_go_back() -> None:
    geometry = geometry_of((8, 8, 8), np.eye(4))
    with pytest.raises(ValueError, match="not on the preprocessed grid"):
        to_native(np.zeros((8, 8, 7)), geometry)
    with pytest.raises(ValueError, match="interpolation"):
        to_native(np.zeros((8, 8, 8)), geometry, "cubic")


def test_bounding_box() -> None:
    inside = np.zeros((6, 7, 8), dtype=bool)
    assert bounding_box(inside) is None
    inside[1:3, 4, 5:8] = True
    assert bounding_box(inside) == (slice(1, 3), slice(4, 5), slice(5, 8))


def test_bias_correction_flattens_a_shaded_body() -> None:
    i, j, _ = np.meshgrid(*(np.linspace(-1, 1, n) for n in (48, 48, 12)), indexing="ij")
    body = i**2 + j**2 < 0.8
    shading = np.exp(0.6 * i)
    image = (body * 300 * shading + np.random.default_rng(0).uniform(0, 3, body.shape)).astype(np.float32)
    volume = Volume(image, np.diag([1.0, 1.0, 4.0, 1.0]))
    params = Preprocessing(normalisation="none", bias_correction=True)
    corrected, _, _ = preprocess(volume, None, params)
    assert corrected[body].std() / corrected[body].mean() < 0.3 * image[body].std() / image[body].mean()


@pytest.mark.real
@pytest.mark.parametrize("patient", [1, 15])
def test_real_livers_survive_there_and_back(test_data: Path, patient: int) -> None:
    image = read_image(test_data / "chaos_t2" / f"image_{patient}.nii.gz")
    mask = read_mask(test_data / "chaos_t2" / f"label_{patient}.nii.gz", (1,))
    array, prepared, geometry = preprocess(image, mask, Preprocessing(spacing=(1.5, 1.5, 3.0)))
    assert prepared is not None
    assert nib.aff2axcodes(np.array(geometry.affine)) == ("R", "A", "S")
    back = to_native(prepared, geometry, "label")
    assert 2 * np.sum(back & mask.data) / (back.sum() + mask.data.sum()) >= 0.97
    # the liver lies on the patient's right
    centre = np.argwhere(prepared).mean(axis=0)
    assert world(np.array(geometry.affine), centre)[0] > world(np.array(geometry.affine), np.array(array.shape) / 2)[0]
