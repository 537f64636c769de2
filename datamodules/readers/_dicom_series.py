"""From DICOM slices to volumes: one orientation, one b-value, regular positions; or a refusal that says where.

Why our own: highdicom computes the same geometry but only says that a series "is not regularly
spaced", and leaves b-values mixed; dcm2niix warns of a missing slice and interpolates over the hole;
SimpleITK's series reader warns and averages the spacing. A study needs to know which slice is missing.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from datamodules.errors import InputError
from datamodules.readers._dicom_header import Slice

SAME_PLACE_MM = 0.05
"""Two slices nearer than this are at one position; no scanner's slices are this thin."""
OTHER_ORIENTATION_DEGREES = 10.0
"""Slices that differ by more are another stack (a three-plane localiser); by less, a mixed one."""
SAME_ORIENTATION_DEGREES = 0.1
SPACING_TOLERANCE = 0.05
"""How far a slice may lie from its place in a regular grid, as a share of the spacing."""
IMAGE_KINDS = ("ADC", "EADC", "FA", "PHASE", "P", "REAL", "R", "IMAGINARY", "I", "WATER", "W", "FAT", "F", "IN_PHASE",
               "IP", "OPP_PHASE", "OP", "FAT_FRACTION", "FF", "T2_STAR", "R2_STAR")  # fmt: skip
"""Values of ImageType that make images of one series another kind of image."""


@dataclasses.dataclass(frozen=True)
class Geometry:
    """Where a stack of slices lies.

    Attributes:
        order: Indices into the slices, along the slice normal.
        affine: From voxel (column, row, slice) to RAS+ in mm, shape (4, 4).
        spacing: Of column, row and slice, in mm; the last from positions, never from SliceThickness.
        orientation: ``axial``, ``coronal`` or ``sagittal``: the plane nearest to the slices.
    """

    order: tuple[int, ...]
    affine: NDArray[np.float64]
    spacing: tuple[float, float, float]
    orientation: str


def stacks(slices: Iterable[Slice]) -> list[list[Slice]]:
    """Tell the volumes of one SeriesInstanceUID apart.

    Orientation, b-value and kind of image (``IMAGE_KINDS``) always make another volume. Echo, time
    point, gradient direction and acquisition do so only where images would otherwise share a position.

    Args:
        slices: Images of one series, each with position and orientation.

    Returns:
        Volumes in a fixed order. Duplicates that no header value tells apart stay together;
        :func:`geometry` refuses them.
    """
    by_plane: list[list[Slice]] = []
    for item in sorted(slices, key=lambda item: (str(item.path), item.frame or 0)):
        for group in by_plane:
            if _degrees(group[0].orientation, item.orientation) <= OTHER_ORIENTATION_DEGREES:
                group.append(item)
                break
        else:
            by_plane.append([item])
    found = []
    for group in by_plane:
        kinds: dict[tuple[float, tuple[str, ...]], list[Slice]] = {}
        for item in group:
            kind = tuple(part for part in item.image_type[2:] if part in IMAGE_KINDS)
            kinds.setdefault((-1.0 if item.b_value is None else item.b_value, kind), []).append(item)
        for key in sorted(kinds):
            found += _without_duplicates(kinds[key], [name for name, _ in kinds[key][0].discriminators])
    return found


def _without_duplicates(slices: list[Slice], names: Sequence[str]) -> list[list[Slice]]:
    if not names or not _has_duplicates(slices):
        return [slices]
    parts: dict[str, list[Slice]] = {}
    for item in slices:
        parts.setdefault(dict(item.discriminators)[names[0]], []).append(item)
    ordered = sorted(parts.items(), key=lambda part: (_number(part[0]), part[0]))
    return [stack for _, part in ordered for stack in _without_duplicates(part, names[1:])]


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("inf")


def _has_duplicates(slices: Sequence[Slice]) -> bool:
    depths = np.sort([_depth(item, slices[0]) for item in slices])
    return bool(np.any(np.diff(depths) < SAME_PLACE_MM))


def _normal(orientation: Sequence[float]) -> NDArray[np.float64]:
    return np.cross(orientation[:3], orientation[3:]).astype(np.float64)


def _depth(item: Slice, reference: Slice) -> float:
    return float(np.dot(item.position, _normal(reference.orientation)))


def _degrees(first: Sequence[float], second: Sequence[float]) -> float:
    """The larger angle between the two planes' row or column directions."""
    a, b = np.reshape(first, (2, 3)), np.reshape(second, (2, 3))
    cosines = np.sum(a * b, axis=1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1) + 1e-12)
    return float(np.degrees(np.arccos(np.clip(cosines, -1, 1))).max())


