"""Features that are read equal those that are computed, and an entry is never taken for another."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor

from datamodules.files import atomic_path
from lightning_modules.networks.feature_memory import FeatureMemory
from lightning_modules.networks.saliency import grad_cam
from lightning_modules.networks.volume_classifier import SliceClassifier


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "resnet10t.pth"
    torch.manual_seed(0)
    torch.save(timm.create_model("resnet10t").state_dict(), path)
    return path


def network(weights: Path, *ways: str) -> SliceClassifier:
    torch.manual_seed(1)
    return SliceClassifier("resnet10t", weights_file=weights, freeze=True, mask_injection=ways, pooling="attention")


def batch(seed: int, count: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    image = torch.randn(count, 1, 32, 32, 5, generator=generator)
    mask = torch.zeros(count, 1, 32, 32, 5)
    mask[:, :, 8:24, 8:24, 1:4] = 1
    return image, mask


def remember(model: SliceClassifier, folder: Path) -> FeatureMemory:
    model.encoder.memory = FeatureMemory(folder, model.encoder.backbone, atomic_path)
    return model.encoder.memory


@pytest.mark.parametrize("ways", [(), ("multiply", "attention")])
def test_read_maps_equal_computed_ones_in_any_batch(ways: tuple[str, ...], weights: Path, tmp_path: Path) -> None:
    model = network(weights, *ways).eval()
    image, mask = batch(0)
    seen = mask if ways else None
    plain = model(image, seen)
    memory = remember(model, tmp_path)
    first, second = model(image, seen), model(image, seen)
    assert (memory.computed, memory.recalled) == (3, 3)
    assert torch.equal(first.logits, second.logits)
    torch.testing.assert_close(first.logits, plain.logits)
    # two known volumes in another order, and a new one between them
    other, _ = batch(1, 1)
    mixed = torch.cat([image[2:], other, image[:1]])
    masks = None if seen is None else torch.cat([mask[2:], mask[:1], mask[:1]])
    found = model(mixed, masks)
    assert (memory.computed, memory.recalled) == (4, 5)
    model.encoder.memory = None
    torch.testing.assert_close(found.logits, model(mixed, masks).logits)


def test_what_lies_behind_the_backbone_is_trained_as_without_memory(weights: Path, tmp_path: Path) -> None:
    image, _ = batch(0)
    gradients = []
    for folder in (None, tmp_path, tmp_path):
        model = network(weights).train()
        if folder is not None:
            remember(model, folder)
        model(image).logits.sum().backward()
        assert all(parameter.grad is None for parameter in model.encoder.parameters())
        gradients.append([p.grad for name, p in sorted(model.named_parameters()) if p.grad is not None])
    assert gradients[0]
    for others in gradients[1:]:
        for one, other in zip(gradients[0], others, strict=True):
            torch.testing.assert_close(one, other)


def test_other_weights_precision_or_values_are_other_entries(weights: Path, tmp_path: Path) -> None:
    model = network(weights).eval()
    image, _ = batch(0)
    memory = remember(model, tmp_path)
    with torch.inference_mode():
        model(image)
        with torch.autocast("cpu", torch.bfloat16):
            low = model(image).logits
        model(image + 1e-6)
        assert (memory.computed, memory.recalled) == (9, 0)
        again = remember(model, tmp_path)
        model(image)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(model(image).logits, low)
        assert (again.computed, again.recalled) == (0, 6)
        for parameter in model.encoder.parameters():
            parameter.add_(0.01)
            break
        changed = remember(model, tmp_path)
        model(image)
    assert (changed.computed, changed.recalled) == (3, 0)
    assert len(list(tmp_path.iterdir())) == 2, "one folder for each set of weights"


def test_grad_cam_needs_the_encoder_itself(weights: Path, tmp_path: Path) -> None:
    model = network(weights).eval()
    image, _ = batch(0)
    plain = grad_cam(model, image, None)
    memory = remember(model, tmp_path)
    model(image)
    torch.testing.assert_close(grad_cam(model, image, None), plain)
    assert memory.recalled == 0
