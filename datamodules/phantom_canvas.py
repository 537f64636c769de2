"""A fine grid on which organs are painted one over another, with soft edges."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]


class Canvas:
    """Signal and liver share on a grid, painted organ by organ.

    Shapes are given as fields in mm that are negative inside, close to signed distances. An edge is
    as wide as a voxel, so that voxels on it mix both tissues in proportion.

    Args:
        points: x, y and z of each voxel in the atlas frame in mm (RAS+), each of shape (I, J, K).
        index_from_atlas: Affine (4, 4) from atlas mm to voxel indices, without the deformation.
        edge_mm: Width of a painted edge in mm, usually the in-plane voxel size.
        signals: Signal of each tissue.
        pad_mm: How far the deformation may move a shape out of its box.

    Attributes:
        box: Where a window lies in the canvas it was cut from; empty for a whole canvas.
    """

    def __init__(
        self,
        points: tuple[FloatArray, FloatArray, FloatArray],
        index_from_atlas: npt.NDArray[np.float64],
        edge_mm: float,
        signals: Mapping[str, float],
        pad_mm: float,
    ) -> None:
        self.x, self.y, self.z = points
        self.index_from_atlas = index_from_atlas
        self.edge_mm = edge_mm
        self.signals = signals
        self.pad_mm = pad_mm
        self.box: tuple[slice, ...] = ()
        self.signal: FloatArray = np.zeros(self.x.shape, dtype=np.float32)
        self.liver: FloatArray = np.zeros(self.x.shape, dtype=np.float32)

    def window(self, low: npt.ArrayLike, high: npt.ArrayLike) -> Canvas | None:
        """The part of the canvas around a box of the atlas frame, as views.

        Args:
            low: Smallest x, y, z in mm.
            high: Largest x, y, z in mm.

        Returns:
            A canvas whose arrays are views of this one, or None where the box is outside the grid.
        """
        bounds = np.stack([np.asarray(low) - self.pad_mm, np.asarray(high) + self.pad_mm])
        corners = np.array([[bounds[i, 0], bounds[j, 1], bounds[k, 2]] for i in (0, 1) for j in (0, 1) for k in (0, 1)])
        index = corners @ self.index_from_atlas[:3, :3].T + self.index_from_atlas[:3, 3]
        first = np.maximum(np.floor(index.min(axis=0)).astype(int), 0)
        last = np.minimum(np.ceil(index.max(axis=0)).astype(int) + 1, self.x.shape)
        if np.any(first >= last):
            return None
        box = tuple(slice(int(a), int(b)) for a, b in zip(first, last, strict=True))
        part = object.__new__(Canvas)
        part.x, part.y, part.z = self.x[box], self.y[box], self.z[box]
        # the window's own indices start at its first voxel
        part.index_from_atlas = self.index_from_atlas.copy()
        part.index_from_atlas[:3, 3] -= first
        part.edge_mm, part.signals, part.pad_mm = self.edge_mm, self.signals, self.pad_mm
        part.box = box
        part.signal, part.liver = self.signal[box], self.liver[box]
        return part

    def share(self, field: FloatArray) -> FloatArray:
        """Share of each voxel inside a shape, in [0, 1], from its field in mm."""
        share = field * np.float32(-1.0 / self.edge_mm)
        share += np.float32(0.5)
        return np.clip(share, 0.0, 1.0, out=share)

    def paint(self, field: FloatArray, tissue: str, *, factor: float = 1.0) -> None:
        """Paint a shape over what is there; it hides the liver.

        Args:
            field: The shape in mm, negative inside.
            tissue: Name in the tissue table.
            factor: Multiplies the tissue's signal.
        """
        share = self.share(field)
        value = np.float32(self.signals[tissue] * factor)
        self.signal += share * (value - self.signal)
        self.liver *= 1.0 - share

    def paint_within_liver(self, field: FloatArray, tissue: str) -> None:
        """Paint a shape over the liver only; what is painted still counts as liver (its own vessels)."""
        share = self.share(field)
        share *= self.liver
        self.signal += share * (np.float32(self.signals[tissue]) - self.signal)

    def ellipsoid(self, centre: Sequence[float], semi: Sequence[float]) -> FloatArray:
        """Field of an ellipsoid along the axes: centre and semi-axes in mm; radial distance to it."""
        u = self.x - np.float32(centre[0])
        v = self.y - np.float32(centre[1])
        w = self.z - np.float32(centre[2])
        radius = u * u + v * v + w * w
        u *= np.float32(1.0 / semi[0])
        v *= np.float32(1.0 / semi[1])
        w *= np.float32(1.0 / semi[2])
        u *= u
        v *= v
        w *= w
        u += v
        u += w
        # distance to the surface along the ray from the centre: rho (1 - 1/r)
        np.sqrt(radius, out=radius)
        np.sqrt(u, out=u)
        np.maximum(u, np.float32(1e-3), out=u)
        return np.asarray(radius * (1.0 - 1.0 / u), dtype=np.float32)

    def tube(self, start: Sequence[float], end: Sequence[float], radii: tuple[float, float]) -> FloatArray:
        """Field of a round cone between two points in mm, with its radius in mm at either end."""
        origin = np.asarray(start, dtype=np.float32)
        axis = np.asarray(end, dtype=np.float32) - origin
        u, v, w = self.x - origin[0], self.y - origin[1], self.z - origin[2]
        along = u * axis[0] + v * axis[1] + w * axis[2]
        along *= np.float32(1.0 / float(axis @ axis))
        np.clip(along, 0.0, 1.0, out=along)
        u -= along * axis[0]
        v -= along * axis[1]
        w -= along * axis[2]
        distance = np.sqrt(u * u + v * v + w * w)
        along *= np.float32(radii[1] - radii[0])
        along += np.float32(radii[0])
        distance -= along
        return np.asarray(distance, dtype=np.float32)


def smooth_max(a: FloatArray, b: FloatArray, blend_mm: float) -> FloatArray:
    """Larger of two fields in mm (the intersection of two shapes), with the crease rounded over ``blend_mm``."""
    h = np.abs(a - b)
    np.subtract(np.float32(blend_mm), h, out=h)
    np.maximum(h, 0.0, out=h)
    h *= h
    h *= np.float32(0.25 / blend_mm)
    return np.asarray(np.maximum(a, b) + h, dtype=np.float32)


def smooth_min(a: FloatArray, b: FloatArray, blend_mm: float) -> FloatArray:
    """Smaller of two fields in mm (the union of two shapes), with the crease rounded over ``blend_mm``."""
    return np.negative(smooth_max(np.negative(a), np.negative(b), blend_mm))
