"""Segmentation metrics of one scan, on its native grid, in mm and ml.

Empty masks, by policy: both empty, Dice, IoU and surface Dice are 1, distances 0 mm and the volume differs by
0 %; one empty, Dice, IoU and surface Dice are 0 and distances NaN, which the record keeps as missing; against an
empty reference the difference in % is NaN.

Surfaces are the mask's voxels with a face neighbour outside it; distances run between voxel centres.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import ndimage

Mask = npt.NDArray[Any]
Distances = npt.NDArray[np.float64]


class SurfaceDistances(NamedTuple):
    """Distance in mm of each surface voxel to the other mask's surface; both ways."""

    from_prediction: Distances
    from_reference: Distances


def dice(pred: Mask, ref: Mask) -> float:
    """Dice coefficient 2 |P ∩ R| / (|P| + |R|), in [0, 1].

    Args:
        pred: Predicted mask, shape (I, J, K); non-zero is liver.
        ref: Reference mask, same shape.

    Raises:
        ValueError: The shapes differ.
    """
    p, r = _pair(pred, ref)
    total = int(np.count_nonzero(p)) + int(np.count_nonzero(r))
    return 2 * int(np.count_nonzero(p & r)) / total if total else 1.0


def iou(pred: Mask, ref: Mask) -> float:
    """Intersection over union |P ∩ R| / |P ∪ R|, in [0, 1]; arguments as for :func:`dice`."""
    p, r = _pair(pred, ref)
    union = int(np.count_nonzero(p | r))
    return int(np.count_nonzero(p & r)) / union if union else 1.0


def volume_ml(mask: Mask, spacing: Sequence[float]) -> float:
    """Volume of the non-zero voxels in ml.

    Args:
        mask: Shape (I, J, K).
        spacing: Voxel spacing in mm along the axes.
    """
    return int(np.count_nonzero(mask)) * float(np.prod(_spacing(spacing, mask))) / 1000.0


def surface_distances_mm(pred: Mask, ref: Mask, spacing: Sequence[float]) -> SurfaceDistances | None:
    """Distances in mm between the two surfaces, both ways; None where either mask is empty.

    The work is done in the masks' common box, since a liver fills a small part of the scan.

    Args:
        pred: Predicted mask, shape (I, J, K); non-zero is liver.
        ref: Reference mask, same shape.
        spacing: Voxel spacing in mm along the axes.

    Raises:
        ValueError: The shapes differ, or a spacing is not positive.
    """
    p, r = _pair(pred, ref)
    steps = _spacing(spacing, p)
    if not p.any() or not r.any():
        return None
    box = _bounding_box(p | r)
    p, r = p[box], r[box]
    surface_p, surface_r = _surface(p), _surface(r)
    to_r = ndimage.distance_transform_edt(~surface_r, sampling=steps)
    to_p = ndimage.distance_transform_edt(~surface_p, sampling=steps)
    return SurfaceDistances(np.asarray(to_r)[surface_p], np.asarray(to_p)[surface_r])


def hausdorff95_mm(pred: Mask, ref: Mask, spacing: Sequence[float]) -> float:
    """95th percentile Hausdorff distance in mm: the larger of the two directed 95th percentiles.

    Arguments as for :func:`surface_distances_mm`; empty masks by the module's policy.
    """
    distances = surface_distances_mm(pred, ref, spacing)
    return _empty_distance(pred, ref) if distances is None else hausdorff95_of(distances)


def average_symmetric_surface_distance_mm(pred: Mask, ref: Mask, spacing: Sequence[float]) -> float:
    """Mean distance in mm over the voxels of both surfaces to the other surface.

    Arguments as for :func:`surface_distances_mm`; empty masks by the module's policy.
    """
    distances = surface_distances_mm(pred, ref, spacing)
    return _empty_distance(pred, ref) if distances is None else average_of(distances)


def normalised_surface_dice(pred: Mask, ref: Mask, spacing: Sequence[float], tolerance_mm: float = 2.0) -> float:
    """Share of both surfaces' voxels within a tolerance of the other surface, in [0, 1].

    Args:
        pred: Predicted mask, shape (I, J, K).
        ref: Reference mask, same shape.
        spacing: Voxel spacing in mm along the axes.
        tolerance_mm: Accepted distance in mm, for instance readers' disagreement.

    Source: Nikolov et al. 2021, J Med Internet Res 23, with surfaces counted in voxels.
    """
    distances = surface_distances_mm(pred, ref, spacing)
    if distances is None:
        return float(not np.any(pred) and not np.any(ref))
    return surface_dice_of(distances, tolerance_mm)


