"""``hepastage split …``: make the split file of a study, and audit it."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from datamodules.errors import InputError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from datamodules.cohort import Cohort
    from datamodules.split_audit import PartCount, SplitAudit
    from datamodules.split_confound import Confound
    from datamodules.splits import Splits

Subparsers = argparse._SubParsersAction  # the only name that argparse gives this type

RULES = (
    "Label rules: lsm>12 (kPa), metavir>=3, metavir1-4 (each grade a class), stage (mild, moderate, severe), stage>=2, "
    "healthy, none; '+healthy' after "
    "lsm, metavir or stage counts healthy volunteers as negative. Quote a rule: '>' means something to the shell."
)


MOST_FOLDS = 12  # repeated k-fold has hundreds: the table shows the first ones and says so


def register(subparsers: Subparsers[argparse.ArgumentParser]) -> None:
    """Add ``split make`` and ``split audit`` to the front door's parser."""
    parser = subparsers.add_parser(
        "split", help="make or audit the split: which patient is in which part", allow_abbrev=False
    )
    commands = parser.add_subparsers(dest="split_command", metavar="COMMAND", required=True)
    _register_make(commands)
    _register_audit(commands)


def _register_make(commands: Subparsers[argparse.ArgumentParser]) -> None:
    about = "divide a cohort's patients into folds of train, valid and test, once for a whole study"
    parser = commands.add_parser("make", help=about, description=about, epilog=RULES, allow_abbrev=False)
    parser.add_argument("cohort", type=Path, metavar="COHORT", help="cohort table, .parquet or .csv")
    parser.add_argument("--rule", metavar="RULE", help="label rule to stratify by, see below (default none)")
    parser.add_argument("--test-rule", metavar="RULE", help="label rule of test parts, where it differs")
    parser.add_argument(
        "--folds",
        type=int,
        metavar="K",
        help="number of folds (default 5; 1 with --official or --test-patients, where more let valid rotate)",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="same seed, same split (default 0)")
    parser.add_argument("--out", type=Path, required=True, metavar="SPLITS.json", help="file to write")
    scheme = parser.add_mutually_exclusive_group()
    scheme.add_argument("--by", choices=("source",), help="leave one source out: a fold for each source")
    scheme.add_argument("--official", action="store_true", help="use the column official_split")
    scheme.add_argument("--test-patients", type=_ids, default=(), metavar="ID,ID,…", help="these patients are the test")
    parser.add_argument(
        "--valid-patients", type=_ids, default=(), metavar="ID,ID,…", help="with --test-patients: these are valid"
    )
    parser.add_argument("--repeats", type=int, default=1, metavar="N", help="make the K folds N times anew (default 1)")
    parser.add_argument(
        "--valid-fraction",
        type=float,
        metavar="X",
        help="share of the patients outside test that is valid (default: the next fold from 5 folds on, else 0.2)",
    )
    parser.add_argument(
        "--resolve",
        choices=("test", "exclude"),
        help="with --official, patients whose scans have different parts: the strictest part wins, or leave them out",
    )
    parser.add_argument(
        "--unlabelled",
        choices=("exclude", "train"),
        default="exclude",
        help="patients without the label: list them as excluded (default), or train on them where no label is needed",
    )
    parser.set_defaults(run=_make)


def _register_audit(commands: Subparsers[argparse.ArgumentParser]) -> None:
    about = "name every patient who leaks, the confound between source and label, and cells too small to test"
    parser = commands.add_parser(
        "audit", help=about, description=f"{about}; exit code 1 where a patient leaks", epilog=RULES, allow_abbrev=False
    )
    parser.add_argument("cohort", type=Path, metavar="COHORT", help="cohort table, .parquet or .csv")
    parser.add_argument(
        "--splits", type=Path, metavar="SPLITS.json", help="split to audit (default: the table and its official parts)"
    )
    parser.add_argument(
        "--rule",
        action="append",
        default=[],
        metavar="RULE",
        help="label rule to look at, may be repeated (default: the split's, else all that apply)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the audit as JSON")
    parser.set_defaults(run=_audit)


def _ids(text: str) -> tuple[str, ...]:
    """Patient ids from a comma-separated list."""
    ids = tuple(part.strip() for part in text.split(","))
    if not all(ids):
        raise argparse.ArgumentTypeError(f"{text!r}: patient ids divided by commas, such as 10,19,20")
    return ids


def _make(args: argparse.Namespace) -> int:
    from datamodules.cohort import Cohort
    from datamodules.split_audit import audit
    from datamodules.splits import make_splits

    if args.out.suffix != ".json":
        raise InputError(f"--out {args.out}: a split file ends in .json")
    cohort = Cohort.load(args.cohort)
    splits = make_splits(
        cohort,
        args.rule or "none",
        args.folds,
        args.seed,
        test_rule=args.test_rule,
        by=args.by,
        official=args.official,
        repeats=args.repeats,
        valid_fraction=args.valid_fraction,
        test_patients=args.test_patients,
        valid_patients=args.valid_patients,
        resolve=args.resolve,
        unlabelled=args.unlabelled,
    )
    splits.save(args.out)
    console = _console()
    found = audit(cohort, splits)
    console.print(_balance_table(splits, found.balance))
    if args.rule is None:
        _say(console, "No --rule: parts are stratified by source alone. Give the study's label rule where it has one.")
    if args.by and args.folds not in (None, len(splits.folds)):
        _say(console, f"--by source makes one fold for each of {len(splits.folds)} sources; --folds does not count.")
    _say_excluded(console, splits, cohort)
    for sentence in (*found.sentences, *found.small):
        _say(console, f"Note: {sentence}.")
    _say(console, f"{args.out}: {len(splits.folds)} folds, {splits.scheme}, hash {splits.sha256[:12]}")
    return 0


