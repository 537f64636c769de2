"""Leave ``predictions.parquet`` behind every test: one row per patient or scan, each once on any number of ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from callbacks.run_directory import Identity, RunDirectory
from datamodules.base import CohortDataModule, Part
from datamodules.records import write_records
from lightning_modules.classification import probabilities
from lightning_modules.task import gather_by_id


class PredictionWriter(Callback):
    """Write classification and staging predictions into the run directory.

    ``predictions.parquet`` holds the test part; ``validation.parquet`` the validation part, predicted by the same
    weights: what falls from one to the other was not learned from the disease.
    """

    def __init__(self) -> None:
        self._rows: dict[str, dict[str, Any]] = {}
        self._added: dict[str, dict[str, Any]] = {}

    def add(self, scan_id: str, columns: Mapping[str, Any]) -> None:
        """Add columns that another callback knows to a scan's row of the record being made.

        Args:
            scan_id: The scan.
            columns: By name; names of extra columns begin with ``x_``.
        """
        self._added.setdefault(scan_id, {}).update(columns)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep one batch's rows, unless this is a validation within training."""
        if trainer.state.fn == TrainerFn.VALIDATING:
            self._keep(trainer, outputs, "valid")

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the validation part, unless this is a validation within training."""
        if trainer.state.fn == TrainerFn.VALIDATING:
            self._write(trainer, RunDirectory(trainer.default_root_dir).validation)

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Turn one batch's logits into rows."""
        self._keep(trainer, outputs, "test")

    def _keep(self, trainer: Trainer, outputs: Any, part: Part) -> None:
        datamodule = datamodule_of(trainer)
        temperature = outputs["temperature"]
        rows = classification_rows(outputs["logits"], outputs["scan_id"], outputs["threshold"], temperature)
        for row, empty in zip(rows, outputs["empty_mask"].tolist(), strict=True):
            facts = datamodule.facts(row["scan_id"], part)
            # extra columns of a record begin with x_
            extra = {"x_empty_mask": bool(empty), "x_temperature": temperature}
            self._rows[row["scan_id"]] = {**row, **facts, "part": part, **extra}

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the test part."""
        self._write(trainer, RunDirectory(trainer.default_root_dir).predictions)

    def _write(self, trainer: Trainer, path: Path) -> None:
        """Gather the rows of all ranks and write them once."""
        rows = gather_by_id({scan_id: {**row, **self._added.get(scan_id, {})} for scan_id, row in self._rows.items()})
        self._rows, self._added = {}, {}
        if trainer.is_global_zero:
            write_rows(list(rows.values()), path, RunDirectory(trainer.default_root_dir).identity())


def classification_rows(
    logits: Tensor, scan_ids: Sequence[str], threshold: float, temperature: float = 1.0
) -> list[dict[str, Any]]:
    """Columns of the record that come from the network.

    Args:
        logits: Class logits, shape (B, 1) for two classes, (B, classes) for more.
        scan_ids: One id for each item.
        threshold: Probability from which a patient counts as positive; only for two classes.
        temperature: Divides the logits before they become probabilities.

    Returns:
        ``prob``, ``logit`` and ``threshold``, or ``prob_k`` and ``logit_k``, and ``scan_id``, for each item. The
        logits are as the network gave them, not divided.
    """
    values = logits.detach().float().cpu().numpy()
    rows: list[dict[str, Any]] = []
    for scan_id, logit, probability in zip(scan_ids, values, probabilities(values, temperature), strict=True):
        if len(logit) == 1:
            row = {"prob": float(probability[1]), "logit": float(logit[0]), "threshold": threshold}
        else:
            row = {f"prob_{index}": float(value) for index, value in enumerate(probability)}
            row |= {f"logit_{index}": float(value) for index, value in enumerate(logit)}
        rows.append({**row, "scan_id": scan_id})
    return rows


def write_rows(rows: list[dict[str, Any]], path: Path, identity: Identity) -> None:
    """Add the run's identity to each row and write the record.

    Args:
        rows: One a scan, with at least ``patient_id``, ``scan_id`` and ``part``.
        path: The record to write.
        identity: Study, arm, seed and fold.
    """
    frame = pd.DataFrame(rows)
    frame["study"] = identity.study
    frame["arm"] = identity.arm
    frame["role"] = identity.role
    frame["seed"] = identity.seed
    frame["fold"] = identity.fold
    write_records(frame, path)


def datamodule_of(trainer: Trainer) -> CohortDataModule:
    """The trainer's data module, which knows the facts about each scan.

    Raises:
        TypeError: It is not one of hepastage's.
    """
    datamodule = getattr(trainer, "datamodule", None)
    if not isinstance(datamodule, CohortDataModule):
        raise TypeError("prediction records need one of hepastage's data modules; pass trainer.test(datamodule=…)")
    return datamodule
