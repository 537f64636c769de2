from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from scipy.special import expit, softmax
from sklearn.metrics import accuracy_score, log_loss, roc_auc_score
from torch import nn

from datamodules.batch import Batch
from datamodules.errors import InputError
from lightning_modules.classification import PatientClassifier, patient_metrics, probabilities
from lightning_modules.direct_classification import DirectClassificationModule
from lightning_modules.losses.classification import FocalLoss, WeightedBCELoss
from lightning_modules.losses.ordinal import CornLoss, corn_probabilities
from lightning_modules.masked_classification import MaskedClassificationModule
from lightning_modules.metrics.calibration import Calibration, fit_temperature
from lightning_modules.metrics.operating_point import youden_threshold
from lightning_modules.mixup import mix
from lightning_modules.networks.volume_classifier import SliceClassifier


def network(*ways: str) -> SliceClassifier:
    return SliceClassifier("resnet10t", mask_injection=ways, aggregation="mean")


def batch(**more: Any) -> Batch:
    made: dict[str, Any] = {
        "image": torch.randn(2, 1, 32, 32, 3), "target": torch.tensor([0, 1]), "patient_id": ["a", "b"],
        "scan_id": ["a1", "b1"],
    }  # fmt: skip
    return {**made, **more}  # type: ignore[typeddict-item]  # tests make batches that are wrong


def test_a_direct_arm_refuses_a_mask() -> None:
    with pytest.raises(ValueError, match="a direct arm sees no mask"):
        DirectClassificationModule(network("multiply"))
    for probe in ("erase", "erase_box", "mask_only"):
        with pytest.raises(ValueError, match="a direct arm sees no mask"):
            DirectClassificationModule(network(probe))
    module = DirectClassificationModule(network())
    with pytest.raises(ValueError, match="a direct arm's batch holds a mask"):
        module.outputs(batch(mask=torch.ones(2, 1, 32, 32, 3)))
    with pytest.raises(ValueError, match="a direct arm's batch holds a mask"):
        module.training_step(batch(mask=torch.zeros(2, 1, 32, 32, 3)), 0)
    logits, empty = module.outputs(batch())
    assert logits.shape == (2, 1) and not empty.any()


def test_a_masked_arm_needs_a_mask() -> None:
    with pytest.raises(ValueError, match="mask_injection is empty"):
        MaskedClassificationModule(network())
    module = MaskedClassificationModule(network("multiply"))
    with pytest.raises(ValueError, match="holds no mask"):
        module.outputs(batch())
    mask = torch.zeros(2, 1, 32, 32, 3)
    mask[0, :, 8:20, 8:20] = 1
    logits, empty = module.outputs(batch(mask=mask))
    assert logits.shape == (2, 1)
    assert empty.tolist() == [False, True]


def test_a_masked_arm_does_not_see_the_outside() -> None:
    module = MaskedClassificationModule(network("multiply")).eval()
    mask = torch.zeros(2, 1, 32, 32, 3)
    mask[:, :, 8:20, 8:20] = 1
    first = batch(mask=mask)
    other = dict(first)
    other["image"] = torch.where(mask > 0, first["image"], torch.randn_like(first["image"]))
    with torch.no_grad():
        torch.testing.assert_close(module.outputs(first)[0], module.outputs(other)[0])  # type: ignore[arg-type]  # a copy


def test_probabilities_against_scipy() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 40, (50, 1))
    np.testing.assert_allclose(probabilities(logits)[:, 1], expit(logits[:, 0]), atol=1e-12)
    several = rng.normal(0, 400, (50, 4))
    np.testing.assert_allclose(probabilities(several), softmax(several, axis=1), atol=1e-12)


@pytest.mark.parametrize("classes", [2, 3])
def test_metrics_against_scikit_learn(classes: int) -> None:
    rng = np.random.default_rng(classes)
    target = rng.integers(0, classes, 60)
    probability = rng.dirichlet(np.ones(classes), 60)
    found = patient_metrics(target, probability)
    score = probability[:, 1] if classes == 2 else probability
    assert found["loss"] == pytest.approx(log_loss(target, probability))
    assert found["accuracy"] == pytest.approx(accuracy_score(target, probability.argmax(1)))
    assert found["auc"] == pytest.approx(roc_auc_score(target, score, multi_class="ovr"))


