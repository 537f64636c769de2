"""Encode one sequence of a patient into one token a scale."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from lightning_modules.networks.mask_injection import AttentionPool, InputInjection, check_ways, resize_mask
from lightning_modules.networks.sequence_attention import ChannelSpatialAttention
from lightning_modules.networks.slice_aggregation import SliceScores
from lightning_modules.networks.slice_encoder import SliceEncoder
from lightning_modules.networks.volume_classifier import scatter_slices, with_neighbours


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
