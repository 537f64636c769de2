"""Paint a patient's body on a canvas, from the skin to the vessels in the liver."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from datamodules.phantom_anatomy import (
    LIVER_HIGH_MM,
    LIVER_LOW_MM,
    TORSO_MM,
    WALL_MM,
    Patient,
    diaphragm,
    liver,
    torso,
)
from datamodules.phantom_canvas import Canvas, FloatArray

HEPATIC_VEINS = (
    ((22.0, -34.0, 58.0), (60.0, -26.0, 42.0), 5.5, 4.2),
    ((60.0, -26.0, 42.0), (104.0, -18.0, 2.0), 4.2, 2.0),
    ((22.0, -32.0, 58.0), (40.0, 10.0, 38.0), 5.0, 4.0),
    ((40.0, 10.0, 38.0), (56.0, 52.0, 2.0), 4.0, 1.8),
    ((22.0, -32.0, 58.0), (2.0, 14.0, 46.0), 4.8, 3.8),
    ((2.0, 14.0, 46.0), (-28.0, 46.0, 30.0), 3.8, 1.8),
    ((62.0, -26.0, 41.0), (84.0, -62.0, 12.0), 3.4, 1.8),
    ((44.0, 14.0, 36.0), (86.0, 44.0, 18.0), 3.2, 1.6),
)
PORTAL_VEINS = (
    ((-2.0, -12.0, -40.0), (26.0, 0.0, 2.0), 6.5, 6.5),
    ((26.0, 0.0, 2.0), (58.0, -6.0, 8.0), 6.0, 5.0),
    ((58.0, -6.0, 8.0), (96.0, 26.0, 14.0), 4.4, 2.0),
    ((58.0, -6.0, 8.0), (98.0, -42.0, 4.0), 4.4, 2.0),
    ((60.0, -6.0, 8.0), (90.0, 0.0, -44.0), 4.2, 2.0),
    ((72.0, -10.0, -16.0), (82.0, -44.0, -44.0), 3.2, 1.6),
    ((26.0, 0.0, 2.0), (2.0, 18.0, 16.0), 5.0, 4.4),
    ((2.0, 18.0, 16.0), (-26.0, 44.0, 18.0), 4.0, 1.8),
    ((2.0, 18.0, 16.0), (12.0, 52.0, 8.0), 3.6, 1.8),
)
"""Start, end (atlas mm), and radius in mm at either end."""


def paint_body(canvas: Canvas, patient: Patient, texture_sign: float) -> None:
    """Paint everything, back to front: what comes later hides what came before.

    Args:
        canvas: The grid; ``signal`` and ``liver`` are filled.
        patient: Whose body.
        texture_sign: How septa change the signal, as a multiple of ``PhantomStrength.texture``:
            positive where they are brighter than the nodules.
    """
    skin = torso(canvas)
    canvas.paint(skin, "fat")
    # more fat in front and at the flanks than over the spine
    wall = skin + np.float32(patient.fat_mm) * (1.0 + np.float32(0.25 / TORSO_MM[1]) * canvas.y)
    canvas.paint(wall, "muscle")
    cavity = wall + np.float32(WALL_MM)
    _ribs(canvas, wall)
    canvas.paint(cavity, "fat", factor=0.9)
    dome = diaphragm(canvas, patient)
    _chest(canvas, patient, cavity, dome)
    _spine(canvas, patient)
    _bowel(canvas, patient, cavity)
    _stomach_and_pancreas(canvas, patient)
    _kidneys(canvas, patient)
    _liver(canvas, patient, cavity, dome, texture_sign)
    _spleen(canvas, patient, cavity, dome)
    _great_vessels(canvas)
    _gallbladder(canvas, patient)


def _ribs(canvas: Canvas, wall: FloatArray) -> None:
    """Ribs in the wall: marrow in a dark rim, sloping down toward the front."""
    depth = np.abs(wall + np.float32(0.5 * WALL_MM))
    # a thin shell of the whole grid, so worth picking its voxels one by one
    near = np.nonzero(depth < 6.0)
    x, y, z = canvas.x[near], canvas.y[near], canvas.z[near]
    across = np.abs(np.mod(z + np.float32(0.35) * y, np.float32(30.0)) - np.float32(15.0))
    rib = np.maximum(across - 5.5, depth[near] - 3.4)
    # no ribs over the soft belly and none at the spine
    rib = np.maximum(rib, 0.5 * y - 30.0 - 0.35 * z)
    rib = np.maximum(rib, 24.0 - np.abs(x))
    value = canvas.signal[near]
    for field, tissue in ((rib, "cortical bone"), (rib + 1.5, "marrow")):
        value += canvas.share(field) * (np.float32(canvas.signals[tissue]) - value)
    canvas.signal[near] = value


def _chest(canvas: Canvas, patient: Patient, cavity: FloatArray, dome: FloatArray) -> None:
    lung = np.maximum(cavity, (dome - canvas.z) * np.float32(0.75))
    # the diaphragm: a thin muscle below the lungs
    canvas.paint(np.asarray(lung - 2.5, dtype=np.float32), "muscle")
    canvas.paint(np.asarray(lung, dtype=np.float32), "lung")
    window = canvas.window((-90.0, -30.0, 40.0), (40.0, 85.0, 160.0))
    if window is not None:
        heart = window.ellipsoid((-24.0, 30.0, 100.0), (58.0, 42.0, 40.0))
        window.paint(heart - 4.0, "fat", factor=0.8)
        window.paint(heart, "muscle", factor=1.3)
        window.paint(heart + 12.0, "arterial blood")


def _spine(canvas: Canvas, patient: Patient) -> None:
    window = canvas.window((-70.0, -105.0, -200.0), (70.0, -25.0, 200.0))
    if window is None:
        return
    x, y, z = window.x, window.y, window.z
    for side in (-1.0, 1.0):
        back = window.ellipsoid((34.0 * side, -80.0, 0.0), (27.0, 15.0, 900.0))
        window.paint(back, "muscle")
        psoas = window.ellipsoid((33.0 * side, -56.0, -120.0), (15.0, 15.0, 95.0))
        window.paint(psoas, "muscle")
        # the crura beside the aorta
        crus = window.ellipsoid((17.0 * side, -42.0, 10.0), (5.0, 17.0, 60.0))
        window.paint(crus, "muscle")
    arch = window.ellipsoid((0.0, -82.0, 0.0), (18.0, 13.0, 900.0))
    window.paint(arch, "cortical bone")
    window.paint(np.maximum(np.abs(x) - 2.5, np.abs(y + 92.0) - 7.0), "marrow", factor=0.8)
    column = window.ellipsoid((0.0, -54.0, 0.0), (21.0, 16.0, 900.0))
    period = 31.0 + 2.0 * float(patient.variation[4])
    height = np.abs(np.mod(z + np.float32(40.0 * float(patient.variation[5]) + 300.0), period) - period / 2.0)
    window.paint(column, "cortical bone")
    window.paint(
        np.maximum(column + 1.5, height - np.float32(period / 2.0 - 4.0)), "marrow", factor=patient.gain["marrow"]
    )
    window.paint(np.maximum(column + 1.5, np.float32(period / 2.0 - 3.0) - height), "disc")
    canal = window.ellipsoid((0.0, -78.0, 0.0), (9.5, 7.5, 900.0))
    window.paint(canal, "fluid", factor=0.8)
    window.paint(window.ellipsoid((0.0, -78.0, 0.0), (5.0, 4.2, 900.0)), "spinal cord")


def _bowel(canvas: Canvas, patient: Patient, cavity: FloatArray) -> None:
    """Loops of bowel: a wall, and gas, fluid or stool in it."""
    for cx, cy, cz, sx, sy, sz, kind in patient.bowel.tolist():
        centre, semi = (cx, cy, cz), (1.3 * sx, sy, sz)
        window = canvas.window(
            [c - s - 4.0 for c, s in zip(centre, semi, strict=True)],
            [c + s + 4.0 for c, s in zip(centre, semi, strict=True)],
        )
        if window is None:
            continue
        loop = window.ellipsoid(centre, semi)
        # folds of the bowel's wall
        loop += np.float32(1.6) * np.sin(window.x * 0.45 + kind * 20.0) * np.cos(window.z * 0.4 + kind * 9.0)
        loop = np.maximum(loop, cavity[window.box] + 1.0)
        window.paint(loop, "muscle", factor=1.3)
        inner = loop + np.float32(2.5)
        if kind < 0.22:
            gas = np.maximum(inner, np.float32(cy - 0.1 * sy) - window.y)
            window.paint(inner, "bowel", factor=patient.gain["bowel"])
            window.paint(np.asarray(gas, dtype=np.float32), "air")
        elif kind < 0.42:
            window.paint(inner, "fluid", factor=0.7)
        else:
            window.paint(inner, "bowel", factor=patient.gain["bowel"] * (0.6 + 0.7 * kind))


def _stomach_and_pancreas(canvas: Canvas, patient: Patient) -> None:
    v = patient.variation
    window = canvas.window((-125.0, -50.0, -50.0), (10.0, 85.0, 90.0))
    if window is not None:
        centre = (-60.0 + 6.0 * float(v[6]), 16.0, 16.0)
        stomach = window.ellipsoid(centre, (33.0 + 7.0 * float(v[7]), 36.0, 42.0))
        # rugae
        stomach += np.float32(1.5) * np.sin(window.x * 0.4) * np.cos(window.y * 0.35 + window.z * 0.2)
        window.paint(stomach, "muscle", factor=1.4)
        inner = stomach + np.float32(3.5)
        window.paint(inner, "fluid" if v[8] > 0.0 else "bowel", factor=0.75)
        # supine: gas rises to the front
        level = np.float32(26.0 + 10.0 * float(v[9]))
        window.paint(np.maximum(inner, level - window.y), "air")
    window = canvas.window((-70.0, -45.0, -65.0), (40.0, 30.0, 10.0))
    if window is not None:
        for start, end, radii in (
            ((22.0, -8.0, -48.0), (0.0, 2.0, -34.0), (13.0, 9.0)),
            ((0.0, 2.0, -34.0), (-32.0, -12.0, -18.0), (9.0, 8.0)),
            ((-32.0, -12.0, -18.0), (-60.0, -32.0, 0.0), (8.0, 6.0)),
        ):
            gland = window.tube(start, end, radii)
            gland += np.float32(1.0) * np.sin(window.x * 0.9) * np.sin(window.z * 0.9)
            window.paint(gland, "pancreas")


def _kidneys(canvas: Canvas, patient: Patient) -> None:
    for side, height in ((1.0, -56.0), (-1.0, -42.0)):
        cx, cy = 62.0 * side, -50.0
        window = canvas.window((cx - 45.0, cy - 45.0, height - 70.0), (cx + 45.0, cy + 45.0, height + 70.0))
        if window is None:
            continue
        size = 1.0 + 0.06 * float(patient.variation[10])
        kidney = window.ellipsoid((cx, cy, height), (24.0 * size, 25.0 * size, 49.0 * size))
        hilum = window.ellipsoid((cx - 26.0 * side, cy + 12.0, height), (17.0, 13.0, 22.0))
        kidney = np.maximum(kidney, -hilum - 3.0)
        window.paint(np.asarray(kidney - 5.0, dtype=np.float32), "fat", factor=0.95)
        window.paint(np.asarray(kidney, dtype=np.float32), "kidney cortex")
        # pyramids: the medulla is divided by columns of cortex
        ring = kidney + np.float32(6.0)
        ring = ring + np.float32(2.5) * np.cos(window.z * 0.42) * np.cos(window.y * 0.35)
        window.paint(np.asarray(ring, dtype=np.float32), "kidney medulla")
        window.paint(np.asarray(kidney + 18.0, dtype=np.float32), "fat", factor=0.9)
        window.paint(hilum, "fat", factor=0.9)


def _liver(canvas: Canvas, patient: Patient, cavity: FloatArray, dome: FloatArray, texture_sign: float) -> None:
    window = canvas.window(LIVER_LOW_MM, LIVER_HIGH_MM)
    if window is None:
        return
    wall, roof = cavity[window.box], dome[window.box]
    field = liver(window, patient, wall, roof)
    surface = np.nonzero(np.abs(field) < 12.0)
    field[surface] += ndimage.map_coordinates(
        patient.nodules, _lattice(window, surface, 2.0 * patient.lattice_mm), order=1, mode="nearest"
    )
    rim = patient.strength.ascites * patient.findings.ascites
    if rim > 0.0:
        fluid = np.maximum(wall, field - np.float32(rim))
        window.paint(np.asarray(np.maximum(fluid, window.z - roof + 2.0), dtype=np.float32), "fluid")
    share = window.share(field)
    # the wall and the lungs stay in front of the liver
    share *= window.share(wall)
    value = np.full(share.shape, np.float32(window.signals["liver"] * patient.gain["liver"]))
    near = np.nonzero(share)
    spots = _lattice(window, near, patient.lattice_mm)
    septa = ndimage.map_coordinates(patient.texture, spots, order=1, mode="nearest")
    mottle = ndimage.map_coordinates(patient.mottle, spots / 3.0, order=1, mode="nearest")
    value[near] *= 1.0 + np.float32(patient.strength.texture * texture_sign) * septa + np.float32(0.035) * mottle
    window.signal += share * (value - window.signal)
    window.liver += share * (1.0 - window.liver)
    for vessels in (HEPATIC_VEINS, PORTAL_VEINS):
        for start, end, first, last in vessels:
            reach = max(first, last) + 2.0
            part = window.window(np.minimum(start, end) - reach, np.maximum(start, end) + reach)
            if part is not None:
                part.paint_within_liver(part.tube(start, end, (first, last)), "venous blood")
    fissure = window.window((-24.0, 8.0, -60.0), (16.0, 100.0, 26.0))
    if fissure is not None:
        # the fissure of the round ligament divides the left lobe, open below
        bent = fissure.x + np.float32(4.0) - np.float32(0.10) * fissure.y + 3.0 * np.sin(0.09 * fissure.y)
        slit = np.abs(bent) - np.float32(2.8 + 0.8 * float(patient.variation[13]))
        slit += np.float32(0.16) * np.maximum(fissure.z + 18.0, 0.0) + np.float32(0.10) * np.abs(fissure.y - 34.0)
        fissure.paint(np.asarray(np.maximum(slit, wall[fissure.box]), dtype=np.float32), "fat", factor=0.9)


def _lattice(canvas: Canvas, voxels: tuple[npt.NDArray[np.intp], ...], step_mm: float) -> FloatArray:
    """Coordinates (3, N) of some voxels on the lattice that spans the liver's box."""
    spots = np.stack([canvas.x[voxels], canvas.y[voxels], canvas.z[voxels]])
    spots -= np.array(LIVER_LOW_MM, dtype=np.float32)[:, None]
    spots *= np.float32(1.0 / step_mm)
    return spots


