"""Radiological staging from several sequences, any of which may be missing."""

from __future__ import annotations

from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor

from datamodules.batch import Batch
from lightning_modules.classification import DEFAULT_CALIBRATION, PatientClassifier
from lightning_modules.losses.classification import ClassificationLoss
from lightning_modules.metrics.calibration import Calibration
from lightning_modules.networks.sequence_fusion import SequenceFusionClassifier
from lightning_modules.task import Schedule, adamw


class StagingModule(PatientClassifier):
    """Estimate a patient's stage from one encoder a sequence and their fusion.

    Args:
        network: Fuses sequences; sees ``present``, and the masks where the arm may.
        classes: See ``PatientClassifier``; three radiological stages.
        optimizer: See ``TaskModule``.
        schedule: See ``TaskModule``.
        warmup: See ``TaskModule``.
        loss: See ``PatientClassifier``; ``losses.ordinal`` has those that know that stages are ordered.
        calibration: See ``PatientClassifier``.
    """

    def __init__(
        self,
        network: SequenceFusionClassifier,
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

    def outputs(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Logits from the sequences that the patient has."""
        if "present" not in batch:
            raise ValueError("a staging batch says which sequences are present; use StagingDataModule")
        output = self.network(batch["image"], batch["present"], batch.get("mask"))
        return output.logits, output.empty_mask