def geometry(slices: Sequence[Slice], name: str) -> Geometry:
    """Order a stack along its normal and measure its grid.

    Args:
        slices: Two or more slices of one stack.
        name: What errors call the series.

    Returns:
        Order, affine and spacing.

    Raises:
        InputError: Slices of several sizes, spacings or orientations; several images at one position;
            a missing slice (with its position in mm); slices that do not lie on a regular, straight stack.
    """
    first = slices[0]
    _check_uniform(slices, name)
    row, column = np.reshape(first.orientation, (2, 3))
    if abs(np.linalg.norm(row) - 1) > 1e-2 or abs(np.linalg.norm(column) - 1) > 1e-2 or abs(row @ column) > 1e-2:
        raise InputError(
            f"{name}: ImageOrientationPatient is not two perpendicular unit vectors; fetch the series again"
        )
    if min(first.pixel_spacing) <= 0:
        raise InputError(f"{name}: PixelSpacing {first.pixel_spacing} mm is not positive; fetch the series again")
    normal = np.cross(row, column)
    positions = np.array([item.position for item in slices], dtype=np.float64)
    depths = positions @ normal
    order = np.argsort(depths, kind="stable")
    depths, positions = depths[order], positions[order]
    spacing = _regular_spacing(depths, positions, name)
    drift = positions - positions[0] - np.outer(depths - depths[0], normal)
    if np.abs(drift).max() > max(0.1, 0.1 * min(first.pixel_spacing)):
        worst = int(np.abs(drift).max(axis=1).argmax())
        raise InputError(
            f"{name}: the slice {depths[worst] - depths[0]:.2f} mm from the first is shifted within its plane by "
            f"{np.linalg.norm(drift[worst]):.2f} mm: the stack is sheared; resample it with a tool that allows for this"
        )
    lps = np.eye(4)
    lps[:3, 0] = row * first.pixel_spacing[1]
    lps[:3, 1] = column * first.pixel_spacing[0]
    lps[:3, 2] = normal * spacing
    lps[:3, 3] = positions[0]
    plane = ("sagittal", "coronal", "axial")[int(np.abs(normal).argmax())]
    return Geometry(
        order=tuple(int(index) for index in order),
        affine=np.diag([-1.0, -1.0, 1.0, 1.0]) @ lps,
        spacing=(first.pixel_spacing[1], first.pixel_spacing[0], spacing),
        orientation=plane,
    )


def _check_uniform(slices: Sequence[Slice], name: str) -> None:
    faults = []
    sizes = Counter(f"{item.columns} × {item.rows} pixels" for item in slices)
    spacings = Counter(f"{item.pixel_spacing[1]:g} × {item.pixel_spacing[0]:g} mm" for item in slices)
    for what, counted in (("sizes", sizes), ("pixel spacings", spacings)):
        if len(counted) > 1:
            told = ", ".join(f"{number} of {value}" for value, number in counted.most_common(4))
            faults.append(f"{name}: mixed geometry: slices of several {what} ({told}); convert them as separate series")
    angles = [_degrees(slices[0].orientation, item.orientation) for item in slices]
    if max(angles) > SAME_ORIENTATION_DEGREES:
        faults.append(
            f"{name}: mixed geometry: slices are tilted against each other by up to {max(angles):.2f} degrees; "
            "convert them as separate series"
        )
    if faults:
        raise InputError(*faults)


def _regular_spacing(depths: NDArray[np.float64], positions: NDArray[np.float64], name: str) -> float:
    """The spacing of sorted depths in mm; refuses duplicates, holes and irregular stacks."""
    steps = np.diff(depths)
    doubled = np.flatnonzero(steps < SAME_PLACE_MM)
    if len(doubled):
        raise InputError(
            f"{name}: {len(doubled) + 1} or more images share a position, the first "
            f"{depths[doubled[0]] - depths[0]:.2f} mm from the first slice, and no header value tells them "
            "apart; export the series again, or leave it out"
        )
    step = _unit_step(steps)
    holes = np.flatnonzero(steps > 1.5 * step)
    if len(holes):
        told = []
        for hole in holes[:5]:
            missing = max(1, round(steps[hole] / step) - 1)
            middle = positions[hole] + (positions[hole + 1] - positions[hole]) / (missing + 1)
            told.append(
                f"{missing} {'slice is' if missing == 1 else 'slices are'} missing at "
                f"{depths[hole] - depths[0] + step:.2f} mm from the first slice (LPS "
                f"{middle[0]:.2f}, {middle[1]:.2f}, {middle[2]:.2f} mm), where neighbours lie {steps[hole]:.2f} mm "
                f"apart instead of {step:.2f} mm"
            )
        more = f" and {len(holes) - 5} more holes" if len(holes) > 5 else ""
        raise InputError(
            f"{name}: {'; '.join(told)}{more}; fetch the missing images, or leave the series out (--exclude)"
        )
    spacing = float((depths[-1] - depths[0]) / (len(depths) - 1))
    off = np.abs(depths - depths[0] - spacing * np.arange(len(depths)))
    if off.max() > max(0.01, SPACING_TOLERANCE * spacing):
        worst = int(off.argmax())
        raise InputError(
            f"{name}: slices are not evenly spaced ({steps.min():.2f} to {steps.max():.2f} mm); the slice "
            f"{depths[worst] - depths[0]:.2f} mm from the first is {off[worst]:.2f} mm off a regular grid; leave it out"
        )
    return spacing


def _unit_step(steps: NDArray[np.float64]) -> float:
    """The distance of neighbours in mm: the commonest one, not the smallest, which an error may make."""
    ordered = np.sort(steps)
    # the lower quartile stands even where several holes are wider than it
    return float(ordered[(len(ordered) - 1) // 4])
