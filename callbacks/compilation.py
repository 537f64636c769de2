"""Compile the network for training: worth its minute where a run is long."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn

from datamodules.errors import InputError

Mode = Literal["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"]
CACHE = ".compiled"
"""Folder of compiled code beside the studies: all cells of a grid share it, so each graph is compiled once."""


class CompiledNetwork(Callback):
    """Compile parts of the learning module by ``torch.compile`` while it trains; validation and test stay as they are.

    Shapes must be fixed, as those of patches are. Where they are not (a masked classifier encodes slices with liver
    alone, and their number differs), the run stops with torch's message instead of going on uncompiled. Compiled
    code rounds otherwise, so a compiled cell has an id of its own.

    Args:
        parts: What to compile, by name within the learning module.
        mode: See ``torch.compile``.

    Raises:
        InputError: There is no such part, or no compiler.
    """

    def __init__(self, parts: tuple[str, ...] = ("network", "loss"), mode: Mode = "default") -> None:
        self.parts = parts
        self.mode = mode

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Before training: the code itself is made in the first step."""
        if stage != "fit":
            return
        if trainer.strategy.root_device.type == "cpu":
            check_compiler()
        # the run directory is runs/study/arm/cell
        runs = Path(trainer.default_root_dir).absolute().parents[2]
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(runs / CACHE))
        # torch would go on uncompiled, with a warning among many
        torch._dynamo.config.fail_on_recompile_limit_hit = True
        torch.compiler.set_stance("default")
        for part in self._modules(pl_module):
            part.compile(dynamic=False, mode=self.mode)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Whole volumes differ in size, and would each be compiled anew."""
        torch.compiler.set_stance("force_eager")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Back to training."""
        torch.compiler.set_stance("default")

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """What comes after, in the same process, is not compiled."""
        torch.compiler.set_stance("default")
        torch._dynamo.config.fail_on_recompile_limit_hit = False
        for part in self._modules(pl_module):
            # torch has no public way back
            part._compiled_call_impl = None

    def _modules(self, pl_module: LightningModule) -> list[nn.Module]:
        found = {name: getattr(pl_module, name, None) for name in self.parts}
        for name, part in found.items():
            if not isinstance(part, nn.Module):
                kind = type(pl_module).__name__
                raise InputError(f"trainer.callbacks: CompiledNetwork: {kind} has no part {name!r}; mend parts")
        return [part for part in found.values() if isinstance(part, nn.Module)]


def check_compiler() -> None:
    """On a processor torch writes C++: there must be a compiler.

    Raises:
        InputError: There is none.
    """
    named = os.environ.get("CXX")
    if not any(shutil.which(name) for name in ([named] if named else ["g++", "clang++"])):
        raise InputError(
            f"trainer.callbacks: CompiledNetwork needs a C++ compiler ({named or 'g++'}), and there is none on this "
            "machine; install g++ or leave trainer/compile out"
        )