def test_an_absent_class_has_no_area() -> None:
    probability = np.array([[0.4, 0.6], [0.2, 0.8]])
    assert np.isnan(patient_metrics(np.array([1, 1]), probability)["auc"])
    three = np.array([[0.4, 0.3, 0.3], [0.2, 0.5, 0.3]])
    assert np.isnan(patient_metrics(np.array([0, 1]), three)["auc"])
    assert patient_metrics(np.array([0, 1]), three)["accuracy"] == 1.0


@pytest.mark.parametrize("seed", range(5))
def test_youdens_threshold_is_the_best_of_all(seed: int) -> None:
    rng = np.random.default_rng(seed)
    target = np.r_[0, 1, rng.integers(0, 2, 30)]
    score = np.round(np.asarray(expit(rng.normal(target, 1.2))), 2)  # with ties
    threshold = youden_threshold(target, np.stack([1 - score, score], axis=1))

    def youden(cut: float) -> float:
        return float(np.mean(score[target == 1] >= cut) + np.mean(score[target == 0] < cut) - 1)

    assert youden(threshold) == pytest.approx(max(youden(cut) for cut in np.linspace(-0.005, 1.005, 405)))
    assert not np.isin(threshold, score), "it sits between patients, not on one"


def test_youdens_threshold_without_two_classes() -> None:
    assert youden_threshold(np.array([1, 1]), np.array([[0.4, 0.6], [0.1, 0.9]])) == 0.5
    backwards = np.array([[0.1, 0.9], [0.9, 0.1]])
    assert youden_threshold(np.array([0, 1]), backwards) == 0.5, "no cut is better than chance"


class Fixed(PatientClassifier):
    """Says the batch's own logits."""

    def __init__(self, classes: int = 2, positive_weight: float = 1.0, **options: Any) -> None:
        super().__init__(classes, positive_weight, **options)
        self.weight = nn.Parameter(torch.zeros(()))

    def outputs(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        return batch["image"] + self.weight, torch.zeros(len(batch["scan_id"]), dtype=torch.bool)


def test_the_loss_weighs_positives() -> None:
    module = Fixed(positive_weight=3.0)
    loss, _ = module._shared_step(batch(image=torch.tensor([[0.5], [-0.2]])))
    expected = (-math.log(1 - 1 / (1 + math.exp(-0.5))) - 3 * math.log(1 / (1 + math.exp(0.2)))) / 2
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-5)


def test_a_target_beyond_the_classes() -> None:
    with pytest.raises(ValueError, match=r"target 2 for a model of 2 classes; set model\.init_args\.classes"):
        Fixed()._shared_step(batch(image=torch.zeros(2, 1), target=torch.tensor([0, 2])))
    with pytest.raises(ValueError, match="classes=1"):
        Fixed(classes=1)


def test_the_threshold_is_chosen_on_validation_and_travels_in_the_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    module = Fixed(calibration=Calibration(temperature=False))
    logged: dict[str, float] = {}
    monkeypatch.setattr(module, "log", lambda name, value, **_: logged.update({name: value}))
    assert float(module.threshold) == 0.5
    valid = batch(image=torch.tensor([[1.0], [2.0]]))
    module.validation_step(valid, 0)
    module.on_validation_epoch_end()
    expected = (expit(1.0) + expit(2.0)) / 2
    assert float(module.threshold) == pytest.approx(expected)
    assert logged["valid/auc"] == 1.0
    tested = batch(image=torch.tensor([[-3.0], [-5.0]]), scan_id=["c1", "d1"])
    output = module.test_step(tested, 0)
    module.on_test_epoch_end()
    assert output["threshold"] == pytest.approx(expected), "test patients do not move it"
    assert logged["test/auc"] == 0.0
    again = Fixed()
    again.load_state_dict(module.state_dict())
    assert float(again.threshold) == pytest.approx(expected)


def test_padded_duplicates_count_once(monkeypatch: pytest.MonkeyPatch) -> None:
    module = Fixed()
    logged: dict[str, float] = {}
    monkeypatch.setattr(module, "log", lambda name, value, **_: logged.update({name: value}))
    first = batch(image=torch.tensor([[1.0], [-1.0]]), scan_id=["a", "b"], target=torch.tensor([1, 1]))
    module.test_step(first, 0)
    module.test_step(batch(image=torch.tensor([[1.0], [1.0]]), scan_id=["a", "a"], target=torch.tensor([1, 1])), 1)
    module.on_test_epoch_end()
    assert logged["test/accuracy"] == 0.5


