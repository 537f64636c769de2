"""From a body to a scan: protocol, grid, slices, coil, noise and the scanner's integers."""

from __future__ import annotations

import dataclasses
import gzip
import math
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt

from datamodules.files import atomic_path
from datamodules.phantom_anatomy import TORSO_MM, Patient, deformed
from datamodules.phantom_canvas import Canvas, FloatArray
from datamodules.phantom_organs import paint_body
from datamodules.phantom_signal import SequenceTiming, tissue_signals

MATRIX = (144, 112)
SUBSLICE_MM = 3.5
"""Thickness of the layers that are averaged to a slice."""
MARKER_RADIUS_MM = 11.0
ORIENTATIONS = ((1, 1, 1), (-1, 1, 1), (-1, -1, 1), (1, -1, 1), (-1, -1, -1))
"""Signs of the voxel axes in RAS+: RAS, LAS, LPS, RPS, LPI."""
ORIENTATION_SHARES = (0.2, 0.25, 0.35, 0.1, 0.1)
OBLIQUE_SHARE = 0.3


@dataclasses.dataclass(frozen=True, slots=True)
class Scanner:
    """What makes the scans of one source alike.

    Attributes:
        field_t: Field strength in tesla.
        timing: Pulse sequence by name.
        noise: Standard deviation of the noise in each channel, relative to fully relaxed water.
        gain: Integers per fully relaxed water.
        bias: Spread of the coil's sensitivity (logarithm) over the torso.
        dtype: ``int16`` or ``uint16``.
        slice_mm: Slice thickness in mm by sequence.
        margin_mm: Field of view left and right of the torso in mm.
    """

    field_t: float
    timing: dict[str, SequenceTiming]
    noise: dict[str, float]
    gain: float
    bias: float
    dtype: str
    slice_mm: dict[str, float]
    margin_mm: float


SCANNERS = (
    Scanner(
        field_t=1.5,
        timing={
            "T1W": SequenceTiming("gradient_echo", tr_ms=130.0, te_ms=4.6, flip_deg=70.0),
            "T2W": SequenceTiming("spin_echo", tr_ms=3200.0, te_ms=80.0),
        },
        noise={"T1W": 0.010, "T2W": 0.010},
        gain=1500.0,
        bias=0.16,
        dtype="int16",
        slice_mm={"T1W": 6.5, "T2W": 8.4},
        margin_mm=9.0,
    ),
    Scanner(
        field_t=3.0,
        timing={
            "T1W": SequenceTiming("gradient_echo", tr_ms=150.0, te_ms=2.3, flip_deg=65.0),
            "T2W": SequenceTiming("spin_echo", tr_ms=3600.0, te_ms=70.0),
        },
        noise={"T1W": 0.007, "T2W": 0.007},
        gain=5200.0,
        bias=0.26,
        dtype="uint16",
        slice_mm={"T1W": 6.0, "T2W": 8.0},
        margin_mm=14.0,
    ),
)
TEXTURE_SIGN = {"T1W": -0.6, "T2W": 1.0}
"""Fibrosis holds more water than parenchyma: bright on T2W, dark on T1W."""


@dataclasses.dataclass(frozen=True, slots=True)
class Grid:
    """Where a scan's voxels lie.

    Attributes:
        shape: Voxels along each axis.
        affine: Voxel indices to the patient's RAS+ mm, (4, 4).
        slice_mm: Slice thickness in mm.
        shift_mm: Where the belly lies in this breath-hold, in mm along x, y, z.
    """

    shape: tuple[int, int, int]
    affine: npt.NDArray[np.float64]
    slice_mm: float
    shift_mm: tuple[float, float, float]


def scanner_of(source: int) -> Scanner:
    """Scanner of the n-th source: 1.5 T and 3 T in turn; later ones differ in gain and noise."""
    scanner = SCANNERS[source % len(SCANNERS)]
    turn = source // len(SCANNERS)
    return dataclasses.replace(
        scanner,
        gain=scanner.gain * (0.6 if turn % 2 else 1.0) * (1.0 + 0.1 * turn),
        noise={name: value * (1.0 + 0.25 * turn) for name, value in scanner.noise.items()},
    )


