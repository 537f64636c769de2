"""The segmentation-first arms: classify the liver that the first stage has found."""

from __future__ import annotations

from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor

from datamodules.batch import Batch
from lightning_modules.classification import DEFAULT_CALIBRATION, PatientClassifier
from lightning_modules.losses.classification import ClassificationLoss
from lightning_modules.metrics.calibration import Calibration
from lightning_modules.networks.patient_network import PatientNetwork
from lightning_modules.task import Schedule, adamw


class MaskedClassificationModule(PatientClassifier):
    """Classify a patient from the image and a liver mask.

    Args:
        network: Classifies volumes, by slices or whole, with one or more ways of taking the mask in.
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
        ValueError: The network takes no mask in, or a batch holds none; or its logits do not suit the loss.
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
        if not network.uses_mask:
            raise ValueError("mask_injection is empty: a masked arm needs a way of the mask in, such as [multiply]")
        self.network = network
        self.check_outputs(network.outputs)

    def outputs(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Logits from the image and its mask."""
        if "mask" not in batch:
            raise ValueError("a masked arm's batch holds no mask; set data.init_args.mask_source")
        output = self.network(batch["image"], batch["mask"])
        return output.logits, output.empty_mask
