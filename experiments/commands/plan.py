"""``hepastage plan``: spacing, patch, batch and network of a segmenter by nnU-Net's rules."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

PRESETS = ("plain", "residual-m", "residual-l", "residual-xl")
CONFIGURATIONS = ("3d_fullres", "3d_lowres", "2d", "all")

Subparsers = argparse._SubParsersAction  # the only name that argparse gives this type


def register(subparsers: Subparsers[argparse.ArgumentParser]) -> None:
    """Add ``plan`` to the front door's parser."""
    about = "plan a segmenter by nnU-Net's rules, as an overlay for 'hepastage fit -c segmentation -c PLAN.yaml'"
    parser = subparsers.add_parser("plan", help=about, description=about, allow_abbrev=False)
    parser.add_argument("cohort", type=Path, metavar="COHORT", help="cohort table, .parquet or .csv")
    parser.add_argument("--splits", type=Path, required=True, metavar="SPLITS.json", help="its split file")
    parser.add_argument(
        "--fold", type=int, default=0, metavar="K", help="only this fold's training patients are looked at (default 0)"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="PLAN.yaml", help="overlay to write")
    parser.add_argument("--sequence", metavar="NAME", help="T1W, T2W, …; left out where the cohort has one")
    parser.add_argument("--preset", choices=PRESETS, default="plain", help="nnU-Net's planner (default plain)")
    parser.add_argument(
        "--memory", type=float, metavar="GB", help="GPU memory to fill (default: the preset's 8, 8, 24 or 40)"
    )
    parser.add_argument(
        "--configuration",
        choices=CONFIGURATIONS,
        default="3d_fullres",
        help="which one (default 3d_fullres); all writes each to PLAN_<name>.yaml",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Plan, and name the files."""
    from experiments.plan_files import plan_experiment

    written = plan_experiment(
        args.cohort,
        args.splits,
        args.fold,
        args.out,
        sequence=args.sequence,
        preset=args.preset,
        memory_gb=args.memory,
        configuration=args.configuration,
        progress=True,
    )
    for name, path in written.items():
        sys.stdout.write(f"{path}: {name}\n")
    return 0
