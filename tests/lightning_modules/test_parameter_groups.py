"""Rates that fall towards the input, and frozen encoders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from lightning_modules.direct_classification import DirectClassificationModule
from lightning_modules.networks.slice_encoder import SliceEncoder
from lightning_modules.networks.volume_classifier import SliceClassifier
from lightning_modules.parameter_groups import layered_groups


def rates(module: DirectClassificationModule, **options: Any) -> dict[str, tuple[float, float | None]]:
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    return {
        names[id(parameter)]: (group["lr_scale"], group.get("weight_decay"))
        for group in layered_groups(module, **options)
        for parameter in group["params"]
    }


def test_a_resnets_stages() -> None:
    module = DirectClassificationModule(SliceClassifier("resnet18", aggregation="attention"))
    found = rates(module, layer_decay=0.5, decay_norms=False)
    assert set(found) == {name for name, _ in module.named_parameters()}, "each parameter once"
    # stem, four stages: the last stage is one layer away from the head
    assert found["network.encoder.backbone.conv1.weight"] == (0.5**5, None)
    assert found["network.encoder.backbone.layer1.0.conv1.weight"] == (0.5**4, None)
    assert found["network.encoder.backbone.layer4.1.bn2.weight"] == (0.5, 0.0)
    assert found["network.aggregate.head.1.weight"] == (1.0, None)
    assert found["network.aggregate.head.1.bias"] == (1.0, 0.0)
    assert {scale for scale, _ in rates(module).values()} == {1.0}


def test_a_vision_transformers_blocks_and_its_new_gates() -> None:
    encoder = SliceEncoder("test_vit", gate=True)
    depth = len(encoder.backbone.model.blocks)
    names = {id(p): name for name, p in encoder.named_parameters()}
    layers = [{names[id(p)] for p in layer} for layer in encoder.layers()]
    assert len(layers) == depth + 1
    assert any("patch_embed" in name for name in layers[0])
    assert all(name.split("blocks.")[1].startswith("0.") for name in layers[1])
    assert not any("gate" in name for layer in layers for name in layer), "gates are new, and learn at the whole rate"
    assert {name for name in names.values() if "gate" not in name} == set().union(*layers)


def test_the_optimiser_gets_the_rates(monkeypatch: pytest.MonkeyPatch) -> None:
    module = DirectClassificationModule(SliceClassifier("resnet10t"), layer_decay=0.5)
    steps: Any = type("Trainer", (), {"estimated_stepping_batches": 10})()
    monkeypatch.setattr(type(module), "trainer", steps)
    made: Any = module.configure_optimizers()
    full = max(group["initial_lr"] for group in made["optimizer"].param_groups)
    assert full == 1e-3
    for group in made["optimizer"].param_groups:
        assert group["initial_lr"] == pytest.approx(full * group["lr_scale"])
    plain: Any = DirectClassificationModule(SliceClassifier("resnet10t")).configure_optimizers()
    assert len(plain["optimizer"].param_groups) == 1


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "resnet10t.pth"
    torch.save(timm.create_model("resnet10t").state_dict(), path)
    return path


def test_a_frozen_backbone_learns_nothing_and_counts_nothing(weights: Path) -> None:
    network = SliceClassifier(
        "resnet10t", weights_file=weights, mask_injection=("gate",), freeze=True, aggregation="mean"
    )
    before = {name: value.clone() for name, value in network.state_dict().items()}
    network.train()
    assert network.training and not any(module.training for module in network.encoder.backbone.modules())
    optimizer = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], 0.5)
    mask = torch.zeros(2, 1, 32, 32, 2)
    mask[:, :, :16] = 1
    network(torch.randn(2, 1, 32, 32, 2), mask).logits.sum().backward()
    optimizer.step()
    changed = {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}
    assert changed and all(name.startswith(("encoder.gates", "aggregate")) for name in changed)
    assert any(name.startswith("encoder.gates") for name in changed), "gates in a frozen backbone are trained"
    module = DirectClassificationModule(SliceClassifier("resnet10t", weights_file=weights, freeze=True))
    assert all(not name.startswith("network.encoder") for name in rates(module, layer_decay=0.9))


def test_frozen_random_weights_are_refused() -> None:
    with pytest.raises(ValueError, match="would stay random; set pretrained: true or weights_file"):
        SliceClassifier("resnet10t", freeze=True)
