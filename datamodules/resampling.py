"""Interpolation on axis-aligned grids, one axis after the other.

Linear interpolation on a grid whose axes keep their direction is a product of three one-dimensional interpolations.
Each of them is a matrix with two numbers a column, next to its diagonal, so that small dense blocks along the diagonal
hold all of it: the work goes through BLAS, slab by slab while the slab is in the cache, and BLAS also turns the axes
to the order wanted. The numbers are those of a general resampler, in a fraction of the time.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt

Positions = npt.NDArray[np.float64]
Positions3 = tuple[Positions, Positions, Positions]
Array = npt.NDArray[np.float32]

_SNAP_DIGITS = 6
"""Positions closer to a voxel's centre or edge than this many decimals lie on it: rounding of spacings."""
_BLOCK = 32
"""Output voxels per block: larger ones multiply more zeros, smaller ones cost more calls."""


@dataclasses.dataclass(frozen=True, slots=True)
class _Block:
    """Output voxels ``out`` of an axis are input voxels ``into`` times ``weights``, shape (into, out)."""

    out: slice
    into: slice
    weights: Array


def interpolate(array: npt.NDArray[Any], positions: Positions3, interpolation: str) -> npt.NDArray[Any]:
    """Sample a volume on a grid given by positions along its last three axes.

    Args:
        array: Shape (I, J, K) or (C, I, J, K), with any strides.
        positions: For each axis the positions to sample, in voxels (0 is the first voxel's centre). Beyond
            the first and last voxel's centre the edge's value is taken.
        interpolation: ``linear`` or ``nearest`` (half a voxel goes up, as in ITK).

    Returns:
        Shape (I', J', K') or (C, I', J', K'), C-contiguous: float32 for linear, the array's dtype for nearest.

    Raises:
        ValueError: Another interpolation.
    """
    if interpolation not in ("linear", "nearest"):
        raise ValueError(f"interpolation is 'linear' or 'nearest', not {interpolation!r}")
    i, j, k = (
        np.clip(np.round(place, _SNAP_DIGITS), 0, size - 1)
        for place, size in zip(positions, array.shape[-3:], strict=True)
    )
    if interpolation == "nearest":
        out = array
        for axis, place in zip((-3, -2, -1), (i, j, k), strict=True):
            out = _taken(out, np.floor(place + 0.5).astype(np.intp), axis)
        return np.ascontiguousarray(out)
    if array.ndim == 3:
        return _linear(array, [i, j, k])
    return np.stack([_linear(channel, [i, j, k]) for channel in array])


def _linear(array: npt.NDArray[Any], positions: list[Positions]) -> Array:
    # BLAS cannot walk backwards: a flipped axis is read forwards, with its positions mirrored
    turned = [slice(None, None, -1 if stride < 0 else None) for stride in array.strides]
    positions = [
        size - 1 - place if stride < 0 else place
        for place, size, stride in zip(positions, array.shape, array.strides, strict=True)
    ]
    array = array[tuple(turned)]
    slow, mid, fast = sorted(range(3), key=lambda axis: -array.strides[axis])
    # only slabs that a position touches are worth the work
    first = int(np.floor(positions[slow].min()))
    last = int(np.ceil(positions[slow].max()))
    stack = array.transpose(slow, mid, fast)[first : last + 1]
    first_axis, second_axis = (axis for axis in range(3) if axis != slow)
    slabs = np.empty((len(stack), len(positions[first_axis]), len(positions[second_axis])), dtype=np.float32)
    along_mid = _blocks(positions[mid], array.shape[mid])
    along_fast = _blocks(positions[fast], array.shape[fast])
    buffer = np.empty(stack.shape[1:], dtype=np.float32)
    half = np.empty((len(positions[mid]), stack.shape[2]), dtype=np.float32)
    for source, slab in zip(stack, slabs, strict=True):
        np.copyto(buffer, source, casting="unsafe")
        _rows(buffer, along_mid, half)
        if fast < mid:
            _rows(half.T, along_fast, slab)
        else:
            _rows(half.T, along_fast, slab.T)
    return _last_axis(slabs, _blocks(positions[slow] - first, len(stack)), slow)


def _last_axis(slabs: Array, blocks: list[_Block], slow: int) -> Array:
    """Interpolate along the stack of slabs, and bring its axis to its place."""
    count, height, width = slabs.shape
    size = blocks[-1].out.stop
    flat = slabs.reshape(count, height * width)
    if slow == 2:
        turned = np.empty((height * width, size), dtype=np.float32)
        _rows(flat, blocks, turned.T)
        return turned.reshape(height, width, size)
    out = np.empty((size, height * width), dtype=np.float32)
    _rows(flat, blocks, out)
    out = out.reshape(size, height, width)
    return out if slow == 0 else np.ascontiguousarray(out.transpose(1, 0, 2))


def _rows(source: Array, blocks: list[_Block], out: Array) -> None:
    """Interpolate along the first axis of a matrix, into ``out``."""
    turned = out.strides[0] < out.strides[1]
    for block in blocks:
        if turned:
            # the product's transpose, so that BLAS writes along the memory
            np.matmul(source[block.into].T, block.weights, out=out[block.out].T)
        else:
            np.matmul(block.weights.T, source[block.into], out=out[block.out])


def _blocks(positions: Positions, size: int) -> list[_Block]:
    """The interpolation matrix of one axis as blocks along its diagonal. Positions lie in [0, size - 1]."""
    lower = np.minimum(np.floor(positions).astype(np.intp), max(size - 2, 0))
    weight = (positions - lower).astype(np.float32)
    blocks = []
    for start in range(0, len(positions), _BLOCK):
        stop = min(start + _BLOCK, len(positions))
        low, part = lower[start:stop], weight[start:stop]
        begin, end = int(low.min()), min(int(low.max()) + 2, size)
        weights = np.zeros((end - begin, stop - start), dtype=np.float32)
        columns = np.arange(stop - start)
        weights[low - begin, columns] = 1 - part
        # a lone voxel has no neighbour, and its weight is 0
        weights[np.minimum(low + 1, end - 1) - begin, columns] += part
        blocks.append(_Block(slice(start, stop), slice(begin, end), weights))
    return blocks


def _taken(array: npt.NDArray[Any], index: npt.NDArray[np.intp], axis: int) -> npt.NDArray[Any]:
    if bool((np.diff(index) == 1).all()):
        window: list[slice] = [slice(None)] * array.ndim
        window[axis] = slice(int(index[0]), int(index[-1]) + 1)
        return array[tuple(window)]
    return np.take(array, index, axis=axis)
