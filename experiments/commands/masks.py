"""``hepastage masks``: out-of-fold masks for a whole cohort."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "masks",
        help="out-of-fold liver masks for a whole cohort, with provenance",
        description="Predict a mask for every scan by segmenters that did not train on its patient. Resumable.",
        allow_abbrev=False,
    )
    parser.add_argument("runs", metavar="RUN_OR_STUDY", help="a segmenter's run directory, or a folder of several")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for the masks and their record")
    parser.add_argument("--cohort", metavar="COHORT", help="another cohort than the segmenters' own")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Make the masks and say what came out."""
    from experiments.masks import make_masks

    cohort = None if options.cohort is None else Path(options.cohort)
    masks = make_masks(Path(options.runs), Path(options.out), cohort)
    scores = [record.dice for record in masks.masks.values() if record.dice is not None]
    text = f"{len(masks.masks)} masks in {options.out}"
    if scores:
        text += f"; Dice against the reference: mean {sum(scores) / len(scores):.3f}, worst {min(scores):.3f}"
    sys.stdout.write(text + "\n")
    return 0
