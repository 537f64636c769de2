"""A staging network and its data that do not agree: found before anything is computed."""

from __future__ import annotations

import re
from typing import Any

import pytest

from datamodules.preprocessing import Preprocessing
from datamodules.staging import StagingDataModule
from experiments.cli_errors import misfits
from lightning_modules.networks.sequence_fusion import SequenceFusionClassifier
from lightning_modules.staging import StagingModule
from tests.tiny import Tiny

GRID = Preprocessing(spacing=(10.0, 10.0, 20.0), shape=(24, 24, 8))


@pytest.mark.parametrize(
    ("network", "data", "match"),
    [
        ({}, {}, None),
        (
            {"mask_injection": ["multiply"], "covariates": ["age"]},
            {"mask_source": "reference", "covariates": ("age",)},
            None,
        ),
        ({}, {"sequences": ("T2W", "T1W")}, "give both the same order"),
        ({"covariates": ["age", "sex"]}, {"covariates": ("sex", "age")}, "are not data.init_args.covariates"),
        ({}, {"covariates": ("age",)}, "covariates: .* are not data.init_args.covariates"),
        ({}, {"mask_source": "reference"}, "the network takes no mask in; set it to none, or name a way"),
        ({"mask_injection": ["multiply"]}, {}, "is none, but a masked arm needs masks"),
    ],
)
def test_misfits(network: dict[str, Any], data: dict[str, Any], match: str | None, tiny_cohort: Tiny) -> None:
    module = StagingModule(SequenceFusionClassifier(backbone="test_resnet", classes=1, width=16, **network), classes=2)
    places = {"splits": str(tiny_cohort.splits), "store": str(tiny_cohort.folder / "store"), "preprocessing": GRID}
    found = misfits(module, StagingDataModule(str(tiny_cohort.cohort), **{**places, **data}))
    if match is None:
        assert found == []
    else:
        (fault,) = found
        assert re.search(match, fault), fault
