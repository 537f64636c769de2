"""What every batched transform shares: ranges in TorchIO's words, and products along single axes."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

Params = dict[str, Tensor]
Range = float | Sequence[float]


class BatchedTransform(ABC):
    """A random transform of a batch, with parameters of its own for each item.

    All randomness lies in :meth:`make_params`, on the CPU, so that it is the same on every device.

    Args:
        p: Probability that an item is transformed.
    """

    def __init__(self, p: float = 1.0) -> None:
        if not 0 <= p <= 1:
            raise ValueError(f"{type(self).__name__}: p={p} must lie in [0, 1]")
        self.p = float(p)

    @abstractmethod
    def make_params(self, items: int, channels: int, generator: torch.Generator) -> Params:
        """Draw the parameters of each item; every tensor's first axis counts the items."""


class IntensityTransform(BatchedTransform):
    """A transform of the image alone."""

    needs_spacing = False

    @abstractmethod
    def apply(self, image: Tensor, params: Params, spacing: Tensor | None) -> Tensor:
        """Transform.

        Args:
            image: float32, shape (N, C, I, J, K); it is not changed in place.
            params: From :meth:`make_params`, on the image's device, first axis N.
            spacing: Voxel spacing in mm, shape (N, 3), or None where it is not known.

        Returns:
            The transformed image, same shape.
        """


def uniform(generator: torch.Generator, low: float, high: float, *shape: int) -> Tensor:
    """Draw float32 from U(low, high)."""
    return torch.rand(shape, generator=generator) * (high - low) + low


def as_range(value: Range, name: str, minimum: float | None = None, symmetric: bool = True) -> tuple[float, float]:
    """Read a range: two numbers, or one number n for (-n, n), or for (n, n) where it is not symmetric.

    Raises:
        ValueError: Not one or two finite numbers in order, or below the minimum.
    """
    numbers = _numbers(value, name)
    if len(numbers) == 1:
        numbers = [-numbers[0], numbers[0]] if symmetric else [numbers[0], numbers[0]]
    if len(numbers) != 2 or numbers[0] > numbers[1]:
        raise ValueError(f"{name}={value!r}: give one number, or two with the smaller first")
    if minimum is not None and numbers[0] < minimum:
        raise ValueError(f"{name}={value!r}: must not be below {minimum}")
    return numbers[0], numbers[1]


def as_axis_ranges(value: Range, name: str, around: float = 0.0, minimum: float | None = None) -> Tensor:
    """Read a range an axis in TorchIO's way.

    Args:
        value: One number d for (around - d, around + d) on each axis; two for one range on each
            axis; three for one d an axis; six for a range an axis.
        name: For the error.
        around: Centre of a range given by its half width.
        minimum: Lowest value allowed.

    Returns:
        Lows and highs, shape (3, 2).

    Raises:
        ValueError: Another count of numbers, a range upside down, or below the minimum.
    """
    numbers = _numbers(value, name)
    if len(numbers) == 1:
        numbers = numbers * 3
    if len(numbers) == 2:
        ranges = [numbers, numbers, numbers]
    elif len(numbers) == 3:
        ranges = [[around - d, around + d] for d in numbers]
    elif len(numbers) == 6:
        ranges = [numbers[0:2], numbers[2:4], numbers[4:6]]
    else:
        raise ValueError(f"{name}={value!r}: give 1, 2, 3 or 6 numbers")
    if any(low > high for low, high in ranges):
        raise ValueError(f"{name}={value!r}: a range is upside down")
    if minimum is not None and any(low < minimum for low, _ in ranges):
        raise ValueError(f"{name}={value!r}: reaches below {minimum}")
    return torch.tensor(ranges)


def draw_axes(generator: torch.Generator, ranges: Tensor, items: int) -> Tensor:
    """Draw one value an item and axis from ranges (3, 2); returns (items, 3)."""
    return torch.rand((items, 3), generator=generator) * (ranges[:, 1] - ranges[:, 0]) + ranges[:, 0]


def along_axis(image: Tensor, matrix: Tensor, axis: int) -> Tensor:
    """Multiply each line of an image along one spatial axis by a matrix of the item's own.

    Args:
        image: Shape (N, C, I, J, K).
        matrix: Shape (N, L, L) with L the axis's edge: rows are output voxels.
        axis: 0, 1 or 2 for I, J or K.

    Returns:
        The image, same shape.
    """
    items, channels, edge_i, edge_j, edge_k = image.shape
    if axis == 0:
        lines = image.reshape(items, channels, edge_i, edge_j * edge_k)
        return (matrix[:, None] @ lines).view_as(image)
    if axis == 1:
        return matrix[:, None, None] @ image
    flat = image.reshape(items, channels * edge_i * edge_j, edge_k)
    return (flat @ matrix.transpose(1, 2)).view(items, channels, edge_i, edge_j, edge_k)


def item_view(values: Tensor, ndim: int = 5) -> Tensor:
    """View values (N,) or (N, C) so that they broadcast against (N, C, I, J, K)."""
    return values.reshape(*values.shape, *[1] * (ndim - values.ndim))


def _numbers(value: Range, name: str) -> list[float]:
    try:
        numbers = [float(value)] if isinstance(value, (int, float)) else [float(n) for n in value]
    except (TypeError, ValueError):
        raise ValueError(f"{name}={value!r}: give numbers") from None
    if not numbers or not all(math.isfinite(n) for n in numbers):
        raise ValueError(f"{name}={value!r}: give finite numbers")
    return numbers
