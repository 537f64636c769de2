"""A study's run directories with made-up predictions: arms × folds × seeds on the same patients."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.special import expit

from datamodules.records import read_records, write_records

ENDED = "2026-01-05T08:30:00+00:00"
"""Half an hour after the start."""


def targets(patients: int, classes: int = 2) -> np.ndarray:
    """Balanced classes in a fixed order."""
    return np.arange(patients) % classes


def make_study(
    root: Path,
    *,
    patients: int = 60,
    folds: int = 3,
    seeds: int = 2,
    strengths: dict[str, float] | None = None,
    fixed_test: bool = False,
    classes: int = 2,
    name: str = "study",
    split: str = "5a" * 32,
) -> Path:
    """Write ``root/name/arm/cell/predictions.parquet`` for every arm, fold and seed.

    ``strengths`` maps an arm to the distance in standard deviations between classes.
    """
    truth = targets(patients, classes)
    ids = np.array([f"P{index:03d}" for index in range(patients)])
    common = np.random.default_rng(1).normal(size=patients)
    for place, (arm, strength) in enumerate((strengths or {"direct": 1.0, "segmentation_first": 1.8}).items()):
        for seed in range(seeds):
            for fold in range(folds):
                rows = (
                    np.arange(patients)
                    if fixed_test
                    else np.flatnonzero(np.arange(patients) // classes % folds == fold)
                )
                generator = np.random.default_rng([place, seed, fold])
                noise = 0.6 * common[rows] + 0.8 * generator.normal(size=len(rows))
                frame = pd.DataFrame(
                    {
                        "patient_id": ids[rows],
                        "scan_id": [f"{patient}_T2W" for patient in ids[rows]],
                        "source": np.where(rows % 4 < 2, "site A", "site B"),
                        "sequence": "T2W",
                        "study": name,
                        "arm": arm,
                        "seed": seed,
                        "fold": fold,
                        "part": "test",
                        "split_sha256": split,
                        "target": truth[rows],
                        "mask_source": "none" if arm == "direct" else "out_of_fold",
                    }
                )
                if classes == 2:
                    frame["prob"] = expit(strength * (truth[rows] - 0.5) + noise)
                    frame["threshold"] = 0.5
                else:
                    latent = strength * truth[rows] + noise
                    logits = -((latent[:, None] - strength * np.arange(classes)) ** 2)
                    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
                    frame = frame.assign(**{f"prob_{index}": shares[:, index] for index in range(classes)})
                frame["quality"] = pd.array([None] * len(rows) if arm == "direct" else rows % 3 + 1, dtype="Int64")
                # inside the bands that quality names: below 0.85, from there to 0.93, from there on
                frame["mask_dice"] = np.nan if arm == "direct" else 0.78 + 0.07 * (rows % 3) + 0.0005 * rows
                run = root / name / arm / f"fold{fold}seed{seed}"
                write_records(frame, run / "predictions.parquet")
                provenance = {
                    "git_sha": "0123456789abcdef", "git_dirty": False, "split_sha256": split,
                    "cohort_sha256": "c0" * 32,
                    "versions": {"torch": "2.11", "lightning": "2.6.6"}, "command": "hepastage fit -c direct.yaml",
                    "hardware": {"cores": 2, "accelerators": []}, "started": "2026-01-05T08:00:00+00:00",
                }  # fmt: skip
                (run / "provenance.json").write_text(json.dumps(provenance), encoding="utf-8")
                done = {"fit": {"finished": "2026-01-05T08:29:00+00:00"}, "test": {"finished": ENDED}}
                (run / "done.json").write_text(json.dumps(done), encoding="utf-8")
    return root / name


def add_segmenter(study: Path, arm: str = "segmenter", patients: int = 60, folds: int = 3, shift: float = 0.0) -> None:
    """Add a segmentation arm with overlays to a study that ``make_study`` made."""
    from PIL import Image

    ids = np.array([f"P{index:03d}" for index in range(patients)])
    for fold in range(folds):
        rows = np.flatnonzero(np.arange(patients) // 2 % folds == fold)
        generator = np.random.default_rng([7, fold])
        dice = np.clip(0.97 - shift - generator.gamma(1.2, 0.03, len(rows)), 0, 1)
        volume = generator.normal(1500, 250, len(rows))
        run = study / arm / f"fold{fold}"
        frame = pd.DataFrame(
            {
                "patient_id": ids[rows], "scan_id": [f"{patient}_T2W" for patient in ids[rows]], "source": "site A",
                "sequence": "T2W", "study": study.name, "arm": arm, "seed": 0, "fold": fold, "part": "test",
                "split_sha256": "5a" * 32, "dice": dice, "iou": dice / (2 - dice), "hd95_mm": 80 * (1 - dice),
                "assd_mm": 20 * (1 - dice), "volume_ml": volume * (0.9 + 0.2 * dice), "reference_volume_ml": volume,
            }
        )  # fmt: skip
        write_records(frame, run / "predictions.parquet")
        (run / "overlays").mkdir(parents=True, exist_ok=True)
        axis = np.linspace(-1, 1, 160)
        for index, scan in enumerate(frame["scan_id"]):
            disc = (axis[:, None] ** 2 / 0.5 + axis[None, :] ** 2 < 0.6).astype(float)
            grey = 90 * disc[..., None] + generator.normal(40, 12, (160, 160, 1)).clip(0, 255)
            picture = np.repeat(grey, 3, axis=2)
            edge = np.abs(axis[:, None] ** 2 / 0.5 + axis[None, :] ** 2 - dice[index] * 0.6) < 0.02
            picture[edge] = (80, 220, 120)
            tiles = np.concatenate([picture, picture[:, ::-1], picture], axis=1)
            Image.fromarray(tiles.clip(0, 255).astype(np.uint8)).save(run / "overlays" / f"{scan}.png")


def add_attention(study: Path, arm: str) -> None:
    """Add pictures ``attention/<scan_id>.png`` to an arm's runs, too large to be shown as they are."""
    from PIL import Image

    axis = np.linspace(-1, 1, 480)
    for path in study.glob(f"{arm}/*/predictions.parquet"):
        folder = path.parent / "attention"
        folder.mkdir(exist_ok=True)
        for place, row in enumerate(read_records(path).head(8).to_dict("records")):
            generator = np.random.default_rng(place)
            body = (axis[:, None] ** 2 / 0.5 + axis[None, :] ** 2 < 0.6) * 90 + generator.normal(30, 9, (480, 480))
            heat = np.exp(-((axis[:, None] - 0.1) ** 2 + (axis[None, :] + 0.3 - 0.05 * place) ** 2) / 0.04)
            picture = np.stack([body + 150 * heat, body + 60 * heat, body], axis=-1).clip(0, 255).astype(np.uint8)
            tiles = np.concatenate([picture] * 3, axis=1)
            Image.fromarray(tiles).save(folder / f"{row['scan_id']}.png")


def add_people(study: Path) -> None:
    """Add sex and age in years to every row of a study."""
    for path in study.glob("*/*/predictions.parquet"):
        rows = read_records(path)
        number = rows["patient_id"].str[1:].astype(int)
        sex = pd.Series(np.where(number % 3 == 0, "F", "M"), index=rows.index)
        write_records(rows.assign(sex=sex, age=(30 + (number * 7) % 50).astype(float)), path)