def _spleen(canvas: Canvas, patient: Patient, cavity: FloatArray, dome: FloatArray) -> None:
    grow = 1.0 + patient.strength.spleen * patient.findings.spleen + 0.07 * float(patient.variation[11])
    window = canvas.window((-150.0, -105.0, -70.0), (-40.0, 50.0, 100.0))
    if window is None:
        return
    wall = cavity[window.box]
    roof = (window.z - dome[window.box] + 3.0) * np.float32(0.75)
    body = window.ellipsoid((-98.0, -34.0, 14.0), (34.0 * grow, 44.0 * grow, 50.0 * grow))
    hilum = window.ellipsoid((-62.0, -8.0, 14.0), (33.0, 40.0, 62.0))
    spleen = np.maximum(np.maximum(body, -hilum), np.maximum(wall + 2.0, roof))
    rim = patient.strength.ascites * patient.findings.ascites
    if rim > 0.0:
        window.paint(np.asarray(np.maximum(np.maximum(spleen - rim, wall), roof), dtype=np.float32), "fluid")
    window.paint(np.asarray(spleen, dtype=np.float32), "spleen", factor=patient.gain["spleen"])


def _great_vessels(canvas: Canvas) -> None:
    window = canvas.window((-30.0, -60.0, -220.0), (45.0, -10.0, 220.0))
    if window is None:
        return
    aorta = window.ellipsoid((-10.0, -30.0, 0.0), (10.5, 10.5, 3000.0))
    window.paint(aorta - 1.2, "muscle")
    window.paint(aorta, "arterial blood")
    cava = window.ellipsoid((22.0, -37.0, 0.0), (11.5, 9.0, 3000.0))
    window.paint(np.maximum(cava, window.z - 95.0), "venous blood")
    outer = canvas.window((-20.0, -30.0, -60.0), (45.0, 20.0, 15.0))
    if outer is not None:
        trunk = outer.tube(PORTAL_VEINS[0][0], PORTAL_VEINS[0][1], (6.5, 6.5))
        # inside the liver it is already there and counts as liver
        share = outer.share(trunk) * (1.0 - outer.liver)
        outer.signal += share * (np.float32(outer.signals["venous blood"]) - outer.signal)


def _gallbladder(canvas: Canvas, patient: Patient) -> None:
    size = 1.0 + 0.25 * float(patient.variation[12])
    window = canvas.window((10.0, -15.0, -90.0), (85.0, 75.0, 10.0))
    if window is None:
        return
    bladder = window.tube((36.0, 8.0, -24.0), (50.0, 40.0, -50.0), (7.0 * size, 14.0 * size))
    window.paint(bladder - 1.5, "muscle", factor=1.3)
    window.paint(bladder, "bile")
