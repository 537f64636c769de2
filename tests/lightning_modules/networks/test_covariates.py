"""Covariates in the network: unknown is not a number, and the units of measurement do not matter."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lightning_modules.networks.covariates import CovariateClassifier, CovariateEncoder
from lightning_modules.networks.sequence_fusion import FUSIONS, SequenceFusionClassifier

NAN = float("nan")
VALUES = torch.tensor([[61.0, 1.0], [NAN, 0.0], [45.0, NAN]])
MEAN, SPREAD = torch.tensor([50.0, 0.5]), torch.tensor([10.0, 0.5])


def encoder() -> CovariateEncoder:
    torch.manual_seed(0)
    made = CovariateEncoder(("age", "sex"), 8, tokens=2)
    made.set_statistics(MEAN, SPREAD)
    with torch.no_grad():
        made.unknown.normal_()
    return made.eval()


def test_tokens_are_finite_and_an_unknown_value_is_no_value_at_all() -> None:
    made = encoder()
    tokens = made(VALUES)
    assert tokens.shape == (3, 2, 8)
    assert bool(torch.isfinite(tokens).all())
    mean = VALUES.clone()
    mean[1, 0] = 50.0
    assert not torch.allclose(made(mean)[1], tokens[1]), "not silently the mean"
    assert torch.equal(made(mean)[0], tokens[0])


def test_other_units_give_the_same_once_standardised() -> None:
    made = encoder()
    tokens = made(VALUES)
    scale = torch.tensor([12.0, 1.0])
    made.set_statistics(MEAN * scale, SPREAD * scale)
    torch.testing.assert_close(made(VALUES * scale), tokens)


def test_what_unknown_means_is_learned_even_where_all_is_known() -> None:
    made = encoder().train()
    torch.manual_seed(0)
    made(torch.full((200, 2), 1.0)).square().sum().backward()
    assert made.unknown.grad is not None
    assert bool((made.unknown.grad.abs().sum(1) > 0).all())


def test_statistics_travel_with_the_weights_and_are_asked_for() -> None:
    fresh = CovariateEncoder(("age", "sex"), 8, tokens=2).eval()
    with pytest.raises(ValueError, match="mean and spread are unknown"):
        fresh(VALUES)
    made = encoder()
    fresh.load_state_dict(made.state_dict())
    assert torch.equal(fresh(VALUES), made(VALUES))


@pytest.mark.parametrize("fusion", FUSIONS)
def test_covariates_are_a_token_beside_the_sequences(fusion: Any) -> None:
    torch.manual_seed(0)
    image, present = torch.randn(3, 2, 32, 32, 2), torch.tensor([[True, True], [True, False], [False, True]])
    network = SequenceFusionClassifier(backbone="test_resnet", fusion=fusion, covariates=("age", "sex"), width=16)
    network.set_covariate_statistics(MEAN, SPREAD)
    network.eval()
    other = VALUES.clone()
    other[0, 0] = 20.0
    first, second = network(image, present, None, VALUES).logits, network(image, present, None, other).logits
    assert not torch.equal(first[0], second[0])
    torch.testing.assert_close(first[1:], second[1:])
    network.train()(image, present, None, VALUES).logits.square().sum().backward()
    idle = [name for name, p in network.named_parameters() if p.grad is None]
    assert idle == []
    with pytest.raises(ValueError, match="the batch holds none"):
        network(image, present)
    with pytest.raises(ValueError, match="take them out of the batch"):
        SequenceFusionClassifier(backbone="test_resnet", fusion=fusion)(image, present, None, VALUES)


def test_the_probe_sees_no_image() -> None:
    network = CovariateClassifier(("T1W", "T2W"), ("age", "sex"))
    network.set_covariate_statistics(MEAN, SPREAD)
    network.eval()
    image = torch.randn(3, 2, 8, 8, 2)
    output = network(image, torch.ones(3, 2, dtype=torch.bool), None, VALUES)
    assert output.logits.shape == (3, 3)
    assert output.slice_attention.shape == (3, 4)
    assert torch.equal(network(image * float("nan"), covariates=VALUES).logits, output.logits)
    assert not network.uses_mask


@pytest.mark.parametrize("options", [{"names": ()}, {"hidden_share": 0.0}, {"hidden_share": 1.0}])
def test_bad_requests(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="covariate"):
        CovariateEncoder(**{"names": ("age",), "width": 8, **options})
