"""Intensity normalisation: MR grey values have no unit, so each scan is brought to a scale of its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

KINDS = ("zscore", "percentile", "nyul", "none")

PERCENTILE_WINDOW = (0.5, 99.5)
NYUL_PERCENTILES = (1.0, 10.0, 20.0, 30.0, 40.0, 50.0, 60.0, 70.0, 80.0, 90.0, 99.0)
"""Landmarks of Nyúl, Udupa, Zhang 2000: the deciles and the ends of the window."""

_PIECE = 2**16
"""Voxels that are worked on at a time, small enough for the cache."""

Array = npt.NDArray[np.float32]


@dataclasses.dataclass(frozen=True, slots=True)
class Normalisation:
    """What was done to one image's intensities: ``clip(mapped(x) * gain + offset, low, high)``.

    Attributes:
        gain: Factor, 1 / intensity.
        offset: Term added after the factor.
        low: Lower end after scaling, or None.
        high: Upper end after scaling, or None.
        mean: Mean intensity of the body (voxels above the image's mean).
        std: Standard deviation of the body's intensities.
        source: For ``nyul``: this image's landmarks, mapped to ``target`` by straight lines; else empty.
        target: For ``nyul``: the training set's landmarks; else empty.
    """

    gain: float
    offset: float
    low: float | None
    high: float | None
    mean: float
    std: float
    source: tuple[float, ...] = ()
    target: tuple[float, ...] = ()

    def apply(self, image: Array) -> Array:
        """Normalise an image of any shape; returns a new float32 array."""
        if self.source:
            image = _piecewise(image, self.source, self.target)
        out = image * np.float32(self.gain)
        out += np.float32(self.offset)
        if self.low is not None or self.high is not None:
            np.clip(out, self.low, self.high, out=out)
        return out


def normalisation_of(image: Array, kind: str, landmarks: tuple[float, ...] = ()) -> Normalisation:
    """Find an image's normalisation.

    Args:
        image: Intensities, any shape, float32.
        kind: ``zscore``: mean 0 and standard deviation 1 over the body, the voxels above the image's mean
            (TorchIO's ``ZNormalization(masking_method=ZNormalization.mean)``). ``percentile``: the window between the
            0.5th and 99.5th percentile of all voxels becomes [0, 1], values beyond are clipped. ``nyul``: the body's
            percentiles move to ``landmarks`` by straight lines. ``none``: intensities as they are.
        landmarks: For ``nyul``, from :func:`fit_nyul` on training patients only.

    Returns:
        The normalisation, ready to apply.

    Raises:
        ValueError: The image is constant, or the kind is unknown, or landmarks are missing.
    """
    if kind not in KINDS:
        raise ValueError(f"normalisation is one of {', '.join(KINDS)}, not {kind!r}")
    mean, std = _body_statistics(image)
    if kind == "none":
        return Normalisation(1.0, 0.0, None, None, mean, std)
    if not std > 0:
        raise ValueError("all voxels of the body have the same intensity, so there is nothing to normalise by")
    if kind == "zscore":
        return Normalisation(1.0 / std, -mean / std, None, None, mean, std)
    if kind == "percentile":
        low, high = (float(value) for value in np.percentile(image, PERCENTILE_WINDOW))
        if not high > low:
            raise ValueError("the 0.5th and the 99.5th percentile are equal, so there is no window to normalise to")
        return Normalisation(1.0 / (high - low), -low / (high - low), 0.0, 1.0, mean, std)
    if len(landmarks) != len(NYUL_PERCENTILES):
        raise ValueError(f"nyul needs {len(NYUL_PERCENTILES)} landmarks, fitted on the training patients")
    return Normalisation(1.0, 0.0, None, None, mean, std, _landmarks(image), tuple(landmarks))


def fit_nyul(images: Iterable[npt.NDArray[np.generic]]) -> tuple[float, ...]:
    """Learn the standard histogram of a training set.

    Each image's landmarks (percentiles of its body) are brought to [0, 1] by the first and last of them, and
    averaged. Give training patients only: landmarks that saw a test patient leak.

    Args:
        images: Intensities of one scan each, any shape.

    Returns:
        One value for each of ``NYUL_PERCENTILES``, rising from 0 to 1.

    Raises:
        ValueError: No image was given, or one is constant.

    Source: Nyúl, Udupa, Zhang 2000, IEEE TMI 19(2):143-150.
    """
    rows = []
    for image in images:
        marks = np.array(_landmarks(np.asarray(image, dtype=np.float32)))
        rows.append((marks - marks[0]) / (marks[-1] - marks[0]))
    if not rows:
        raise ValueError("fit_nyul needs at least one image")
    return tuple(float(value) for value in np.mean(rows, axis=0))


def _body_statistics(image: Array) -> tuple[float, float]:
    """Mean and standard deviation (n - 1) of the voxels above the mean; (mean, 0) for a constant image."""
    # in pieces that stay in the cache; sums of what lies above the threshold, so that nothing has to be gathered
    pieces = [image.reshape(-1)[start : start + _PIECE] for start in range(0, image.size, _PIECE)]
    threshold = np.float32(sum(float(piece.sum()) for piece in pieces) / image.size)
    count, first, second = 0, 0.0, 0.0
    for piece in pieces:
        # np.maximum before the difference: the same number, and exactly 0 for all that is not above
        above = np.maximum(piece, threshold)
        above -= threshold
        count += int(np.count_nonzero(piece > threshold))
        first += float(above.sum())
        second += float(np.dot(above, above))
    if count < 2:
        return float(threshold), 0.0
    variance = max(0.0, (second - first**2 / count) / (count - 1))
    return float(threshold) + first / count, float(np.sqrt(variance))


def _landmarks(image: Array) -> tuple[float, ...]:
    body = image[image > image.mean(dtype=np.float64)]
    if body.size == 0:
        raise ValueError("all voxels have the same intensity, so there is no histogram to match")
    marks = np.percentile(body, NYUL_PERCENTILES)
    if not marks[-1] > marks[0]:
        raise ValueError("the body's intensities do not vary, so there is no histogram to match")
    return tuple(float(value) for value in marks)


def _piecewise(image: Array, source: tuple[float, ...], target: tuple[float, ...]) -> Array:
    """Straight lines between landmarks; the first and last line go on beyond them."""
    # equal percentiles (few grey values) would divide by zero: keep the first of each
    marks, first = np.unique(np.array(source), return_index=True)
    aims = np.array(target)[first]
    segment = np.clip(np.searchsorted(marks, image, side="right") - 1, 0, len(marks) - 2)
    slopes = np.diff(aims) / np.diff(marks)
    out: Array = ((image - marks[segment]) * slopes[segment] + aims[segment]).astype(np.float32)
    return out
