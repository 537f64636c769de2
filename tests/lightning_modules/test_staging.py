from __future__ import annotations

from typing import Any

import pytest
import torch

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
