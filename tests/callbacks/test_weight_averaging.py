"""The moving average of weights against the formula, and what a checkpoint holds of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from callbacks.weight_averaging import EMAWeights
from datamodules.batch import Batch
from lightning_modules.classification import PatientClassifier


def by_one(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=1.0)


class OneWeight(PatientClassifier):
    """One weight, moved by 1 at each step; keeps what it had after each."""

    def __init__(self) -> None:
        super().__init__(
            optimizer=lambda parameters: torch.optim.SGD(parameters, lr=1.0), schedule="constant", warmup=0
        )
        self.weight = nn.Parameter(torch.zeros(()))
        self.history: list[float] = []

    def outputs(self, batch: Batch) -> tuple[Tensor, Tensor]:
        return batch["image"] * self.weight, torch.zeros(len(batch["scan_id"]), dtype=torch.bool)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        return -self.weight

    def on_train_batch_end(self, *_: Any) -> None:
        self.history.append(float(self.weight.detach()))


class Items(torch.utils.data.Dataset[dict[str, Any]]):
    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> dict[str, Any]:
        image, target = torch.tensor([(-1.0, 0.5, 0.2, 2.0)[index]]), torch.tensor((0, 1, 0, 1)[index])
        return {"image": image, "target": target, "patient_id": str(index), "scan_id": str(index)}


def trained(folder: Path, decay: float, epochs: int, resume: Path | None = None) -> tuple[OneWeight, dict[str, Any]]:
    module = OneWeight()
    trainer = Trainer(
        max_epochs=epochs, callbacks=[EMAWeights(decay)], logger=False, enable_checkpointing=False, accelerator="cpu",
        default_root_dir=folder, enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
    )  # fmt: skip
    loader = DataLoader(Items(), batch_size=2)
    trainer.fit(module, loader, loader, ckpt_path=resume, weights_only=True)
    trainer.save_checkpoint(folder / f"{epochs}.ckpt")
    return module, torch.load(folder / f"{epochs}.ckpt", weights_only=True)


def averaged(history: list[float], decay: float) -> float:
    value = history[0]
    for count, weight in enumerate(history[1:], start=1):
        share = min(decay, (1 + count) / (10 + count))
        value = share * value + (1 - share) * weight
    return value


def test_the_average_is_what_is_kept(tmp_path: Path) -> None:
    module, checkpoint = trained(tmp_path, 0.25, 3)
    assert module.history == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    expected = averaged(module.history, 0.25)
    assert float(checkpoint["state_dict"]["weight"]) == pytest.approx(expected)
    assert 1 < expected < 6
    # chosen with the averaged weights, and not averaged themselves
    assert float(checkpoint["state_dict"]["threshold"]) == float(module.threshold)
    assert float(checkpoint["state_dict"]["temperature"]) == float(module.temperature)


def test_a_resumed_training_ends_with_the_same_average(tmp_path: Path) -> None:
    _, whole = trained(tmp_path / "whole", 0.9, 4)
    short = OneWeight()
    trainer = Trainer(
        max_epochs=4, callbacks=[EMAWeights(0.9)], logger=False, accelerator="cpu", enable_progress_bar=False,
        default_root_dir=tmp_path, enable_model_summary=False, num_sanity_val_steps=0,
    )  # fmt: skip
    loader = DataLoader(Items(), batch_size=2)
    # in the middle of a training, between two epochs: both weights are in the checkpoint
    trainer.fit_loop.max_epochs = 2
    trainer.fit(short, loader, loader)
    (saved,) = tmp_path.rglob("epoch=1*.ckpt")
    assert "current_model_state" in torch.load(saved, weights_only=True)
    _, resumed = trained(tmp_path / "resumed", 0.9, 4, resume=saved)
    for name, value in whole["state_dict"].items():
        assert torch.equal(value, resumed["state_dict"][name]), name


def test_decays_that_are_none() -> None:
    with pytest.raises(ValueError, match="decay=1"):
        EMAWeights(1.0)
