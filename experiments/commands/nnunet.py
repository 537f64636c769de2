"""``hepastage nnunet …``: data, weights and predictions from and to nnU-Net v2."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

Subparsers = argparse._SubParsersAction  # the only name that argparse gives this type


def register(subparsers: Subparsers[argparse.ArgumentParser]) -> None:
    """Add ``nnunet export``, ``import`` and ``import-predictions`` to the front door's parser."""
    parser = subparsers.add_parser(
        "nnunet", help="exchange data, trained models and predictions with nnU-Net v2", allow_abbrev=False
    )
    commands = parser.add_subparsers(dest="nnunet_command", metavar="COMMAND", required=True)
    _register_export(commands)
    _register_import(commands)
    _register_predictions(commands)


def _register_export(commands: Subparsers[argparse.ArgumentParser]) -> None:
    about = "write a cohort as nnU-Net's raw data set, with the split's folds as splits_final.json"
    parser = commands.add_parser("export", help=about, description=about, allow_abbrev=False)
    parser.add_argument("cohort", type=Path, metavar="COHORT", help="cohort table, .parquet or .csv")
    parser.add_argument("--splits", type=Path, required=True, metavar="SPLITS.json", help="its split file")
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="nnUNet_raw; or the folder DatasetXXX_Name itself"
    )
    parser.add_argument("--sequence", metavar="NAME", help="T1W, T2W, …; left out where the cohort has one")
    parser.add_argument("--id", type=int, default=1, metavar="XXX", help="number of the data set (default 1)")
    parser.add_argument("--name", default="Liver", metavar="NAME", help="name of the data set (default Liver)")
    parser.set_defaults(run=_export)


def _register_import(commands: Subparsers[argparse.ArgumentParser]) -> None:
    about = "make a hepastage checkpoint of a model that nnU-Net trained; all its folds are averaged"
    parser = commands.add_parser("import", help=about, description=about, allow_abbrev=False)
    parser.add_argument(
        "results", type=Path, metavar="RESULTS_DIR", help="nnUNetTrainer__nnUNetPlans__3d_fullres, with plans.json"
    )
    parser.add_argument(
        "--out", type=Path, required=True, metavar="CKPT", help="a file MODEL.ckpt, or a folder: a run directory"
    )
    parser.add_argument("--fold", action="append", metavar="K", help="only this fold, or 'all' (default: every fold)")
    parser.add_argument(
        "--checkpoint", default="checkpoint_final.pth", metavar="NAME", help="default checkpoint_final.pth"
    )
    parser.add_argument("--liver", metavar="LABEL", help="label of dataset.json that is liver (default: 'liver')")
    parser.add_argument("--sequence", metavar="NAME", help="what it segments (default: the channel's name)")
    parser.add_argument(
        "--splits-final", type=Path, metavar="JSON", help="splits_final.json (default: looked for where nnU-Net has it)"
    )
    parser.add_argument(
        "--cohort",
        type=Path,
        metavar="COHORT",
        help="says whose scan each case is, so that masks may serve classifiers",
    )
    parser.set_defaults(run=_import)


def _register_predictions(commands: Subparsers[argparse.ArgumentParser]) -> None:
    about = "take masks that nnU-Net predicted as 'external' masks, with their record"
    parser = commands.add_parser("import-predictions", help=about, description=about, allow_abbrev=False)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="what nnUNetv2_predict wrote: <case>.nii.gz")
    parser.add_argument(
        "--cohort", type=Path, required=True, metavar="COHORT", help="table whose scan ids the cases are"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for masks and masks.json")
    parser.add_argument(
        "--model", type=Path, metavar="CKPT", help="the imported model that made them: says whom it trained on"
    )
    parser.add_argument("--sequence", metavar="NAME", help="T1W, T2W, …; left out where the cohort has one")
    parser.add_argument(
        "--liver", metavar="LABEL", help="liver's label in dataset.json, or its value (default: 'liver')"
    )
    parser.add_argument("--trained-on", type=Path, metavar="TXT", help="patients that the model trained on, one a line")
    parser.add_argument("--allow-missing", action="store_true", help="record scans without a prediction; no error")
    parser.set_defaults(run=_predictions)


def _export(args: argparse.Namespace) -> int:
    from datamodules.cohort import Cohort
    from datamodules.splits import Splits
    from experiments.nnunet_export import export

    cohort = Cohort.load(args.cohort)
    done = export(cohort, Splits.load(args.splits, cohort), args.out, args.sequence, args.id, args.name)
    sys.stdout.write(
        f"{done.folder}: {len(done.training)} training and {len(done.test)} test cases, {done.folds} folds; "
        f"go on with nnUNetv2_plan_and_preprocess -d {done.folder.name[7:10]}\n"
    )
    return 0


def _import(args: argparse.Namespace) -> int:
    from experiments.nnunet_import import import_model

    model = import_model(
        args.results,
        args.out,
        folds=args.fold,
        checkpoint=args.checkpoint,
        liver=args.liver,
        sequence=args.sequence,
        splits_final=args.splits_final,
        cohort=args.cohort,
    )
    sys.stdout.write(f"{args.out}: {model.summary}; use it with hepastage predict --run {args.out}\n")
    return 0


def _predictions(args: argparse.Namespace) -> int:
    from experiments.nnunet_predictions import import_predictions

    masks = import_predictions(
        args.folder,
        args.cohort,
        args.out,
        args.model,
        args.sequence,
        args.liver,
        args.trained_on,
        args.allow_missing,
    )
    sys.stdout.write(f"{args.out}: {len(masks.masks)} masks\n")
    return 0