def draw_grid(
    patient: Patient,
    scanner: Scanner,
    sequence: str,
    detail: float,
    position: np.random.Generator,
    rng: np.random.Generator,
) -> Grid:
    """Draw the grid of one scan.

    Args:
        patient: Who lies in the scanner.
        scanner: The source's scanner.
        sequence: ``T1W`` or ``T2W``.
        detail: In-plane resolution relative to the quick default.
        position: A stream that starts alike for all scans of the patient: orientation and table position.
        rng: The scan's own stream: resolution, breathing.
    """
    signs = ORIENTATIONS[int(position.choice(len(ORIENTATIONS), p=ORIENTATION_SHARES))]
    oblique = position.random() < OBLIQUE_SHARE
    angles = np.radians(position.uniform(3.0, 9.0, 3) * position.choice([-1.0, 1.0], 3) * (0.4, 0.4, 1.0))
    table = position.normal(0.0, 1.0, 3) * (6.0, 6.0, 60.0)
    # real fields of view fit the patient, so the voxel size differs from one to the next
    field_mm = 2.0 * (TORSO_MM[0] * patient.scale[0] + scanner.margin_mm) + float(rng.uniform(0.0, 8.0))
    matrix = tuple(8 * round(n * detail * (1.0 + (0.08 if sequence == "T1W" else 0.0)) / 8) for n in MATRIX)
    pixel = max(field_mm / matrix[0], 2.0 * (TORSO_MM[1] * patient.scale[1] + 5.0) / matrix[1])
    slice_mm = scanner.slice_mm[sequence] * float(rng.choice((0.94, 1.0, 1.0, 1.06))) / (0.4 + 0.6 * detail)
    slices = math.ceil((190.0 * patient.scale[2] + float(rng.uniform(0.0, 14.0))) / slice_mm)
    breath = rng.normal(0.0, 1.0, 3) * (1.0, 1.5, 4.0)
    moved = np.clip(breath, -8.0, 8.0) + table
    rotation = np.eye(3)
    if oblique:
        for axis, angle in enumerate(angles):
            turn = np.eye(3)
            i, j = (axis + 1) % 3, (axis + 2) % 3
            turn[i, i] = turn[j, j] = math.cos(angle)
            turn[i, j], turn[j, i] = -math.sin(angle), math.sin(angle)
            rotation = turn @ rotation
    shape = (matrix[0], matrix[1], slices)
    spacing = np.array([pixel, pixel, slice_mm])
    affine = np.eye(4)
    affine[:3, :3] = rotation @ np.diag(spacing * signs)
    centre = np.array([0.0, 0.0, -14.0 * patient.scale[2]])
    affine[:3, 3] = centre - affine[:3, :3] @ ((np.array(shape) - 1.0) / 2.0)
    # scanner coordinates start at the magnet's centre, not at the patient's
    affine[:3, 3] += table
    return Grid(shape, affine, slice_mm, (float(moved[0]), float(moved[1]), float(moved[2])))


def canvas_of(grid: Grid, patient: Patient, signals: dict[str, float]) -> tuple[Canvas, int]:
    """A canvas with several layers a slice, in the patient's bent atlas frame.

    Returns:
        The canvas, of shape (I, J, K × layers), and the number of layers a slice.
    """
    layers = math.ceil(grid.slice_mm / SUBSLICE_MM)
    fine = np.eye(4)
    fine[2, 2] = 1.0 / layers
    fine[2, 3] = (1.0 / layers - 1.0) / 2.0
    frame = np.diag([*(1.0 / np.array(patient.scale)), 1.0])
    frame[:3, 3] = -np.array(grid.shift_mm) / patient.scale
    matrix = (frame @ grid.affine @ fine).astype(np.float64)
    count = (grid.shape[0], grid.shape[1], grid.shape[2] * layers)
    axes = [
        np.arange(n, dtype=np.float32).reshape([-1 if a == b else 1 for b in range(3)]) for a, n in enumerate(count)
    ]
    points = []
    for row in matrix[:3]:
        # straight grids keep each coordinate a line, which the waves below profit from
        terms = [np.float32(step) * axis for step, axis in zip(row[:3], axes, strict=True) if abs(step) > 1e-9]
        points.append(np.asarray(sum(terms[1:], terms[0]) + np.float32(row[3]), dtype=np.float32))
    x, y, z = deformed(points[0], points[1], points[2], patient.waves)
    edge = abs(float(np.linalg.norm(grid.affine[:3, 0])))
    return Canvas((x, y, z), np.asarray(np.linalg.inv(matrix), dtype=np.float64), edge, signals, pad_mm=10.0), layers


