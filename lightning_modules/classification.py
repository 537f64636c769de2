"""What the classifying modules share: per-patient logits, validation metrics, and the operating point."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypedDict

import numpy as np
import torch
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.trainer.states import TrainerFn
from sklearn.metrics import accuracy_score, log_loss, roc_auc_score
from torch import Tensor

from datamodules.batch import Batch
from datamodules.errors import InputError
from lightning_modules.losses.classification import BalancedCELoss, ClassificationLoss, WeightedBCELoss
from lightning_modules.metrics.calibration import Calibration, fit_temperature
from lightning_modules.metrics.operating_point import choose_threshold
from lightning_modules.metrics.staging import staging_scores
from lightning_modules.mixup import mix
from lightning_modules.parameter_groups import layered_groups
from lightning_modules.task import Schedule, TaskModule, adamw, gather_by_id


class ClassificationOutput(TypedDict):
    """What a test or prediction step hands to the callbacks.

    Keys:
        logits: Class logits, float32, shape (B, 1) for two classes, (B, classes) for more.
        empty_mask: bool, shape (B,): the mask that the arm was given held no liver.
        scan_id: The scans' ids.
        threshold: Probability from which a patient counts as positive, chosen on validation patients.
        temperature: By which the logits are divided for probabilities, chosen on validation patients; the
            logits here are not divided yet.
    """

    logits: Tensor
    empty_mask: Tensor
    scan_id: list[str]
    threshold: float
    temperature: float


DEFAULT_CALIBRATION = Calibration()


class PatientClassifier(TaskModule):
    """Classify patients; subclasses say what their network may see.

    Temperature and threshold are chosen on the validation patients after each validation within training, and
    travel in the checkpoint, so ``test`` and ``predict`` use those that belong to the weights.

    Args:
        classes: Number of classes; two use one logit.
        positive_weight: Weight of the positive class in the two-class loss, where ``loss`` is not given.
        optimizer: See ``TaskModule``.
        schedule: See ``TaskModule``.
        warmup: See ``TaskModule``.
        loss: Of logits (B, outputs) and classes (B,); it says how many logits the network gives and what they mean.
            Where not given, binary cross-entropy for two classes, else cross-entropy.
        calibration: How temperature and threshold are chosen.
        mixup: Alpha of mixup in training, see ``mix``; 0 for none.
        layer_decay: Factor of the learning rate from an encoder's layer to the one before it, in (0, 1], for
            fine-tuning; see ``layered_groups``.
        decay_norms: False spares biases and norms the optimiser's weight decay.

    Raises:
        ValueError: Fewer than two classes, or a loss that does not suit them.
    """

    threshold: Tensor
    temperature: Tensor

    def __init__(
        self,
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
        if classes > 2 and calibration.threshold != "youden":
            raise ValueError(
                f"model.init_args.calibration.threshold: {calibration.threshold} is for two classes, the model has "
                f"{classes}; leave it out"
            )
        if mixup < 0:
            raise ValueError(f"model.init_args.mixup: {mixup} is negative; give 0 for none, or such as 0.2")
        if not 0 < layer_decay <= 1:
            raise ValueError(f"model.init_args.layer_decay: {layer_decay} does not lie in (0, 1]; 1 is none")
        self.calibration = calibration
        self.mixup = mixup
        self.layer_decay = layer_decay
        self.decay_norms = decay_norms
        self.register_buffer("threshold", torch.tensor(0.5))
        self.register_buffer("temperature", torch.tensor(1.0))
        # torch gives the hook no types
        self.register_load_state_dict_pre_hook(_without_temperature)  # type: ignore[no-untyped-call]
        self._seen: dict[str, tuple[list[float], int]] = {}
        self._training = True

    def optimized(self) -> Iterable[Any]:
        """See ``TaskModule``."""
        if self.layer_decay == 1 and self.decay_norms:
            return super().optimized()
        return layered_groups(self, self.layer_decay, self.decay_norms)

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
        if self.mixup > 0:
            mixed, partners, share = mix(batch, self.mixup, getattr(self.network, "ways", ()))
            loss, logits = self._shared_step(mixed)
            loss = share * loss + (1 - share) * self.loss(logits, partners)
        else:
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
        """Log metrics over all validation patients; within training, choose temperature and threshold first."""
        self._pooled("valid", choose=self._training)

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
        return {
            "logits": logits,
            "empty_mask": empty_mask,
            "scan_id": batch["scan_id"],
            "threshold": float(self.threshold),
            "temperature": float(self.temperature),
        }

    def _collect(self, batch: Batch) -> tuple[Tensor, Tensor]:
        logits, empty_mask = self.class_logits(batch)
        for scan_id, row, target in zip(batch["scan_id"], logits.tolist(), batch["target"].tolist(), strict=True):
            self._seen[scan_id] = (row, int(target))
        return logits, empty_mask

    def _pooled(self, part: str, choose: bool = False) -> None:
        """Log metrics over all ranks' patients, each once; choose temperature and threshold on them if asked.

        ``loss`` is that of the logits as they are, ``loss_scaled`` that of the probabilities in the record.
        """
        seen = gather_by_id(self._seen)
        self._seen = {}
        if not seen:
            return
        target = np.array([row[1] for row in seen.values()])
        logits = np.array([row[0] for row in seen.values()])
        metrics = patient_metrics(target, probabilities(logits))
        if choose and self.calibration.temperature:
            self.temperature.fill_(fit_temperature(target, logits))
        scaled = probabilities(logits, float(self.temperature))
        if choose and self.classes == 2:
            rule = self.calibration
            self.threshold.fill_(choose_threshold(target, scaled, rule.threshold, rule.value))
        if self.calibration.temperature:
            metrics["loss_scaled"] = patient_metrics(target, scaled)["loss"]
            metrics["temperature"] = float(self.temperature)
        for name, value in metrics.items():
            self.log(f"{part}/{name}", value, logger=part == "test" or self._training)


def _without_temperature(module: PatientClassifier, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Checkpoints from before temperature scaling have none."""
    state.setdefault(f"{prefix}temperature", torch.tensor(1.0))


def probabilities(logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """Class probabilities, shape (N, classes), from class logits (N, 1) or (N, classes) divided by the temperature."""
    if temperature != 1.0:
        logits = logits / temperature
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
        of one class does not exist. For more than two classes also ``kappa`` (quadratic), ``macro_f1`` and
        ``mae_stages``, under the names that ``compare`` gives them.

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
    if classes > 2:
        scores = staging_scores(target, probability)
        metrics |= {
            "kappa": scores.quadratic_kappa, "macro_f1": scores.macro_f1, "mae_stages": scores.mean_absolute_error,
        }  # fmt: skip
    if len(np.unique(target)) < classes:
        metrics["auc"] = float("nan")
    elif classes == 2:
        metrics["auc"] = float(roc_auc_score(target, probability[:, 1]))
    else:
        metrics["auc"] = float(roc_auc_score(target, probability, multi_class="ovr", average="macro"))
    return metrics
