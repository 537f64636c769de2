"""``hepastage preprocess``: fill the store before any run needs it."""

from __future__ import annotations

import argparse


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the front door's parser."""
    parser = subparsers.add_parser(
        "preprocess",
        allow_abbrev=False,
        help="bring every scan to the networks' grid and keep it in a store",
        description="Preprocess the scans of a cohort in parallel and keep them in a store. Runs make what is missing "
        "themselves; this does it ahead, with all faults of all scans reported together. A second call with the same "
        "files and settings does nothing.",
    )
    parser.add_argument("cohort", metavar="COHORT", help="cohort table, .parquet or .csv")
    parser.add_argument("--store", required=True, metavar="DIR", help="folder of the store; made where missing")
    parser.add_argument(
        "--spacing",
        metavar="X,Y,Z",
        type=_spacing,
        help="voxel size in mm along left-right, posterior-anterior, inferior-superior; 'native' keeps an axis "
        "(default: native,native,native)",
    )
    parser.add_argument(
        "--shape", metavar="I,J,K", type=_shape, help="voxels after cropping or padding about the centre (default: all)"
    )
    parser.add_argument(
        "--normalisation",
        choices=("zscore", "percentile", "nyul", "none"),
        default="zscore",
        help="zscore: over the body; percentile: the window from 0.5 to 99.5 %% becomes 0 to 1; nyul: histogram "
        "matched to the training patients of --splits and --fold (default: zscore)",
    )
    parser.add_argument("--splits", metavar="SPLITS.json", help="nyul only: the split file")
    parser.add_argument("--fold", metavar="N", type=int, help="nyul only: the fold, counted from 0")
    parser.add_argument(
        "--mask-interpolation",
        choices=("linear", "nearest"),
        default="linear",
        help="how reference masks are resampled; linear: cut at a share of one half (default: linear)",
    )
    parser.add_argument("--bias-correction", action="store_true", help="correct the coil's shading by N4; slow")
    parser.add_argument("--workers", metavar="N", type=int, help="processes (default: the usable cores)")
    parser.add_argument("--no-progress", action="store_true", help="show no progress bar")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Fill the store. Returns 0; faults are raised as InputError."""
    import sys

    from datamodules.cohort import Cohort
    from datamodules.errors import InputError
    from datamodules.preprocessing import Preprocessing
    from datamodules.store import Store

    if args.workers is not None and args.workers < 1:
        raise InputError(f"--workers {args.workers}: give at least 1")
    cohort = Cohort.load(args.cohort)
    preprocessing = Preprocessing(
        spacing=args.spacing,
        shape=args.shape,
        normalisation=args.normalisation,
        landmarks=_landmarks(args, cohort),
        mask_interpolation=args.mask_interpolation,
        bias_correction=args.bias_correction,
    )
    store = Store(args.store, preprocessing)
    keys = store.fill(cohort, workers=args.workers, progress=not args.no_progress)
    sys.stdout.write(f"{len(keys)} scans are ready in {store.root}\n")
    return 0


def _landmarks(args: argparse.Namespace, cohort: object) -> tuple[float, ...]:
    from datamodules.cohort import Cohort
    from datamodules.errors import InputError

    if args.normalisation != "nyul":
        if args.splits is not None or args.fold is not None:
            raise InputError("--splits and --fold: only nyul learns from training patients; leave them out")
        return ()
    if args.splits is None or args.fold is None:
        raise InputError(
            "--normalisation nyul: give --splits and --fold, so that only training patients are learned from"
        )
    from pathlib import Path

    from datamodules.images import read_image
    from datamodules.normalisation import fit_nyul
    from datamodules.splits import Splits

    assert isinstance(cohort, Cohort)
    splits = Splits.load(Path(args.splits), cohort)
    if not 0 <= args.fold < len(splits.folds):
        raise InputError(f"--fold {args.fold}: {args.splits} has folds 0 to {len(splits.folds) - 1}")
    train = set(splits.folds[args.fold].train)
    return fit_nyul(read_image(scan.image).data for scan in cohort if scan.patient_id in train)


def _spacing(text: str) -> tuple[float | None, ...]:
    parts = text.split(",")
    if len(parts) != 3:
        raise argparse.ArgumentTypeError(f"{text!r}: give three values in mm, such as 1.5,1.5,3 or native,native,3")
    try:
        return tuple(None if part.strip() == "native" else float(part) for part in parts)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: give numbers of mm, or 'native'") from error


def _shape(text: str) -> tuple[int, ...]:
    try:
        parts = tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: give three whole numbers of voxels, such as 256,256,64") from error
    if len(parts) != 3:
        raise argparse.ArgumentTypeError(f"{text!r}: give three whole numbers of voxels, such as 256,256,64")
    return parts
