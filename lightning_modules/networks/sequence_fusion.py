"""Stage a patient from several sequences, any of which may be missing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, cast

import torch
from torch import Tensor, nn

from lightning_modules.networks.covariates import CovariateEncoder
from lightning_modules.networks.mask_injection import check_ways, fill_empty_masks
from lightning_modules.networks.patient_network import ClassifierOutput
from lightning_modules.networks.sequence_attention import CrossSequenceAttention
from lightning_modules.networks.sequence_encoder import SequenceEncoder
from lightning_modules.networks.slice_aggregation import mean_of_probabilities
from lightning_modules.networks.staging_network import StagingNetwork

_SHARED = "shared"
_CLINICAL = "covariates"
FUSIONS = ("late_mean", "gated", "cross_attention", "early")
Fusion = Literal["late_mean", "gated", "cross_attention", "early"]


class SequenceFusionClassifier(StagingNetwork):
    """Classify patients from several sequences.

    T1W and T2W lie on different grids and are not registered, so no voxel-wise fusion is assumed
    except by ``early``. Only volumes that are present are encoded: what stands in the place of a
    missing one has no influence. Clinical covariates are tokens beside those of the sequences, as if
    they were one more sequence that every patient has.

    Args:
        sequences: Names in the order of the image's channels.
        backbone: timm's name of the encoder.
        classes: Logits, as many as the module's loss asks for: 1 for two classes, else one a class.
        share_weights: One encoder for all sequences instead of one each.
        fusion: ``late_mean`` averages the sequences' probabilities; ``gated`` sums their features
            with learned weights; ``cross_attention`` lets their tokens look at each other first;
            ``early`` stacks the sequences as channels, for registered volumes only: a missing one is
            zeros, and one more channel a sequence says whether it is there.
        multi_scale: Features of the last three stages instead of the last.
        sequence_attention: Channel and spatial attention at each scale.
        sequence_dropout: Probability in training that a sequence of a patient who has others is
            left out.
        mask_injection: Ways of the mask in, as in the classifier; empty for none.
        pretrained: Load timm's weights; fails where they cannot be had.
        weights_file: Local weights instead.
        neighbours: Slices on each side as channels (2.5D).
        width: Width of a token, a multiple of 4.
        dropout: Before the classifier.
        crop_margin: Voxels left around the liver by ``crop``.
        covariates: Clinical covariates in the order of the batch's; none by default. With ``early``
            they are joined to the volumes' features by a gated sum.
        covariate_dropout: Probability in training that a known covariate is hidden, see
            ``CovariateEncoder``.

    Raises:
        ValueError: An unknown name, a repeated sequence, or a share out of range.
    """

    def __init__(
        self,
        sequences: Sequence[str] = ("T1W", "T2W"),
        backbone: str = "resnet18",
        classes: int = 3,
        share_weights: bool = False,
        fusion: Fusion = "cross_attention",
        multi_scale: bool = True,
        sequence_attention: bool = True,
        sequence_dropout: float = 0.0,
        mask_injection: Sequence[str] = (),
        pretrained: bool = False,
        weights_file: str | Path | None = None,
        neighbours: int = 0,
        width: int = 128,
        dropout: float = 0.0,
        crop_margin: int = 8,
        covariates: Sequence[str] = (),
        covariate_dropout: float = 0.1,
    ) -> None:
        super().__init__(sequences, covariates, classes, check_ways(mask_injection))
        if any("." in name or name in (_SHARED, _CLINICAL) for name in sequences):
            raise ValueError(
                f"sequences={tuple(sequences)}: a name must not hold a dot, nor be {_SHARED!r} or {_CLINICAL!r}"
            )
        if fusion not in FUSIONS:
            raise ValueError(f"fusion {fusion!r} is not one of {', '.join(FUSIONS)}")
        if not 0 <= sequence_dropout < 1:
            raise ValueError(f"sequence_dropout={sequence_dropout}: must lie in [0, 1)")
        self.fusion = fusion
        self.sequence_dropout = sequence_dropout
        count = len(self.sequences)
        early = fusion == "early"
        # by name, so that a network with its sequences in another order takes the same weights
        names = [_SHARED] if early or share_weights else list(self.sequences)
        self.encoders = nn.ModuleDict()
        for name in names:
            self.encoders[name] = SequenceEncoder(
                backbone,
                2 * count if early else 1,
                width,
                multi_scale,
                sequence_attention,
                self.ways,
                neighbours,
                pretrained,
                weights_file,
                crop_margin,
            )
        scales = self._encoder(0).scales
        self.clinical = CovariateEncoder(covariates, width, scales, covariate_dropout) if covariates else None
        inputs = [*self.sequences, *([_CLINICAL] if covariates else [])]
        self.exchange = CrossSequenceAttention(width, inputs, dropout=dropout) if fusion == "cross_attention" else None
        scored = fusion in ("gated", "cross_attention") or (early and self.clinical is not None)
        self.score = nn.Linear(scales * width, 1) if scored else None
        self.head = nn.Sequential(nn.Dropout(dropout), nn.Linear(scales * width, classes))

    def forward(
        self,
        image: Tensor,
        present: Tensor | None = None,
        mask: Tensor | None = None,
        covariates: Tensor | None = None,
    ) -> ClassifierOutput:
        """See :class:`StagingNetwork`.

        Returns:
            Logits (B, classes); ``slice_attention`` (B, S * K), sequence by sequence, each present
            one summing to 1 (with ``early`` (B, K)); ``empty_mask`` where a present sequence's mask
            was empty.

        Raises:
            ValueError: Shapes do not fit, a mask or covariates are missing or unexpected, or a patient
                has no sequence.
        """
        batch, count = image.shape[:2]
        present = self._checked(image, present, mask, covariates)
        if self.training and self.sequence_dropout > 0:
            present = drop_sequences(present, self.sequence_dropout)
        if self.fusion == "early":
            tokens, attention, empty = self._encode_together(image, present, mask)
            present = present.new_ones(batch, 1)
        else:
            encoded = [self._encode(place, image, present, mask) for place in range(count)]
            tokens = torch.stack([tokens for tokens, _, _ in encoded], 1)  # (B, S, scales, width)
            attention = torch.cat([weights for _, weights, _ in encoded], 1)
            empty = torch.stack([flag for _, _, flag in encoded], 1).any(1)
        if self.clinical is not None and covariates is not None:
            told = self.clinical(covariates.float()).to(tokens.dtype)
            tokens = torch.cat([tokens, told[:, None]], 1)
            present = torch.cat([present, present.new_ones(batch, 1)], 1)
        return ClassifierOutput(self._fuse(tokens, present), attention, None, empty)

    def set_covariate_statistics(self, mean: Tensor, spread: Tensor) -> None:
        """See :class:`StagingNetwork`."""
        if self.clinical is None:
            raise ValueError("the network has no covariates; name them in its covariates")
        self.clinical.set_statistics(mean, spread)

    def _checked(self, image: Tensor, present: Tensor | None, mask: Tensor | None, covariates: Tensor | None) -> Tensor:
        """Which sequences are present, once all that was given fits the network."""
        batch, count = image.shape[:2]
        if count != len(self.sequences):
            raise ValueError(f"image has {count} sequences, the network {len(self.sequences)}: {self.sequences}")
        if mask is None and self.uses_mask:
            raise ValueError(f"mask_injection={self.ways} needs a mask, but the batch holds none")
        if mask is not None and not self.uses_mask:
            raise ValueError("an arm without mask_injection was given a mask; take it out of the batch")
        if covariates is None and self.covariates:
            raise ValueError(f"covariates={self.covariates}: the batch holds none; set data.init_args.covariates")
        if covariates is not None and not self.covariates:
            raise ValueError("a network without covariates was given some; take them out of the batch")
        if present is None:
            present = torch.ones(batch, count, dtype=torch.bool, device=image.device)
        if present.shape != (batch, count):
            raise ValueError(f"present {tuple(present.shape)} does not fit the image {tuple(image.shape)}")
        if not bool(present.any(1).all()):
            raise ValueError("a patient has no sequence at all; leave such patients out of the cohort")
        return present

    def _fuse(self, tokens: Tensor, present: Tensor) -> Tensor:
        """Logits (B, classes) of tokens (B, S, scales, width), of which those present (B, S) count."""
        if self.exchange is not None:
            tokens = self.exchange(tokens, present)
        features = tokens.flatten(2)
        if self.score is None and features.shape[1] == 1:
            return torch.as_tensor(self.head(features[:, 0]))
        if self.score is None:
            weights = present.float() / present.sum(1, keepdim=True)
            # the mean of probabilities must not touch logits of missing sequences, even times zero
            return mean_of_probabilities(self.head(features).masked_fill(~present[:, :, None], 0.0), weights)
        scores = self.score(features).squeeze(2).float().masked_fill(~present, float("-inf"))
        fused = torch.einsum("bs,bsd->bd", scores.softmax(1).to(features.dtype), features)
        return torch.as_tensor(self.head(fused))

    def _encoder(self, place: int) -> SequenceEncoder:
        """The encoder of the sequence at this place."""
        name = _SHARED if _SHARED in self.encoders else self.sequences[place]
        return cast("SequenceEncoder", self.encoders[name])

    def _encode(self, place: int, image: Tensor, present: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Encode one sequence of the patients who have it; zeros for the others."""
        encoder = self._encoder(place)
        has = present[:, place]
        batch, slices = image.shape[0], image.shape[-1]
        flags = torch.zeros(batch, dtype=torch.bool, device=image.device)
        chosen_mask: Tensor | None = None
        if mask is not None:
            of_place = mask[:, place if mask.shape[1] > 1 else 0].unsqueeze(1)[has].float()
            chosen_mask, empty = fill_empty_masks(of_place) if len(of_place) else (of_place, flags[:0])
            flags = flags.masked_scatter(has, empty)
        if not bool(has.any()):
            zeros = image.new_zeros(batch, encoder.scales, encoder.width)
            # ties the idle encoder to the loss with gradient zero, since distributed training waits for all gradients
            idle = sum((p.sum() * 0.0 for p in encoder.parameters()), start=zeros.new_zeros(()))
            return zeros + idle, image.new_zeros(batch, slices), flags
        tokens, weights = encoder(image[:, place : place + 1][has], chosen_mask)
        full = tokens.new_zeros(batch, *tokens.shape[1:]).masked_scatter(has[:, None, None], tokens)
        return full, weights.new_zeros(batch, slices).masked_scatter(has[:, None], weights), flags

    def _encode_together(self, image: Tensor, present: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Stack present sequences and their presence as channels of one volume: tokens (B, 1, scales, width)."""
        there = present[:, :, None, None, None]
        stacked = torch.cat([torch.where(there, image, 0.0), there.expand_as(image).to(image.dtype)], 1)
        flags = torch.zeros(image.shape[0], dtype=torch.bool, device=image.device)
        if mask is not None:
            union = torch.where(there, mask.float(), 0.0).amax(1, keepdim=True) if mask.shape[1] > 1 else mask.float()
            mask, flags = fill_empty_masks(union)
        tokens, weights = self._encoder(0)(stacked, mask)
        return tokens[:, None], weights, flags


def drop_sequences(present: Tensor, probability: float) -> Tensor:
    """Leave sequences out at random, but never a patient's last.

    Args:
        present: Bool, shape (B, S).
        probability: Of leaving a present sequence out.

    Returns:
        Bool, shape (B, S); each row keeps at least one of its own.
    """
    draw = torch.rand(present.shape, device=present.device).masked_fill(~present, -1.0)
    keep = present & (draw >= probability)
    best = torch.zeros_like(present).scatter(1, draw.argmax(1, keepdim=True), True)
    return torch.where(keep.any(1, keepdim=True), keep, best & present)
