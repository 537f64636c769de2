"""Grad-CAM of each tested scan: what in the last feature maps raises the logit, as a picture and as NIfTI."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from callbacks.attention import in_plane, measure, write_attention, write_map
from callbacks.prediction_writer import datamodule_of
from callbacks.run_directory import RunDirectory
from lightning_modules.networks.patient_network import PatientNetwork
from lightning_modules.networks.saliency import grad_cam


class GradCamWriter(Callback):
    """Write Grad-CAM of each tested scan into ``grad_cam/<scan_id>.png`` and ``.nii.gz`` of the run directory.

    The picture is laid out as that of ``AttentionWriter``; the bar is a slice's share of the map. The NIfTI lies on
    the scan's native grid, its largest value is 1. The record gets ``x_grad_cam_inside``, the share of the map inside
    the liver. It takes a second forward and a backward pass, so it is not among the usual callbacks. Does nothing
    where the mask crops the input: locations are then not those of the scan.

    Args:
        nifti: Write the NIfTI files.
    """

    def __init__(self, nifti: bool = True) -> None:
        self.nifti = nifti

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Look at one batch."""
        network = getattr(pl_module, "network", None)
        if not isinstance(network, PatientNetwork) or "crop" in network.ways:
            return
        datamodule = datamodule_of(trainer)
        folder = RunDirectory(trainer.default_root_dir).path / "grad_cam"
        with torch.autocast(batch["image"].device.type, enabled=False):
            maps = grad_cam(network, batch["image"].float(), batch.get("mask"))
        for index, scan_id in enumerate(outputs["scan_id"]):
            cam = maps[index] / maps[index].max().clamp(min=1e-12)
            slices = cam.sum((0, 1))
            write_attention(
                folder / f"{scan_id}.png",
                batch["image"][index, 0].float().cpu().numpy(),
                (slices / slices.sum().clamp(min=1e-12)).cpu().numpy(),
                cam.permute(2, 0, 1).cpu().numpy(),
                in_plane(datamodule),
            )
            measure(trainer, scan_id, "x_grad_cam_inside", cam, batch, index)
            if self.nifti:
                write_map(folder / f"{scan_id}.nii.gz", cam, datamodule, scan_id)
