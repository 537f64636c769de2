"""Interpolation on axis-aligned grids, one axis after the other.

Linear interpolation on a grid whose axes keep their direction is a product of three one-dimensional
interpolations, so a volume is resampled axis by axis: the same numbers as a general resampler gives,
in a fraction of the time.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Positions = npt.NDArray[np.float64]

_SNAP_DIGITS = 6
"""Positions closer to a voxel's centre or edge than this many decimals lie on it: rounding of spacings."""


def interpolate(
    array: npt.NDArray[np.generic], positions: tuple[Positions, Positions, Positions], interpolation: str
) -> npt.NDArray[np.generic]:
    """Sample a volume on a grid given by positions along its last three axes.

    Args:
        array: Shape (..., I, J, K).
        positions: For each axis the positions to sample, in voxels (0 is the first voxel's centre). Beyond
            the first and last voxel's centre the edge's value is taken.
        interpolation: ``linear`` or ``nearest`` (half a voxel goes up, as in ITK).

    Returns:
        Shape (..., I', J', K'): float32 for linear, the array's dtype for nearest. May share the array's memory
        where no axis changes.

    Raises:
        ValueError: Another interpolation.
    """
    if interpolation not in ("linear", "nearest"):
        raise ValueError(f"interpolation is 'linear' or 'nearest', not {interpolation!r}")
    out = array
    if interpolation == "linear" and out.dtype != np.float32:
        out = out.astype(np.float32)
    # the axes that shrink most come first, so that the later ones have less to do
    order = sorted(range(3), key=lambda axis: len(positions[axis]) / array.shape[axis - 3])
    for axis in order:
        snapped = np.round(positions[axis], _SNAP_DIGITS)
        snapped = np.clip(snapped, 0, array.shape[axis - 3] - 1)
        if interpolation == "nearest":
            index = np.floor(snapped + 0.5).astype(np.intp)
            out = _taken(out, index, axis - 3)
        else:
            out = _linear(out, snapped, axis - 3)
    return out


def _taken(array: npt.NDArray[np.generic], index: npt.NDArray[np.intp], axis: int) -> npt.NDArray[np.generic]:
    if len(index) and bool((np.diff(index) == 1).all()):
        window: list[slice] = [slice(None)] * array.ndim
        window[axis] = slice(int(index[0]), int(index[-1]) + 1)
        return array[tuple(window)]
    return np.take(array, index, axis=axis)


def _linear(array: npt.NDArray[np.generic], positions: Positions, axis: int) -> npt.NDArray[np.generic]:
    size = array.shape[axis]
    lower = np.minimum(np.floor(positions).astype(np.intp), max(size - 2, 0))
    upper = np.minimum(lower + 1, size - 1)
    weight = (positions - lower).astype(np.float32)
    if not weight.any():
        return _taken(array, lower, axis)
    shape = [1] * array.ndim
    shape[axis] = len(positions)
    weight = weight.reshape(shape)
    out = np.take(array, lower, axis=axis)
    out *= 1 - weight
    other = np.take(array, upper, axis=axis)
    other *= weight
    out += other
    return out
