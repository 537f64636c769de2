"""Where a classifier looked: its attention over the slices and locations of each tested scan, as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from PIL import Image
from scipy import ndimage
from torch import Tensor

from callbacks.prediction_writer import datamodule_of
from callbacks.run_directory import RunDirectory
from datamodules.files import atomic_path
from lightning_modules.networks.patient_network import ClassifierOutput
from lightning_modules.networks.volume_classifier import SliceClassifier

HEIGHT = 220  # pixels of a slice
SLICES = 3
COLOUR = np.array([255.0, 80.0, 0.0])


class AttentionWriter(Callback):
    """Draw the attention of each tested scan into ``attention/<scan_id>.png`` of the run directory.

    The slices with the largest weight lie side by side, the largest first; orange shows the weight of a location
    relative to the slice's largest, and the bar below each slice its share of all slices' weights. Does nothing for a
    network without attention over slices, nor where the mask crops the input, because locations are then not those
    of the scan.
    """

    def __init__(self) -> None:
        self._last: ClassifierOutput | None = None
        self._hook: Any = None

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Listen to the network."""
        network = getattr(pl_module, "network", None)
        if isinstance(network, SliceClassifier) and "crop" not in network.ways:
            self._hook = network.register_forward_hook(self._keep)

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Draw one batch."""
        if self._last is None:
            return
        spacing = datamodule_of(trainer).store.preprocessing.spacing or (1.0, 1.0, 1.0)
        folder = RunDirectory(trainer.default_root_dir).path / "attention"
        for index, scan_id in enumerate(outputs["scan_id"]):
            locations = self._last.location_attention
            write_attention(
                folder / f"{scan_id}.png",
                _array(batch["image"][index, 0]),
                _array(self._last.slice_attention[index]),
                None if locations is None else _array(locations[index]),
                (spacing[0] or 1.0, spacing[1] or 1.0),
            )
        self._last = None

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Listen no more."""
        if self._hook is not None:
            self._hook.remove()
            self._hook = None

    def _keep(self, module: torch.nn.Module, inputs: Any, output: ClassifierOutput) -> None:
        self._last = output


def write_attention(
    path: Path,
    image: np.ndarray,
    slices: np.ndarray,
    locations: np.ndarray | None = None,
    spacing: tuple[float, float] = (1.0, 1.0),
) -> None:
    """Draw the slices that weigh most; the patient's right is on the left, the front at the top.

    Args:
        path: PNG to write, atomically.
        image: The volume that the network saw, RAS+, shape (I, J, K).
        slices: Weight of each slice, shape (K,), summing to 1.
        locations: Weight of each location in its slice, shape (K, H, W); None draws slices alone.
        spacing: Voxel size in mm along I and J.
    """
    low, high = np.percentile(image, (1, 99.5))
    order = np.argsort(-slices, kind="stable")[: min(SLICES, len(slices))]
    tiles = []
    for k in order:
        grey = np.clip((image[:, :, k] - low) / max(float(high - low), 1e-6), 0, 1)
        width = max(1, round(HEIGHT * grey.shape[0] * spacing[0] / (grey.shape[1] * spacing[1])))
        rgb = np.repeat(_view(grey, width)[..., None] * 255, 3, axis=2)
        if locations is not None and locations[k].max() > 0:
            share = np.clip(_view(locations[k] / locations[k].max(), width), 0, 1)[..., None] * 0.6
            rgb = rgb * (1 - share) + COLOUR * share
        bar = np.zeros((8, width, 3))
        bar[:, : round(width * float(slices[k]))] = COLOUR
        tiles.append(np.concatenate([rgb, bar]))
    with atomic_path(path) as temporary:
        Image.fromarray(np.concatenate(tiles, axis=1).round().astype(np.uint8)).save(temporary, format="PNG")


def _view(plane: np.ndarray, width: int) -> np.ndarray:
    """A plane (I, J) as a radiologist sees it, shape (HEIGHT, width)."""
    zoom = (width / plane.shape[0], HEIGHT / plane.shape[1])
    return np.asarray(ndimage.zoom(plane.astype(np.float32), zoom, order=1)[::-1, ::-1].T)


def _array(tensor: Tensor) -> np.ndarray:
    return np.asarray(tensor.detach().float().cpu().numpy())
