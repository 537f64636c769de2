"""A cohort that is small enough to train on in seconds: made by code, no randomness of the machine in it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd

from datamodules.cohort import Cohort
from datamodules.splits import Splits, make_splits

SHAPE = (24, 20, 8)
SPACING = (10.0, 10.0, 20.0)
PATIENTS = tuple(f"P{number:02d}" for number in range(1, 13))
TESTED = ("P03", "P04", "P09", "P10")
WITHOUT_T1W = "P05"
RULE = "lsm>12"

PREPROCESSING = ["--data.init_args.preprocessing", "{spacing: [10, 10, 20], shape: [24, 24, 8], normalisation: zscore}"]
"""Words that bring a configuration to the tiny grid."""
ONE_LOGGER = ["--trainer.logger", "[{class_path: callbacks.metrics_log.MetricsLog}]"]
"""Without W&B, which takes seconds to start."""
SEGMENTER = [
    *PREPROCESSING, *ONE_LOGGER, "--model.init_args.network.init_args.features", "[4, 8, 8, 8]",
    "--model.init_args.window", "null", "--model.init_args.optimizer.init_args.lr", "0.01",
    "--data.init_args.patch", "null", "--data.init_args.augmentation", "null",
    "--trainer.max_epochs", "12", "--trainer.check_val_every_n_epoch", "4", "--trainer.accelerator", "cpu",
]  # fmt: skip
"""A segmenter that learns the tiny livers in two seconds."""
CLASSIFIER = [
    *PREPROCESSING, *ONE_LOGGER, "--model.init_args.network.init_args.backbone", "resnet10t",
    "--data.init_args.augmentation", "null", "--trainer.max_epochs", "1", "--trainer.accelerator", "cpu",
]  # fmt: skip
"""A classifier that trains for one epoch on the tiny grid."""


@dataclasses.dataclass(frozen=True)
class Tiny:
    """The tiny cohort on disk.

    Attributes:
        folder: Where all lies.
        cohort: The table.
        splits: Fixed test part, two folds.
    """

    folder: Path
    cohort: Path
    splits: Path

    @property
    def table(self) -> Cohort:
        """The cohort, read anew."""
        return Cohort.load(self.cohort)

    @property
    def split(self) -> Splits:
        """The split, read anew."""
        return Splits.load(self.splits, self.table)

    def words(self, *configs: str, runs: Path, store: Path | None = None) -> list[str]:
        """Words of ``hepastage fit`` for some configurations."""
        words = [word for config in configs for word in ("-c", config)]
        words += ["--runs", str(runs), "--data.init_args.cohort", str(self.cohort)]
        words += ["--data.init_args.splits", str(self.splits)]
        return [*words, "--data.init_args.store", str(store or self.folder / "store")]


def affine_of(kind: str) -> np.ndarray:
    """An affine with ``SPACING``: ``ras``, ``lps`` (two axes flipped) or ``oblique`` (tilted by 17 degrees)."""
    affine = np.diag([*SPACING, 1.0])
    if kind == "lps":
        affine[0, 0], affine[1, 1] = -SPACING[0], -SPACING[1]
        affine[:3, 3] = (120.0, 95.0, -70.0)
    elif kind == "oblique":
        angle = np.deg2rad(17)
        tilt = np.array([[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]])
        affine[:3, :3] = tilt @ np.diag(SPACING)
        affine[:3, 3] = (-100.0, -90.0, -60.0)
    return affine


def phantom(seed: int, bright: float, kind: str = "ras") -> tuple[np.ndarray, np.ndarray]:
    """Image (int16) and liver mask (uint8) of shape ``SHAPE``: a body with a liver on the patient's right.

    Args:
        seed: Of the noise and of the liver's place.
        bright: Signal of the liver; the body has 100.
        kind: The affine that the voxels will get; ``lps`` turns the arrays so that the anatomy stays.
    """
    rng = np.random.default_rng(seed)
    i, j, k = np.meshgrid(*(np.arange(n) for n in SHAPE), indexing="ij")
    body = ((i - 11.5) / 11) ** 2 + ((j - 9.5) / 9) ** 2 < 1
    shift = rng.uniform(-1, 1, 3)
    place = ((i - 15.5 - shift[0]) / 5.5) ** 2 + ((j - 9.5 - shift[1]) / 5.5) ** 2 + ((k - 4 - shift[2] / 2) / 3.2) ** 2
    liver = body & (place < 1)
    image = np.where(liver, bright, np.where(body, 100.0, 0.0)) + rng.normal(0, 8, SHAPE)
    image, mask = np.clip(image, 0, None).astype(np.int16), liver.astype(np.uint8)
    return (image[::-1, ::-1].copy(), mask[::-1, ::-1].copy()) if kind == "lps" else (image, mask)


def write(path: Path, data: np.ndarray, affine: np.ndarray, sform: int = 1, qform: int = 1) -> Path:
    """Write a NIfTI file by nibabel, independent of our own writer."""
    image = nib.Nifti1Image(data, affine)
    image.set_sform(affine, sform)
    image.set_qform(affine, qform)
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(image, path)
    return path


def frame_of(folder: Path, patients: tuple[str, ...] = PATIENTS) -> pd.DataFrame:
    """Write the scans and return their rows; odd patients have 20 kPa and a bright liver, even ones 5 kPa."""
    rows = []
    for number, patient in enumerate(patients, start=1):
        kind = ("ras", "lps", "oblique")[number % 3]
        for sequence in ("T1W", "T2W"):
            if sequence == "T1W" and patient == WITHOUT_T1W:
                continue
            scan = f"{patient}_{sequence}"
            bright = (220.0 if number % 2 else 190.0) if sequence == "T2W" else 160.0
            image, mask = phantom(10 * number + (sequence == "T2W"), bright, kind)
            write(folder / "images" / f"{scan}.nii.gz", image, affine_of(kind))
            write(folder / "masks" / f"{scan}.nii.gz", mask, affine_of(kind))
            rows.append(
                {
                    "scan_id": scan,
                    "patient_id": patient,
                    "sequence": sequence,
                    "image": f"images/{scan}.nii.gz",
                    "mask": f"masks/{scan}.nii.gz",
                    "mask_labels": "1",
                    "source": "A" if number <= len(patients) // 2 else "B",
                    "lsm_kpa": 20.0 if number % 2 else 5.0,
                    "stage": number % 3 + 1,
                    "sex": "F" if number % 4 < 2 else "M",
                    "age": 40.0 + number,
                    "official_split": "test" if patient in TESTED else "train",
                }
            )
    return pd.DataFrame(rows)


def make(folder: Path) -> Tiny:
    """Write the cohort and its split: four patients are tested in both folds, the others rotate through valid."""
    table = folder / "cohort.parquet"
    cohort = Cohort(frame_of(folder), folder, str(table))
    cohort.save(table)
    splits = folder / "splits.json"
    make_splits(Cohort.load(table), RULE, folds=2, seed=0, official=True).save(splits)
    return Tiny(folder, table, splits)
