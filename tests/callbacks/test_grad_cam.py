"""Where classifiers look: Grad-CAM by its definition, maps on the native grid, shares in the liver."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from torch import nn

from callbacks.run_directory import RunDirectory
from datamodules.records import read_records
from experiments.lightning_cli import fit_and_test, run_command
from lightning_modules.networks.patient_network import ClassifierOutput
from lightning_modules.networks.saliency import attention_map, grad_cam, share_inside
from lightning_modules.networks.volume_classifier import SliceClassifier
from tests.tiny import CLASSIFIER, TESTED, Tiny


def network(ways: tuple[str, ...], seed: int = 0) -> SliceClassifier:
    torch.manual_seed(seed)
    return SliceClassifier("test_resnet", mask_injection=ways, pooling="attention").eval()


def volume_and_mask() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    image, mask = torch.randn(2, 1, 32, 24, 4, generator=generator), torch.zeros(2, 1, 32, 24, 4)
    mask[0, 0, 8:20, 6:18, 1:3] = 1
    mask[1, 0, 4:28, 4:20, 2:4] = 1
    return image, mask


def test_grad_cam_by_its_definition() -> None:
    """Against gradients taken by hand, slice by slice, on a network without attention over slices."""
    torch.manual_seed(0)
    net = SliceClassifier("test_resnet", aggregation="mean").eval()
    image, _ = volume_and_mask()
    with torch.inference_mode():
        found = grad_cam(net, image, None)
    assert found.shape == (2, 32, 24, 4) and not found.requires_grad
    kept: list[torch.Tensor] = []
    hook = net.encoder.register_forward_hook(lambda module, inputs, maps: kept.append(maps[-1]))
    logit = net(image.clone().requires_grad_()).logits[:, 0]
    hook.remove()
    (gradient,) = torch.autograd.grad(logit.sum(), kept[0])
    for place in range(8):
        weights = gradient[place].mean((1, 2))
        cam = torch.relu(torch.einsum("c,chw->hw", weights, kept[0][place]))
        large = nn.functional.interpolate(cam[None, None], size=(32, 24), mode="bilinear")[0, 0]
        assert torch.allclose(found[place // 4, :, :, place % 4], large, atol=1e-5)


def test_slices_that_are_left_out_have_no_weight() -> None:
    image, mask = volume_and_mask()
    # nothing may raise the logit of an untrained network: several are asked
    cams = [grad_cam(network(("multiply", "gate", "attention"), seed), image, mask) for seed in range(6)]
    for cam in cams:
        assert not cam[0, :, :, [0, 3]].any() and not cam[1, :, :, :2].any()
        assert (cam >= 0).all()
    assert any(cam.any() for cam in cams)


def test_attention_is_a_share_of_the_whole_volume() -> None:
    # large enough for several locations: the maps are 32 times coarser than the image
    image, mask = torch.randn(2, 1, 192, 160, 4), torch.zeros(2, 1, 192, 160, 4)
    mask[:, 0, 64:160, 32:128, 1:3] = 1
    with torch.no_grad():
        output = network(("multiply", "attention"))(image, mask)
    found = attention_map(output, (192, 160, 4))
    assert found is not None
    assert torch.allclose(found.sum((1, 2, 3)), torch.ones(2), atol=1e-5)
    assert torch.allclose(found.sum((1, 2)), output.slice_attention, atol=1e-5)
    # whole locations are the liver's; between neighbours the map is interpolated
    assert share_inside(found[0], mask[0, 0] > 0) > 0.75
    restricted = attention_map(output, (192, 160, 4), mask)
    assert restricted is not None and torch.allclose(restricted.sum((1, 2)), output.slice_attention, atol=1e-5)
    assert share_inside(restricted[0], mask[0, 0] > 0) == pytest.approx(1.0, abs=1e-5)
    unmasked = attention_map(output._replace(empty_mask=torch.ones(2, dtype=torch.bool)), (192, 160, 4), mask * 0)
    assert unmasked is not None and torch.allclose(unmasked, found)
    liver = mask[0, 0] > 0
    even = ClassifierOutput(output.logits, torch.full((2, 4), 0.25), torch.full((2, 4, 2, 2), 0.25), output.empty_mask)
    flat = attention_map(even, (192, 160, 4))
    assert flat is not None and share_inside(flat[0], liver) == pytest.approx(float(mask[0].mean()), rel=1e-4)
    assert attention_map(output._replace(location_attention=None), (192, 160, 4)) is None


def test_a_map_of_nothing_has_no_share() -> None:
    assert np.isnan(share_inside(torch.zeros(2, 2, 2), torch.ones(2, 2, 2, dtype=torch.bool)))


def test_a_trained_run_is_looked_into(tiny_cohort: Tiny, tmp_path: Path) -> None:
    assert not fit_and_test([*tiny_cohort.words("masked_attention_resnet", runs=tmp_path), *CLASSIFIER])
    (path,) = tmp_path.glob("*/*/*/provenance.json")
    run = RunDirectory(path.parent)
    before = read_records(run.predictions)
    # reference masks: the arm looks at nothing but the liver
    assert np.allclose(before["x_attention_inside"], 1)
    assert not list(run.path.glob("*/*.nii.gz"))
    assert run_command("test", ["--run", str(run.path), "-c", "look_inside"]) == 0
    after = read_records(run.predictions)
    assert after["prob"].equals(before["prob"]), "looking changes nothing"
    assert after["x_grad_cam_inside"].dropna().between(0, 1).all()
    for folder in ("attention", "grad_cam"):
        for patient in TESTED:
            image = nib.load(tiny_cohort.folder / "images" / f"{patient}_T2W.nii.gz")
            found = nib.load(run.path / folder / f"{patient}_T2W.nii.gz")
            assert found.shape == image.shape
            assert np.allclose(found.affine, image.affine), "the scan's own grid, whatever its orientation"
            assert (run.path / folder / f"{patient}_T2W.png").is_file()
    # slices without liver are left out, on the native grid as well, flipped and tilted ones too
    for patient in TESTED:
        liver = np.asanyarray(nib.load(tiny_cohort.folder / "masks" / f"{patient}_T2W.nii.gz").dataobj) > 0
        weight = np.asanyarray(nib.load(run.path / "attention" / f"{patient}_T2W.nii.gz").dataobj)
        slices = liver.any(axis=(0, 1))
        assert weight[:, :, slices].mean() > 0.5 > 0.05 > weight[:, :, ~slices].mean()
        assert weight[liver].mean() > 3 * weight[~liver].mean()
