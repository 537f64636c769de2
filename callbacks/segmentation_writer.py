"""Bring predicted masks to the native grid, measure them there in mm and ml, and leave pictures."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from callbacks.overlays import write_overlay
from callbacks.prediction_writer import datamodule_of, write_rows
from callbacks.run_directory import RunDirectory
from datamodules.cohort import Scan
from datamodules.images import read_image, read_mask, write_nifti
from datamodules.masks import quality_band
from datamodules.preprocessing import Geometry, to_native
from lightning_modules.metrics.segmentation import (
    average_symmetric_surface_distance_mm,
    dice,
    hausdorff95_mm,
    iou,
    volume_ml,
)
from lightning_modules.task import gather_by_id


class SegmentationWriter(Callback):
    """Write the masks, overlays and native-grid metrics of the test part into the run directory.

    Args:
        masks: Whether to keep the masks as NIfTI, in ``masks/``.
        overlays: Whether to draw each mask over the image, in ``overlays/``.
    """

    def __init__(self, masks: bool = True, overlays: bool = True) -> None:
        self.masks = masks
        self.overlays = overlays
        self._rows: dict[str, dict[str, Any]] = {}

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Measure one batch."""
        datamodule = datamodule_of(trainer)
        run = RunDirectory(trainer.default_root_dir)
        for logits, scan_id in zip(outputs["logits"], outputs["scan_id"], strict=True):
            scan = datamodule.cohort.scan(scan_id)
            mask = native_mask(liver_logit(logits), datamodule.store.entry(scan).geometry)
            if self.masks:
                affine = read_image(scan.image).affine
                write_nifti(run.path / "masks" / f"{scan_id}.nii.gz", mask, affine, like=scan.image)
            row = measured(mask, scan)
            self._rows[scan_id] = {**datamodule.facts(scan_id), "mask_source": "none", **row}
            if self.overlays:
                reference = None if scan.mask is None else read_mask(scan.mask, scan.mask_labels).data
                write_overlay(run.overlays / f"{scan_id}.png", read_image(scan.image), mask, reference)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Gather all ranks' rows, write the record once and log the means."""
        rows = gather_by_id(self._rows)
        self._rows = {}
        if not trainer.is_global_zero or not rows:
            return
        run = RunDirectory(trainer.default_root_dir)
        write_rows(list(rows.values()), run, run.identity())
        for name in ("dice", "iou", "hd95_mm", "assd_mm"):
            values = [row[name] for row in rows.values() if row[name] is not None and np.isfinite(row[name])]
            if values:
                for logger in trainer.loggers:
                    logger.log_metrics({f"test/{name}": float(np.mean(values))}, step=trainer.global_step)


def liver_logit(logits: torch.Tensor) -> np.ndarray:
    """Log-odds of liver against background, float32 of shape (I, J, K), from logits of shape (2, I, J, K)."""
    logits = logits.detach().float()
    return np.asarray((logits[1] - logits[0]).cpu().numpy())


def native_mask(logit: np.ndarray, geometry: Geometry) -> np.ndarray:
    """A mask on the native grid, uint8 0 or 1.

    The log-odds are resampled and then thresholded at zero, which for two classes is the arg-max of resampled
    logits: smoother borders than resampling a mask.

    Args:
        logit: Log-odds of liver on the preprocessed grid, shape (I, J, K).
        geometry: The way back. Voxels outside the preprocessed crop are background.
    """
    native = np.asarray(to_native(logit, geometry, interpolation="linear", fill=-1.0), dtype=np.float32)
    return np.asarray(native > 0.0).astype(np.uint8)


def measured(mask: np.ndarray, scan: Scan) -> dict[str, Any]:
    """Metrics of a native-grid mask against the scan's reference.

    Args:
        mask: uint8 on the native grid.
        scan: The scan; without a reference only the volume is known.

    Returns:
        ``dice``, ``iou``, ``hd95_mm``, ``assd_mm``, ``volume_ml``, ``reference_volume_ml`` and ``quality``;
        None where there is no reference.
    """
    image = read_image(scan.image)
    spacing = np.linalg.norm(image.affine[:3, :3], axis=0)
    mm = (float(spacing[0]), float(spacing[1]), float(spacing[2]))
    row: dict[str, Any] = dict.fromkeys(("dice", "iou", "hd95_mm", "assd_mm", "reference_volume_ml", "quality"))
    row["volume_ml"] = volume_ml(mask, mm)
    if scan.mask is not None:
        reference = read_mask(scan.mask, scan.mask_labels).data
        row["dice"] = dice(mask, reference)
        row["iou"] = iou(mask, reference)
        row["hd95_mm"] = hausdorff95_mm(mask, reference, mm)
        row["assd_mm"] = average_symmetric_surface_distance_mm(mask, reference, mm)
        row["reference_volume_ml"] = volume_ml(reference, mm)
        row["quality"] = quality_band(row["dice"])
    return row
