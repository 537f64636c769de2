"""Where a classifier looked: its attention in each tested scan, as a picture, as NIfTI, and its share in the liver."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from PIL import Image
from scipy import ndimage
from torch import Tensor

from callbacks.overlays import HEIGHT, PNG_LEVEL
from callbacks.prediction_writer import PredictionWriter, datamodule_of
from callbacks.run_directory import RunDirectory
from datamodules.base import CohortDataModule
from datamodules.files import atomic_path
from datamodules.geometry import to_native
from datamodules.images import write_nifti
from lightning_modules.networks.patient_network import ClassifierOutput, PatientNetwork
from lightning_modules.networks.saliency import attention_map, share_inside

SLICES = 3
COLOUR = np.array([255.0, 80.0, 0.0])


class AttentionWriter(Callback):
    """Draw the attention of each tested scan into ``attention/<scan_id>.png`` of the run directory.

    The slices with the largest weight lie side by side, the largest first; orange shows the weight of a location
    relative to the slice's largest, and the bar below each slice its share of all slices' weights. For networks with
    attention over locations, the record gets ``x_attention_inside``: the share of the attention inside the liver (the
    reference mask where there is one, else the mask at hand; a direct arm's network never sees it). Does nothing for
    a network without attention, nor where the mask crops the input: locations are then not those of the scan.

    Args:
        nifti: Also write ``attention/<scan_id>.nii.gz`` on the scan's native grid: attention relative to an even
            one, so that 1 is even and 5 five times as much; 0 outside the preprocessed grid.
    """

    def __init__(self, nifti: bool = False) -> None:
        self.nifti = nifti
        self._last: ClassifierOutput | None = None
        self._hook: Any = None

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Listen to the network."""
        network = getattr(pl_module, "network", None)
        if isinstance(network, PatientNetwork) and "crop" not in network.ways:
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
        """Draw and measure one batch."""
        last, self._last = self._last, None
        # it is listened to only where it is a PatientNetwork
        network: Any = pl_module.network
        if last is None or (last.location_attention is None and not hasattr(network, "aggregate")):
            return
        datamodule = datamodule_of(trainer)
        folder = RunDirectory(trainer.default_root_dir).path / "attention"
        shape = batch["image"].shape[2:]
        inside = batch["mask"] if "attention" in network.ways else None
        whole = attention_map(last, (shape[0], shape[1], shape[2]), inside)
        for index, scan_id in enumerate(outputs["scan_id"]):
            locations = last.location_attention
            write_attention(
                folder / f"{scan_id}.png",
                _array(batch["image"][index, 0]),
                _array(last.slice_attention[index]),
                None if locations is None else _array(locations[index]),
                in_plane(datamodule),
            )
            if whole is None:
                continue
            measure(trainer, scan_id, "x_attention_inside", whole[index], batch, index)
            if self.nifti:
                write_map(folder / f"{scan_id}.nii.gz", whole[index] * whole[index].numel(), datamodule, scan_id)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Listen no more."""
        if self._hook is not None:
            self._hook.remove()
            self._hook = None

    def _keep(self, module: torch.nn.Module, inputs: Any, output: ClassifierOutput) -> None:
        self._last = output


def in_plane(datamodule: CohortDataModule) -> tuple[float, float]:
    """Voxel size in mm along I and J; 1 where preprocessing keeps the native one."""
    spacing = datamodule.store.preprocessing.spacing or (1.0, 1.0, 1.0)
    return spacing[0] or 1.0, spacing[1] or 1.0


def measure(trainer: Trainer, scan_id: str, column: str, weights: Tensor, batch: Any, index: int) -> None:
    """Add the share of a map inside the liver to the scan's row of the record, where the liver is known.

    Args:
        trainer: With its data module, and the callback that writes the record.
        scan_id: The scan.
        column: Of the record.
        weights: The map, shape (I, J, K).
        batch: The batch.
        index: The scan's place in it.
    """
    liver = liver_of(datamodule_of(trainer), scan_id, batch, index)
    if liver is None:
        return
    share = share_inside(weights.cpu(), liver)
    for callback in trainer.callbacks:  # type: ignore[attr-defined]  # Lightning's trainer has it
        if isinstance(callback, PredictionWriter):
            callback.add(scan_id, {column: share})


def liver_of(datamodule: CohortDataModule, scan_id: str, batch: Any, index: int) -> Tensor | None:
    """The liver of a scan on the preprocessed grid, to measure by, bool (I, J, K); None where nobody knows it.

    The reference mask where there is one; else the mask that the arm sees; else the one that gives its band.
    """
    scan = datamodule.cohort.scan(scan_id)
    if scan.mask is not None:
        return torch.from_numpy(np.asarray(datamodule.store.entry(scan).mask()) > 0)
    if "mask" in batch:
        return torch.as_tensor(batch["mask"][index, 0].cpu() >= 0.5)
    bands = getattr(datamodule, "quality_set", None)
    if bands is None or scan_id not in bands.masks:
        return None
    return torch.from_numpy(datamodule.store.external_mask(scan, bands.path(scan_id)) > 0)


def write_map(path: Path, volume: Tensor, datamodule: CohortDataModule, scan_id: str) -> None:
    """Write a map on the preprocessed grid as NIfTI (float32) on the scan's native one.

    Args:
        path: The file.
        volume: Shape (I, J, K), RAS+.
        datamodule: Knows the scan and its geometry.
        scan_id: The scan.
    """
    scan = datamodule.cohort.scan(scan_id)
    geometry = datamodule.store.entry(scan).geometry
    native = to_native(_array(volume), geometry)
    # two digits: whoever looks needs no more, and the file becomes a fraction
    write_nifti(path, np.round(native, 2).astype(np.float32), np.array(geometry.native_affine), like=scan.image)


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
        picture = Image.fromarray(np.concatenate(tiles, axis=1).round().astype(np.uint8))
        picture.save(temporary, format="PNG", compress_level=PNG_LEVEL)


def _view(plane: np.ndarray, width: int) -> np.ndarray:
    """A plane (I, J) as a radiologist sees it, shape (HEIGHT, width)."""
    zoom = (width / plane.shape[0], HEIGHT / plane.shape[1])
    return np.asarray(ndimage.zoom(plane.astype(np.float32), zoom, order=1)[::-1, ::-1].T)


def _array(tensor: Tensor) -> np.ndarray:
    return np.asarray(tensor.detach().float().cpu().numpy())
