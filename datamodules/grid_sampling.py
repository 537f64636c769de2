"""Reading volumes at any places, with zeros outside: torch's ``grid_sample``, several times faster on a processor."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F  # noqa: N812  # torch's own habit
from torch import Tensor

_POINTS = 1 << 16
"""Places read at once: what is computed for them stays in a core's cache."""
_MARGIN = 2
"""Voxels of zeros around a volume."""
_EXACT = 1 << 24
"""So far float32 counts exactly."""


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
    return _by_rows([volume], [nearest], grid)[0]


def sample_with_labels(volume: Tensor, labels: Tensor, grid: Tensor) -> tuple[Tensor, Tensor]:
    """Read a volume by linear interpolation and its labels by nearest neighbours, at the same places.

    Args:
        volume: See :func:`sample`.
        labels: Shape (N, S, I, J, K), any number type.
        grid: See :func:`sample`.

    Returns:
        As two calls of :func:`sample`.
    """
    if volume.device.type != "cpu" or grid.dtype != torch.float32 or volume.dtype != torch.float32:
        return sample(volume, grid), sample(labels, grid, nearest=True)
    moved, moved_labels = _by_rows([volume, labels], [False, True], grid)
    return moved, moved_labels


def _by_rows(volumes: Sequence[Tensor], nearest: Sequence[bool], grid: Tensor) -> list[Tensor]:
    """Volumes of one shape, each read in its way; some rows of places after the other."""
    # two in front: the nearest of two equally near voxels is the even one, as in torch
    padded = [F.pad(volume, (_MARGIN,) * 6) for volume in volumes]
    moved = [volume.new_empty(*volume.shape[:2], *grid.shape[1:4]) for volume in volumes]
    edges = volumes[0].shape[2:]
    steps = ((edges[1] + 2 * _MARGIN) * (edges[2] + 2 * _MARGIN), edges[2] + 2 * _MARGIN)
    centres = [torch.tensor((edge - 1) / 2 + _MARGIN) for edge in edges]
    rows = max(1, _POINTS // max(1, grid.shape[2] * grid.shape[3]))
    for item in range(grid.shape[0]):
        for start in range(0, grid.shape[1], rows):
            part = grid[item, start : start + rows]
            # beyond the margin nothing changes any more
            places = [
                torch.add(centres[axis], part[..., 2 - axis], alpha=edge / 2).clamp_(_MARGIN - 1, edge + _MARGIN)
                for axis, edge in enumerate(edges)
            ]
            for source, target, way in zip(padded, moved, nearest, strict=True):
                read = _nearest if way else _linear
                target[item, :, start : start + rows] = read(source[item].flatten(1), places, steps)
    return moved


def _nearest(sources: Tensor, places: Sequence[Tensor], steps: tuple[int, int]) -> Tensor:
    index = _index([place.round() for place in places], steps, sources.shape[1])
    return sources.index_select(1, index).view(-1, *places[0].shape)


def _linear(sources: Tensor, places: Sequence[Tensor], steps: tuple[int, int]) -> Tensor:
    low = [place.floor() for place in places]
    index = _index(low, steps, sources.shape[1])
    i, j, k = ((place - below).flatten() for place, below in zip(places, low, strict=True))

    def along_k(source: Tensor, offset: int) -> Tensor:
        first = source[offset:].index_select(0, index)
        return first.lerp_(source[offset + 1 :].index_select(0, index), k)

    channels = []
    for source in sources:
        near, far = (along_k(source, a).lerp_(along_k(source, a + steps[1]), j) for a in (0, steps[0]))
        channels.append(near.lerp_(far, i))
    return torch.stack(channels).view(-1, *places[0].shape)


def _index(low: Sequence[Tensor], steps: tuple[int, int], room: int) -> Tensor:
    """Place in the padded volume's memory, which holds ``room`` voxels."""
    i, j, k = low if room < _EXACT else (number.int() for number in low)
    return torch.add(k, j, alpha=steps[1]).add_(i, alpha=steps[0]).int().flatten()
