"""Compute a frozen backbone's features once for each image, and read them ever after."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from datamodules.errors import InputError
from datamodules.files import atomic_path
from datamodules.saying import say
from lightning_modules.networks.feature_memory import FeatureMemory
from lightning_modules.networks.slice_encoder import SliceEncoder


class KeepFeatures(Callback):
    """Keep the feature maps of frozen slice encoders as files beside the store, for all runs that share it.

    What a run computes stays the same but for rounding, so this is no part of the cell's id. It is of use only where
    the same images come again in each epoch: with random augmentation it is refused.

    Args:
        folder: Where the features lie; by default ``features`` in the data module's store.

    Raises:
        InputError: On setup: nothing is frozen, gates change what is computed, or images are augmented.
    """

    def __init__(self, folder: str | None = None) -> None:
        self.folder = folder

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give each frozen encoder its memory."""
        encoders = [module for module in pl_module.modules() if isinstance(module, SliceEncoder)]
        datamodule: Any = trainer.datamodule  # type: ignore[attr-defined]  # Lightning sets it for a data module
        check(encoders, datamodule, getattr(pl_module, "mixup", 0.0))
        folder = datamodule.store.root / "features" if self.folder is None else Path(self.folder)
        for encoder in encoders:
            encoder.memory = FeatureMemory(folder, encoder.backbone, atomic_path)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Say how much was computed, and let go."""
        for encoder in pl_module.modules():
            if isinstance(encoder, SliceEncoder) and encoder.memory is not None:
                memory, encoder.memory = encoder.memory, None
                if memory.computed or memory.recalled:
                    say(
                        f"features of frozen layers: {memory.computed} volumes computed, {memory.recalled} read from "
                        f"{memory.own_folder}"
                    )


def check(encoders: list[SliceEncoder], datamodule: Any, mixup: float) -> None:
    """Refuse what would keep features that never come again, or the wrong ones.

    Args:
        encoders: The network's slice encoders.
        datamodule: The data module.
        mixup: Strength of mixup.

    Raises:
        InputError: See ``KeepFeatures``.
    """
    own = "callbacks.keep_features.KeepFeatures"
    if not encoders:
        raise InputError(f"{own}: the network has no slice encoder; leave the callback out")
    if not all(encoder.frozen for encoder in encoders):
        raise InputError(f"{own}: the backbone is trained; set model.init_args.network.init_args.freeze: true")
    if any(encoder.gated for encoder in encoders):
        raise InputError(f"{own}: gates between the backbone's stages are trained; leave 'gate' out of mask_injection")
    if getattr(datamodule, "augmentation", None) is not None:
        raise InputError(f"{own}: augmented images never come again; set data.init_args.augmentation: null")
    if mixup > 0:
        raise InputError(f"{own}: mixed images never come again; set model.init_args.mixup: 0")
