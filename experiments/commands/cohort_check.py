"""``hepastage cohort check``: find what is wrong with a cohort before the first epoch."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

Subparsers = argparse._SubParsersAction  # the only name that argparse gives this type


def register(subparsers: Subparsers[argparse.ArgumentParser]) -> None:
    """Add ``check`` to the commands of ``hepastage cohort``."""
    parser = subparsers.add_parser(
        "check",
        help="check the table and every file; exit 1 where a fault was found",
        description="Check a cohort's table, its files, and the scans against each other.",
        epilog="Exit 1 where a fault was found.",
        allow_abbrev=False,
    )
    parser.add_argument("cohort", type=Path, metavar="COHORT", help="cohort table, .parquet or .csv")
    parser.add_argument("--html", type=Path, metavar="PAGE", help="write a page with a thumbnail of every scan")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all findings and measurements")
    parser.add_argument("--workers", type=_positive, metavar="N", help="processes (default: one a core)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Check, print one line a finding and a summary, write what was asked for."""
    from datamodules.cohort_check import check_table
    from datamodules.cohort_check_rules import LEVELS
    from datamodules.files import write_json

    report = check_table(
        args.cohort, workers=args.workers, progress=sys.stderr.isatty(), thumbnails=args.html is not None
    )
    if args.json is not None:
        write_json(args.json, report.to_json())
    if args.html is not None:
        from experiments.cohort_page import write_cohort_page

        write_cohort_page(report, args.html)
    for finding in report.findings:
        sys.stdout.write(f"{finding.level}: {finding.code}: {' '.join(finding.message.split())}\n")
    numbers = ", ".join(
        f"{number} {level}{'' if number == 1 else 's'}" for level in LEVELS for number in [report.number(level)]
    )
    written = "".join(f"; written: {path}" for path in (args.html, args.json) if path is not None)
    sys.stdout.write(f"{args.cohort}: {len(report.scans)} scans checked: {numbers}{written}\n")
    return 1 if report.has_faults else 0


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive whole number")
    return value
