"""nnU-Net's preprocessing and way back, number by number against nnU-Net's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from datamodules.errors import InputError
from datamodules.images import Volume, read_image
from datamodules.nnunet_preprocessing import (
    NNUNetGrid,
    Order,
    Resampling,
    lone_axis,
    preprocess_as_nnunet,
    resampled,
    to_native_as_nnunet,
)
from tests.experiments.nnunet_oracle import needed

CASES = {
    # native spacing (I, J, K) in mm, voxels, target spacing (transposed), transpose, axes of the file
    "thick slices": ((1.4, 1.4, 7.0), (40, 36, 12), (6.0, 1.1, 1.1), (0, 1, 2), "LAS"),
    "thick slices kept": ((1.4, 1.4, 7.0), (40, 36, 12), (7.0, 2.0, 2.0), (0, 1, 2), "RAS"),
    "isotropic": ((2.0, 2.0, 2.5), (40, 36, 30), (1.7, 2.2, 2.4), (0, 1, 2), "LPS"),
    "coronal": ((1.5, 1.5, 6.0), (40, 36, 12), (5.0, 1.3, 1.6), (0, 1, 2), "LSA"),
    "transposed": ((1.5, 6.0, 1.5), (40, 12, 36), (5.0, 1.3, 1.6), (1, 0, 2), "RAS"),
    "slices of a 2-D model": ((1.4, 1.2, 7.0), (40, 36, 12), (1.7, 1.6), (0, 1, 2), "RAS"),
    "nothing to do": ((1.4, 1.4, 7.0), (40, 36, 12), (7.0, 1.4, 1.4), (0, 1, 2), "RAS"),
}
SCHEMES = [("ZScoreNormalization", False), ("ZScoreNormalization", True), ("CTNormalization", False)]
SCHEMES += [("RescaleTo01Normalization", False), ("NoNormalization", False)]
FACTS = {"mean": 130.0, "std": 40.0, "percentile_00_5": 60.0, "percentile_99_5": 190.0}


def scan(path: Path, spacing: tuple[float, ...], shape: tuple[int, ...], axes: str, seed: int = 0) -> Volume:
    """A smooth body with a hole and empty borders, written by nibabel."""
    rng = np.random.default_rng(seed)
    i, j, k = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    body = (i**2 + j**2 < 0.7) & (np.abs(k) < 0.9)
    image = np.where(body, 120 + 40 * np.sin(5 * i) * np.cos(4 * j) + 20 * k + rng.normal(0, 5, shape), 0.0)
    image[(i**2 + j**2 < 0.02)] = 0.0
    matrix = nib.orientations.inv_ornt_aff(nib.orientations.axcodes2ornt(tuple(axes)), shape)
    affine = matrix @ np.diag([*spacing, 1.0])
    written = nib.Nifti1Image(np.rint(image).astype(np.int16), affine)
    nib.save(written, path)
    return read_image(path)


def oracle(path: Path, grid: NNUNetGrid) -> tuple[np.ndarray, dict[str, Any], Any, Any, Any]:
    """nnU-Net's array of a file, its properties, and the managers of its plans."""
    needed()
    from nnunetv2.imageio.nibabel_reader_writer import NibabelIO
    from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    def how(order: int, is_seg: bool) -> dict[str, Any]:
        return {"is_seg": is_seg, "order": order, "order_z": 0, "force_separate_z": None}

    function = "resample_data_or_seg_to_shape"
    configuration = {
        "spacing": list(grid.spacing),
        "normalization_schemes": [grid.scheme],
        "use_mask_for_norm": [grid.nonzero_only],
        "resampling_fn_data": function,
        "resampling_fn_data_kwargs": how(3, False),
        "resampling_fn_seg": function,
        "resampling_fn_seg_kwargs": how(1, True),
        "resampling_fn_probabilities": function,
        "resampling_fn_probabilities_kwargs": how(1, False),
        "architecture": {},
    }
    plans = {
        "transpose_forward": list(grid.transpose),
        "transpose_backward": [int(axis) for axis in np.argsort(grid.transpose)],
        "image_reader_writer": "NibabelIO",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {"0": dict(grid.intensities)},
        "configurations": {"3d": configuration},
    }
    manager = PlansManager(plans)
    chosen = manager.get_configuration("3d")
    labels = {"labels": {"background": 0, "liver": 1}, "channel_names": {"0": "T2W"}}
    data, properties = NibabelIO().read_images([str(path)])
    out, _, properties = DefaultPreprocessor(verbose=False).run_case_npy(
        data, None, properties, manager, chosen, labels
    )
    return out[0], properties, manager, chosen, labels


def grid_of(spacing: tuple[float, ...], transpose: tuple[int, int, int], scheme: str, nonzero: bool) -> NNUNetGrid:
    return NNUNetGrid(spacing, transpose, scheme, nonzero, FACTS, Resampling(3), Resampling(1))


