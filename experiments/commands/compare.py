"""``hepastage compare``: prediction records in, a defended comparison out."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``compare`` to the front door."""
    parser = subparsers.add_parser(
        "compare",
        help="compare arms on the same patients, with intervals and paired tests",
        description="Reads every predictions.parquet below study folders, and plain .parquet or .csv files (another "
        "group's model can be a row), and writes report.html, table.csv, table.md, table.tex and comparison.json.",
        allow_abbrev=False,
    )
    parser.add_argument("paths", nargs="*", type=Path, metavar="STUDY_DIR|FILE", help="study folders and files")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder for the report and tables")
    parser.add_argument(
        "--counts",
        metavar="tp=N,fn=N,tn=N,fp=N",
        help="in place of files: a published result's four counts, re-stated with intervals and what they can show",
    )
    parser.add_argument("--reference", metavar="ARM", help="arm that others are compared with (direct where present)")
    parser.add_argument("--metric", metavar="NAME", help="primary metric: auc, accuracy, kappa, macro_f1 …")
    parser.add_argument("--resamples", type=int, default=10_000, help="bootstrap resamples (10000)")
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap (0)")
    parser.add_argument("--level", type=float, default=0.95, help="confidence level (0.95)")
    parser.add_argument("--threshold", type=float, help="operating point for rows that recorded none")
    parser.add_argument("--margin", type=float, help="judge non-inferiority: largest loss that would not matter")
    parser.add_argument("--figures", action="store_true", help="also write the figures as SVG and PDF for a paper")
    parser.add_argument(
        "--map",
        default="",
        metavar="COLUMN=OWN,…",
        help="for plain files: which of their columns is which, such as prob=score,target=label,patient_id=case",
    )
    wandb = parser.add_argument_group(
        "Weights & Biases", "offline unless WANDB_MODE or the runs' logger says otherwise"
    )
    wandb.add_argument("--wandb", action="store_true", help="log the comparison as a run of job type 'compare'")
    wandb.add_argument(
        "--wandb-patients", action="store_true", help="with report.html and comparison.json, which name patients"
    )
    wandb.add_argument(
        "--wandb-report",
        action="store_true",
        help="write wandb-report.json, and online make a W&B Report and a saved view of it",
    )
    parser.set_defaults(run=handler)


def handler(args: argparse.Namespace) -> int:
    """Compare, write the files, print the answer."""
    from datamodules.errors import InputError

    if args.counts is not None:
        if args.paths:
            raise InputError("--counts stands in place of files; give one or the other")
        counts_and_print(args.counts, args.level, args.out)
        return 0
    faults = [] if args.paths else ["no study folder or file; name at least one, or give --counts"]
    faults += [] if args.out is not None else ["--out is missing; name a folder for the report and tables"]
    if faults:
        raise InputError(*faults)
    compare_and_print(
        args.paths,
        args.out,
        figures=args.figures,
        wandb=(args.wandb or args.wandb_patients, args.wandb_patients, args.wandb_report),
        reference=args.reference,
        metric=args.metric,
        resamples=args.resamples,
        level=args.level,
        seed=args.seed,
        mapping=parse_map(args.map),
        threshold=args.threshold,
        margin=args.margin,
    )
    return 0


def counts_and_print(text: str, level: float, out: Path | None = None) -> None:
    """Print a published result's intervals, from its counts.

    Args:
        text: ``tp=14,fn=4,tn=4,fp=1``.
        level: Confidence level in (0, 1).
        out: Folder for ``counts.json``; None writes nothing.

    Raises:
        InputError: The text is no set of counts, or the level is out of range.
    """
    from rich.console import Console

    from datamodules.errors import InputError
    from datamodules.files import write_json
    from experiments.compare_counts import as_json, as_rich, parse_counts, restated, sentences

    if not 0 < level < 1:
        raise InputError(f"--level {level}: a confidence level lies between 0 and 1; give 0.95 for 95 %")
    found = restated(**parse_counts(text), level=level)
    console = Console()
    console.print(as_rich(found))
    for sentence in sentences(found):
        console.print(f"  {sentence}", highlight=False, markup=False)
    if out is not None:
        write_json(out / "counts.json", as_json(found))


def compare_and_print(
    paths: Sequence[Path],
    out: Path,
    *,
    figures: bool = False,
    wandb: tuple[bool, bool, bool] = (False, False, False),
    **options: Any,
) -> None:
    """Compare the arms below some paths, write the files, and print table and sentences.

    Args:
        paths: See ``experiments.compare.compare``.
        out: Folder for the report and its tables.
        figures: Also write the figures below it, as SVG and PDF.
        wandb: Whether to log the comparison in W&B, with the files that name patients, and as a W&B Report.
        **options: Further arguments of ``experiments.compare.compare``.
    """
    from rich.console import Console

    from experiments.compare import compare
    from experiments.compare_tables import as_rich
    from experiments.report import write_outputs

    comparison = compare(paths, **options)
    written = write_outputs(comparison, out)
    if figures:
        from experiments.figures import write_figures

        for found in comparison.families:
            write_figures(found, out / "figures")
    console = Console()
    if comparison.verdict:
        console.print(comparison.verdict, style="bold red", highlight=False, markup=False)
    for found in comparison.families:
        console.print(as_rich(found, console.width))
        for sentence in found.sentences:
            console.print(f"  {sentence}", highlight=False, markup=False)
        console.print()
    for note in comparison.notes:
        console.print(f"Note: {note}", style="dim", highlight=False, markup=False)
    console.print(f"Report: {written[0]}", highlight=False, markup=False, soft_wrap=True)
    if any(wandb):
        from experiments.wandb_compare import to_wandb

        for line in to_wandb(comparison, out, written, paths, *wandb):
            console.print(line, highlight=False, markup=False, soft_wrap=True)


def parse_map(text: str) -> dict[str, str]:
    """``prob=score,target=label`` as a mapping from record column to the file's own.

    Raises:
        InputError: A part has no ``=``.
    """
    from datamodules.errors import InputError

    result = {}
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        column, sign, own = part.partition("=")
        if not sign or not column.strip() or not own.strip():
            raise InputError(f"--map {part}: no 'column=own'; write for example prob=score,target=label")
        result[column.strip()] = own.strip()
    return result
