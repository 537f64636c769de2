"""Attention within one sequence's feature maps, and between sequences' tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class ChannelSpatialAttention(nn.Module):
    """Weigh a sequence's channels, then its locations.

    Args:
        channels: Channels of the feature maps.
        reduction: Factor by which the channel attention's hidden layer is narrower.

    Source: Woo et al. 2018, CBAM, eq. 2 and 3.
    """

    def __init__(self, channels: int, reduction: int = 8) -> None:
        super().__init__()
        hidden = max(4, channels // reduction)
        self.channel = nn.Sequential(nn.Conv2d(channels, hidden, 1), nn.ReLU(), nn.Conv2d(hidden, channels, 1))
        self.location = nn.Conv2d(2, 1, 7, padding=3)

    def forward(self, features: Tensor) -> Tensor:
        """Weigh features (N, C, H, W); returns the same shape."""
        mean, top = features.mean((2, 3), keepdim=True), features.amax((2, 3), keepdim=True)
        features = features * torch.sigmoid(self.channel(mean) + self.channel(top))
        profile = torch.cat([features.mean(1, keepdim=True), features.amax(1, keepdim=True)], 1)
        return features * torch.sigmoid(self.location(profile))


class CrossSequenceAttention(nn.Module):
    """Let each sequence's tokens look at those of all present sequences.

    Each sequence's tokens first carry a learned code of the sequence. A missing sequence's tokens
    are looked at by nobody.

    Args:
        width: Width of a token, a multiple of ``heads``.
        sequences: Their names; each one's code is stored by its name, so their order is free.
        heads: Attention heads.
        dropout: In attention and feed-forward layer.
    """

    def __init__(self, width: int, sequences: Sequence[str], heads: int = 4, dropout: float = 0.0) -> None:
        super().__init__()
        self.sequences = tuple(sequences)
        self.code = nn.ParameterDict({name: torch.randn(1, width) * 0.02 for name in self.sequences})
        self.layer = nn.TransformerEncoderLayer(width, heads, 2 * width, dropout, batch_first=True, norm_first=True)

    def forward(self, tokens: Tensor, present: Tensor) -> Tensor:
        """Exchange.

        Args:
            tokens: Shape (B, S, T, width): T tokens a sequence.
            present: Which sequences there are, bool, shape (B, S), at least one an item.

        Returns:
            Tokens of the same shape; those of missing sequences hold nothing of use.
        """
        batch, sequences, count, width = tokens.shape
        codes = torch.stack([self.code[name] for name in self.sequences])
        flat = (tokens + codes).reshape(batch, sequences * count, width)
        hidden = ~present.unsqueeze(2).expand(batch, sequences, count).reshape(batch, sequences * count)
        exchanged: Tensor = self.layer(flat, src_key_padding_mask=hidden)
        return exchanged.view(batch, sequences, count, width)
