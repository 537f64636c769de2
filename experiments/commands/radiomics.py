"""``hepastage radiomics``: features of the liver and scikit-learn classifiers, as arms beside the networks."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the front door's parser."""
    parser = subparsers.add_parser(
        "radiomics",
        allow_abbrev=False,
        help="radiomics baseline: IBSI features of the liver, and classifiers of them as further arms",
        description="Computes IBSI features of the liver of each scan (kept; a second run computes what is missing), "
        "fits logistic regression, random forest and gradient boosting with inner cross-validation by patient, and "
        "writes run directories as fit and test do, so that 'hepastage compare DIR' puts them beside the networks.",
    )
    parser.add_argument("cohort", type=Path, metavar="COHORT", help="cohort table, .parquet or .csv")
    parser.add_argument("--splits", type=Path, required=True, metavar="SPLITS.json", help="the split file")
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="the study's folder: of networks too, such as runs/liver"
    )
    parser.add_argument(
        "--model",
        action="append",
        choices=("logistic", "forest", "boosting"),
        default=[],
        help="a classifier, may be repeated (default: all three)",
    )
    parser.add_argument("--sequence", action="append", default=[], metavar="NAME", help="repeatable (default: all)")
    parser.add_argument("--fold", action="append", type=int, default=[], metavar="N", help="a fold (default: all)")
    parser.add_argument("--seed", action="append", type=int, default=[], metavar="S", help="repeatable (default 0)")
    parser.add_argument("--arm", default="radiomics", metavar="NAME", help="begin of the arms' names (radiomics)")
    masks = parser.add_argument_group("the liver")
    masks.add_argument(
        "--mask-source",
        choices=("reference", "out_of_fold", "external"),
        help="where the liver's mask comes from (default: reference, or out_of_fold with --masks)",
    )
    masks.add_argument("--masks", type=Path, metavar="DIR", help="folder of predicted masks with their record")
    features = parser.add_argument_group("features")
    features.add_argument(
        "--spacing", type=_spacing, default=(3.0, 3.0, 3.0), metavar="X,Y,Z", help="mm, or native (default 3,3,3)"
    )
    features.add_argument("--by-slice", action="store_true", help="texture within axial slices, for thick slices")
    features.add_argument(
        "--families",
        type=_words,
        metavar="NAME,…",
        help="shape, firstorder, histogram, glcm, glrlm, glszm, gldzm, ngtdm, gldm (default: all but gldzm)",
    )
    features.add_argument(
        "--normalisation",
        choices=("standardisation", "range", "none"),
        default="standardisation",
        help="of intensities over the body (default: standardisation)",
    )
    bins = features.add_mutually_exclusive_group()
    bins.add_argument("--bins", type=int, metavar="N", help="grey levels within the liver (default 32)")
    bins.add_argument("--bin-width", type=float, metavar="W", help="width of a grey level, after normalisation")
    features.add_argument("--wavelet", default="coif1", metavar="NAME", help="coif1, db2, …, or none (default coif1)")
    features.add_argument(
        "--log-sigma", type=_numbers, default=(3.0, 5.0), metavar="MM,…", help="of Laplacian-of-Gaussian, or none (3,5)"
    )
    features.add_argument("--features", type=Path, metavar="DIR", help="where they are kept (default: OUT/radiomics)")
    parser.add_argument("--workers", type=int, metavar="N", help="processes (default: the usable cores)")
    parser.add_argument("--no-progress", action="store_true", help="show no progress bar")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the baseline. Returns 0; faults are raised as InputError."""
    import sys

    from datamodules.errors import InputError
    from datamodules.store_fill import usable_cores
    from experiments.radiomics import RadiomicsStudy, run_radiomics
    from experiments.radiomics_features import USUAL, FeatureSettings, require_mirp
    from experiments.radiomics_models import MODELS

    if args.workers is not None and args.workers < 1:
        raise InputError(f"--workers {args.workers}: give at least 1")
    require_mirp()
    settings: dict[str, Any] = {} if args.bin_width is None else {"bins": None, "bin_width": args.bin_width}
    if args.bins is not None:
        settings["bins"] = args.bins
    study = RadiomicsStudy(
        cohort=args.cohort,
        splits=args.splits,
        out=args.out,
        models=tuple(dict.fromkeys(args.model)) or MODELS,
        sequences=tuple(dict.fromkeys(args.sequence)),
        mask_source=args.mask_source or ("reference" if args.masks is None else "out_of_fold"),
        masks=args.masks,
        settings=FeatureSettings(
            spacing=args.spacing,
            by_slice=args.by_slice,
            families=USUAL if args.families is None else args.families,
            normalisation=args.normalisation,
            wavelet=None if args.wavelet == "none" else args.wavelet,
            log_sigma=args.log_sigma,
            **settings,
        ),
        arm=args.arm,
        folds=tuple(dict.fromkeys(args.fold)) or None,
        seeds=tuple(dict.fromkeys(args.seed)) or (0,),
        kept=args.features,
        workers=usable_cores() if args.workers is None else args.workers,
        progress=not args.no_progress,
    )
    run_radiomics(study, sys.argv[2:], lambda line: print_line(line))
    sys.stdout.write(f"compare with: hepastage compare {args.out} --out {args.out / 'comparison'}\n")
    return 0


def print_line(line: str) -> None:
    """One line of progress."""
    import sys

    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _words(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _numbers(text: str) -> tuple[float, ...]:
    if text.strip() == "none":
        return ()
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: give numbers of mm divided by commas, or none") from error


def _spacing(text: str) -> tuple[float, float, float] | None:
    if text.strip() == "native":
        return None
    values = _numbers(text)
    if len(values) != 3:
        raise argparse.ArgumentTypeError(f"{text!r}: give three values in mm, such as 3,3,3, or native")
    return values[0], values[1], values[2]
