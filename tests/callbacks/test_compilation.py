"""Compiling for training: the same losses but for rounding, eager elsewhere, one cache, and no silence."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from callbacks.compilation import CACHE, CompiledNetwork, check_compiler
from datamodules.errors import InputError


def stage(tmp_path: Path) -> tuple[Any, Any]:
    strategy = SimpleNamespace(root_device=torch.device("cpu"))
    trainer = SimpleNamespace(strategy=strategy, default_root_dir=str(tmp_path / "runs" / "study" / "arm" / "cell"))
    torch.manual_seed(0)
    module = SimpleNamespace(network=nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1)), loss=nn.MSELoss())
    return trainer, module


@pytest.fixture
def without_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    # set here so that it is taken away again afterwards
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "x")
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")


@pytest.mark.usefixtures("without_cache")
def test_parts_are_compiled_for_training_alone_and_cells_share_a_cache(tmp_path: Path) -> None:
    trainer, module = stage(tmp_path)
    weights = list(module.network.state_dict())
    callback = CompiledNetwork()
    callback.setup(trainer, module, "validate")
    assert module.network._compiled_call_impl is None
    callback.setup(trainer, module, "fit")
    assert module.network._compiled_call_impl is not None and module.loss._compiled_call_impl is not None
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / "runs" / CACHE)
    assert list(module.network.state_dict()) == weights
    callback.teardown(trainer, module, "fit")
    assert module.network._compiled_call_impl is None and module.loss._compiled_call_impl is None


@pytest.mark.usefixtures("without_cache")
def test_a_shape_that_changes_without_end_is_an_error_and_not_slow_in_silence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch._dynamo.config, "recompile_limit", 1)
    trainer, module = stage(tmp_path)
    monkeypatch.setattr(module.network, "compile", lambda **o: compiled_by(module.network, "eager", **o))
    callback = CompiledNetwork(parts=("network",))
    callback.setup(trainer, module, "fit")
    try:
        module.network(torch.randn(3, 4))
        # validation may have any size
        callback.on_validation_start(trainer, module)
        for items in (5, 6, 7):
            assert module.network(torch.randn(items, 4)).shape == (items, 1)
        callback.on_validation_end(trainer, module)
        with pytest.raises(torch._dynamo.exc.FailOnRecompileLimitHit):
            for items in (8, 9, 10):
                module.network(torch.randn(items, 4))
    finally:
        callback.teardown(trainer, module, "fit")
        torch._dynamo.reset()


def compiled_by(module: nn.Module, backend: str, dynamic: bool, mode: str) -> None:
    """As ``module.compile``, without the seconds that a compiler takes."""
    module._compiled_call_impl = torch.compile(module._call_impl, backend=backend, dynamic=dynamic)


def test_a_part_that_is_not_there_and_a_missing_compiler_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer, module = stage(tmp_path)
    with pytest.raises(InputError, match="has no part 'encoder'"):
        CompiledNetwork(parts=("encoder",)).setup(trainer, module, "fit")
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(InputError, match=r"needs a C\+\+ compiler .* install g\+\+ or leave trainer/compile out"):
        check_compiler()
