"""Pictures of masks over slices, as a radiologist holds them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from nibabel.orientations import apply_orientation, axcodes2ornt, io_orientation, ornt_transform
from PIL import Image
from scipy import ndimage

from datamodules.files import atomic_path
from datamodules.images import Volume

PREDICTED = (255, 196, 0)
REFERENCE = (0, 190, 255)
HEIGHT = 220  # pixels of a slice
PNG_LEVEL = 4  # zlib's: a picture of three slices takes 22 ms and is a seventh larger than at level 9, which takes 530


def write_overlay(
    path: Path, image: Volume, mask: np.ndarray, reference: np.ndarray | None = None, slices: int = 3
) -> None:
    """Draw outlines on axial slices: the mask in amber, the reference in blue.

    Slices lie at even steps through the extent of mask and reference; the patient's right is on the left, the
    front at the top; in-plane proportions follow the spacing.

    Args:
        path: PNG to write, atomically.
        image: The native image.
        mask: Mask on the same grid.
        reference: Reference mask on the same grid, or None.
        slices: How many slices, side by side.
    """
    target = axcodes2ornt(("R", "A", "S"))
    turn = ornt_transform(io_orientation(image.affine), target)
    data = apply_orientation(image.data.astype(np.float32), turn)
    outlines = [(apply_orientation(mask.astype(np.uint8), turn) > 0, PREDICTED)]
    if reference is not None:
        outlines.insert(0, (apply_orientation(reference.astype(np.uint8), turn) > 0, REFERENCE))
    spacing = np.linalg.norm(image.affine[:3, :3], axis=0)[np.argsort(turn[:, 0])]
    occupied = np.flatnonzero(np.any([outline.any(axis=(0, 1)) for outline, _ in outlines], axis=0))
    if occupied.size == 0:
        occupied = np.arange(data.shape[2])
    picked = occupied[np.linspace(0, occupied.size - 1, slices + 2).round().astype(int)[1:-1]]
    low, high = np.percentile(data, (1, 99.5))
    tiles = [
        _tile(data[:, :, k], [(outline[:, :, k], colour) for outline, colour in outlines], low, high, spacing)
        for k in picked
    ]
    with atomic_path(path) as temporary:
        Image.fromarray(np.concatenate(tiles, axis=1)).save(temporary, format="PNG", compress_level=PNG_LEVEL)


def _tile(
    plane: np.ndarray,
    outlines: list[tuple[np.ndarray, tuple[int, int, int]]],
    low: float,
    high: float,
    spacing: np.ndarray,
) -> np.ndarray:
    """One slice as RGB: shape (height, width, 3), uint8."""
    grey = np.clip((plane - low) / max(float(high - low), 1e-6), 0, 1)
    width = max(1, round(HEIGHT * plane.shape[0] * spacing[0] / (plane.shape[1] * spacing[1])))
    zoom = (width / plane.shape[0], HEIGHT / plane.shape[1])
    # RAS+ has the patient's right at high I and the front at high J: flip both for the radiologist's view
    large = ndimage.zoom(grey, zoom, order=1)[::-1, ::-1].T
    rgb = np.repeat((large * 255).astype(np.uint8)[..., None], 3, axis=2)
    for outline, colour in outlines:
        shape = ndimage.zoom(outline.astype(np.float32), zoom, order=1)[::-1, ::-1].T > 0.5
        rgb[shape & ~ndimage.binary_erosion(shape)] = colour
    return rgb
