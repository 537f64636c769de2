"""Masks made worse on purpose: dilated, eroded, shifted, another patient's, or as bad as a given Dice.

Everything is measured in mm on the scan's native grid, where masks are kept and their Dice is taken. The draws of a
scan follow from its id and one seed alone: they are the same in every run, and for every strength.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from datamodules.errors import InputError
from datamodules.phantom_texture import smooth_noise

Mask = npt.NDArray[np.bool_]
Spacing = tuple[float, float, float]
Kind = Literal["dilate", "erode", "shift", "swap", "degrade"]
KINDS = ("dilate", "erode", "shift", "swap", "degrade")
MOST_MM = 100.0
DENT_MM = 15.0
"""Width of the dents and bulges of ``degrade``: a segmenter misses a corner of the liver, not single voxels."""
SHIFT_SHARE = 0.5
"""``degrade`` moves the mask by half of what it moves the border."""
_REACH_MM = 35.0
_HALVINGS = 14
_NEAR_DICE = 0.004


# no slots: jsonargparse reads a default's values from its __dict__
@dataclasses.dataclass(frozen=True)
class MaskPerturbation:
    """How a mask is made worse.

    Args:
        kind: ``dilate`` or ``erode`` by a ball of ``mm``; ``shift`` by ``mm`` in a direction of the scan's own;
            ``swap`` takes the mask of another patient of the same part; ``degrade`` dents, bulges and shifts the mask
            until its Dice against itself is ``dice``.
        mm: Of ``dilate``, ``erode`` and ``shift``; 0 leaves the mask as it is.
        dice: Of ``degrade``, in (0, 1].
        seed: Another one draws other directions, dents and patients.

    Raises:
        InputError: A value is out of range, or is of another kind.
    """

    kind: Kind
    mm: float | None = None
    dice: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        faults = []
        wants = {"dilate": "mm", "erode": "mm", "shift": "mm", "degrade": "dice"}.get(self.kind)
        if self.kind not in KINDS:
            faults.append(f"kind {self.kind!r}: choose one of {', '.join(KINDS)}")
        for name in ("mm", "dice"):
            if (getattr(self, name) is not None) != (name == wants) and self.kind in KINDS:
                faults.append(
                    f"{name}: {self.kind} {'needs it' if name == wants else 'does not take it; leave it out'}"
                )
        if self.mm is not None and not 0 <= self.mm <= MOST_MM:
            faults.append(f"mm {self.mm}: give 0 to {MOST_MM:g} mm")
        if self.dice is not None and not 0 < self.dice <= 1:
            faults.append(f"dice {self.dice}: give a Dice above 0, at most 1")
        if self.seed < 0:
            faults.append(f"seed {self.seed}: give a whole number from 0")
        if faults:
            raise InputError(*(f"data.init_args.perturbation: {fault}" for fault in faults))

    def as_json(self) -> dict[str, Any]:
        """The parameters as JSON values, in a fixed order."""
        return dataclasses.asdict(self)

    def stream(self, scan_id: str) -> np.random.Generator:
        """The random stream of a scan: of its id and the seed, not of kind or strength."""
        digest = hashlib.sha256(f"{self.seed}:{scan_id}".encode()).digest()
        return np.random.default_rng(int.from_bytes(digest[:8], "little"))

    def apply(self, mask: Mask, spacing: Spacing, rng: np.random.Generator) -> Mask:
        """Make a mask worse; ``swap`` is not done here, it needs another patient's.

        Args:
            mask: Shape (I, J, K) on the native grid.
            spacing: Voxel size in mm along I, J, K.
            rng: The scan's stream.

        Returns:
            The new mask, same shape. An eroded one may be empty. An empty one stays empty.

        Raises:
            ValueError: The kind is ``swap``.
        """
        if self.kind == "swap":
            raise ValueError("another patient's mask is needed: see transplanted")
        if not mask.any() or self.mm == 0 or self.dice == 1:
            return mask.copy()
        window = _window(mask, spacing, _REACH_MM if self.mm is None else self.mm)
        out = np.zeros_like(mask)
        out[window] = self._within(mask[window], spacing, rng)
        return out

    def _within(self, mask: Mask, spacing: Spacing, rng: np.random.Generator) -> Mask:
        if self.mm is not None and self.kind == "dilate":
            return np.asarray(ndimage.distance_transform_edt(~mask, sampling=spacing) <= self.mm)
        if self.mm is not None and self.kind == "erode":
            if mask.all():
                return mask
            return np.asarray(ndimage.distance_transform_edt(mask, sampling=spacing) > self.mm)
        direction = rng.standard_normal(3)
        direction /= np.linalg.norm(direction)
        field = signed_distance(mask, spacing)
        if self.mm is not None:
            return _moved(field, direction * self.mm, spacing) > 0
        dents = smooth_noise(mask.shape, spacing, DENT_MM, rng)

        def degraded(mm: float) -> Mask:
            return np.asarray(_moved(field, direction * (SHIFT_SHARE * mm), spacing) + mm * dents > 0)

        return _until(degraded, mask, self.dice or 1.0)


def transplanted(
    donor: Mask, donor_affine: npt.NDArray[np.float64], shape: tuple[int, int, int], affine: npt.NDArray[np.float64]
) -> Mask:
    """Another patient's mask on this scan's grid, the centres of both scans laid on each other.

    Args:
        donor: The other patient's mask on its own grid.
        donor_affine: Of that grid, voxels to mm in RAS+.
        shape: Voxels of this scan.
        affine: Of this scan.
    """
    own_centre = affine @ np.array([*((np.array(shape) - 1) / 2), 1.0])
    donor_centre = donor_affine @ np.array([*((np.array(donor.shape) - 1) / 2), 1.0])
    move = np.eye(4)
    move[:3, 3] = donor_centre[:3] - own_centre[:3]
    voxels = np.linalg.inv(donor_affine) @ move @ affine
    share = ndimage.affine_transform(
        donor.astype(np.float32), voxels[:3, :3], voxels[:3, 3], output_shape=shape, order=1, mode="constant"
    )
    return np.asarray(share >= 0.5)


def dice_of(first: Mask, second: Mask) -> float:
    """Dice of two masks; 1 where both are empty."""
    total = int(first.sum()) + int(second.sum())
    return 1.0 if total == 0 else 2.0 * int((first & second).sum()) / total


def signed_distance(mask: Mask, spacing: Spacing) -> npt.NDArray[np.float32]:
    """Distance in mm to the nearest voxel of the other kind, positive inside; a mask without outside is far inside."""
    if mask.all():
        return np.full(mask.shape, MOST_MM, dtype=np.float32)
    inside = ndimage.distance_transform_edt(mask, sampling=spacing)
    outside = ndimage.distance_transform_edt(~mask, sampling=spacing)
    return np.asarray(inside - outside, dtype=np.float32)


def _moved(field: npt.NDArray[np.float32], mm: npt.NDArray[np.float64], spacing: Spacing) -> npt.NDArray[np.float32]:
    """A field moved by a vector in mm; what comes in from beyond the grid repeats its edge."""
    return np.asarray(ndimage.shift(field, mm / np.array(spacing), order=1, mode="nearest"), dtype=np.float32)


def _until(make: Callable[[float], Mask], mask: Mask, wanted: float) -> Mask:
    """The mask whose Dice against the first is nearest to the one wanted: doubling, then halving the strength in mm."""
    low, high = 0.0, 4.0
    while high < MOST_MM and dice_of(make(high), mask) > wanted:
        low, high = high, 2 * high
    best, distance = mask, 1.0 - wanted
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        made = make(middle)
        found = dice_of(made, mask)
        if abs(found - wanted) < distance:
            best, distance = made, abs(found - wanted)
        if distance < _NEAR_DICE:
            break
        low, high = (middle, high) if found > wanted else (low, middle)
    return best


def _window(mask: Mask, spacing: Spacing, reach_mm: float) -> tuple[slice, slice, slice]:
    """The mask's box with room to grow by so many mm, and a voxel more."""
    parts = []
    for axis in range(3):
        found = np.flatnonzero(mask.any(axis=tuple(other for other in range(3) if other != axis)))
        room = int(np.ceil(reach_mm / spacing[axis])) + 1
        parts.append(slice(max(0, int(found[0]) - room), min(mask.shape[axis], int(found[-1]) + room + 1)))
    return parts[0], parts[1], parts[2]