def paint_marker(canvas: Canvas) -> None:
    """Paint the shortcut: a skin marker (a tube of doped oil) along the patient's left front."""
    low, high = (-125.0, 60.0, -75.0), (-75.0, 110.0, 75.0)
    window = canvas.window(low, high)
    if window is not None:
        window.paint(window.tube((-104.0, 90.0, -70.0), (-104.0, 90.0, 70.0), (MARKER_RADIUS_MM,) * 2), "marker")


def acquire(
    patient: Patient, scanner: Scanner, sequence: str, grid: Grid, marker: bool, rng: np.random.Generator
) -> tuple[npt.NDArray[np.int16] | npt.NDArray[np.uint16], npt.NDArray[np.uint8]]:
    """Scan a patient.

    Args:
        patient: Who is scanned.
        scanner: The source's scanner.
        sequence: ``T1W`` or ``T2W``.
        grid: The voxels.
        marker: Whether the shortcut lies on the skin. It changes nothing else, noise included.
        rng: The scan's stream for coil and noise.

    Returns:
        The image in the scanner's integers and the reference mask (1 = liver), both (I, J, K).
    """
    canvas, layers = canvas_of(grid, patient, tissue_signals(scanner.timing[sequence], scanner.field_t))
    paint_body(canvas, patient, TEXTURE_SIGN[sequence])
    if marker:
        paint_marker(canvas)
    signal = canvas.signal.reshape(*grid.shape, layers).mean(axis=-1)
    share = canvas.liver.reshape(*grid.shape, layers).mean(axis=-1)
    signal *= coil(grid, scanner.bias, rng)
    noise = np.float32(scanner.noise[sequence])
    real = rng.standard_normal(grid.shape, dtype=np.float32)
    real *= noise
    real += signal
    imaginary = rng.standard_normal(grid.shape, dtype=np.float32)
    imaginary *= noise
    # the magnitude of a complex signal with Gaussian noise in both channels is Rician
    magnitude = np.sqrt(real * real + imaginary * imaginary)
    magnitude *= np.float32(scanner.gain * rng.uniform(0.8, 1.25))
    dtype = np.dtype(scanner.dtype)
    image = np.clip(np.rint(magnitude), 0, np.iinfo(dtype).max).astype(dtype)
    return image, (share >= 0.5).astype(np.uint8)


def coil(grid: Grid, spread: float, rng: np.random.Generator) -> FloatArray:
    """Smooth sensitivity of the receive coil, around 1: a random quadratic, exponentiated.

    Args:
        grid: The voxels.
        spread: Standard deviation of each coefficient (logarithm of the sensitivity).
        rng: Nine numbers are drawn.
    """
    u, v, w = (
        np.linspace(-1.0, 1.0, n, dtype=np.float32).reshape([-1 if a == b else 1 for b in range(3)])
        for a, n in enumerate(grid.shape)
    )
    c = (spread * rng.standard_normal(9)).astype(np.float32)
    log = c[0] * u + c[1] * v + c[2] * w + c[3] * u * v + c[4] * v * w + c[5] * u * w
    # coils lie on the skin, so the middle of the body is darker
    log = log + (np.abs(c[6]) + np.float32(0.1)) * (u * u - 0.33) + (np.abs(c[7]) + np.float32(0.1)) * (v * v - 0.33)
    log = log + c[8] * (w * w - 0.33)
    return np.asarray(np.exp(log), dtype=np.float32)


def write_scan(path: Path, data: npt.NDArray[np.generic], affine: npt.NDArray[np.float64]) -> None:
    """Write a NIfTI file atomically; the same array gives the same bytes at any time and place.

    Args:
        path: Ends in ``.nii.gz``.
        data: Integers, (I, J, K).
        affine: Voxel indices to RAS+ mm, (4, 4).
    """
    nifti: Any = nib.Nifti1Image
    image = nifti(data, affine, dtype=data.dtype)
    image.header.set_xyzt_units("mm", "sec")
    image.set_sform(affine, code=1)
    image.set_qform(affine, code=1)
    with (
        atomic_path(path) as temporary,
        temporary.open("wb") as stream,
        # no name and no time in the header, or the bytes would differ
        gzip.GzipFile(filename="", mode="wb", compresslevel=1, fileobj=stream, mtime=0) as packed,
    ):
        packed.write(image.to_bytes())
