"""What the classifying modules share: per-patient logits, validation metrics, and the operating point."""

from __future__ import annotations

from typing import TypedDict

import numpy as np
import torch
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.trainer.states import TrainerFn
from sklearn.metrics import accuracy_score, log_loss, roc_auc_score
from torch import Tensor

from datamodules.batch import Batch
from datamodules.errors import InputError
from lightning_modules.losses.classification import BalancedCELoss, ClassificationLoss, WeightedBCELoss
from lightning_modules.metrics.operating_point import youden_threshold
from lightning_modules.task import Schedule, TaskModule, adamw, gather_by_id


class ClassificationOutput(TypedDict):
    """What a test or prediction step hands to the callbacks.

    Keys:
        logits: Class logits, float32, shape (B, 1) for two classes, (B, classes) for more.
        empty_mask: bool, shape (B,): the mask that the arm was given held no liver.
        scan_id: The scans' ids.
        threshold: Probability from which a patient counts as positive, chosen on validation patients.
    """

    logits: Tensor
    empty_mask: Tensor
    scan_id: list[str]
    threshold: float


class PatientClassifier(TaskModule):
    """Classify patients; subclasses say what their network may see.

    The threshold is chosen on validation patients after each validation (Youden's J) and travels in
    the checkpoint, so ``test`` uses the one that belongs to the weights.

    Args:
        classes: Number of classes; two use one logit.
        positive_weight: Weight of the positive class in the two-class loss, where ``loss`` is not given.
        optimizer: See ``TaskModule``.
        schedule: See ``TaskModule``.
        warmup: See ``TaskModule``.
        loss: Of logits (B, outputs) and classes (B,); it says how many logits the network gives and what they mean.
            Where not given, binary cross-entropy for two classes, else cross-entropy.

    Raises:
        ValueError: Fewer than two classes, or a loss that does not suit them.
    """

    threshold: Tensor

    def __init__(
        self,
        classes: int = 2,
        positive_weight: float = 1.0,
        optimizer: OptimizerCallable = adamw,
        schedule: Schedule = "cosine",
        warmup: float = 0.05,
        loss: ClassificationLoss | None = None,
    ) -> None:
        super().__init__(optimizer, schedule, warmup)
        if classes < 2:
            raise ValueError(f"classes={classes}: at least two are expected")
        if loss is not None and positive_weight != 1.0:
            raise ValueError(
                f"positive_weight={positive_weight}: is for the loss that is taken where none is given; give the "
                "weights to 'loss'"
            )
        if loss is None:
            loss = WeightedBCELoss(positive_weight) if classes == 2 else BalancedCELoss()
        self.classes = classes
        self.loss = loss
        self.expected_outputs = loss.outputs(classes)
        self.register_buffer("threshold", torch.tensor(0.5))
        self._seen: dict[str, tuple[list[float], int]] = {}
        self._training = True

    def check_outputs(self, outputs: int) -> None:
        """Refuse a network whose logits the loss would misread.

        Args:
            outputs: Logits that the network gives.

        Raises:
            ValueError: The loss asks for another number.
        """
        if outputs != self.expected_outputs:
            raise ValueError(
                f"model.init_args.network.init_args.classes: the network gives {outputs} logits, but "
                f"{type(self.loss).__name__} of {self.classes} classes takes {self.expected_outputs}; set it to "
                f"{self.expected_outputs}"
            )

    def outputs(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The network's logits (B, outputs) and whether each item's mask was empty (B,); the arm's own."""
        raise NotImplementedError

    def class_logits(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Class logits (B, 1 or classes), float32, and whether each item's mask was empty (B,)."""
        logits, empty_mask = self.outputs(batch)
        return self.loss.class_logits(logits.float()), empty_mask

    def on_fit_start(self) -> None:
        """Tell the loss how often each class occurs in the training part, where it balances by that.

        Raises:
            InputError: A class does not occur, or nobody can say.
        """
        if not self.loss.needs_counts:
            return
        datamodule = getattr(self.trainer, "datamodule", None)
        if datamodule is None or not hasattr(datamodule, "class_counts"):
            raise InputError(
                "model.init_args.loss: 'balanced' weights need one of hepastage's data modules; give numbers"
            )
        try:
            self.loss.set_counts(datamodule.class_counts())
        except ValueError as error:
            raise InputError(f"model.init_args.loss: {error}") from error
        self.loss.to(self.device)

    def _shared_step(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Loss and logits of one batch."""
        logits, _ = self.outputs(batch)
        logits = logits.float()
        target = batch["target"]
        if int(target.max()) >= self.classes:
            raise ValueError(
                f"target {int(target.max())} for a model of {self.classes} classes; set model.init_args.classes"
            )
        loss: Tensor = self.loss(logits, target)
        return loss, logits

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Loss of one batch of patients."""
        loss, _ = self._shared_step(batch)
        self.log("train/loss", loss, on_step=False, on_epoch=True, batch_size=len(batch["scan_id"]), sync_dist=True)
        return loss

    def on_validation_start(self) -> None:
        """A validation after training is no step of it: its metrics are shown, and left out of the run's log."""
        self._training = self.trainer.state.fn == TrainerFn.FITTING

    def validation_step(self, batch: Batch, batch_idx: int) -> ClassificationOutput:
        """Collect each patient's logits, and hand them to the callbacks."""
        logits, empty_mask = self._collect(batch)
        return self._output(logits, empty_mask, batch)

    def on_validation_epoch_end(self) -> None:
        """Log metrics over all validation patients and choose the threshold."""
        pooled = self._pooled("valid")
        if pooled is not None and self.classes == 2:
            self.threshold.fill_(youden_threshold(*pooled))

    def test_step(self, batch: Batch, batch_idx: int) -> ClassificationOutput:
        """Collect each patient's logits, and hand them to the callbacks."""
        logits, empty_mask = self._collect(batch)
        return self._output(logits, empty_mask, batch)

    def on_test_epoch_end(self) -> None:
        """Log metrics over all test patients."""
        self._pooled("test")

    def predict_step(self, batch: Batch, batch_idx: int) -> ClassificationOutput:
        """Logits of patients whose target may be unknown."""
        logits, empty_mask = self.class_logits(batch)
        return self._output(logits, empty_mask, batch)

    def _output(self, logits: Tensor, empty_mask: Tensor, batch: Batch) -> ClassificationOutput:
        threshold = float(self.threshold)
        return {"logits": logits, "empty_mask": empty_mask, "scan_id": batch["scan_id"], "threshold": threshold}

    def _collect(self, batch: Batch) -> tuple[Tensor, Tensor]:
        logits, empty_mask = self.class_logits(batch)
        for scan_id, row, target in zip(batch["scan_id"], logits.tolist(), batch["target"].tolist(), strict=True):
            self._seen[scan_id] = (row, int(target))
        return logits, empty_mask

    def _pooled(self, part: str) -> tuple[np.ndarray, np.ndarray] | None:
        """Targets and probabilities over all ranks, each patient once; logs their metrics."""
        seen = gather_by_id(self._seen)
        self._seen = {}
        if not seen:
            return None
        target = np.array([row[1] for row in seen.values()])
        probability = probabilities(np.array([row[0] for row in seen.values()]))
        for name, value in patient_metrics(target, probability).items():
            self.log(f"{part}/{name}", value, logger=part == "test" or self._training)
        return target, probability


def probabilities(logits: np.ndarray) -> np.ndarray:
    """Class probabilities, shape (N, classes), from logits of shape (N, 1) or (N, classes)."""
    if logits.shape[1] == 1:
        logits = np.concatenate([np.zeros_like(logits), logits], axis=1)
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=1, keepdims=True))


def patient_metrics(target: np.ndarray, probability: np.ndarray) -> dict[str, float]:
    """Loss, accuracy and AUC over patients.

    Args:
        target: Classes, shape (N,).
        probability: Shape (N, classes).

    Returns:
        ``loss`` (mean negative log-likelihood), ``accuracy`` of the most probable class, and ``auc``: for more
        than two classes the mean of the one-versus-rest areas; NaN where a class is absent, because an area
        of one class does not exist.

    Raises:
        ValueError: A probability is not finite.
    """
    if not np.isfinite(probability).all():
        raise ValueError("a predicted probability is not finite: training has diverged; lower the learning rate")
    classes = probability.shape[1]
    metrics = {
        "loss": float(log_loss(target, probability, labels=list(range(classes)))),
        "accuracy": float(accuracy_score(target, probability.argmax(1))),
    }
    if len(np.unique(target)) < classes:
        metrics["auc"] = float("nan")
    elif classes == 2:
        metrics["auc"] = float(roc_auc_score(target, probability[:, 1]))
    else:
        metrics["auc"] = float(roc_auc_score(target, probability, multi_class="ovr", average="macro"))
    return metrics