def volume_difference_ml(pred: Mask, ref: Mask, spacing: Sequence[float]) -> float:
    """Predicted minus reference volume in ml; negative where the prediction is too small.

    Arguments as for :func:`surface_distances_mm`.
    """
    _pair(pred, ref)
    return volume_ml(pred, spacing) - volume_ml(ref, spacing)


def volume_difference_percent(pred: Mask, ref: Mask, spacing: Sequence[float]) -> float:
    """Predicted minus reference volume in % of the reference; empty masks by the module's policy.

    Arguments as for :func:`surface_distances_mm`.
    """
    _pair(pred, ref)
    return _percent(volume_ml(pred, spacing), volume_ml(ref, spacing))


class SegmentationScores(NamedTuple):
    """All metrics of one scan; distances NaN where exactly one mask is empty."""

    dice: float
    iou: float
    hd95_mm: float
    assd_mm: float
    surface_dice: float
    volume_ml: float
    reference_volume_ml: float

    @property
    def volume_difference_ml(self) -> float:
        """Predicted minus reference volume in ml."""
        return self.volume_ml - self.reference_volume_ml

    @property
    def volume_difference_percent(self) -> float:
        """Predicted minus reference volume in % of the reference; NaN against an empty reference."""
        return _percent(self.volume_ml, self.reference_volume_ml)


def segmentation_scores(
    pred: Mask, ref: Mask, spacing: Sequence[float], tolerance_mm: float = 2.0
) -> SegmentationScores:
    """Compute all metrics of one scan, with the distance transforms made once.

    Arguments as for :func:`normalised_surface_dice`.
    """
    distances = surface_distances_mm(pred, ref, spacing)
    if distances is None:
        empty = _empty_distance(pred, ref)
        hd95, assd, surface = empty, empty, float(empty == 0.0)
    else:
        hd95, assd = hausdorff95_of(distances), average_of(distances)
        surface = surface_dice_of(distances, tolerance_mm)
    volumes = volume_ml(pred, spacing), volume_ml(ref, spacing)
    return SegmentationScores(dice(pred, ref), iou(pred, ref), hd95, assd, surface, *volumes)


def hausdorff95_of(distances: SurfaceDistances) -> float:
    """95th percentile Hausdorff distance in mm of given surface distances."""
    return float(max(np.percentile(distances.from_prediction, 95), np.percentile(distances.from_reference, 95)))


def average_of(distances: SurfaceDistances) -> float:
    """Average symmetric surface distance in mm of given surface distances."""
    return float(np.concatenate(distances).mean())


def surface_dice_of(distances: SurfaceDistances, tolerance_mm: float) -> float:
    """Normalised surface Dice of given surface distances at a tolerance in mm."""
    if tolerance_mm < 0:
        raise ValueError(f"tolerance_mm={tolerance_mm}: must not be negative")
    return float((np.concatenate(distances) <= tolerance_mm).mean())


def _pair(pred: Mask, ref: Mask) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    if pred.shape != ref.shape:
        raise ValueError(f"prediction {pred.shape} and reference {ref.shape} are on different grids")
    return pred != 0, ref != 0


def _spacing(spacing: Sequence[float], mask: Mask) -> tuple[float, ...]:
    steps = tuple(float(step) for step in spacing)
    if len(steps) != mask.ndim or any(not step > 0 for step in steps):
        raise ValueError(f"spacing {steps} mm: give {mask.ndim} positive numbers, one an axis")
    return steps


def _percent(volume: float, reference: float) -> float:
    if reference > 0:
        return 100.0 * (volume - reference) / reference
    return 0.0 if volume == 0 else float("nan")


def _empty_distance(pred: Mask, ref: Mask) -> float:
    return 0.0 if not np.any(pred) and not np.any(ref) else float("nan")


def _surface(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    # beyond the box counts as outside, so a mask that touches the scan's border has a surface there
    return mask & ~ndimage.binary_erosion(mask)


def _bounding_box(mask: npt.NDArray[np.bool_]) -> tuple[slice, ...]:
    box = []
    for axis in range(mask.ndim):
        hit = np.flatnonzero(mask.any(axis=tuple(a for a in range(mask.ndim) if a != axis)))
        box.append(slice(int(hit[0]), int(hit[-1]) + 1))
    return tuple(box)
