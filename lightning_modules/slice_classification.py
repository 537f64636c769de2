"""Classify single slices, as published code does, and say what that makes of patients."""

from __future__ import annotations

from typing import Literal

import numpy as np
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.optim.lr_scheduler import ReduceLROnPlateau

from datamodules.batch import Batch
from lightning_modules.classification import patient_metrics, probabilities
from lightning_modules.direct_classification import DirectClassificationModule
from lightning_modules.losses.classification import ClassificationLoss
from lightning_modules.metrics.calibration import Calibration
from lightning_modules.metrics.operating_point import choose_threshold
from lightning_modules.networks.patient_network import PatientNetwork
from lightning_modules.task import adamw, gather_by_id


class SliceClassificationModule(DirectClassificationModule):
    """Each slice is an item with a loss of its own; a patient's probability is the mean over the slices.

    Metrics over slices are called ``slice_…`` (``test/slice_accuracy``); those without are over patients. The
    threshold is chosen on validation patients.

    Args:
        network: See ``DirectClassificationModule``; it is given volumes of one slice.
        classes: See ``PatientClassifier``.
        positive_weight: See ``PatientClassifier``.
        optimizer: See ``TaskModule``.
        schedule: As in ``TaskModule``, or ``plateau``: the rate is multiplied by ``plateau_factor`` where the
            validation slices' loss has not fallen for ``plateau_patience`` epochs.
        warmup: See ``TaskModule``; not with ``plateau``.
        loss: See ``PatientClassifier``.
        plateau_factor: In (0, 1).
        plateau_patience: Epochs without a fall that are let pass.

    Raises:
        ValueError: See ``DirectClassificationModule``; or plateau settings that make no sense.
    """

    def __init__(
        self,
        network: PatientNetwork,
        classes: int = 3,
        positive_weight: float = 1.0,
        optimizer: OptimizerCallable = adamw,
        schedule: Literal["constant", "cosine", "poly", "plateau"] = "plateau",
        warmup: float = 0.0,
        loss: ClassificationLoss | None = None,
        plateau_factor: float = 0.1,
        plateau_patience: int = 10,
    ) -> None:
        own = "constant" if schedule == "plateau" else schedule
        # the published protocol scales no probabilities
        super().__init__(
            network, classes, positive_weight, optimizer, own, warmup, loss, Calibration(temperature=False)
        )
        if not 0.0 < plateau_factor < 1.0 or plateau_patience < 0:
            raise ValueError(
                f"plateau_factor={plateau_factor}, plateau_patience={plateau_patience}: a factor in (0, 1) and a "
                "patience of 0 or more are expected"
            )
        if schedule == "plateau" and warmup > 0:
            raise ValueError(f"warmup={warmup}: the schedule 'plateau' has none; set it to 0")
        self.plateau = (plateau_factor, plateau_patience) if schedule == "plateau" else None
        self._patients: dict[str, str] = {}

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimiser; its rate falls where the validation slices' loss stands still, or as in ``TaskModule``."""
        if self.plateau is None:
            return super().configure_optimizers()
        optimizer = self.optimizer_factory(self.optimized())
        factor, patience = self.plateau
        scheduler = ReduceLROnPlateau(optimizer, factor=factor, patience=patience)
        plan = {"scheduler": scheduler, "monitor": "valid/slice_loss", "interval": "epoch"}
        return {"optimizer": optimizer, "lr_scheduler": plan}  # type: ignore[return-value]

    def _collect(self, batch: Batch) -> tuple[Tensor, Tensor]:
        self._patients.update(zip(batch["scan_id"], batch["patient_id"], strict=True))
        return super()._collect(batch)

    def _pooled(self, part: str, choose: bool = False) -> None:
        """Log metrics of patients, and of slices as ``slice_…``; choose the threshold on patients if asked."""
        seen, patient_of = gather_by_id(self._seen), gather_by_id(self._patients)
        self._seen, self._patients = {}, {}
        if not seen:
            return
        target = np.array([row[1] for row in seen.values()])
        probability = probabilities(np.array([row[0] for row in seen.values()]))
        patients, place = np.unique([patient_of[key] for key in seen], return_inverse=True)
        by_patient = np.zeros((len(patients), probability.shape[1]))
        np.add.at(by_patient, place, probability)
        by_patient /= np.bincount(place)[:, None]
        of_patient = np.zeros(len(patients), dtype=target.dtype)
        of_patient[place] = target
        slices = {f"slice_{name}": value for name, value in patient_metrics(target, probability).items()}
        for name, value in {**slices, **patient_metrics(of_patient, by_patient)}.items():
            self.log(f"{part}/{name}", value, logger=part == "test" or self._training)
        if choose and self.classes == 2:
            rule = self.calibration
            self.threshold.fill_(choose_threshold(of_patient, by_patient, rule.threshold, rule.value))
