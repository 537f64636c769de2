"""Stage a patient from several sequences, any of which may be missing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, cast

import torch
from torch import Tensor, nn

from lightning_modules.networks.mask_injection import (
    AttentionPool,
    InputInjection,
    check_ways,
    fill_empty_masks,
    resize_mask,
)
from lightning_modules.networks.patient_network import ClassifierOutput
from lightning_modules.networks.sequence_attention import ChannelSpatialAttention, CrossSequenceAttention
from lightning_modules.networks.slice_aggregation import SliceScores, mean_of_probabilities
from lightning_modules.networks.slice_encoder import SliceEncoder
from lightning_modules.networks.volume_classifier import scatter_slices, with_neighbours

_SHARED = "shared"
FUSIONS = ("late_mean", "gated", "cross_attention", "early")
Fusion = Literal["late_mean", "gated", "cross_attention", "early"]


class SequenceEncoder(nn.Module):
    """Encode one sequence's volume into one token a scale.

    Feature maps of several stages are weighed by channel and location, projected to one width,
    pooled over locations and then over slices by gated attention.

    Args:
        backbone: timm's name.
        in_channels: Channels of the volume.
        width: Width of a token.
        multi_scale: One token for each of the last three stages, else only for the last.
        sequence_attention: Weigh channels and locations at each scale.
        mask_injection: Ways of the mask in.
        neighbours: Slices on each side as channels.
        pretrained: Load timm's weights.
        weights_file: Local weights instead.
        crop_margin: Voxels left around the liver by ``crop``.
    """

    def __init__(
        self,
        backbone: str,
        in_channels: int,
        width: int,
        multi_scale: bool,
        sequence_attention: bool,
        mask_injection: Sequence[str],
        neighbours: int,
        pretrained: bool,
        weights_file: str | Path | None,
        crop_margin: int,
    ) -> None:
        super().__init__()
        self.ways = check_ways(mask_injection)
        self.neighbours = neighbours
        self.width = width
        self.injection = InputInjection(self.ways, crop_margin)
        channels = (in_channels + self.injection.extra_channels) * (2 * neighbours + 1)
        self.encoder = SliceEncoder(backbone, channels, pretrained, weights_file, "gate" in self.ways)
        self.scales = min(3, len(self.encoder.channels)) if multi_scale else 1
        stages = self.encoder.channels[-self.scales :]
        self.weigh = nn.ModuleList(ChannelSpatialAttention(n) if sequence_attention else nn.Identity() for n in stages)
        self.project = nn.ModuleList(nn.Conv2d(n, width, 1) for n in stages)
        self.pool = nn.ModuleList(AttentionPool(width) for _ in stages) if "attention" in self.ways else None
        self.norm = nn.ModuleList(nn.LayerNorm(width) for _ in stages)
        self.slices = SliceScores(width)

    def forward(self, image: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Encode volumes (N, C, I, J, K), with masks (N, 1, I, J, K) where the arm sees them.

        Returns:
            Tokens (N, scales, width) and the weight of each slice (N, K).
        """
        if mask is not None:
            image, mask = self.injection(image, mask)
            used = mask.amax((1, 2, 3)) > 0
            used = used | ~used.any(1, keepdim=True)
        else:
            used = torch.ones(image.shape[0], image.shape[-1], dtype=torch.bool, device=image.device)
        pixels = with_neighbours(image, self.neighbours).permute(0, 4, 1, 2, 3)[used]
        planes = mask.permute(0, 4, 1, 2, 3)[used] if mask is not None else None
        maps = self.encoder(pixels, planes if "gate" in self.ways else None)[-self.scales :]
        vectors = []
        for scale, features in enumerate(maps):
            features = self.project[scale](self.weigh[scale](features))
            if self.pool is None or planes is None:
                vector = features.mean((2, 3))
            else:
                vector = self.pool[scale](features, resize_mask(planes, features.shape[2:]))[0]
            vectors.append(self.norm[scale](vector))
        tokens = scatter_slices(torch.stack(vectors, 1), used)  # (N, K, scales, width)
        weights = self.slices(tokens[:, :, -1], used)
        return torch.einsum("nk,nksw->nsw", weights.to(tokens.dtype), tokens), weights