@pytest.mark.parametrize("name", CASES)
def test_there_and_back_as_nnunet(name: str, tmp_path: Path) -> None:
    needed()
    from nnunetv2.inference.export_prediction import convert_predicted_logits_to_segmentation_with_correct_shape

    spacing, shape, target, transpose, axes = CASES[name]
    path = tmp_path / "scan.nii.gz"
    volume = scan(path, spacing, shape, axes)
    for scheme, nonzero in SCHEMES:
        grid = grid_of(target, transpose, scheme, nonzero)
        expected, properties, manager, chosen, labels = oracle(path, grid)
        case = preprocess_as_nnunet(volume, grid)
        assert case.data.shape == expected.shape
        assert np.abs(case.data - expected).max() < 2e-5 * max(1.0, np.abs(expected).max())
    rng = np.random.default_rng(1)
    logits = np.stack([np.zeros(case.data.shape), case.data / 100 - 1.2 + rng.normal(0, 0.05, case.data.shape)])
    logits = logits.astype(np.float32)
    mask = convert_predicted_logits_to_segmentation_with_correct_shape(
        logits, manager, chosen, manager.get_label_manager(labels), properties, num_threads_torch=1
    )
    ours = to_native_as_nnunet(logits[1] - logits[0], case, grid)
    assert ours.shape == volume.data.shape
    expected_mask = np.asarray(mask).transpose(2, 1, 0)
    assert 0.02 < expected_mask.mean() < 0.98
    assert np.count_nonzero((ours > 0) != expected_mask) <= 2  # values within rounding of zero


@pytest.mark.real
@pytest.mark.parametrize("target", [(7.7, 1.25, 1.25), (5.5, 1.9, 1.9), (2.5, 2.5, 2.5)])
def test_a_real_scan(target: tuple[float, ...], test_data: Path) -> None:
    path = test_data / "chaos_t2" / "image_15.nii.gz"
    grid = grid_of(target, (0, 1, 2), "ZScoreNormalization", True)
    expected, *_ = oracle(path, grid)
    case = preprocess_as_nnunet(read_image(path), grid)
    assert case.data.shape == expected.shape
    assert np.abs(case.data - expected).max() < 1e-4


@pytest.mark.parametrize("order", [1, 3])
@pytest.mark.parametrize("spacing", [(7.0, 1.0, 1.0), (1.0, 1.0, 1.0), (1.0, 6.0, 1.0), (5.0, 5.0, 1.0)])
@pytest.mark.parametrize("order_z", [0, 1])
def test_resampling_is_nnunets(order: Order, order_z: Order, spacing: tuple[float, ...]) -> None:
    needed()
    from nnunetv2.preprocessing.resampling.default_resampling import resample_data_or_seg_to_shape

    array = np.random.default_rng(0).normal(0, 1, (11, 14, 13)).astype(np.float32)
    shape, target = (17, 9, 20), (3.0, 1.5, 0.7)
    theirs = resample_data_or_seg_to_shape(
        array[None], shape, spacing, target, order=order, order_z=order_z, force_separate_z=None
    )
    ours = resampled(array, shape, spacing, target, Resampling(order, order_z))
    np.testing.assert_allclose(ours, theirs[0], atol=1e-5)


def test_lone_axis() -> None:
    assert lone_axis((7, 1, 1), (1, 1, 1), None) == 0
    assert lone_axis((1, 1, 1), (1, 5, 1), None) == 1
    assert lone_axis((3, 1, 1), (1, 1, 1), None) is None
    assert lone_axis((0.24, 1.25, 1.25), (1, 1, 1), None) is None
    assert lone_axis((7, 1, 1), (1, 1, 1), False) is None
    assert lone_axis((2, 1, 1), (1, 1, 1), True) == 0


def test_an_empty_scan_is_refused() -> None:
    empty = Volume(np.zeros((5, 5, 5), dtype=np.int16), np.eye(4))
    with pytest.raises(InputError, match="all voxels are 0"):
        preprocess_as_nnunet(empty, grid_of((1.0, 1.0, 1.0), (0, 1, 2), "ZScoreNormalization", False))


def test_reoriented_files_end_on_their_own_grid(tmp_path: Path) -> None:
    spacing, shape, target, transpose, _ = CASES["thick slices"]
    ras = scan(tmp_path / "ras.nii.gz", spacing, shape, "RAS")
    turned = nib.load(tmp_path / "ras.nii.gz").as_reoriented(nib.orientations.axcodes2ornt(("P", "S", "L")))
    nib.save(turned, tmp_path / "psl.nii.gz")
    other = read_image(tmp_path / "psl.nii.gz")
    grid = NNUNetGrid(target, transpose, "ZScoreNormalization", False, {}, Resampling(3), Resampling(1), True)
    one, two = preprocess_as_nnunet(ras, grid), preprocess_as_nnunet(other, grid)
    # nibabel's P, S, L of a RAS file: the same voxels turned, so the same array
    np.testing.assert_allclose(one.data, two.data[:, :, :], atol=1e-5)
    back = to_native_as_nnunet(two.data, two, grid)
    assert back.shape == other.data.shape
    assert np.corrcoef(back[back > -100], other.data[back > -100])[0, 1] > 0.95
