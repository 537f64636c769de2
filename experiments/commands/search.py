"""``hepastage search``: look for the best settings by Optuna, say how far it is, and hand the best to a study."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import optuna

    from experiments.search_file import Search
    from experiments.search_folder import SearchFolder


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command group."""
    group = subparsers.add_parser(
        "search",
        help="look for the best settings by Optuna, on validation patients alone",
        description="A search file names a space over configuration keys and what is to be best. Each trial is a "
        "training a fold; test patients are not read. docs/searches.md explains the file.",
        allow_abbrev=False,
    )
    actions = group.add_subparsers(title="actions", metavar="ACTION", required=True)
    texts = {
        "run": "run trials until the number asked for has ended; goes on where it was stopped",
        "status": "what has ended, runs, waits and failed, and the best so far",
        "best": "the best trial's settings; --to-config writes them for a study's arm",
        "importance": "which parameters matter",
        "plots": "Optuna's plots in one HTML page that needs no network",
    }
    handlers = (handle_run, handle_status, handle_best, handle_importance, handle_plots)
    made: dict[str, argparse.ArgumentParser] = {}
    for (name, text), handler in zip(texts.items(), handlers, strict=True):
        made[name] = parser = actions.add_parser(name, help=text, description=text, allow_abbrev=False)
        parser.add_argument("search", type=Path, metavar="SEARCH.yaml", help="the search file")
        parser.add_argument("--runs", type=Path, default=Path("runs"), metavar="DIR", help="folder of all runs (runs)")
        parser.set_defaults(run=handler)
    parser = made["run"]
    parser.add_argument("--cohort", type=Path, metavar="COHORT", help="the cohort table, where the search names none")
    parser.add_argument("--splits", type=Path, metavar="SPLITS.json", help="the split, where the search names none")
    parser.add_argument("--store", type=Path, metavar="DIR", help="folder of preprocessed scans (RUNS/store)")
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="trials at once on this machine (1)")
    parser.add_argument("--trials", type=int, metavar="N", help="how many, in place of the file's number")
    parser.add_argument("--cores", type=int, metavar="N", help="processor cores to share out (all)")
    parser.add_argument("--gpus", metavar="LIST", help="GPUs to use, such as 0-3 or 0,2 or none (all visible)")
    for name in ("status", "best", "importance"):
        made[name].add_argument("--json", action="store_true", help="print JSON")
    made["best"].add_argument("--to-config", type=Path, metavar="FILE.yaml", help="write an overlay for a study's arm")
    made["best"].add_argument("--trial", type=int, metavar="N", help="this trial, where several are best")
    made["importance"].add_argument(
        "--evaluator", choices=("fanova", "ped-anova"), default="fanova", help="how it is measured (fanova)"
    )
    made["plots"].add_argument("--out", type=Path, metavar="PAGE.html", help="the page (RUNS/<search>/search.html)")
    schema = actions.add_parser("schema", help="print the JSON schema of search files, for editors", allow_abbrev=False)
    schema.set_defaults(run=handle_schema)


def handle_run(options: argparse.Namespace) -> int:
    """Run trials; 1 where too many have failed."""
    import dataclasses

    from datamodules.errors import InputError
    from experiments.search import run_search
    from experiments.search_file import Search

    for name in ("workers", "trials"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise InputError(f"--{name} {value}: give 1 or more")
    search = Search.load(options.search)
    if options.trials is not None:
        search = dataclasses.replace(search, trials=options.trials)
    cohort: Path | None = options.cohort or search.cohort
    splits: Path | None = options.splits or search.splits
    if cohort is None or splits is None:
        missing = [name for name, value in (("cohort", cohort), ("splits", splits)) if value is None]
        raise InputError(*(f"{options.search}: {name}: is not set; set it there or give --{name}" for name in missing))
    code, counts = run_search(
        search,
        cohort,
        splits,
        options.runs,
        options.store,
        workers=options.workers,
        cores=options.cores,
        gpus=options.gpus,
    )
    if code == 2:
        sys.stderr.write("hepastage: the search was stopped: its first trial shows that the request is wrong\n")
    elif code != 0:
        sys.stderr.write(
            f"hepastage: {counts.failed} trials failed, more than max_failures {search.max_failures}; "
            f"see 'hepastage search status {options.search}'\n"
        )
    else:
        sys.stdout.write(f"{counts.ended} trials ended; see 'hepastage search best {options.search}'\n")
    return code


def handle_status(options: argparse.Namespace) -> int:
    """Print how far the search is."""
    from experiments.search_status import overview, status_text

    search, folder, study = _opened(options)
    view = overview(search, study, folder)
    if options.json:
        _print_json(view)
    else:
        sys.stdout.write(status_text(view, search))
    return 0


def handle_best(options: argparse.Namespace) -> int:
    """Print the best trial, or write its settings."""
    from datamodules.errors import InputError
    from experiments.search_status import best_of, best_text, overview, write_config

    search, folder, study = _opened(options)
    view = overview(search, study, folder)
    best = best_of(study)
    if options.trial is not None:
        best = [trial for trial in study.trials if trial.number == options.trial and trial.values is not None]
        view["best"] = [row for row in view["trials"] if row["trial"] == options.trial and row["values"] is not None]
    if not best:
        raise InputError(f"{search.name}: no such trial has ended well; look with 'hepastage search status'")
    if options.to_config is not None:
        if len(best) > 1:
            numbers = ", ".join(str(trial.number) for trial in best)
            raise InputError(f"--to-config: {len(best)} trials are best ({numbers}); choose one with --trial")
        write_config(search, best[0], options.to_config)
    if options.json:
        _print_json(view["best"])
    else:
        sys.stdout.write(best_text(view, search))
    return 0


def handle_importance(options: argparse.Namespace) -> int:
    """Print importances."""
    from experiments.search_status import importance_of, importance_text

    search, _, study = _opened(options)
    found = importance_of(study, search, options.evaluator)
    if options.json:
        _print_json(found)
    else:
        sys.stdout.write(importance_text(found, search))
    return 0


def handle_plots(options: argparse.Namespace) -> int:
    """Write the page of plots."""
    from experiments.search_plots import write_page

    search, folder, study = _opened(options)
    path = options.out or folder.search / "search.html"
    for line in write_page(search, study, folder, path):
        sys.stderr.write(f"not drawn: {line}\n")
    sys.stdout.write(f"{path}\n")
    return 0


def handle_schema(_options: argparse.Namespace) -> int:
    """Print the schema that search files are checked by."""
    from experiments.search_schema import SCHEMA

    _print_json(SCHEMA)
    return 0


def _opened(options: argparse.Namespace) -> tuple[Search, SearchFolder, optuna.Study]:
    from experiments.search_file import Search
    from experiments.search_folder import SearchFolder
    from experiments.search_storage import open_study

    search = Search.load(options.search)
    folder = SearchFolder(options.runs / search.name)
    return search, folder, open_study(search, folder, None)


def _print_json(value: Any) -> None:
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")
