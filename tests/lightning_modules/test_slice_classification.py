"""Slices and patients are measured apart; the rate falls where the slices' loss stands still."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, log_loss
from torch.optim.lr_scheduler import ReduceLROnPlateau

from lightning_modules.networks.volume_classifier import SliceClassifier
from lightning_modules.slice_classification import SliceClassificationModule


@pytest.fixture(scope="module")
def network() -> SliceClassifier:
    return SliceClassifier("resnet10t", classes=3, aggregation="mean")


def test_patients_are_the_mean_of_their_slices(network: SliceClassifier, monkeypatch: pytest.MonkeyPatch) -> None:
    module = SliceClassificationModule(network)
    rng = np.random.default_rng(0)
    patients = ["a"] * 6 + ["b"] * 3 + ["c"] * 2
    target = np.repeat([0, 1, 2], (6, 3, 2))
    logits = torch.as_tensor(rng.normal(size=(11, 3)), dtype=torch.float32)
    monkeypatch.setattr(module, "outputs", lambda batch: (batch["image"], torch.zeros(len(batch["image"]))))
    logged: dict[str, float] = {}
    monkeypatch.setattr(module, "log", lambda name, value, **_: logged.__setitem__(name, value))
    for part in (slice(0, 5), slice(5, 11)):
        batch: Any = {
            "image": logits[part],
            "target": torch.as_tensor(target[part]),
            "patient_id": patients[part],
            "scan_id": [f"{patients[n]}#{n:03d}" for n in range(11)[part]],
        }
        module._collect(batch)
    chances = torch.softmax(logits.double(), 1).numpy()
    means = np.stack([chances[target == k].mean(axis=0) for k in range(3)])
    module._pooled("test")
    assert logged["test/slice_accuracy"] == pytest.approx(accuracy_score(target, chances.argmax(1)))
    assert logged["test/slice_loss"] == pytest.approx(log_loss(target, chances), rel=1e-5)
    assert logged["test/accuracy"] == pytest.approx(accuracy_score([0, 1, 2], means.argmax(1)))
    assert logged["test/loss"] == pytest.approx(log_loss([0, 1, 2], means), rel=1e-5)


def test_a_slice_is_a_volume_of_one(network: SliceClassifier) -> None:
    """The loss of a batch of slices is the mean of the slices' own."""
    module = SliceClassificationModule(network).eval()
    batch: Any = {"image": torch.randn(3, 1, 32, 32, 1), "target": torch.tensor([0, 1, 2]), "scan_id": list("abc")}
    loss, logits = module._shared_step(batch)
    single = [torch.nn.functional.cross_entropy(logits[n : n + 1], batch["target"][n : n + 1]) for n in range(3)]
    assert loss.item() == pytest.approx(torch.stack(single).mean().item(), rel=1e-5)


def test_the_plateau(network: SliceClassifier) -> None:
    module = SliceClassificationModule(network, plateau_factor=0.5, plateau_patience=1)
    plan: Any = module.configure_optimizers()
    scheduler = plan["lr_scheduler"]["scheduler"]
    assert isinstance(scheduler, ReduceLROnPlateau)
    assert plan["lr_scheduler"]["monitor"] == "valid/slice_loss" and plan["lr_scheduler"]["interval"] == "epoch"
    rates = []
    for loss in (1.0, 0.9, 0.9, 0.9, 0.9):
        scheduler.step(loss)
        rates.append(plan["optimizer"].param_groups[0]["lr"])
    assert rates == [1e-3, 1e-3, 1e-3, 5e-4, 5e-4]
    for wrong in ({"plateau_factor": 1.0}, {"plateau_patience": -1}, {"warmup": 0.1}):
        with pytest.raises(ValueError, match="plateau"):
            SliceClassificationModule(network, **wrong)
