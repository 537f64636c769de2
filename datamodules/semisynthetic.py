"""Real scans with the phantom's fibrosis texture of known strength in half of the livers: semi-synthetic patients.

From each real patient several derived ones are made: bent, turned, scaled and shaded at random, so that no two are
alike; in exactly half of them the liver's signal is multiplied by the field of septa. Everything else is drawn alike
for both halves. What is learned from them says that such a texture can be found on real anatomy; it says nothing about
fibrosis. Derived patients keep their origin, and a split keeps all of one origin in one part.
"""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import ndimage

from datamodules.cohort import Cohort, Scan
from datamodules.errors import InputError
from datamodules.files import atomic_path, read_json, write_json
from datamodules.images import Volume, check_same_grid, read_image, read_mask, write_nifti
from datamodules.phantom_texture import phantom_texture, smooth_noise
from datamodules.preprocessing import bounding_box

FORMAT: Final = 1
"""Raised with every change that alters the bytes written for the same seed."""
SOURCE_MARK: Final = "semi-synthetic"
POSITIVE_KPA, NEGATIVE_KPA = 20.0, 5.0
"""Stand-ins, so that the rule lsm>12 tells the halves apart; nobody measured them."""
DEGREES, SCALE, SHIFT_MM = 6.0, 0.08, 6.0
BEND_MM, BEND_WIDTH_MM = 4.0, 35.0
SHADING, SHADING_WIDTH_MM = 0.12, 90.0
NOISE: Final = 0.02
"""Standard deviation of the noise, as a share of the liver's median signal."""
_HIGHEST = 4000.0


@dataclasses.dataclass(frozen=True, slots=True)
class Texture:
    """What is put into the positive half.

    Attributes:
        strength: Relative signal difference between septum and nodule; 0 puts nothing in.
        copies: Derived patients of each real patient; half of them are positive.
        seed: Of everything.
    """

    strength: float
    copies: int
    seed: int

    def check(self) -> None:
        """Refuse what cannot be made.

        Raises:
            InputError: A value is out of range.
        """
        faults = []
        if not 0 <= self.strength <= 2:
            faults.append(f"--strength {self.strength:g}: give 0 (nothing is put in) to 2")
        if self.copies < 2 or self.copies % 2:
            faults.append(f"--copies {self.copies}: give an even number from 2; half of them get the texture")
        if self.seed < 0:
            faults.append(f"--seed {self.seed}: give a whole number from 0")
        if faults:
            raise InputError(*faults)


def make_semisynthetic(cohort: Cohort, out: Path, texture: Texture, *, notify: Any, progress: bool = True) -> Cohort:
    """Make a semi-synthetic cohort from real scans with liver masks, and write it.

    Writes ``out/images``, ``out/masks``, ``out/truth.csv``, ``out/semisynthetic.json`` (the parameters) and last
    ``out/cohort.parquet``. The same parameters and scans give the same voxels.

    Args:
        cohort: Real scans; each needs a reference mask, and each patient one scan a sequence.
        out: The new cohort's folder.
        texture: What is put in.
        notify: Says a notice.
        progress: Show a progress bar on stderr.

    Returns:
        The cohort: patients ``<real patient>~<number>``, ``origin`` the real patient, ``source`` marked
        semi-synthetic, ``x_texture`` the strength in each liver. Measured labels are dropped: ``lsm_kpa`` is 20 with
        texture and 5 without, a stand-in for the rule ``lsm>12``.

    Raises:
        InputError: A parameter, a scan or a mask is at fault, or the folder holds another cohort.
    """
    texture.check()
    without = [scan.scan_id for scan in cohort.scans if scan.mask is None]
    if without:
        raise InputError(f"{cohort.name}: no reference mask for {', '.join(without[:8])}; the texture needs the liver")
    derived = sorted({scan.origin for scan in cohort.scans if scan.origin is not None})
    if derived:
        raise InputError(f"{cohort.name}: is derived from other patients already ({derived[0]} …); give the real scans")
    parameters = {"format": FORMAT, "cohort": cohort.sha256, **dataclasses.asdict(texture)}
    _claim(out, parameters)
    notify(
        f"SEMI-SYNTHETIC: real scans of {len(cohort.patients)} patients, each {texture.copies} times, bent and shaded "
        f"at random, with the phantom's texture (strength {texture.strength:g}) in half of the livers. LSM values are "
        "stand-ins. No result on them is one about fibrosis"
    )
    from rich.console import Console
    from rich.progress import track

    tasks = [(scan, number) for scan in cohort.scans for number in range(texture.copies)]
    rows = []
    for scan, number in track(
        tasks, description="semi-synthetic scans", console=Console(stderr=True), transient=True, disable=not progress
    ):
        rows.append(_derive(scan, number, out, texture))
    frame = pd.DataFrame(rows)
    with atomic_path(out / "truth.csv") as temporary:
        frame[["scan_id", "patient_id", "origin", "x_texture"]].to_csv(temporary, index=False)
    table = out / "cohort.parquet"
    Cohort(frame, out, str(table)).save(table)
    return Cohort.load(table)


