"""``hepastage predict --run``: masks for new scans from a trained segmenter; patients go to another file."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console
from rich.progress import track

from callbacks.overlays import write_overlay
from callbacks.run_directory import RunDirectory
from datamodules.cohort import Cohort
from datamodules.errors import InputError
from datamodules.files import write_json
from datamodules.images import read_image, write_nifti
from experiments.cli import OneLineParser
from experiments.inference import Inference, add_arguments, mask_of, probability_of
from experiments.nnunet_segmenter import imported, open_segmenter
from experiments.quality import agreement_of
from experiments.trained_segmenter import check_no_overwriting, check_same_preprocessing

SUFFIXES = (".nii", ".nii.gz")
PROBABILITIES = "_prob.nii.gz"
FOR_SEGMENTERS = ("--overlays", "--probabilities", "--mirror", "--precision", "--largest-component")


def run_predict(arguments: Sequence[str]) -> int:
    """Parse the words after ``predict`` and segment.

    Args:
        arguments: ``--run DIR [--run DIR …] --data PATH --out DIR``.

    Returns:
        0.

    Raises:
        InputError: No image, a faulty image (after all others have been done), or no segmenter.
    """
    options = _parser().parse_args(list(arguments))
    out = Path(options.out)
    first = None if imported(Path(options.run[0])) else RunDirectory.existing(options.run[0])
    if first is not None and first.identity().role != "segmenter":
        from experiments.predict_patients import predict_patients

        if options.lifs:
            return _lifs(options)
        if len(options.run) > 1:
            raise InputError("--run: several runs are for segmenters; give one classifier alone")
        given = [word for word in FOR_SEGMENTERS if getattr(options, word.lstrip("-").replace("-", "_"))]
        if given:
            raise InputError(f"{', '.join(given)}: for segmenters, and {first.path} is a classifier; leave it out")
        masks = None if options.masks is None else Path(options.masks)
        return predict_patients(first, options.ckpt, Path(options.data), masks, out)
    if options.lifs:
        raise InputError(
            f"--lifs: is for models that stage patients, and {options.run[0]} is a segmenter; leave it out"
        )
    if options.masks is not None:
        raise InputError("--masks: is for classifiers that see a mask; a segmenter makes them")
    images = images_of(Path(options.data), out)
    segmenters = [open_segmenter(run, options.ckpt) for run in options.run]
    check_same_preprocessing(segmenters)
    inference = Inference.of(options)
    for segmenter in segmenters:
        segmenter.check(inference)
    targets = {name: out / f"{name}.nii.gz" for name in images}
    if options.probabilities:
        targets |= {f"{name} (probabilities)": out / f"{name}{PROBABILITIES}" for name in images}
        faults = [f"{name}{PROBABILITIES}: a mask and a probability map would have this name; rename the scan"
                  for name in images if f"{name}_prob" in images]  # fmt: skip
        if faults:
            raise InputError(*faults)
    check_no_overwriting(targets, images.values())
    faults = []
    record: dict[str, Any] = {
        "segmenters": {segmenter.checkpoint_sha256: str(segmenter.identity.study) for segmenter in segmenters},
        "inference": dataclasses.asdict(inference),
        "masks": {},
    }
    console = Console(file=sys.stderr)
    for name, path in track(images.items(), description="segmenting", console=console):
        try:
            image = read_image(path)
            log_odds = [segmenter.log_odds(image, inference) for segmenter in segmenters]
        except InputError as error:
            faults += error.faults
            continue
        mask = mask_of(log_odds, inference)
        write_nifti(out / f"{name}.nii.gz", mask, image.affine, like=path)
        if options.probabilities:
            write_nifti(out / f"{name}{PROBABILITIES}", probability_of(log_odds), image.affine, like=path)
        if options.overlays:
            write_overlay(out / "overlays" / f"{name}.png", image, mask)
        millilitres = float(mask.sum() * abs(_voxel_mm3(image.affine)) / 1000)
        record["masks"][name] = {"file": f"{name}.nii.gz", "volume_ml": round(millilitres, 2)}
        if len(log_odds) > 1:
            record["masks"][name] |= dataclasses.asdict(agreement_of(log_odds))
        console.print(f"{name}: liver {millilitres:.0f} ml", highlight=False)
    if record["masks"]:
        write_json(out / "predictions.json", record)
    if faults:
        raise InputError(*faults)
    return 0


def _lifs(options: argparse.Namespace) -> int:
    """The challenge's file, from one or several staging runs."""
    from experiments.lifs import write_lifs

    runs = [RunDirectory.existing(run) for run in options.run]
    wrong = [f"--run {run.path}: is a segmenter, and --lifs needs staging runs" for run in runs
             if run.identity().role == "segmenter"]  # fmt: skip
    if wrong:
        raise InputError(*wrong)
    masks = None if options.masks is None else Path(options.masks)
    return write_lifs(runs, options.ckpt, Path(options.data), masks, Path(options.out))


def images_of(path: Path, out: Path) -> dict[str, Path]:
    """Name and file of each image to predict.

    Args:
        path: A NIfTI file, a folder of them, or a cohort table.
        out: Where masks go. It may lie in the folder: what an earlier call left there is no image.

    Raises:
        InputError: Nothing is there, or two images would have one name.
    """
    if path.suffix in (".parquet", ".csv"):
        return {scan.scan_id: scan.image for scan in Cohort.load(path).scans}
    if path.is_file():
        return {_stem(path): path}
    found = path.rglob("*") if path.is_dir() else []
    inside = out.absolute() != path.absolute()
    files = sorted(
        file
        for file in found
        if file.name.endswith(SUFFIXES) and not (inside and file.absolute().is_relative_to(out.absolute()))
    )
    if not files:
        raise InputError(f"{path}: no NIfTI file there; give a .nii.gz file, a folder of them, or a cohort table")
    counts = pd.Series([_stem(file) for file in files]).value_counts()
    double = [str(name) for name, count in counts.items() if count > 1]
    if double:
        raise InputError(f"{path}: several files are called {', '.join(double)}; predict their folders one by one")
    return {_stem(file): file for file in files}


def _stem(path: Path) -> str:
    return path.name.removesuffix(".gz").removesuffix(".nii")


def _voxel_mm3(affine: object) -> float:
    import numpy as np

    return float(np.linalg.det(np.asarray(affine)[:3, :3]))


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(
        prog="hepastage predict",
        description="Segment new scans (several --run are averaged), or classify the patients of a cohort table.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--run",
        action="append",
        required=True,
        metavar="RUN",
        help="the run directory of a trained cell, or a model imported from nnU-Net",
    )
    parser.add_argument("--data", required=True, metavar="PATH", help="a NIfTI file, a folder, or a cohort table")
    parser.add_argument(
        "--out", required=True, metavar="DIR", help="folder for masks on the native grids, or predictions.csv"
    )
    parser.add_argument(
        "--masks", metavar="DIR", help="for a classifier that sees a mask: <scan_id>.nii.gz of each scan"
    )
    parser.add_argument(
        "--lifs",
        action="store_true",
        help="write CARE-Liver's LiFS_pred.csv; runs of one setting, with or without contrast, are averaged",
    )
    parser.add_argument("--ckpt", default="best", help="best, last or a checkpoint file (best)")
    parser.add_argument("--overlays", action="store_true", help="also draw each mask over its image")
    parser.add_argument(
        "--probabilities", action="store_true", help=f"also write <id>{PROBABILITIES}, float32 on the native grid"
    )
    add_arguments(parser)
    return parser
