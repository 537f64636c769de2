from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from callbacks.progress import RunProgress


def trainer(epoch: int) -> Any:
    metrics = {"train/loss": torch.tensor(0.25), "valid/auc": torch.tensor(0.75), "other": torch.tensor(1.0)}
    return SimpleNamespace(current_epoch=epoch, max_epochs=4, callback_metrics=metrics)


def test_without_a_terminal_there_are_few_lines(capsys: pytest.CaptureFixture[str]) -> None:
    bar = RunProgress(every_s=0.0)
    bar.on_train_start(trainer(0), None)  # type: ignore[arg-type]  # the module is not asked
    bar.on_train_epoch_end(trainer(0), None)  # type: ignore[arg-type]  # as above
    bar.on_train_end(trainer(1), None)  # type: ignore[arg-type]  # as above
    first, last = capsys.readouterr().err.splitlines()
    assert "epoch 1/4" in first and "train/loss 0.250" in first and "valid/auc 0.750" in first and "left" in first
    assert "1 epochs in" in last and "other" not in last


def test_other_ranks_are_silent(capsys: pytest.CaptureFixture[str]) -> None:
    bar = RunProgress(every_s=0.0)
    bar.disable()
    bar.on_train_start(trainer(0), None)  # type: ignore[arg-type]  # the module is not asked
    bar.on_train_epoch_end(trainer(0), None)  # type: ignore[arg-type]  # as above
    bar.on_train_end(trainer(1), None)  # type: ignore[arg-type]  # as above
    assert capsys.readouterr().err == ""
