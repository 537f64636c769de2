"""The reticular texture of liver fibrosis: bright septa around nodules, some millimetres wide."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import ndimage

SEPTUM_SCALE_MM = 3.4
"""Gaussian width of the noise whose zero levels are the septa: they lie some 8 to 15 mm apart."""
SEPTUM_WIDTH = 0.36
"""Half width of a septum in standard deviations of that noise: septa are 3 to 4 mm thick."""


def smooth_noise(
    shape: tuple[int, int, int], spacing_mm: tuple[float, float, float], scale_mm: float, rng: np.random.Generator
) -> npt.NDArray[np.float32]:
    """White noise smoothed by a Gaussian of a physical width, with mean 0 and standard deviation 1.

    Args:
        shape: Voxels along each axis.
        spacing_mm: Voxel size along each axis in mm.
        scale_mm: Standard deviation of the Gaussian in mm.
        rng: Source of randomness; as many numbers are drawn as there are voxels.

    Returns:
        The field, of the shape asked for.
    """
    noise = rng.standard_normal(shape, dtype=np.float32)
    sigma = [scale_mm / step for step in spacing_mm]
    field = ndimage.gaussian_filter(noise, sigma, mode="wrap", truncate=3.0)
    return np.asarray((field - field.mean()) / max(float(field.std()), 1e-6), dtype=np.float32)


def phantom_texture(
    shape: tuple[int, int, int],
    spacing_mm: tuple[float, float, float],
    severity: float,
    rng: np.random.Generator,
) -> npt.NDArray[np.float32]:
    """A field of fibrous septa around nodules, to modulate a liver's signal with.

    Septa are the sheets where one of two smooth random fields crosses zero; the cells between them
    are the nodules. The field can be laid over a real liver as ``signal * (1 + contrast * field)``.

    Args:
        shape: Voxels along each axis.
        spacing_mm: Voxel size along each axis in mm. The septa keep their physical size.
        severity: Latent severity in [0, 1]; the amplitude is proportional to it.
        rng: Source of randomness. The numbers drawn do not depend on the severity, so that the same
            generator state gives the same septa at another strength.

    Returns:
        float32 array of that shape: mean near 0; septa positive, nodules negative; the span from
        nodule to septum is ``severity``.

    Raises:
        ValueError: The severity is outside [0, 1].
    """
    if not 0.0 <= severity <= 1.0:
        raise ValueError(f"severity is a number in [0, 1], not {severity}")
    septa = np.zeros(shape, dtype=np.float32)
    for _ in range(2):
        field = smooth_noise(shape, spacing_mm, SEPTUM_SCALE_MM, rng)
        field /= SEPTUM_WIDTH
        np.square(field, out=field)
        np.negative(field, out=field)
        np.exp(field, out=field)
        np.maximum(septa, field, out=septa)
    septa -= septa.mean()
    septa *= np.float32(severity)
    return septa
