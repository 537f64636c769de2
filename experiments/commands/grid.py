"""``hepastage grid``: plan a study's cells, run them, say how far they are, try failed ones again, clean up."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from experiments.grid_folder import GridFolder, Plan
    from experiments.grid_words import Places
    from experiments.study import Study


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command group."""
    group = subparsers.add_parser(
        "grid",
        help="run a study: segmenters, out-of-fold masks and all arms, over folds and seeds",
        description="A study file names arms, axes, folds and seeds over one cohort and one split. Finished cells are "
        "kept; a killed study goes on where it stopped. docs/grids.md explains the file.",
        allow_abbrev=False,
    )
    actions = group.add_subparsers(title="actions", metavar="ACTION", required=True)
    texts = {
        "plan": "resolve and check every cell; show what differs, and how long it may take",
        "run": "train and test what is not done yet",
        "status": "what is done, running, failed and waiting; reads small files only",
        "retry": "run failed cells again",
        "table": "one line a cell",
        "clean": "list unfinished and orphaned run directories; --yes removes them",
    }
    handlers = (handle_plan, handle_run, handle_status, handle_retry, handle_table, handle_clean)
    made: dict[str, argparse.ArgumentParser] = {}
    for (name, text), handler in zip(texts.items(), handlers, strict=True):
        made[name] = parser = actions.add_parser(name, help=text, description=text, allow_abbrev=False)
        parser.add_argument("study", type=Path, metavar="STUDY.yaml", help="the study file, or a shipped study's name")
        parser.add_argument("--smoke", action="store_true", help="its small variant: does all run through?")
        parser.add_argument("--runs", type=Path, default=Path("runs"), metavar="DIR", help="folder of all runs (runs)")
        parser.set_defaults(run=handler)
    for name in ("plan", "run", "retry"):
        parser = made[name]
        parser.add_argument(
            "--cohort", type=Path, metavar="COHORT", help="the cohort table, where the study names none"
        )
        parser.add_argument("--splits", type=Path, metavar="SPLITS.json", help="the split, where the study names none")
        parser.add_argument("--store", type=Path, metavar="DIR", help="folder of preprocessed scans (RUNS/store)")
    for name in ("run", "retry"):
        parser = made[name]
        parser.add_argument("--cores", type=int, metavar="N", help="processor cores to use (all)")
        parser.add_argument("--gpus", metavar="LIST", help="GPUs to use, such as 0-3 or 0,2 or none (all visible)")
        parser.add_argument("--slurm", type=Path, metavar="PROFILE.yaml", help="submit to SLURM: a Snakemake profile")
        parser.add_argument(
            "--keep-going",
            action=argparse.BooleanOptionalAction,
            default=True,
            help="a failed cell leaves the others to be started (yes)",
        )
        parser.add_argument("--cold", action="store_true", help="a new interpreter for each cell, not a warm worker")
        parser.add_argument("--wait", action="store_true", help="wait where another driver runs this study")
        parser.add_argument(
            "--only", action="append", default=[], metavar="KEY=VALUE", help="arm=…, fold=…, seed=…, or an axis; repeat"
        )
    made["retry"].add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="data.init_args.batch_size=N computes the same batch in smaller parts; the cell keeps its id",
    )
    made["plan"].add_argument("--cells", action="store_true", help="show each cell, not each arm")
    made["status"].add_argument("--watch", action="store_true", help="keep showing it until all is done")
    made["clean"].add_argument("--yes", action="store_true", help="remove what is listed")
    made["clean"].add_argument("--finished", action="store_true", help="also finished cells that no plan leads to")
    for name in ("plan", "status", "table"):
        made[name].add_argument("--json", action="store_true", help="print JSON")
    made["table"].add_argument("--csv", action="store_true", help="print CSV, with a column an axis")
    schema = actions.add_parser("schema", help="print the JSON schema of study files, for editors", allow_abbrev=False)
    schema.set_defaults(run=handle_schema)


def handle_plan(options: argparse.Namespace) -> int:
    """Resolve every cell by the real parser; the first lie, or all of them, end it with 2."""
    from experiments.grid_folder import study_folder
    from experiments.grid_resolve import make_plan
    from experiments.grid_status import overview, plan_text
    from experiments.grid_words import code_state, reason_of

    study, places = _request(options)
    folder = study_folder(places.runs, study.name)
    code = code_state(folder.path / "diffs")
    plan = make_plan(study, places, folder, reason_of(study, places, code), code)
    view = overview(folder, plan)
    if options.json:
        _print_json({**view, "cells": plan["cells"], "code": code})
    else:
        sys.stdout.write(plan_text(plan, view, options.cells))
    return 0