def _audit(args: argparse.Namespace) -> int:
    from datamodules.cohort import Cohort
    from datamodules.files import write_json
    from datamodules.split_audit import audit
    from datamodules.splits import Splits

    cohort = Cohort.load(args.cohort)
    splits = None if args.splits is None else Splits.read(args.splits)
    found = audit(cohort, splits, args.rule)
    if found.mismatches and not found.leaks:
        # a split of another table says nothing of this one
        raise InputError(*(f"{args.splits}: {fault}" for fault in found.mismatches))
    if args.json is not None:
        write_json(args.json, found.as_json())
    console = _console()
    for confound in found.confounds:
        # tables by missing sequences are many and mostly dull: one with something to say is shown
        if len(confound.levels) > 1 and (confound.factor == "source" or confound.messages):
            _print_confound(console, confound)
    if splits is not None:
        console.print(_balance_table(splits, found.balance))
        _say_excluded(console, splits, cohort)
    _say_findings(console, found)
    return 1 if found.leaks else 0


def _say_findings(console: Console, found: SplitAudit) -> None:
    for sentence in found.sentences:
        _say(console, f"Warning: {sentence}.")
    for sentence in found.small:
        _say(console, f"Too small: {sentence}.")
    for rule, patients in found.missing.items():
        if patients:
            _say(console, f"Without a label for {rule}: {len(patients)} patients: {', '.join(patients)}")
    for mismatch in found.mismatches:
        _say(console, f"Fault: {mismatch}")
    for leak in found.leaks:
        _say(console, f"LEAK: {leak.message}")
    leaking = len({leak.patient_id for leak in found.leaks})
    _say(console, "1 patient leaks." if leaking == 1 else f"{leaking} patients leak.")


def _say_excluded(console: Console, splits: Splits, cohort: Cohort) -> None:
    reasons: dict[str, list[str]] = {}
    for patient, reason in splits.excluded.items():
        reasons.setdefault(reason, []).append(patient)
    for reason, patients in reasons.items():
        names = ", ".join(patients)
        _say(console, f"Excluded, {reason}: {len(patients)} of {len(cohort.patients)} patients: {names}")


def _balance_table(splits: Splits, balance: tuple[PartCount, ...]) -> Table:
    """Patients by fold and part (rows), class and source (columns)."""
    from rich.table import Table

    names = [*splits.label_rule.class_names]
    names += [name for name in splits.test_label_rule.class_names if name not in names]
    names += [""] if any(count.class_name == "" for count in balance) else []
    sources = sorted({count.source for count in balance})
    rule = splits.rule if splits.test_rule is None else f"{splits.rule}, test by {splits.test_rule}"
    table = Table(title=f"Patients ({rule})", title_justify="left")
    table.add_column("fold")
    table.add_column("part")
    table.add_column("patients", justify="right")
    unnamed = "no label" if splits.label_rule.has_target else ""
    for name in names:
        if name or unnamed:
            table.add_column(name or unnamed, justify="right")
    for source in sources:
        table.add_column(source, justify="right")
    for index, fold in enumerate(splits.folds[:MOST_FOLDS]):
        for part, patients in fold.parts.items():
            mine = [count for count in balance if (count.fold, count.part) == (index, part)]
            cells = [
                str(sum(count.patients for count in mine if count.class_name == name))
                for name in names
                if name or unnamed
            ]
            cells += [str(sum(count.patients for count in mine if count.source == source)) for source in sources]
            label = f"{index} {fold.name}".strip() if part == "train" else ""
            table.add_row(label, part, str(len(patients)), *cells, end_section=part == "test")
    if len(splits.folds) > MOST_FOLDS:
        table.caption = f"and {len(splits.folds) - MOST_FOLDS} folds more"
    return table


def _print_confound(console: Console, confound: Confound) -> None:
    """The contingency table of one confound, its strength above it."""
    from rich.table import Table

    corrected = confound.cramers_v_corrected
    strength = "not defined" if corrected is None else f"{corrected:.2f} (bias-corrected)"
    _say(console, f"{confound.factor} × {confound.rule}, patients: Cramér's V {strength}")
    table = Table()
    table.add_column(confound.factor)
    for name in confound.class_names:
        table.add_column(name, justify="right")
    for level, counts in zip(confound.levels, confound.table, strict=True):
        table.add_row(level, *(str(count) for count in counts))
    console.print(table)


def _console() -> Console:
    from rich.console import Console

    # a file or a pipe gets whole lines
    return Console(file=sys.stdout, highlight=False, markup=False, width=None if sys.stdout.isatty() else 160)


def _say(console: Console, text: str) -> None:
    console.print(text, soft_wrap=True)
