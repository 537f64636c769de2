"""Bring predicted masks to the native grid, measure them there in mm and ml, and leave pictures."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from callbacks.overlays import write_overlay
from callbacks.prediction_writer import datamodule_of, write_rows
from callbacks.run_directory import RunDirectory
from datamodules.components import largest_component
from datamodules.images import read_image, read_mask, spacing_of, write_nifti
from datamodules.masks import quality_band, quality_of
from datamodules.preprocessing import Geometry, to_native
from lightning_modules.metrics.segmentation import segmentation_scores, volume_ml
from lightning_modules.task import gather_by_id

NSD_TOLERANCE_MM = 2.0
"""Tolerance of the record's normalised surface Dice, in mm."""
OUTSIDE = -30.0
"""Log-odds of liver where the network never looked: a probability of 1e-13."""


class SegmentationWriter(Callback):
    """Write the masks, overlays and native-grid metrics of the test part into the run directory.

    Args:
        masks: Whether to keep the masks as NIfTI, in ``masks/``.
        overlays: Whether to draw each mask over the image, in ``overlays/``.
        largest_component: Whether to keep each mask's largest connected part alone.
    """

    def __init__(self, masks: bool = True, overlays: bool = True, largest_component: bool = False) -> None:
        self.masks = masks
        self.overlays = overlays
        self.largest_component = largest_component
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
            if self.largest_component:
                mask = largest_component(mask)
            image = read_image(scan.image)
            reference = None if scan.mask is None else read_mask(scan.mask, scan.mask_labels).data
            if self.masks:
                write_nifti(run.path / "masks" / f"{scan_id}.nii.gz", mask, image.affine, like=scan.image)
            if self.overlays:
                write_overlay(run.overlays / f"{scan_id}.png", image, mask, reference)
            row = measured(mask, reference, spacing_of(image.affine))
            row["quality"] = quality_of(row["dice"], scan.quality, None)[0]
            self._rows[scan_id] = {**datamodule.facts(scan_id), "part": "test", "mask_source": "none", **row}

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Gather all ranks' rows, write the record once and log the means."""
        rows = gather_by_id(self._rows)
        self._rows = {}
        if not trainer.is_global_zero or not rows:
            return
        run = RunDirectory(trainer.default_root_dir)
        write_rows(list(rows.values()), run.predictions, run.identity())
        for name in ("dice", "iou", "hd95_mm", "assd_mm", "nsd"):
            values = [row[name] for row in rows.values() if row[name] is not None and np.isfinite(row[name])]
            if values:
                for logger in trainer.loggers:
                    logger.log_metrics({f"test/{name}": float(np.mean(values))}, step=trainer.global_step)


def liver_logit(logits: torch.Tensor) -> np.ndarray:
    """Log-odds of liver against background, float32 of shape (I, J, K), from logits of shape (2, I, J, K)."""
    logits = logits.detach().float()
    return np.asarray((logits[1] - logits[0]).cpu().numpy())


def native_log_odds(logit: np.ndarray, geometry: Geometry) -> np.ndarray:
    """Log-odds of liver on the native grid, float32.

    Args:
        logit: Log-odds of liver on the preprocessed grid, shape (I, J, K).
        geometry: The way back. Voxels outside the preprocessed crop are background, ``OUTSIDE``.
    """
    return np.asarray(to_native(logit, geometry, interpolation="linear", fill=OUTSIDE), dtype=np.float32)


def native_mask(logit: np.ndarray, geometry: Geometry) -> np.ndarray:
    """A mask on the native grid, uint8 0 or 1.

    The log-odds are resampled and then thresholded at zero, which for two classes is the arg-max of resampled
    logits: smoother borders than resampling a mask. Arguments as for :func:`native_log_odds`.
    """
    return np.asarray(native_log_odds(logit, geometry) > 0.0).astype(np.uint8)


def measured(mask: np.ndarray, reference: np.ndarray | None, spacing: tuple[float, float, float]) -> dict[str, Any]:
    """Metrics of a native-grid mask against a reference.

    Args:
        mask: uint8 on the native grid, shape (I, J, K).
        reference: Reference mask on the same grid; without one only the volume is known.
        spacing: Voxel size in mm along the axes.

    Returns:
        ``dice``, ``iou``, ``hd95_mm``, ``assd_mm``, ``nsd`` at a tolerance of ``NSD_TOLERANCE_MM``, ``volume_ml``,
        ``reference_volume_ml`` and ``quality``; None where there is no reference.
    """
    names = ("dice", "iou", "hd95_mm", "assd_mm", "nsd", "reference_volume_ml", "quality")
    row: dict[str, Any] = dict.fromkeys(names)
    if reference is None:
        return {**row, "volume_ml": volume_ml(mask, spacing)}
    scores = segmentation_scores(mask, reference, spacing, NSD_TOLERANCE_MM)
    same = ("dice", "iou", "hd95_mm", "assd_mm", "volume_ml", "reference_volume_ml")
    row.update({name: getattr(scores, name) for name in same})
    return {**row, "nsd": scores.surface_dice, "quality": quality_band(scores.dice)}
