"""One patient's body for the digital liver phantom: habitus, torso and liver.

The atlas frame is RAS+ in mm with its origin in the middle of the torso at the level of the liver's
hilum; it fits a torso of 300 × 210 mm. A patient's frame is the atlas scaled along the three axes
and bent by a smooth random deformation.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from datamodules.phantom_canvas import Canvas, FloatArray, smooth_max, smooth_min
from datamodules.phantom_severity import Findings, PhantomStrength
from datamodules.phantom_texture import phantom_texture, smooth_noise

TORSO_MM = (150.0, 105.0)
"""Semi-axes of the torso in the atlas frame, from left to right and from back to front."""
WALL_MM = 8.5
LIVER_LOW_MM = (-85.0, -105.0, -125.0)
LIVER_HIGH_MM = (140.0, 105.0, 90.0)


@dataclasses.dataclass(frozen=True)
class Patient:
    """Everything that makes one body, drawn once and seen by all of the patient's scans.

    Attributes:
        findings: Severity and what it led to.
        strength: How strongly effects show.
        scale: Patient mm per atlas mm along x, y, z.
        waves: Deformation: for each of the axes the waves (amplitude mm, three wave numbers 1/mm, three phases).
        fat_mm: Thickness of the subcutaneous fat in mm.
        dome_mm: Height of the right and left diaphragm domes in mm.
        gain: Signal of some tissues relative to the table: liver (iron, fat), spleen, marrow, bowel.
        variation: Free numbers in [-1, 1] for the shapes of organs.
        bowel: Centre (3), semi-axes (3) in mm, and kind of content in [0, 1), one row a loop.
        lattice_mm: Spacing of the texture's lattice, which spans the liver's box.
        texture: Septa on that lattice, amplitude proportional to the severity.
        mottle: Coarse variation of the liver's signal on that lattice, unrelated to severity.
        nodules: Surface displacement on that lattice in mm.
    """

    findings: Findings
    strength: PhantomStrength
    scale: tuple[float, float, float]
    waves: FloatArray
    fat_mm: float
    dome_mm: tuple[float, float]
    gain: dict[str, float]
    variation: FloatArray
    bowel: FloatArray
    lattice_mm: float
    texture: FloatArray
    mottle: FloatArray
    nodules: FloatArray


def draw_patient(
    findings: Findings,
    strength: PhantomStrength,
    detail: float,
    body: np.random.Generator,
    tissue: np.random.Generator,
) -> Patient:
    """Draw one patient's body.

    Args:
        findings: Severity and what it led to.
        strength: How strongly effects show.
        detail: In-plane resolution relative to the quick default; the texture's lattice follows it.
        body: Stream for habitus and shapes.
        tissue: Stream for the texture.
    """
    size = body.normal(0.0, 1.0, 3)
    tall = 0.97 if findings.sex == "F" else 1.03
    scale = (
        float(np.clip(tall * (1.0 + 0.05 * size[0]), 0.88, 1.12)),
        float(np.clip(tall * (1.0 + 0.06 * (0.6 * size[0] + 0.8 * size[1])), 0.86, 1.14)),
        float(np.clip(tall * (1.0 + 0.04 * size[2]), 0.90, 1.10)),
    )
    waves = np.empty((3, 2, 7), dtype=np.float32)
    waves[..., 0] = body.normal(0.0, 2.4, (3, 2))
    waves[..., 1:4] = 2.0 * np.pi / body.uniform(120.0, 260.0, (3, 2, 3))
    waves[..., 4:7] = body.uniform(0.0, 2.0 * np.pi, (3, 2, 3))
    waves[..., 0] = np.clip(waves[..., 0], -5.0, 5.0)
    fat_mm = float(np.clip(body.normal(15.0 if findings.sex == "F" else 12.0, 4.0), 6.0, 26.0))
    domes = body.normal(0.0, 1.0, 2)
    gains = body.normal(0.0, 1.0, 4)
    loops = 30
    bowel = np.empty((loops, 7), dtype=np.float32)
    bowel[:, 0] = body.uniform(-100.0, 90.0, loops)
    bowel[:, 1] = body.uniform(-10.0, 72.0, loops)
    bowel[:, 2] = body.uniform(-130.0, -14.0, loops)
    bowel[:, 3:6] = body.uniform(12.0, 26.0, (loops, 3))
    bowel[:, 6] = body.uniform(0.0, 1.0, loops)
    step = 2.5 / detail**0.5
    extent = [high - low for low, high in zip(LIVER_LOW_MM, LIVER_HIGH_MM, strict=True)]
    shape = (round(extent[0] / step) + 1, round(extent[1] / step) + 1, round(extent[2] / step) + 1)
    spacing = (step, step, step)
    texture = phantom_texture(shape, spacing, findings.texture, tissue)
    coarse = (shape[0] // 3 + 2, shape[1] // 3 + 2, shape[2] // 3 + 2)
    far = (3.0 * step, 3.0 * step, 3.0 * step)
    mottle = smooth_noise(coarse, far, 18.0, tissue)
    # bumps 10 to 15 mm apart
    nodules = smooth_noise((shape[0] // 2 + 2, shape[1] // 2 + 2, shape[2] // 2 + 2), (2 * step,) * 3, 4.5, tissue)
    nodules *= np.float32(strength.nodularity * findings.nodularity)
    return Patient(
        findings=findings,
        strength=strength,
        scale=scale,
        waves=waves,
        fat_mm=fat_mm,
        dome_mm=(float(74.0 + 5.0 * domes[0]), float(60.0 + 6.0 * domes[1])),
        gain={
            "liver": float(np.exp(0.10 * gains[0])),
            "spleen": float(np.exp(0.10 * gains[1])),
            "marrow": float(np.exp(0.15 * gains[2])),
            "bowel": float(np.exp(0.15 * gains[3])),
        },
        variation=np.clip(body.normal(0.0, 0.5, 16), -1.0, 1.0).astype(np.float32),
        bowel=bowel,
        lattice_mm=step,
        texture=texture,
        mottle=mottle,
        nodules=nodules,
    )


def deformed(
    x: FloatArray, y: FloatArray, z: FloatArray, waves: FloatArray
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Bend atlas coordinates by a few long waves.

    Args:
        x: Coordinates in mm that broadcast together with ``y`` and ``z``.
        y: See ``x``.
        z: See ``x``.
        waves: As in ``Patient``.

    Returns:
        Three arrays of the broadcast shape. Steps are below 1, so that nothing folds.
    """
    moved = []
    for axis, own in enumerate((x, y, z)):
        total: FloatArray = own
        for amplitude, kx, ky, kz, px, py, pz in waves[axis]:
            total = total + amplitude * np.cos(kx * x + px) * np.cos(ky * y + py) * np.cos(kz * z + pz)
        moved.append(np.ascontiguousarray(total, dtype=np.float32))
    return moved[0], moved[1], moved[2]