def _claim(out: Path, parameters: dict[str, Any]) -> None:
    """Write the parameters into the folder, or stop where it belongs to another cohort."""
    record = out / "semisynthetic.json"
    if record.exists() and read_json(record, "the parameters of a semi-synthetic cohort") != parameters:
        raise InputError(f"{out}: holds a cohort made with other parameters; choose another --out or delete the folder")
    if not record.exists() and (out / "cohort.parquet").exists():
        raise InputError(f"{out / 'cohort.parquet'}: a cohort of another kind; choose another --out")
    write_json(record, parameters)


def _derive(scan: Scan, number: int, out: Path, texture: Texture) -> dict[str, Any]:
    """Make one derived scan, unless its files are there, and give its row."""
    patient = f"{scan.patient_id}~{number + 1}"
    scan_id = f"{scan.scan_id}~{number + 1}"
    # odd and even ones alternate: each origin has as many of either
    contrast = texture.strength if number % 2 else 0.0
    image_path, mask_path = out / "images" / f"{scan_id}.nii.gz", out / "masks" / f"{scan_id}.nii.gz"
    if not (image_path.is_file() and mask_path.is_file()):
        assert scan.mask is not None
        image, mask = read_image(scan.image), read_mask(scan.mask, scan.mask_labels)
        check_same_grid(image, mask, scan.image, scan.mask)
        if not mask.data.any():
            raise InputError(f"{scan.mask}: an empty mask; correct mask_labels in the cohort table")
        data, inside = derived_scan(image, mask.data != 0, contrast, _stream(texture.seed, scan.scan_id, number))
        write_nifti(image_path, data, image.affine, like=scan.image)
        # written last: both are there where the mask is
        write_nifti(mask_path, inside.astype(np.uint8), image.affine, like=scan.image)
    return {
        "scan_id": scan_id,
        "patient_id": patient,
        "origin": scan.patient_id,
        "sequence": scan.sequence,
        "image": f"images/{scan_id}.nii.gz",
        "mask": f"masks/{scan_id}.nii.gz",
        "mask_labels": "1",
        "source": f"{scan.source} ({SOURCE_MARK})",
        "visit": scan.visit or None,
        "lsm_kpa": POSITIVE_KPA if number % 2 else NEGATIVE_KPA,
        "age": scan.age,
        "sex": scan.sex,
        "official_split": scan.official_split,
        "x_texture": contrast,
    }


