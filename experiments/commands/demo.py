"""``hepastage demo``: from nothing to a defended comparison."""

from __future__ import annotations

import argparse
from pathlib import Path


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "demo",
        help="compare segmentation-first with direct classification on a phantom cohort, in minutes",
        description="Make phantom patients, train segmenters, make out-of-fold masks, train both arms, compare them.",
        allow_abbrev=False,
    )
    parser.add_argument("--out", default="runs/demo", metavar="DIR", help="folder of the demo (runs/demo)")
    parser.add_argument("--patients", type=int, default=100, metavar="N", help="phantom patients (100)")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="seed of cohort, split and training (0)")
    parser.add_argument(
        "--shortcut",
        action="store_true",
        help="plant a mark outside the liver that goes with the label in training, not in the test set",
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run the demo."""
    from experiments.demo import run_demo

    return run_demo(Path(options.out), options.patients, options.seed, shortcut=options.shortcut)