def torso(canvas: Canvas) -> FloatArray:
    """Field of the skin in mm: a rounded rectangle in each axial plane."""
    u = canvas.x * np.float32(1.0 / TORSO_MM[0])
    v = canvas.y * np.float32(1.0 / TORSO_MM[1])
    u *= u
    v *= v
    power = u * u
    power += v * v
    u *= v
    u *= np.float32(1.3)
    power += u
    np.sqrt(power, out=power)
    np.sqrt(power, out=power)
    np.maximum(power, np.float32(1e-3), out=power)
    radius = np.sqrt(canvas.x * canvas.x + canvas.y * canvas.y)
    return np.asarray(radius * (1.0 - 1.0 / power), dtype=np.float32)


def diaphragm(canvas: Canvas, patient: Patient) -> FloatArray:
    """Height of the diaphragm above the atlas origin in mm, at each voxel's x and y."""
    right = ((canvas.x - 62.0) / 80.0) ** 2 * 48.0 + ((canvas.y - 4.0) / 90.0) ** 2 * 56.0
    left = ((canvas.x + 70.0) / 75.0) ** 2 * 46.0 + ((canvas.y + 2.0) / 90.0) ** 2 * 50.0
    return smooth_max(
        np.asarray(patient.dome_mm[0] - right, dtype=np.float32),
        np.asarray(patient.dome_mm[1] - left, dtype=np.float32),
        30.0,
    )


def liver(canvas: Canvas, patient: Patient, cavity: FloatArray, dome: FloatArray) -> FloatArray:
    """Field of the liver in mm: what fills the right upper belly between wall, diaphragm and viscera.

    Args:
        canvas: The grid (or a window of it).
        patient: Whose liver.
        cavity: Field of the space inside the abdominal wall on the same voxels.
        dome: Height of the diaphragm in mm on the same voxels.
    """
    shown = patient.findings.shape
    x, y, z = canvas.x, canvas.y, canvas.z
    v = patient.variation
    shrink = patient.strength.right_lobe * shown
    wall = cavity + np.float32(3.0 + 0.25 * shrink)
    under = (dome - np.float32(4.0) - z) * np.float32(-0.75)
    # the lower surface rises toward the left, and toward the front at the left lobe
    floor = -88.0 + 8.0 * float(v[0]) + shrink + np.float32(0.46) * np.maximum(85.0 - x, 0.0)
    floor = floor + np.float32(0.0011) * np.maximum(60.0 - x, 0.0) ** 2 * np.float32(1.0 + 0.25 * float(v[1]))
    above = (floor - z) * np.float32(0.8)
    # the visceral surface: behind it lie stomach, spine and, below, the right kidney
    middle = np.float32(8.0 + 5.0 * float(v[2])) - np.float32(0.30) * (z - 20.0)
    bend = np.tanh((x - middle) * np.float32(1.0 / 30.0))
    behind = np.float32(-2.0) - np.float32(37.0) * bend - np.float32(1.6) * np.maximum(x - 38.0, 0.0)
    front = (behind - y) * np.float32(0.62)
    tip = np.float32(-76.0 + 16.0 * float(v[3]) - 10.0 * shown) - x
    field = smooth_max(wall, np.asarray(under, dtype=np.float32), 14.0)
    field = smooth_max(field, np.asarray(above, dtype=np.float32), 22.0)
    field = smooth_max(field, np.asarray(front, dtype=np.float32), 18.0)
    field = smooth_max(field, np.asarray(tip, dtype=np.float32), 24.0)
    grow = 1.0 + patient.strength.caudate * shown
    caudate = canvas.ellipsoid((12.0, -22.0, 22.0), (15.0 * grow, 15.0 * grow, 26.0 * (0.5 + 0.5 * grow)))
    return smooth_min(field, caudate, 8.0)
