"""What nnU-Net's rules look at: shapes, spacings and foreground intensities of the training patients' scans.

nnU-Net names axes by a file's storage order, reversed: a NIfTI file's (I, J, K) is its array's (K, J, I). Axes here
are in that *array order* as well. Where all files store their axes in one anatomical order, as axial volumes do, the
array order is nnU-Net's own; where they do not, nnU-Net would mix slice and in-plane axes, and here each scan is
turned to (superior, anterior, right) first. ``Fingerprint.axes`` says which RAS+ axis runs along each array axis.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from datamodules.cohort import Cohort, Scan
from datamodules.errors import InputError
from datamodules.geometry import geometry_of
from datamodules.images import Volume, check_same_grid, read_image, read_mask
from datamodules.preprocessing import bounding_box
from datamodules.splits import Splits

SAMPLES_PER_CASE = 20_000
"""Foreground voxels drawn of each scan, with replacement: every scan counts alike. nnU-Net draws more of them."""
_SEED = 1234
_AXIAL = (2, 1, 0)

Ints3 = tuple[int, int, int]


@dataclasses.dataclass(frozen=True, slots=True)
class Fingerprint:
    """Facts about the training scans of one fold.

    Attributes:
        cohort: What the table is called.
        cohort_sha256: Hash of its content.
        split_sha256: Hash of the split.
        fold: The fold whose training patients were looked at.
        sequence: Their sequence.
        scans: Their scan ids.
        axes: For each array axis, the RAS+ axis that runs along it (0 left-right, 1 posterior-anterior,
            2 inferior-superior); axial files have (2, 1, 0).
        mixed: Whether the files store their axes in different anatomical orders.
        shapes: Voxels along the array axes, after the crop to what is not 0.
        spacings: Voxel sizes along the array axes in mm.
        relative_sizes: Share of each scan that the crop kept, in (0, 1].
        intensities: Of the liver's voxels: mean, median, std, min, max, percentile_00_5, percentile_99_5.
    """

    cohort: str
    cohort_sha256: str
    split_sha256: str
    fold: int
    sequence: str
    scans: tuple[str, ...]
    axes: Ints3
    mixed: bool
    shapes: tuple[Ints3, ...]
    spacings: tuple[tuple[float, float, float], ...]
    relative_sizes: tuple[float, ...]
    intensities: Mapping[str, float]

    def as_json(self) -> dict[str, Any]:
        """The fingerprint as JSON values."""
        return {**dataclasses.asdict(self), "axis_order": "array order: see axes"}


@dataclasses.dataclass(frozen=True, slots=True)
class _Case:
    """One scan in its file's own axis order, and where the RAS+ axes lie in it."""

    shape: Ints3
    spacing: tuple[float, float, float]
    axes: Ints3
    kept: float
    sample: npt.NDArray[np.float64]


def fingerprint_of(
    cohort: Cohort, splits: Splits, fold: int, sequence: str | None = None, progress: bool = False
) -> Fingerprint:
    """Look at the scans of a fold's training patients, and at no others.

    Args:
        cohort: The table.
        splits: Its folds.
        fold: Which fold, counted from 0.
        sequence: Which sequence; None where the cohort has one.
        progress: Whether to show a progress bar on stderr.

    Returns:
        The fingerprint.

    Raises:
        InputError: No such fold or sequence, a training scan without a reference mask, or a broken file: all
            faults together.
    """
    if not 0 <= fold < len(splits.folds):
        raise InputError(f"--fold {fold}: the split has the folds 0 to {len(splits.folds) - 1}; choose one of them")
    name = the_sequence(cohort, sequence)
    patients = set(splits.folds[fold].train)
    scans = [scan for scan in cohort.scans if scan.sequence == name and scan.patient_id in patients]
    if not scans:
        raise InputError(
            f"{cohort.name}: no training patient of fold {fold} has a {name} scan; choose another sequence"
        )
    faults: list[str] = []
    cases: list[_Case] = []
    for scan in _tracked(scans, progress):
        try:
            cases.append(_case(scan))
        except InputError as error:
            faults += error.faults
    if faults:
        raise InputError(*faults)
    orders = {case.axes for case in cases}
    # array axis a is the file's axis 2 - a
    axes = _AXIAL if len(orders) > 1 else _three([cases[0].axes.index(2 - axis) for axis in range(3)])
    found = [case.sample for case in cases if len(case.sample)]
    if not found:
        raise InputError(f"{cohort.name}: no training scan of fold {fold} has a liver in its mask; check mask_labels")
    return Fingerprint(
        cohort=cohort.name,
        cohort_sha256=cohort.sha256,
        split_sha256=splits.sha256,
        fold=fold,
        sequence=name,
        scans=tuple(scan.scan_id for scan in scans),
        axes=axes,
        mixed=len(orders) > 1,
        shapes=tuple(_three([case.shape[case.axes[ras]] for ras in axes]) for case in cases),
        spacings=tuple(_three([case.spacing[case.axes[ras]] for ras in axes]) for case in cases),
        relative_sizes=tuple(case.kept for case in cases),
        intensities=_statistics(np.concatenate(found)),
    )


def the_sequence(cohort: Cohort, sequence: str | None) -> str:
    """The chosen sequence, or the cohort's only one.

    Raises:
        InputError: The cohort has several and none was chosen, or not the one chosen.
    """
    known = sorted(set(cohort.frame["sequence"]))
    if sequence is None and len(known) > 1:
        raise InputError(f"{cohort.name}: has the sequences {', '.join(known)}; choose one with --sequence")
    if sequence is not None and sequence not in known:
        raise InputError(f"{cohort.name}: no sequence {sequence!r}; it has {', '.join(known)}")
    return str(known[0] if sequence is None else sequence)


def _case(scan: Scan) -> _Case:
    if scan.mask is None:
        raise InputError(
            f"scan {scan.scan_id!r}: is a training scan without a reference mask; give it one or leave its patient out "
            "of the split"
        )
    image, mask = read_image(scan.image), read_mask(scan.mask, scan.mask_labels)
    check_same_grid(image, mask, scan.image, scan.mask)
    box = bounding_box(image.data != 0)
    if box is None:
        raise InputError(f"{scan.image}: all voxels are 0; check the scan or leave it out")
    shape = _three([part.stop - part.start for part in box])
    # in the order of nnU-Net's array, so that the draw picks the same voxels
    liver = np.asarray(image.data.T[mask.data.T > 0], dtype=np.float64)
    if len(liver):
        # nnU-Net's own generator
        liver = np.random.RandomState(_SEED).choice(liver, SAMPLES_PER_CASE)
    return _Case(
        shape, image.spacing, _axes(image), float(np.prod(shape, dtype=float) / np.prod(image.data.shape)), liver
    )


def _axes(image: Volume) -> Ints3:
    shape = _three(list(image.data.shape))
    return geometry_of(shape, image.affine).axes


def _statistics(values: npt.NDArray[np.float64]) -> dict[str, float]:
    low, median, high = np.percentile(values, (0.5, 50.0, 99.5))
    return {
        "mean": float(values.mean()),
        "median": float(median),
        "std": float(values.std()),
        "min": float(values.min()),
        "max": float(values.max()),
        "percentile_00_5": float(low),
        "percentile_99_5": float(high),
    }


def _three(values: Sequence[Any]) -> tuple[Any, Any, Any]:
    first, second, third = values
    return first, second, third


def _tracked(scans: Sequence[Scan], progress: bool) -> Any:
    if not progress:
        return scans
    from rich.console import Console
    from rich.progress import track

    return track(scans, description="fingerprint", console=Console(file=sys.stderr), transient=True)
