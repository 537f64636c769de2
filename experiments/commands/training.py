"""``fit``, ``validate``, ``test`` and ``predict``: help without importing torch, then the Lightning command line."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

HELP = {
    "fit": "train one cell: hepastage fit -c CONFIG.yaml [-c OVERLAY.yaml …] [--model.… --data.… --trainer.…]",
    "validate": "measure a trained cell on its validation patients: hepastage validate --run RUN_DIR",
    "test": "measure a trained cell on its test patients, once: hepastage test --run RUN_DIR",
    "predict": "segment or classify new scans: hepastage predict --run RUN_DIR --data PATH --out DIR",
}


MORE = {
    "fit": " An unfinished training goes on from its last whole checkpoint; --restart begins anew.",
    "validate": " --ckpt last or --ckpt FILE takes another checkpoint than the best.",
    "test": " --ckpt last or --ckpt FILE takes another checkpoint than the best.",
}


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the four commands to the overview; their own arguments are parsed by the Lightning command line."""
    for name, text in HELP.items():
        parser = subparsers.add_parser(
            name,
            help=text,
            description=f"{text}.{MORE.get(name, '')} 'hepastage fit --print_config -c CONFIG.yaml' shows every key.",
            allow_abbrev=False,
        )
        parser.add_argument("rest", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
        parser.set_defaults(run=lambda options, command=name: run([command, *options.rest]))


def run(arguments: Sequence[str]) -> int:
    """Hand the words over to the Lightning command line.

    Args:
        arguments: The command and its arguments.

    Returns:
        The exit code.
    """
    command, *rest = arguments
    if command == "predict":
        from experiments.predict import run_predict

        return run_predict(rest)
    from experiments.shared_fate import together

    return together(lambda: _carry_out(command, rest))


def _carry_out(command: str, rest: list[str]) -> int:
    """What one process does."""
    from experiments.cli_files import check_files
    from experiments.cli_given import given_of
    from experiments.cli_precheck import precheck
    from experiments.cli_words import expand_run, take_restart, with_shipped

    # what can be seen in the words alone is answered before seconds of imports
    words = take_restart(rest)[1] if command == "fit" else rest
    run, which, words = expand_run(command, words)
    given = given_of(with_shipped(words))
    precheck(given)
    check_files(given)
    if run is not None and not any(item.key == "print_config" for item in given):
        run.require_trained()
        run.checkpoint(which)

    from experiments.lightning_cli import run_command

    return run_command(command, rest)