def derived_scan(
    image: Volume, liver: npt.NDArray[np.bool_], contrast: float, rng: np.random.Generator
) -> tuple[npt.NDArray[np.int16], npt.NDArray[np.bool_]]:
    """One derived scan: bent and shaded real anatomy, the texture in its liver, noise.

    Args:
        image: The real scan.
        liver: Its liver, shape (I, J, K).
        contrast: Relative signal difference between septum and nodule. The draws do not depend on it: the same
            stream gives the same patient with and without.
        rng: The derived scan's own stream.

    Returns:
        The image, int16, scaled so that its brightest voxels come to 4000; and the liver, on the same grid.
    """
    spacing, shape = image.spacing, (image.data.shape[0], image.data.shape[1], image.data.shape[2])
    places = _bent(shape, spacing, rng)
    data = ndimage.map_coordinates(image.data.astype(np.float32), places, order=1, mode="nearest")
    inside = ndimage.map_coordinates(liver.astype(np.float32), places, order=1, mode="constant") >= 0.5
    median = float(np.median(data[inside])) if inside.any() else float(np.median(data))
    # before the texture: what lies outside the liver is the same voxel by voxel with and without it
    highest = float(np.percentile(data, 99.9))
    window = bounding_box(inside)
    if window is not None:
        part = (inside[window].shape[0], inside[window].shape[1], inside[window].shape[2])
        field = phantom_texture(part, spacing, 1.0, rng)
        data[window] *= 1 + np.float32(contrast) * field * inside[window]
    shading = _coarse_noise(shape, spacing, SHADING_WIDTH_MM, rng)
    data *= np.exp(np.float32(SHADING) * shading)
    data += rng.standard_normal(shape, dtype=np.float32) * np.float32(NOISE * abs(median))
    scaled = np.clip(data * (_HIGHEST / max(highest, 1e-6)), -_HIGHEST, 2 * _HIGHEST)
    return np.rint(scaled).astype(np.int16), inside


def _bent(
    shape: tuple[int, int, int], spacing: tuple[float, float, float], rng: np.random.Generator
) -> npt.NDArray[np.float32]:
    """Where each voxel's value comes from, in voxels, shape (3, I, J, K): turned, scaled, moved and bent in mm."""
    centre = [(n - 1) / 2 * step for n, step in zip(shape, spacing, strict=True)]
    axes = [np.arange(n) * step - c for n, step, c in zip(shape, spacing, centre, strict=True)]
    mm = np.stack(np.meshgrid(*axes, indexing="ij")).astype(np.float32)
    turn = np.eye(3)
    for angle, (a, b) in zip(np.deg2rad(rng.uniform(-DEGREES, DEGREES, 3)), ((0, 1), (0, 2), (1, 2)), strict=True):
        step = np.eye(3)
        step[a, a] = step[b, b] = np.cos(angle)
        step[a, b], step[b, a] = -np.sin(angle), np.sin(angle)
        turn = turn @ step
    turn *= rng.uniform(1 - SCALE, 1 + SCALE, 3)[:, None]
    moved = np.tensordot(turn.astype(np.float32), mm, axes=1)
    moved += rng.uniform(-SHIFT_MM, SHIFT_MM, 3).astype(np.float32)[:, None, None, None]
    for axis in range(3):
        moved[axis] += np.float32(BEND_MM) * _coarse_noise(shape, spacing, BEND_WIDTH_MM, rng)
    scale = np.array(spacing, dtype=np.float32)[:, None, None, None]
    return np.asarray((moved + np.array(centre, dtype=np.float32)[:, None, None, None]) / scale)


def _coarse_noise(
    shape: tuple[int, int, int], spacing: tuple[float, float, float], width_mm: float, rng: np.random.Generator
) -> npt.NDArray[np.float32]:
    """Smooth noise of a large width, drawn on a coarse grid: many times faster, and as smooth."""
    step = width_mm / 2
    coarse = tuple(max(2, int(np.ceil(n * s / step)) + 1) for n, s in zip(shape, spacing, strict=True))
    field = smooth_noise((coarse[0], coarse[1], coarse[2]), (step, step, step), width_mm, rng)
    zoom = [n / c for n, c in zip(shape, coarse, strict=True)]
    return np.asarray(ndimage.zoom(field, zoom, order=1, mode="nearest", grid_mode=True)[tuple(map(slice, shape))])


def _stream(seed: int, scan_id: str, number: int) -> np.random.Generator:
    digest = hashlib.sha256(f"{seed}:{scan_id}:{number}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "little"))
