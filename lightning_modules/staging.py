"""Radiological staging from several sequences, any of which may be missing."""

from __future__ import annotations

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor

from datamodules.batch import Batch
from lightning_modules.classification import DEFAULT_CALIBRATION, PatientClassifier
from lightning_modules.losses.classification import ClassificationLoss
from lightning_modules.metrics.calibration import Calibration
from lightning_modules.networks.staging_network import StagingNetwork
from lightning_modules.task import Schedule, adamw


class StagingModule(PatientClassifier):
    """Estimate a patient's stage from one encoder a sequence and their fusion.

    Args:
        network: Fuses sequences; sees ``present``, and masks and covariates where the arm may.
        classes: See ``PatientClassifier``; three radiological stages.
        optimizer: See ``TaskModule``.
        schedule: See ``TaskModule``.
        warmup: See ``TaskModule``.
        loss: See ``PatientClassifier``; ``losses.ordinal`` has those that know that stages are ordered.
        calibration: See ``PatientClassifier``.
    """

    def __init__(
        self,
        network: StagingNetwork,
        classes: int = 3,
        optimizer: OptimizerCallable = adamw,
        schedule: Schedule = "cosine",
        warmup: float = 0.05,
        loss: ClassificationLoss | None = None,
        calibration: Calibration = DEFAULT_CALIBRATION,
    ) -> None:
        super().__init__(classes, 1.0, optimizer, schedule, warmup, loss, calibration)
        self.network = network
        self.check_outputs(network.outputs)
        if getattr(network, "fusion", "") == "late_mean" and classes > 2 and self.expected_outputs != classes:
            raise ValueError(
                f"model.init_args.network.init_args.fusion: late_mean averages probabilities of {classes} classes, and "
                f"the logits of {type(self.loss).__name__} are steps between them; set it to gated or cross_attention"
            )

    def on_fit_start(self) -> None:
        """Take mean and spread of the covariates from the training patients; they travel in the checkpoint."""
        super().on_fit_start()
        if self.network.covariates:
            # asked for by name: a data module knows its covariates, and learning modules import none
            mean, spread = self.trainer.datamodule.covariate_statistics()  # type: ignore[attr-defined]  # set by fit
            values = [torch.as_tensor(item, dtype=torch.float32, device=self.device) for item in (mean, spread)]
            self.network.set_covariate_statistics(*values)

    def outputs(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Logits from the sequences that the patient has."""
        if "present" not in batch:
            raise ValueError("a staging batch says which sequences are present; use StagingDataModule")
        output = self.network(batch["image"], batch["present"], batch.get("mask"), batch.get("covariates"))
        return output.logits, output.empty_mask