def test_the_losses_of_before_are_the_defaults_bit_for_bit() -> None:
    logits, target = torch.randn(9, 1), torch.randint(0, 2, (9,))
    weight = torch.tensor(2.5)
    expected = nn.functional.binary_cross_entropy_with_logits(logits[:, 0], target.float(), pos_weight=weight)
    assert torch.equal(Fixed(positive_weight=2.5).loss(logits, target), expected)
    several, stage = torch.randn(9, 3), torch.randint(0, 3, (9,))
    assert torch.equal(Fixed(classes=3).loss(several, stage), nn.functional.cross_entropy(several, stage))
    assert not [name for name in Fixed().state_dict() if name.startswith("loss")], "older checkpoints still fit"


def test_a_network_whose_logits_the_loss_would_misread() -> None:
    three = SliceClassifier("resnet10t", aggregation="mean", classes=3)
    with pytest.raises(ValueError, match=r"gives 3 logits, but WeightedBCELoss of 2 classes takes 1; set it to 1"):
        DirectClassificationModule(three)
    with pytest.raises(ValueError, match=r"gives 3 logits, but CornLoss of 3 classes takes 2"):
        DirectClassificationModule(three, classes=3, loss=CornLoss(3))
    with pytest.raises(ValueError, match="has 3 stages, the model 4"):
        DirectClassificationModule(three, classes=4, loss=CornLoss(3))
    with pytest.raises(ValueError, match=r"positive_weight=2\.0: is for the loss that is taken where none is given"):
        DirectClassificationModule(network(), positive_weight=2.0, loss=FocalLoss())


def test_ordinal_logits_become_class_logits() -> None:
    two = SliceClassifier("resnet10t", aggregation="mean", classes=2)
    module = DirectClassificationModule(two, classes=3, loss=CornLoss(3)).eval()
    with torch.no_grad():
        output = module.test_step(batch(), 0)
        raw, _ = module.outputs(batch(image=torch.zeros(2, 1, 32, 32, 3)))
        made, _ = module.class_logits(batch(image=torch.zeros(2, 1, 32, 32, 3)))
    assert output["logits"].shape == (2, 3)
    np.testing.assert_allclose(probabilities(made.numpy()), corn_probabilities(raw).numpy(), atol=1e-6)
    assert float(module.training_step(batch(), 0).detach()) > 0


class Counting:
    def __init__(self, counts: list[int]) -> None:
        self.counts = counts

    def class_counts(self) -> list[int]:
        return self.counts


def test_balanced_weights_are_taken_from_the_training_part() -> None:
    module = DirectClassificationModule(network(), loss=WeightedBCELoss("balanced"))
    trainer = Trainer(logger=False, enable_checkpointing=False)
    module.trainer = trainer
    with pytest.raises(InputError, match="need one of hepastage's data modules"):
        module.on_fit_start()
    trainer.datamodule = Counting([30, 10])  # type: ignore[attr-defined]  # as Lightning sets it
    module.on_fit_start()
    assert isinstance(module.loss, WeightedBCELoss) and float(module.loss.positive_weight) == 3.0
    trainer.datamodule = Counting([30, 0])  # type: ignore[attr-defined]  # as above
    with pytest.raises(InputError, match="no training patient"):
        module.on_fit_start()