class SequenceFusionClassifier(nn.Module):
    """Classify patients from several sequences.

    T1W and T2W lie on different grids and are not registered, so no voxel-wise fusion is assumed
    except by ``early``. Only volumes that are present are encoded: what stands in the place of a
    missing one has no influence.

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
    ) -> None:
        super().__init__()
        if not sequences or len(set(sequences)) != len(sequences):
            raise ValueError(f"sequences={tuple(sequences)}: name each sequence once, at least one")
        if any("." in name or name == _SHARED for name in sequences):
            raise ValueError(f"sequences={tuple(sequences)}: a name must not hold a dot, nor be {_SHARED!r}")
        if fusion not in FUSIONS:
            raise ValueError(f"fusion {fusion!r} is not one of {', '.join(FUSIONS)}")
        if not 0 <= sequence_dropout < 1:
            raise ValueError(f"sequence_dropout={sequence_dropout}: must lie in [0, 1)")
        self.sequences = tuple(sequences)
        self.fusion = fusion
        self.sequence_dropout = sequence_dropout
        self.ways = check_ways(mask_injection)
        self.outputs = classes
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
        self.exchange = (
            CrossSequenceAttention(width, self.sequences, dropout=dropout) if fusion == "cross_attention" else None
        )
        self.score = nn.Linear(scales * width, 1) if fusion in ("gated", "cross_attention") else None
        self.head = nn.Sequential(nn.Dropout(dropout), nn.Linear(scales * width, classes))

    @property
    def uses_mask(self) -> bool:
        """Whether the arm sees a mask at all."""
        return bool(self.ways)

    def forward(self, image: Tensor, present: Tensor | None = None, mask: Tensor | None = None) -> ClassifierOutput:
        """Classify.

        Args:
            image: One channel a sequence, shape (B, S, I, J, K); a missing one may hold anything.
            present: Which sequences each patient has, bool, shape (B, S); None means all.
            mask: Share of liver, in [0, 1], shape (B, S, I, J, K), or (B, 1, I, J, K) for one common
                mask; None for an arm without.

        Returns:
            Logits (B, classes); ``slice_attention`` (B, S * K), sequence by sequence, each present
            one summing to 1 (with ``early`` (B, K)); ``empty_mask`` where a present sequence's mask
            was empty.

        Raises:
            ValueError: Shapes do not fit, a mask is missing or unexpected, or a patient has no sequence.
        """
        batch, count = image.shape[:2]
        if count != len(self.sequences):
            raise ValueError(f"image has {count} sequences, the network {len(self.sequences)}: {self.sequences}")
        if mask is None and self.uses_mask:
            raise ValueError(f"mask_injection={self.ways} needs a mask, but the batch holds none")
        if mask is not None and not self.uses_mask:
            raise ValueError("an arm without mask_injection was given a mask; take it out of the batch")
        if present is None:
            present = torch.ones(batch, count, dtype=torch.bool, device=image.device)
        if present.shape != (batch, count):
            raise ValueError(f"present {tuple(present.shape)} does not fit the image {tuple(image.shape)}")
        if not bool(present.any(1).all()):
            raise ValueError("a patient has no sequence at all; leave such patients out of the cohort")
        if self.training and self.sequence_dropout > 0:
            present = drop_sequences(present, self.sequence_dropout)
        if self.fusion == "early":
            return self._forward_early(image, present, mask)
        encoded = [self._encode(place, image, present, mask) for place in range(count)]
        tokens = torch.stack([tokens for tokens, _, _ in encoded], 1)  # (B, S, scales, width)
        attention = torch.cat([weights for _, weights, _ in encoded], 1)
        empty = torch.stack([flag for _, _, flag in encoded], 1).any(1)
        if self.exchange is not None:
            tokens = self.exchange(tokens, present)
        features = tokens.flatten(2)
        if self.score is None:
            weights = present.float() / present.sum(1, keepdim=True)
            # the mean of probabilities must not touch logits of missing sequences, even times zero
            logits = mean_of_probabilities(self.head(features).masked_fill(~present[:, :, None], 0.0), weights)
        else:
            scores = self.score(features).squeeze(2).float().masked_fill(~present, float("-inf"))
            fused = torch.einsum("bs,bsd->bd", scores.softmax(1).to(features.dtype), features)
            logits = self.head(fused)
        return ClassifierOutput(logits, attention, None, empty)

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

    def _forward_early(self, image: Tensor, present: Tensor, mask: Tensor | None) -> ClassifierOutput:
        """Stack present sequences and their presence as channels of one volume."""
        there = present[:, :, None, None, None]
        stacked = torch.cat([torch.where(there, image, 0.0), there.expand_as(image).to(image.dtype)], 1)
        flags = torch.zeros(image.shape[0], dtype=torch.bool, device=image.device)
        if mask is not None:
            union = torch.where(there, mask.float(), 0.0).amax(1, keepdim=True) if mask.shape[1] > 1 else mask.float()
            mask, flags = fill_empty_masks(union)
        tokens, weights = self._encoder(0)(stacked, mask)
        return ClassifierOutput(self.head(tokens.flatten(1)), weights, None, flags)


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
