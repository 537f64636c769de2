"""``hepastage masks``: out-of-fold masks for a whole cohort, or masks from elsewhere."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from datamodules.errors import InputError
from datamodules.files import read_json
from experiments.inference import Inference, add_arguments

if TYPE_CHECKING:
    from datamodules.masks import MaskSet

FOR_EXTERNAL = ("--pattern", "--label", "--maker", "--trained-on", "--sequence", "--allow-missing")
FOR_SEGMENTERS = ("--mirror", "--precision", "--largest-component", "--variations", "--wandb", "--wandb-patients")


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "masks",
        help="out-of-fold liver masks for a whole cohort, with provenance",
        description=(
            "Predict a mask for every scan by segmenters that did not train on its patient (resumable); or, with "
            "--external, bring in masks that were made elsewhere."
        ),
        allow_abbrev=False,
    )
    parser.add_argument(
        "runs", metavar="RUN_OR_STUDY", nargs="?", help="a segmenter's run directory, or a folder of several"
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for the masks and their record")
    parser.add_argument(
        "--cohort", metavar="COHORT", help="another cohort than the segmenters' own; with --external, the masks' cohort"
    )
    add_arguments(parser)
    parser.add_argument(
        "--variations",
        action="store_true",
        help="where one segmenter alone may predict a patient, compare its predictions of six variations of the scan: "
        "puts scans in an order, gives no band",
    )
    external = parser.add_argument_group("masks from elsewhere")
    external.add_argument("--external", metavar="FOLDER", help="folder of masks by TotalSegmentator, nnU-Net, readers")
    external.add_argument(
        "--pattern", metavar="NAME", help="a mask's name below it, with {id} of the scan or {patient} ({id}.nii.gz)"
    )
    external.add_argument("--label", metavar="N[,N...]", help="values that are liver, such as 5 (any value but zero)")
    external.add_argument("--maker", metavar="WORDS", help="who made them, such as 'TotalSegmentator v2.4'; required")
    external.add_argument(
        "--trained-on", metavar="FILE", help="patients that the maker trained on, one id a line; unknown if not given"
    )
    external.add_argument("--sequence", action="append", metavar="NAME", help="only scans of this sequence")
    external.add_argument("--allow-missing", action="store_true", help="record scans without a mask; no error")
    parser.add_argument(
        "--wandb",
        action=argparse.BooleanOptionalAction,
        help="log as a W&B run of job type 'masks' (default: where the segmenters log to W&B)",
    )
    parser.add_argument("--wandb-patients", action="store_true", help="with masks.json, which names patients and scans")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Make the masks, or bring them in, and say what came out."""
    if options.external is not None:
        _bring_in(options)
        return 0
    given = [word for word in FOR_EXTERNAL if getattr(options, word.lstrip("-").replace("-", "_"))]
    if given:
        raise InputError(f"{', '.join(given)}: only with --external FOLDER; add it, or leave them out")
    if options.runs is None:
        raise InputError("RUN_OR_STUDY is missing: give a segmenter's run or a study, or masks as --external FOLDER")
    from experiments.masks import make_masks
    from experiments.quality import report_lines

    cohort = None if options.cohort is None else Path(options.cohort)
    masks = make_masks(Path(options.runs), Path(options.out), cohort, Inference.of(options), options.variations)
    _tell(masks, options.out)
    report = read_json(Path(options.out) / "quality.json", "how well agreement stands for Dice")
    sys.stdout.writelines(f"{line}\n" for line in report_lines(report))
    from experiments.wandb_runs import Sharing
    from experiments.wandb_stages import log_masks

    log_masks(Path(options.out), Path(options.runs), Sharing(patients=options.wandb_patients), wanted=options.wandb)
    return 0


def _bring_in(options: argparse.Namespace) -> None:
    """Check, copy and record masks that were made elsewhere."""
    given = [word for word in FOR_SEGMENTERS if getattr(options, word.lstrip("-").replace("-", "_"))]
    if options.runs is not None or given:
        words = ", ".join(given + ([options.runs] if options.runs is not None else []))
        raise InputError(f"{words}: has no part in bringing masks in; leave it out, or leave --external out")
    needed = {"--cohort": options.cohort, "--maker": options.maker}
    absent = [word for word, value in needed.items() if value is None]
    if absent:
        raise InputError(f"{', '.join(absent)}: is missing; --external needs the cohort and the masks' maker")
    from experiments.external_masks import ExternalMasks, import_masks

    source = ExternalMasks(
        folder=Path(options.external),
        pattern=options.pattern or "{id}.nii.gz",
        labels=_labels(options.label),
        maker=options.maker,
        trained_on=None if options.trained_on is None else Path(options.trained_on),
        allow_missing=options.allow_missing,
    )
    masks = import_masks(source, Path(options.cohort), Path(options.out), options.sequence or ())
    _tell(masks, options.out)
    if masks.missing:
        sys.stdout.write(f"{len(masks.missing)} scans without a mask: {', '.join(masks.missing)}\n")


def _labels(text: str | None) -> tuple[int, ...]:
    """The values of ``--label``."""
    parts = [] if text is None else text.split(",")
    if any(not part.strip().isdigit() or int(part) == 0 for part in parts):
        raise InputError(f"--label {text}: give positive whole numbers, such as 5 or 1,2")
    return tuple(int(part) for part in parts)


def _tell(masks: MaskSet, out: str) -> None:
    """One line: how many masks, how good, and from what their quality bands come."""
    records = masks.masks.values()
    scores = [record.dice for record in records if record.dice is not None]
    text = f"{len(records)} masks in {out}"
    if scores:
        text += f"; Dice against the reference: mean {sum(scores) / len(scores):.3f}, worst {min(scores):.3f}"
    origins = {"reference": "Dice", "reader": "the reader", "agreement": "agreement"}
    counts = [f"{sum(r.quality_from == key for r in records)} from {words}" for key, words in origins.items()
              if any(r.quality_from == key for r in records)]  # fmt: skip
    bands = [sum(record.quality == band for record in records) for band in (1, 2, 3)]
    if counts:
        text += f"; quality bands 1, 2, 3: {bands[0]}, {bands[1]}, {bands[2]} ({', '.join(counts)})"
    sys.stdout.write(text + "\n")