def handle_run(options: argparse.Namespace) -> int:
    """Run what is open; 1 where a wanted cell is not done in the end."""
    return _run(options, failed_only=False)


def handle_retry(options: argparse.Namespace) -> int:
    """Run failed cells again, with what ``--set`` changes for this machine."""
    return _run(options, failed_only=True)


def handle_status(options: argparse.Namespace) -> int:
    """Print how far the study is."""
    from experiments.grid_status import overview, status_text, watch

    found = _planned(options)
    if found is None:
        return _not_planned(options)
    folder, plan = found
    if options.watch:
        watch(folder)
        return 0
    view = overview(folder, plan)
    if options.json:
        _print_json(view)
    else:
        sys.stdout.write(status_text(view))
    return 0


def handle_table(options: argparse.Namespace) -> int:
    """Print a line for each cell."""
    from experiments.grid_status import rows_of, table_csv, table_text

    found = _planned(options)
    if found is None:
        return _not_planned(options)
    rows = rows_of(*found)
    if options.json:
        _print_json(rows)
    else:
        sys.stdout.write(table_csv(rows) if options.csv else table_text(rows))
    return 0


def handle_clean(options: argparse.Namespace) -> int:
    """List what may go; remove it where that is asked for."""
    from datamodules.errors import InputError
    from experiments.grid_clean import remnants, remove
    from experiments.grid_folder import held

    found = _planned(options)
    if found is None:
        return _not_planned(options)
    folder, plan = found
    if options.yes and held(folder.path / "driver.lock"):
        raise InputError(f"{folder.study}: a driver runs this study now; clean when it has ended")
    items = remnants(folder, plan)
    going = [item for item in items if options.finished or not item.finished]
    kept = [item for item in items if item not in going]
    for item in going:
        sys.stdout.write(f"{'removed' if options.yes else 'would go'}: {item.path} ({item.why})\n")
    for item in kept:
        sys.stdout.write(f"kept: {item.path} ({item.why}, but finished; --finished takes it too)\n")
    if options.yes:
        remove(going)
    elif going:
        sys.stdout.write(f"{len(going)} folders; --yes removes them\n")
    else:
        sys.stdout.write("nothing to clean\n")
    return 0


def handle_schema(_options: argparse.Namespace) -> int:
    """Print the schema that study files are checked by."""
    from experiments.study_schema import SCHEMA

    _print_json(SCHEMA)
    return 0


def _run(options: argparse.Namespace, *, failed_only: bool) -> int:
    from experiments.grid import machine_of, run_study
    from experiments.grid_folder import study_folder
    from experiments.grid_retry import selected, set_for_retry

    study, places = _request(options)
    folder = study_folder(places.runs, study.name)
    selection = selected(folder, options.only, failed_only=failed_only)
    if failed_only:
        set_for_retry(folder, options.set, selection)
    failures = run_study(
        study,
        places.cohort,
        places.splits,
        places.runs,
        places.store,
        machine=machine_of(options.cores, options.gpus, options.slurm),
        keep_going=options.keep_going,
        warm=not options.cold,
        wait=options.wait,
        selection=selection,
    )
    for failure in failures:
        sys.stderr.write(f"hepastage: {failure}\n")
    if not failures and not study.compare:
        sys.stdout.write(f"all cells done; compare them with 'hepastage compare {folder.study} --out DIR'\n")
    return 1 if failures else 0


def _request(options: argparse.Namespace) -> tuple[Study, Places]:
    """The study and where everything lies.

    Raises:
        InputError: Cohort or split is named neither in the study nor on the command line.
    """
    from datamodules.errors import InputError
    from experiments.grid_words import Places
    from experiments.study import Study

    study = Study.load(options.study, options.smoke)
    cohort: Path | None = options.cohort or study.cohort
    splits: Path | None = options.splits or study.splits
    if cohort is None or splits is None:
        missing = [name for name, value in (("cohort", cohort), ("splits", splits)) if value is None]
        raise InputError(*(f"{options.study}: {name}: is not set; set it there or give --{name}" for name in missing))
    return study, Places.of(cohort, splits, options.runs, options.store)


def _planned(options: argparse.Namespace) -> tuple[GridFolder, Plan] | None:
    from experiments.grid_folder import GridFolder
    from experiments.study import Study

    folder = GridFolder(options.runs / Study.load(options.study, options.smoke).name)
    return (folder, folder.plan()) if folder.plan_file.is_file() else None


def _not_planned(options: argparse.Namespace) -> int:
    sys.stdout.write(f"nothing is planned yet; 'hepastage grid plan {options.study}' or 'run' does it\n")
    return 0


def _print_json(value: Any) -> None:
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")
