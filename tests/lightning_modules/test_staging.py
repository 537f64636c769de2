from __future__ import annotations

import types
from typing import Any

import numpy as np
import pytest
import torch

from lightning_modules.losses.classification import BalancedCELoss
from lightning_modules.losses.ordinal import CornLoss
from lightning_modules.networks.sequence_fusion import SequenceFusionClassifier
from lightning_modules.staging import StagingModule


@pytest.fixture(scope="module")
def module() -> StagingModule:
    torch.manual_seed(0)
    network = SequenceFusionClassifier(sequences=("T1W", "T2W"), backbone="resnet10t", classes=3)
    return StagingModule(network).eval()


def batch(present: list[list[bool]]) -> dict[str, Any]:
    torch.manual_seed(1)
    flags = torch.tensor(present)
    return {
        "image": torch.randn(len(present), 2, 32, 32, 3) * flags[..., None, None, None],
        "present": flags,
        "target": torch.zeros(len(present), dtype=torch.long),
        "scan_id": [str(number) for number in range(len(present))],
        "patient_id": [str(number) for number in range(len(present))],
    }


def test_any_sequence_may_be_missing(module: StagingModule) -> None:
    made = batch([[True, True], [True, False], [False, True]])
    with torch.no_grad():
        logits, empty = module.outputs(made)  # type: ignore[arg-type]  # a plain dict
    assert logits.shape == (3, 3) and torch.isfinite(logits).all() and not empty.any()


def test_what_stands_in_a_missing_place_does_not_matter(module: StagingModule) -> None:
    made = batch([[True, False]])
    other = {**made, "image": made["image"].clone()}
    other["image"][:, 1] = 100.0
    with torch.no_grad():
        first, second = module.outputs(made)[0], module.outputs(other)[0]  # type: ignore[arg-type]  # plain dicts
    torch.testing.assert_close(first, second)


def test_patients_do_not_influence_each_other(module: StagingModule) -> None:
    both = batch([[True, True], [True, False]])
    alone = {key: value[1:] for key, value in both.items()}
    with torch.no_grad():
        together = module.outputs(both)[0][1:]  # type: ignore[arg-type]  # plain dicts
        torch.testing.assert_close(module.outputs(alone)[0], together, atol=1e-5, rtol=1e-4)  # type: ignore[arg-type]  # as above


def test_a_batch_that_says_nothing_of_presence(module: StagingModule) -> None:
    made = batch([[True, True]])
    del made["present"]
    with pytest.raises(ValueError, match="use StagingDataModule"):
        module.outputs(made)  # type: ignore[arg-type]  # a plain dict


def test_late_mean_of_ordinal_steps_is_refused() -> None:
    network = SequenceFusionClassifier(backbone="test_resnet", classes=2, fusion="late_mean")
    with pytest.raises(ValueError, match="late_mean averages probabilities of 3 classes"):
        StagingModule(network, loss=CornLoss(3))
    with pytest.raises(ValueError, match="set it to 3"):
        StagingModule(network)
    StagingModule(SequenceFusionClassifier(backbone="test_resnet", classes=2), loss=CornLoss(3))


def test_fitting_takes_the_covariates_statistics_and_the_classes_counts() -> None:
    network = SequenceFusionClassifier(backbone="test_resnet", covariates=("age", "sex"), width=16)
    module = StagingModule(network, loss=BalancedCELoss("balanced"))
    data = types.SimpleNamespace(
        covariate_statistics=lambda: (np.array([50.0, 0.5]), np.array([9.0, 0.5])), class_counts=lambda: [4, 2, 2]
    )
    module._trainer = types.SimpleNamespace(datamodule=data)  # type: ignore[assignment]  # what is asked of a trainer
    module.on_fit_start()
    assert network.clinical is not None
    assert network.clinical.mean.tolist() == [50.0, 0.5] and network.clinical.spread.tolist() == [9.0, 0.5]
    made = {**batch([[True, True], [True, False]]), "covariates": torch.tensor([[61.0, float("nan")], [40.0, 1.0]])}
    with torch.no_grad():
        logits, _ = module.eval().outputs(made)  # type: ignore[arg-type]  # a plain dict
    assert bool(torch.isfinite(logits).all())
