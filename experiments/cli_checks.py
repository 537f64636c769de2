"""What will not work with the data, model and processes together: said in one line before anything is trained."""

from __future__ import annotations

from lightning.pytorch import LightningModule, Trainer

from datamodules.base import CohortDataModule
from datamodules.segmentation import SegmentationDataModule
from datamodules.staging import StagingDataModule
from experiments.cli_machine import rank_faults


def process_faults(model: LightningModule, datamodule: CohortDataModule, trainer: Trainer) -> list[str]:
    """Ways in which the data are too few for the processes, or would halt them; one line each.

    Args:
        model: The learning module.
        datamodule: The data module.
        trainer: The trainer, which has trained nothing yet.
    """
    if trainer.world_size == 1 or datamodule.splits is None:
        return []
    patches = isinstance(datamodule, SegmentationDataModule) and datamodule.patch is not None
    faults = rank_faults(
        trainer.world_size,
        datamodule.splits,
        datamodule.fold_number,
        None if patches else datamodule.batch_size,
        trainer.accumulate_grad_batches,
    )
    if isinstance(datamodule, StagingDataModule):
        faults += waiting_faults(model, datamodule, trainer._accelerator_connector._layer_sync is not None)
    return faults


def waiting_faults(model: LightningModule, datamodule: StagingDataModule, synchronised: bool) -> list[str]:
    """A batch norm over processes waits for all: one whose batch lacks a sequence does not come to it."""
    if not synchronised or getattr(getattr(model, "network", None), "fusion", None) == "early":
        return []
    visits: dict[tuple[str, str], set[str]] = {}
    for scan in datamodule.cohort.scans:
        visits.setdefault((scan.patient_id, scan.visit), set()).add(scan.sequence)
    lacking = sum(len(found) < len(datamodule.sequences) for found in visits.values())
    if lacking == 0:
        return []
    return [
        f"trainer.sync_batchnorm: {lacking} examinations lack a sequence, and a process whose batch lacks it would "
        "let the others wait for ever; leave it out, or use a backbone with layer norm"
    ]
