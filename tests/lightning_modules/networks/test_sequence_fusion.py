"""Fusion of sequences: a missing one has no influence, whatever stands in its place."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_modules.networks.mask_injection import MASK_WAYS
from lightning_modules.networks.sequence_fusion import FUSIONS, SequenceFusionClassifier, drop_sequences

PRESENT = torch.tensor([[True, False], [True, True], [False, True]])


def patients() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(3, 2, 32, 32, 3, generator=generator)
    mask = torch.zeros(3, 2, 32, 32, 3)
    mask[:, 0, 8:24, 4:20, :2] = 1
    mask[:, 1, 5:20, 6:25, 1:] = 1
    return image, mask


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("ways", [(), MASK_WAYS])
def test_what_stands_for_a_missing_sequence_has_no_influence(fusion: Any, ways: tuple[str, ...]) -> None:
    image, mask = patients()
    network = SequenceFusionClassifier(fusion=fusion, mask_injection=ways).eval()
    other, other_mask = image.clone(), mask.clone()
    other[0, 1], other[2, 0] = float("nan"), 1e9
    other_mask[0, 1], other_mask[2, 0] = 0, 1
    with torch.no_grad():
        first = network(image, PRESENT, mask if ways else None)
        second = network(other, PRESENT, other_mask if ways else None)
        alone = network(image[:1], PRESENT[:1], mask[:1] if ways else None)
    assert torch.equal(first.logits, second.logits)
    assert not second.empty_mask.any()
    torch.testing.assert_close(alone.logits, first.logits[:1])


@pytest.mark.parametrize("fusion", FUSIONS)
def test_a_present_sequence_has_influence(fusion: Any) -> None:
    image, _ = patients()
    network = SequenceFusionClassifier(fusion=fusion).eval()
    other = image.clone()
    other[1, 1] += torch.randn_like(other[1, 1])
    logits, changed = network(image, PRESENT).logits, network(other, PRESENT).logits
    assert not torch.equal(logits[1], changed[1])
    torch.testing.assert_close(logits[[0, 2]], changed[[0, 2]])


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("options", [{}, {"share_weights": True, "multi_scale": False, "sequence_attention": False}])
def test_training_with_a_mix_gives_finite_gradients(fusion: Any, options: dict[str, Any]) -> None:
    image, mask = patients()
    network = SequenceFusionClassifier(fusion=fusion, mask_injection=("multiply",), sequence_dropout=0.3, **options)
    output = network(image, PRESENT, mask)
    assert output.logits.shape == (3, 3)
    output.logits.square().sum().backward()
    gradients = [p.grad for p in network.parameters() if p.grad is not None]
    assert gradients
    assert all(bool(torch.isfinite(g).all()) for g in gradients)


def test_every_parameter_has_a_gradient_even_where_no_patient_has_a_sequence() -> None:
    image, _ = patients()
    network = SequenceFusionClassifier(multi_scale=False)
    network(image, torch.tensor([[True, False]] * 3)).logits.sum().backward()
    idle = [name for name, p in network.named_parameters() if p.grad is None]
    assert idle == []


def test_sequences_in_another_order_give_the_same() -> None:
    image, _ = patients()
    network = SequenceFusionClassifier(("T1W", "T2W")).eval()
    swapped = SequenceFusionClassifier(("T2W", "T1W")).eval()
    swapped.load_state_dict(network.state_dict())
    one, two = network(image, PRESENT).logits, swapped(image.flip(1), PRESENT.flip(1)).logits
    torch.testing.assert_close(one, two)


def test_late_mean_averages_the_probabilities_of_present_sequences() -> None:
    image, _ = patients()
    network = SequenceFusionClassifier(fusion="late_mean").eval()
    both = network(image[1:2], PRESENT[1:2]).logits.softmax(1)
    single = [network(image[1:2], torch.tensor([row])).logits.softmax(1) for row in ([True, False], [False, True])]
    torch.testing.assert_close(both, (single[0] + single[1]) / 2)


def test_an_empty_mask_is_flagged_only_where_the_sequence_is_present() -> None:
    image, mask = patients()
    mask[0, 1] = 0  # patient 0 has no second sequence
    mask[2, 1] = 0
    output = SequenceFusionClassifier(mask_injection=("gate", "attention")).eval()(image, PRESENT, mask)
    assert output.empty_mask.tolist() == [False, False, True]
    assert bool(torch.isfinite(output.logits).all())


def test_dropout_of_sequences_never_takes_the_last() -> None:
    torch.manual_seed(0)
    present = PRESENT.repeat(200, 1)
    kept = drop_sequences(present, 0.6)
    assert bool(kept.any(1).all())
    assert not bool((kept & ~present).any())
    both = present.all(1)
    assert 0.3 < float(kept[both].float().mean()) < 0.7
    assert torch.equal(drop_sequences(present, 0.0), present)


def test_bad_requests_are_named() -> None:
    image, mask = patients()
    network = SequenceFusionClassifier()
    with pytest.raises(ValueError, match="no sequence at all"):
        network(image, torch.zeros(3, 2, dtype=torch.bool))
    with pytest.raises(ValueError, match="was given a mask"):
        network(image, PRESENT, mask)
    with pytest.raises(ValueError, match="3 sequences"):
        network(torch.randn(1, 3, 32, 32, 2))
    with pytest.raises(ValueError, match="each sequence once"):
        SequenceFusionClassifier(("T1W", "T1W"))
    with pytest.raises(ValueError, match="fusion"):
        SequenceFusionClassifier(fusion="middle")  # type: ignore[arg-type]  # the fault under test
    with pytest.raises(ValueError, match="sequence_dropout"):
        SequenceFusionClassifier(sequence_dropout=1.0)


@pytest.mark.parametrize(
    "backbone", ["vgg19", "resnet50", "convnext_tiny", "pvt_v2_b2", "densenet121", "mambaout_tiny"]
)
def test_the_six_backbones_learn_and_leave_a_missing_sequence_out(backbone: str) -> None:
    """Of the published comparison, MambaOut-T in the place of MambaVision-T."""
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(2, 2, 32, 32, 2, generator=generator)
    present = torch.tensor([[True, False], [True, True]])
    # one encoder for both: half the weights to make
    network = SequenceFusionClassifier(backbone=backbone, share_weights=True, width=16)
    network(image, present).logits.square().sum().backward()
    assert all(p.grad is not None and bool(torch.isfinite(p.grad).all()) for p in network.parameters())
    network.eval()
    other = image.clone()
    other[0, 1] = float("nan")
    with torch.no_grad():
        assert torch.equal(network(image, present).logits, network(other, present).logits)
