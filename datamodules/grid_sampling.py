"""Reading volumes at any places, with zeros outside: torch's ``grid_sample``, several times faster on a processor."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F  # noqa: N812  # torch's own habit
from torch import Tensor

_POINTS = 1 << 16
"""Places read at once: what is computed for them stays in a core's cache."""


def sample(volume: Tensor, grid: Tensor, nearest: bool = False) -> Tensor:
    """Read each item of a batch at places of its own.

    torch's kernel for processors goes from place to place and asks for each of the eight neighbours whether it lies
    inside. With a margin of zeros all of them do, and whole rows can be computed at once.

    Args:
        volume: Shape (N, C, I, J, K), float; any number type for nearest neighbours.
        grid: As for ``grid_sample`` with ``align_corners=False``, shape (N, I', J', K', 3): places in [-1, 1] from
            border to border, the last axis first.
        nearest: Nearest neighbour instead of linear.

    Returns:
        Shape (N, C, I', J', K'), of the volume's type; what lies outside counts as zero.
    """
    if volume.device.type != "cpu" or grid.dtype != torch.float32 or not (nearest or volume.dtype == torch.float32):
        mode = "nearest" if nearest else "bilinear"
        return F.grid_sample(volume.to(grid.dtype), grid, mode, "zeros", align_corners=False).to(volume.dtype)
    padded = F.pad(volume, (1, 2) * 3)
    steps = (padded.shape[3] * padded.shape[4], padded.shape[4])
    moved = volume.new_empty(*volume.shape[:2], *grid.shape[1:4])
    rows = max(1, _POINTS // max(1, grid.shape[2] * grid.shape[3]))
    for item in range(volume.shape[0]):
        sources = padded[item].flatten(1)
        for start in range(0, grid.shape[1], rows):
            part = grid[item, start : start + rows]
            # beyond the margin nothing changes any more
            places = [
                part[..., 2 - axis].mul(edge / 2).add_((edge - 1) / 2).clamp_(-1, edge)
                for axis, edge in enumerate(volume.shape[2:])
            ]
            read = _nearest if nearest else _linear
            moved[item, :, start : start + rows] = read(sources, places, steps)
    return moved


def _nearest(sources: Tensor, places: Sequence[Tensor], steps: tuple[int, int]) -> Tensor:
    index = _index([place.round_() for place in places], steps)
    return sources.index_select(1, index).view(-1, *places[0].shape)


def _linear(sources: Tensor, places: Sequence[Tensor], steps: tuple[int, int]) -> Tensor:
    low = [place.floor() for place in places]
    index = _index(low, steps)
    i, j, k = (place.sub_(below).flatten() for place, below in zip(places, low, strict=True))

    def along_k(source: Tensor, offset: int) -> Tensor:
        first = source[offset:].index_select(0, index)
        return first.lerp_(source[offset + 1 :].index_select(0, index), k)

    channels = []
    for source in sources:
        near, far = (along_k(source, a).lerp_(along_k(source, a + steps[1]), j) for a in (0, steps[0]))
        channels.append(near.lerp_(far, i))
    return torch.stack(channels).view(-1, *places[0].shape)


def _index(low: Sequence[Tensor], steps: tuple[int, int]) -> Tensor:
    """Place in the padded volume's memory; its first voxel lies one before the volume's on each axis."""
    i, j, k = (number.int() for number in low)
    return (i * steps[0]).add_(j, alpha=steps[1]).add_(k).add_(steps[0] + steps[1] + 1).flatten()
