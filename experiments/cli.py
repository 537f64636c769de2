"""The light front door: parses commands without importing anything heavy, and turns faults into lines."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

DESCRIPTION = """\
Liver MRI experiments that survive a hostile reviewer: does segmenting the liver first beat classifying
the raw scan? One cohort table, one command per question, every result per patient and with an interval."""

EPILOG = """\
exit codes: 0 done; 1 the work ran and the answer is bad news (a fault, a leak, a failed cell);
            2 the request was wrong (one line a fault on stderr)
start with: hepastage demo"""

COMMANDS = (
    "demo",
    "cohort",
    "split",
    "preprocess",
    "plan",
    "training",
    "masks",
    "nnunet",
    "grid",
    "search",
    "radiomics",
    "compare",
    "wandb",
    "completion",
)
"""Modules of ``experiments.commands``, in the order that ``--help`` lists them."""

LIGHTNING = ("fit", "validate", "test", "predict")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: Words after ``hepastage``; those of the process where not given.

    Returns:
        The exit code: see the epilog of ``--help``.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    # errors is light: it decides how every other failure is shown
    from datamodules.errors import InputError, RunFailedError
    from experiments.quiet import quieten

    quieten()
    for stream in (sys.stdout, sys.stderr):
        # a terminal or pipe without Unicode (LC_ALL=C on a cluster node) must not stop a run over a '×'
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        code = _dispatch(arguments)
        sys.stdout.flush()
        return code
    except InputError as error:
        for fault in error.faults:
            sys.stderr.write(f"hepastage: {fault}\n")
        return 2
    except RunFailedError as error:
        sys.stderr.write(f"hepastage: {' '.join(str(error).split())}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("hepastage: stopped by the keyboard; finished work is kept\n")
        return 130
    except BrokenPipeError:
        # the reader of a pipe (head, less) has left; keep the interpreter from complaining at exit
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _dispatch(arguments: list[str]) -> int:
    if arguments and arguments[0] in LIGHTNING and not {"-h", "--help"} & set(arguments[1:2]):
        from experiments.commands.training import run

        return run(arguments)
    options = build_parser().parse_args(arguments)
    code: int = options.run(options)
    return code


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = OneLineParser(
        prog="hepastage",
        description=DESCRIPTION,
        epilog=EPILOG,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name in COMMANDS:
        importlib.import_module(f"experiments.commands.{name}").register(subparsers)
    return parser


class OneLineParser(argparse.ArgumentParser):
    """Wrong words give one line, not the usage; subcommands' parsers are of this class as well."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong and exit with 2."""
        self.exit(2, f"hepastage: {message}; '{self.prog} --help' lists what it takes\n")


class _Version(argparse.Action):
    """Look the version up only when asked: importlib.metadata costs a tenth of a second."""

    def __call__(self, parser: argparse.ArgumentParser, *unused: object) -> None:
        import importlib.metadata

        sys.stdout.write(f"hepastage {importlib.metadata.version('hepastage')}\n")
        parser.exit()


if __name__ == "__main__":
    sys.exit(main())
