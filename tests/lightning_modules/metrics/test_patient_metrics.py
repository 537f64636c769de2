"""Metrics over patients: against scikit-learn, with doubles, and under two processes."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from sklearn.metrics import balanced_accuracy_score, cohen_kappa_score, f1_score, roc_auc_score

from lightning_modules.metrics.patient_metrics import PatientAccuracy, PatientAUROC, PatientDice, id_numbers
from lightning_modules.metrics.segmentation import dice
from lightning_modules.metrics.staging import staging_scores

IDS = [f"patient-{n}" for n in range(9)]


def masks() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    pred = torch.rand(9, 1, 6, 5, 4, generator=generator) > 0.5
    target = torch.rand(9, 1, 6, 5, 4, generator=generator) > 0.4
    pred[0], target[0] = False, False
    pred[1] = False
    return pred, target


def scores() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(9, generator=generator) * 40, torch.tensor([0, 1, 0, 1, 1, 0, 0, 1, 0])


def expected_dice() -> float:
    pred, target = masks()
    return float(np.mean([dice(p.numpy(), t.numpy()) for p, t in zip(pred, target, strict=True)]))


def test_dice_is_the_mean_over_scans_whatever_the_batches() -> None:
    pred, target = masks()
    metric = PatientDice()
    for places in ([0, 1, 2, 3], [4], [5, 6, 7, 8]):
        metric.update(pred[places], target[places], [IDS[n] for n in places])
    assert float(metric.compute()) == pytest.approx(expected_dice(), abs=1e-6)
    metric.update(pred[:3], target[:3], IDS[:3])  # padding
    metric._computed = None
    assert float(metric.compute()) == pytest.approx(expected_dice(), abs=1e-6)


def test_auroc_equals_scikit_learns_even_for_far_logits() -> None:
    logits, target = scores()
    metric = PatientAUROC()
    metric.update(logits, target, IDS)
    metric.update(logits[:4, None], target[:4], IDS[:4])
    assert float(metric.compute()) == pytest.approx(roc_auc_score(target, logits), abs=1e-6)
    far = PatientAUROC()
    far.update(torch.tensor([50.0, 60.0, 70.0, 80.0]), torch.tensor([0, 1, 0, 1]), IDS[:4])
    assert float(far.compute()) == pytest.approx(0.75)


def test_auroc_of_one_class_is_a_half() -> None:
    metric = PatientAUROC()
    metric.update(torch.randn(3), torch.ones(3, dtype=torch.int64), IDS[:3])
    assert float(metric.compute()) == 0.5


def test_auroc_of_several_classes_equals_scikit_learns() -> None:
    probabilities = torch.rand(9, 3, generator=torch.Generator().manual_seed(0)).softmax(1)
    target = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1, 2])
    metric = PatientAUROC(classes=3)
    metric.update(probabilities, target, IDS)
    expected = roc_auc_score(target, probabilities, multi_class="ovr", average="macro")
    assert float(metric.compute()) == pytest.approx(expected, abs=1e-6)


def test_accuracy_counts_each_patient_once() -> None:
    metric = PatientAccuracy()
    metric.update(torch.tensor([1, 0, 1]), torch.tensor([1, 1, 1]), IDS[:3])
    metric.update(torch.tensor([0, 0]), torch.tensor([1, 1]), [IDS[1]] * 2)
    assert float(metric.compute()) == pytest.approx(2 / 3)


def test_ids_are_the_same_numbers_everywhere() -> None:
    assert len(set(id_numbers(["a", "b", "a"]).tolist())) == 2
    assert id_numbers(["patient-1"]).tolist() == id_numbers(["patient-1"]).tolist() == [8273635550162447932]


def test_a_metric_without_scans_says_so() -> None:
    with pytest.raises(ValueError, match="no scan"):
        PatientDice().compute()
    with pytest.raises(ValueError, match="do not fit"):
        PatientDice().update(*masks(), scan_id=IDS[:2])


def _worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    pred, target = masks()
    logits, classes = scores()
    places = [*range(rank, 9, 2), *([0] if rank else [])]  # the second process is padded with scan 0
    names = [IDS[n] for n in places]
    overlap, ranking = PatientDice(), PatientAUROC()
    overlap.update(pred[places], target[places], names)
    ranking.update(logits[places[:2]], classes[places[:2]], names[:2])
    ranking.update(logits[places[2:]], classes[places[2:]], names[2:])
    result = torch.tensor([float(overlap.compute()), float(ranking.compute())])
    torch.save(result, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_give_what_one_gives() -> None:
    logits, target = scores()
    with tempfile.TemporaryDirectory() as folder:
        # forked: importing anew in each process would take most of the test's time
        start: Any = mp
        start.start_processes(_worker, (folder,), nprocs=2, start_method="fork")
        results = [torch.load(Path(folder) / f"{rank}.pt") for rank in range(2)]
    for result in results:
        assert result.tolist() == pytest.approx([expected_dice(), roc_auc_score(target, logits)], abs=1e-6)


def test_staging_scores_equal_scikit_learns() -> None:
    rng = np.random.default_rng(0)
    target = rng.integers(0, 3, 60)
    probabilities = rng.dirichlet([1, 1, 1], 60) + np.eye(3)[target] * 0.2
    said = probabilities.argmax(1)
    result = staging_scores(target, probabilities)
    assert result.accuracy == pytest.approx((said == target).mean())
    assert result.macro_f1 == pytest.approx(f1_score(target, said, average="macro"))
    assert result.quadratic_kappa == pytest.approx(cohen_kappa_score(target, said, weights="quadratic"))
    assert np.mean(result.sensitivity) == pytest.approx(balanced_accuracy_score(target, said))
    for stage in range(3):
        assert result.auc[stage] == pytest.approx(roc_auc_score(target == stage, probabilities[:, stage]))
        negative = target != stage
        assert result.specificity[stage] == pytest.approx((said[negative] != stage).mean())
    assert result.confusion.sum() == 60
    assert result.mean_absolute_error == pytest.approx(np.abs(said - target).mean())
    assert result.majority_accuracy == pytest.approx(np.bincount(target).max() / 60)


def test_staging_scores_of_a_missing_stage_are_missing() -> None:
    result = staging_scores([0, 0, 1], [[0.9, 0.1, 0.0], [0.4, 0.6, 0.0], [0.2, 0.8, 0.0]])
    assert math.isnan(result.auc[2])
    assert math.isnan(result.sensitivity[2])
    assert result.specificity[2] == 1.0
    assert math.isnan(staging_scores([0, 0], [[0.9, 0.1], [0.8, 0.2]]).quadratic_kappa)
    with pytest.raises(ValueError, match="outside"):
        staging_scores([3], [[0.5, 0.5]])