def test_the_temperature_is_chosen_on_validation_and_used_on_test(monkeypatch: pytest.MonkeyPatch) -> None:
    module = Fixed()
    logged: dict[str, float] = {}
    monkeypatch.setattr(module, "log", lambda name, value, **_: logged.update({name: value}))
    logits, target = torch.tensor([[4.0], [8.0], [-6.0], [5.0]]), torch.tensor([0, 1, 0, 1])
    ids = ["a", "b", "c", "d"]
    module.validation_step(batch(image=logits, target=target, scan_id=ids), 0)
    module.on_validation_epoch_end()
    temperature = float(module.temperature)
    assert temperature == pytest.approx(fit_temperature(target.numpy(), logits.numpy()), rel=1e-5)
    assert temperature > 1
    assert logged["valid/temperature"] == temperature
    assert logged["valid/loss_scaled"] < logged["valid/loss"], "the loss without it stays what it was"
    assert logged["valid/loss"] == pytest.approx(log_loss(target, expit(logits[:, 0].double())), rel=1e-6)
    # the threshold is a probability, so it belongs to the scaled ones
    assert float(expit(4.0 / temperature)) < float(module.threshold) < float(expit(5.0 / temperature))
    output = module.test_step(batch(image=torch.tensor([[9.0], [1.0]])), 0)
    assert output["temperature"] == temperature and output["logits"].tolist() == [[9.0], [1.0]], "logits stay raw"
    again = Fixed()
    again.load_state_dict(module.state_dict())
    assert float(again.temperature) == temperature
    older = {name: value for name, value in module.state_dict().items() if name != "temperature"}
    fresh = Fixed()
    fresh.load_state_dict(older)
    assert float(fresh.temperature) == 1.0, "a checkpoint from before has none"


def test_a_validation_after_training_chooses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    module = Fixed()
    monkeypatch.setattr(module, "log", lambda *_, **__: None)
    module.threshold.fill_(0.3)
    module.temperature.fill_(2.0)
    module._training = False
    output = module.validation_step(batch(image=torch.tensor([[5.0], [-5.0]])), 0)
    module.on_validation_epoch_end()
    assert float(module.threshold) == pytest.approx(0.3) and float(module.temperature) == 2.0
    assert output["threshold"] == pytest.approx(0.3)


def test_a_threshold_rule_for_more_than_two_classes() -> None:
    with pytest.raises(ValueError, match=r"calibration\.threshold: sensitivity is for two classes, the model has 3"):
        Fixed(classes=3, calibration=Calibration(threshold="sensitivity", value=0.9))


def test_mixup_keeps_to_each_patients_own_liver() -> None:
    torch.manual_seed(0)
    masks = torch.zeros(2, 1, 8, 8, 3)
    masks[0, :, :3] = 1
    masks[1, :, 5:] = 1
    made = batch(image=torch.ones(2, 1, 8, 8, 3) * torch.tensor([1.0, 2.0]).view(2, 1, 1, 1, 1), mask=masks)
    for _ in range(6):
        mixed, partners, share = mix(made, 0.5, ("multiply", "gate"))
        if partners.tolist() == [1, 0]:
            break
    assert partners.tolist() == [1, 0] and 0 <= share <= 1
    first = mixed["image"][0, 0, :, 0, 0]
    torch.testing.assert_close(first, torch.tensor([share] * 3 + [0.0] * 2 + [2 * (1 - share)] * 3))
    assert torch.equal(mixed["mask"][0], masks.amax(0)), "both livers are seen"
    assert torch.equal(mixed["target"], made["target"])
    unmasked, _, other = mix(batch(image=made["image"]), 0.5)
    assert "mask" not in unmasked and unmasked["image"].min() >= 1 - 1e-6 and 0 <= other <= 1


def test_mixup_mixes_the_losses(monkeypatch: pytest.MonkeyPatch) -> None:
    module = DirectClassificationModule(network(), mixup=1.0).train()
    monkeypatch.setattr(module, "log", lambda *_, **__: None)
    made = batch()
    shared = made["image"]

    def fixed_mix(given: Batch, alpha: float, ways: tuple[str, ...]) -> tuple[Batch, torch.Tensor, float]:
        assert (alpha, ways) == (1.0, ())
        return given, given["target"].flip(0), 0.75

    monkeypatch.setattr("lightning_modules.classification.mix", fixed_mix)
    monkeypatch.setattr(module.network, "forward", lambda image, mask: network().forward(image, mask))
    torch.manual_seed(0)
    found = module.training_step(batch(image=shared), 0)
    torch.manual_seed(0)
    logits, _ = module.outputs(batch(image=shared))
    target = made["target"]
    expected = 0.75 * module.loss(logits, target) + 0.25 * module.loss(logits, target.flip(0))
    torch.testing.assert_close(found, expected)
    for options in ({"mixup": -0.1}, {"layer_decay": 0.0}, {"layer_decay": 1.5}):
        with pytest.raises(ValueError, match=r"model\.init_args\.(mixup|layer_decay)"):
            DirectClassificationModule(network(), **options)  # type: ignore[arg-type]  # one name of several
