"""The direct arm: classify the raw scan, with no knowledge of where the liver is."""

from __future__ import annotations

from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor

from datamodules.batch import Batch
from lightning_modules.classification import DEFAULT_CALIBRATION, PatientClassifier
from lightning_modules.losses.classification import ClassificationLoss
from lightning_modules.metrics.calibration import Calibration
from lightning_modules.networks.patient_network import PatientNetwork
from lightning_modules.task import Schedule, adamw


class DirectClassificationModule(PatientClassifier):
    """Classify a patient from the whole image.

    Args:
        network: Classifies volumes, by slices or whole; it must have no way of taking a mask in.
        classes: See ``PatientClassifier``.
        positive_weight: See ``PatientClassifier``.
        optimizer: See ``TaskModule``.
        schedule: See ``TaskModule``.
        warmup: See ``TaskModule``.
        loss: See ``PatientClassifier``.
        calibration: See ``PatientClassifier``.
        mixup: See ``PatientClassifier``.
        layer_decay: See ``PatientClassifier``.
        decay_norms: See ``PatientClassifier``.

    Raises:
        ValueError: The network takes a mask in, or a batch holds one; or its logits do not suit the loss.
    """

    def __init__(
        self,
        network: PatientNetwork,
        classes: int = 2,
        positive_weight: float = 1.0,
        optimizer: OptimizerCallable = adamw,
        schedule: Schedule = "cosine",
        warmup: float = 0.05,
        loss: ClassificationLoss | None = None,
        calibration: Calibration = DEFAULT_CALIBRATION,
        mixup: float = 0.0,
        layer_decay: float = 1.0,
        decay_norms: bool = True,
    ) -> None:
        super().__init__(
            classes, positive_weight, optimizer, schedule, warmup, loss, calibration, mixup, layer_decay, decay_norms
        )
        if network.uses_mask:
            raise ValueError(
                f"mask_injection={list(network.ways)}: a direct arm sees no mask; use MaskedClassificationModule"
            )
        self.network = network
        self.check_outputs(network.outputs)

    def outputs(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Logits from the image alone."""
        if "mask" in batch:
            raise ValueError("a direct arm's batch holds a mask; set data.init_args.mask_source to none")
        output = self.network(batch["image"], None)
        return output.logits, output.empty_mask
