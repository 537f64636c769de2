"""``hepastage grid``: run a study's cells and say how far it is."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command group."""
    group = subparsers.add_parser(
        "grid",
        help="run a study: segmenters, out-of-fold masks and all arms, over folds and seeds",
        description="A study file names arms, folds and seeds over one cohort and one split. Finished cells are kept.",
        allow_abbrev=False,
    )
    actions = group.add_subparsers(title="actions", metavar="ACTION", required=True)
    run = actions.add_parser("run", help="train and test what is not done yet", allow_abbrev=False)
    status = actions.add_parser("status", help="what is done, begun and missing; reads files only", allow_abbrev=False)
    for parser in (run, status):
        parser.add_argument("study", type=Path, metavar="STUDY.yaml", help="the study file")
        parser.add_argument("--runs", type=Path, default=Path("runs"), metavar="DIR", help="folder of all runs (runs)")
    run.add_argument("--cohort", type=Path, metavar="COHORT", help="the cohort table, where the study names none")
    run.add_argument("--splits", type=Path, metavar="SPLITS.json", help="the split, where the study names none")
    run.add_argument("--store", type=Path, metavar="DIR", help="folder of preprocessed scans (RUNS/store)")
    run.set_defaults(run=handle_run)
    status.set_defaults(run=handle_status)


def handle_run(options: argparse.Namespace) -> int:
    """Run the cells one after the other; 1 where one failed.

    Raises:
        InputError: Cohort or split is named neither in the study nor on the command line.
    """
    from datamodules.errors import InputError
    from experiments.grid import run_study
    from experiments.study import Study

    study = Study.load(options.study)
    cohort: Path | None = options.cohort or study.cohort
    splits: Path | None = options.splits or study.splits
    if cohort is None or splits is None:
        missing = [name for name, value in (("cohort", cohort), ("splits", splits)) if value is None]
        raise InputError(*(f"{options.study}: {name}: is not set; set it there or give --{name}" for name in missing))
    failures = run_study(study, cohort, splits, options.runs, options.store or options.runs / "store")
    for failure in failures:
        sys.stderr.write(f"hepastage: {failure}\n")
    if not failures:
        sys.stdout.write(
            f"all cells done; compare them with 'hepastage compare {options.runs / study.name} --out DIR'\n"
        )
    return 1 if failures else 0


def handle_status(options: argparse.Namespace) -> int:
    """Print a line for each arm: cells done, cells begun but not finished."""
    from experiments.study import Study

    study = Study.load(options.study)
    arms = [*([study.segmenter.name] if study.segmenter else []), *(arm.name for arm in study.arms)]
    width = max(map(len, arms))
    for arm in arms:
        cells = sorted((options.runs / study.name / arm).glob("*/config.yaml"))
        done = [cell for cell in cells if "test" in _finished(cell.parent / "done.json")]
        sys.stdout.write(f"{arm:<{width}}  {len(done)} done  {len(cells) - len(done)} begun, not finished\n")
    return 0


def _finished(path: Path) -> dict[str, object]:
    """The content of a ``done.json``; empty where there is none."""
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}
