"""What the cohort check measures on one scan's files, in a process of its own."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import warnings
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from datamodules.cohort import Scan
from datamodules.errors import InputError
from datamodules.images import Volume, check_same_grid, read_header, read_image, read_mask

THUMBNAIL_PIXELS = 224
ORIENTATIONS: Any = nib.orientations  # nibabel has no type hints
SPECK_ML = 0.5
"""Components smaller than this do not count as parts of the liver."""


@dataclasses.dataclass
class FileFacts:
    """What was measured on one scan; None where it could not be.

    Attributes:
        scan_id: The scan.
        errors: (part, message) of what could not be read; part is ``image``, ``mask`` or ``grid``.
        dtype: As stored in the file.
        orientation: Axis codes such as ``LPS``: where the voxel axes point to.
        shape: Voxels along the file's axes.
        spacing_mm: Distance of voxels along the file's axes.
        oblique_degrees: Largest angle between a voxel axis and its nearest patient axis.
        content_sha256: Hash of voxel values in RAS+ order: equal for one image stored in two ways.
        median: Of voxels above the mean, in the file's units: the typical signal of tissue.
        p99: 99th percentile of all voxels, in the file's units.
        constant: Whether all voxels are equal.
        liver_ratio: Median in the mask divided by ``median``.
        mask_ml: Volume of the mask.
        mask_parts: Its connected components of at least ``SPECK_ML``.
        mask_specks: Its smaller components.
        mask_largest_share: Share of the mask's volume in its largest component.
        mask_values: Where the mask is empty: the values that its file holds instead (at most 12).
        mask_at_edge: Whether it touches the image's border within a slice.
        thumbnail: PNG, or None.
    """

    scan_id: str
    errors: list[tuple[str, str]] = dataclasses.field(default_factory=list)
    dtype: str | None = None
    orientation: str | None = None
    shape: tuple[int, ...] | None = None
    spacing_mm: tuple[float, ...] | None = None
    oblique_degrees: float | None = None
    content_sha256: str | None = None
    median: float | None = None
    p99: float | None = None
    constant: bool = False
    liver_ratio: float | None = None
    mask_ml: float | None = None
    mask_parts: int | None = None
    mask_specks: int | None = None
    mask_largest_share: float | None = None
    mask_values: tuple[int, ...] = ()
    mask_at_edge: bool | None = None
    thumbnail: bytes | None = None

    def measured(self) -> dict[str, Any]:
        """The facts for JSON: without errors and thumbnail."""
        values = dataclasses.asdict(self)
        for key in ("errors", "thumbnail"):
            del values[key]
        return values


def check_files(scan: Scan, thumbnail: bool) -> FileFacts:
    """Measure one scan. What cannot be read is reported in ``errors``, never raised.

    Args:
        scan: Row of the cohort.
        thumbnail: Whether to draw one.
    """
    facts = FileFacts(scan.scan_id)
    image = mask = None
    try:
        image = read_image(scan.image)
        facts.dtype = str(read_header(scan.image)[2])
    except InputError as error:
        facts.errors += [("image", fault) for fault in error.faults]
    if scan.mask is not None:
        try:
            mask = read_mask(scan.mask, scan.mask_labels)
        except InputError as error:
            facts.errors += [("mask", fault) for fault in error.faults]
    if image is not None and mask is not None and scan.mask is not None:
        try:
            check_same_grid(image, mask, scan.image, scan.mask)
        except InputError as error:
            facts.errors += [("grid", fault) for fault in error.faults]
            mask = None
    if image is None:
        return facts
    _measure_image(facts, image)
    canonical = _canonical(image.data, image.affine)
    inside = None if mask is None else np.asarray(_canonical(mask.data, mask.affine), dtype=np.bool_)
    spacing = _canonical_spacing(image)
    if inside is not None:
        _measure_mask(facts, canonical, inside, spacing)
        if facts.mask_ml == 0 and scan.mask is not None:
            facts.mask_values = tuple(int(value) for value in np.unique(read_image(scan.mask).data)[:12])
    if thumbnail:
        facts.thumbnail = draw(canonical, inside, spacing)
    return facts


def _measure_image(facts: FileFacts, image: Volume) -> None:
    data = image.data
    facts.shape = tuple(int(size) for size in data.shape)
    facts.spacing_mm = tuple(round(value, 4) for value in image.spacing)
    facts.orientation = "".join(ORIENTATIONS.aff2axcodes(image.affine))
    cosines = np.abs(image.affine[:3, :3] / np.linalg.norm(image.affine[:3, :3], axis=0)).max(axis=0)
    facts.oblique_degrees = round(float(np.degrees(np.arccos(np.clip(cosines, -1, 1))).max()), 2)
    canonical = np.ascontiguousarray(_canonical(data, image.affine))
    # the values, not the bytes: int16 and float32 copies of one image are one image
    digest = hashlib.sha256(repr(canonical.shape).encode())
    for plane in range(canonical.shape[2]):
        digest.update(np.ascontiguousarray(canonical[:, :, plane], dtype=np.float32).tobytes())
    facts.content_sha256 = digest.hexdigest()
    low, high = float(data.min()), float(data.max())
    facts.constant = low == high
    # a sample is enough for percentiles, and the same one every time
    sample = data.reshape(-1)[:: max(1, data.size // 500_000)].astype(np.float64)
    tissue = sample[sample > sample.mean()]
    facts.median = float(np.median(tissue)) if tissue.size else float(np.median(sample))
    facts.p99 = float(np.percentile(sample, 99))


def _measure_mask(
    facts: FileFacts, image: NDArray[np.generic], inside: NDArray[np.bool_], spacing: tuple[float, float, float]
) -> None:
    from scipy import ndimage

    voxel_ml = float(np.prod(spacing)) / 1000
    facts.mask_ml = round(float(inside.sum()) * voxel_ml, 2)
    if not inside.any():
        facts.mask_parts = facts.mask_specks = 0
        return
    box = ndimage.find_objects(inside.astype(np.uint8))[0]
    labelled, _ = ndimage.label(inside[box], structure=np.ones((3, 3, 3)))
    sizes = np.bincount(labelled.ravel())[1:]
    facts.mask_parts = max(1, int((sizes * voxel_ml >= SPECK_ML).sum()))
    facts.mask_specks = len(sizes) - facts.mask_parts
    facts.mask_largest_share = round(float(sizes.max() / sizes.sum()), 4)
    across = int(np.argmax(spacing)) if max(spacing) > 1.5 * min(spacing) else 2
    facts.mask_at_edge = any(
        bool(np.take(inside, edge, axis=axis).any()) for axis in range(3) if axis != across for edge in (0, -1)
    )
    if facts.median:
        facts.liver_ratio = round(float(np.median(image[inside].astype(np.float64))) / facts.median, 4)


def _canonical(data: NDArray[np.generic], affine: NDArray[np.float64]) -> NDArray[np.generic]:
    """The array with its axes turned and flipped to the nearest RAS+, no resampling."""
    turned: NDArray[np.generic] = ORIENTATIONS.apply_orientation(data, ORIENTATIONS.io_orientation(affine))
    return turned


def _canonical_spacing(image: Volume) -> tuple[float, float, float]:
    order = ORIENTATIONS.io_orientation(image.affine)[:, 0].astype(int)
    spacing = [0.0, 0.0, 0.0]
    for axis, target in enumerate(order):
        spacing[target] = image.spacing[axis]
    return spacing[0], spacing[1], spacing[2]


def draw(image: NDArray[np.generic], inside: NDArray[np.bool_] | None, spacing: tuple[float, float, float]) -> bytes:
    """Draw the middle slice of the mask (or of the image) with the mask's outline.

    The slice lies across the axis of widest spacing, as it was acquired; axial where voxels are nearly
    cubic. Display is radiological: the patient's right on the left, anterior or superior up, in true
    proportions; a sagittal slice has anterior on the left.

    Args:
        image: RAS+, shape (I, J, K).
        inside: Mask of the same shape, or None.
        spacing: In mm.

    Returns:
        PNG, its longer side ``THUMBNAIL_PIXELS``.
    """
    from PIL import Image

    across = int(np.argmax(spacing)) if max(spacing) > 1.5 * min(spacing) else 2
    depth = image.shape[across] // 2
    if inside is not None and inside.any():
        slices = np.flatnonzero(inside.any(axis=tuple(axis for axis in range(3) if axis != across)))
        depth = int(slices[len(slices) // 2])
    # columns run to the patient's left (or posterior), rows downwards
    plane = np.take(image, depth, axis=across)[::-1, ::-1].T.astype(np.float64)
    width_mm, height_mm = (spacing[axis] * image.shape[axis] for axis in range(3) if axis != across)
    scale = THUMBNAIL_PIXELS / max(width_mm, height_mm)
    size = max(1, round(width_mm * scale)), max(1, round(height_mm * scale))
    low, high = np.percentile(plane, [1, 99.5])
    if high <= low:
        low, high = float(plane.min()), max(float(plane.max()), float(plane.min()) + 1)
    grey = (np.clip((plane - low) / (high - low), 0, 1) * 255).astype(np.uint8)
    picture = Image.fromarray(grey).resize(size, Image.Resampling.BILINEAR).convert("RGB")
    if inside is not None:
        from scipy import ndimage

        section = np.take(inside, depth, axis=across)[::-1, ::-1].T.astype(np.uint8) * 255
        large = np.asarray(Image.fromarray(section).resize(size, Image.Resampling.BILINEAR)) > 127
        edge = large & ~ndimage.binary_erosion(large)
        pixels = np.array(picture)
        pixels[edge] = (255, 196, 0)
        picture = Image.fromarray(pixels)
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        picture.quantize(96).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
