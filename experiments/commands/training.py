"""``fit``, ``validate``, ``test`` and ``predict``: help without importing torch, then the Lightning command line."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from callbacks.run_directory import RunDirectory
    from experiments.cli_given import Given

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
    from experiments.cli_given import given_of
    from experiments.cli_words import expand_run, take_restart, with_shipped

    # what can be seen without Lightning is answered before seconds of imports
    restart, words = take_restart(rest) if command == "fit" else (False, rest)
    run, which, words = expand_run(command, words)
    given = given_of(with_shipped(words))
    _check(command, run, which, restart, given)

    from experiments.lightning_cli import run_command

    return run_command(command, rest)


def _check(command: str, run: RunDirectory | None, which: str, restart: bool, given: Sequence[Given]) -> None:
    """All checks that need no Lightning.

    Raises:
        InputError: Something is wrong.
    """
    from experiments.cli_files import check_files
    from experiments.cli_guards import check_guards, check_trainer
    from experiments.cli_machine import check_machine
    from experiments.cli_monitors import check_monitors
    from experiments.cli_precheck import classes_given, precheck
    from experiments.cli_source import home_of

    precheck(given)
    check_monitors(given)
    check_files(given)
    check_guards(given)
    if any(item.key == "print_config" for item in given):
        return

    # needs torch where a network, loss or optimiser was given values
    from experiments.cli_build import check_buildable

    check_buildable(given, [] if run is None else [run.config.name])
    # these open the cohort: half a second
    from callbacks.checkpoint_file import require_whole
    from experiments.cli_cells import refuse_other_cell, refuse_trained

    if run is not None:
        run.require_trained()
        checkpoint = run.checkpoint(which)
        require_whole(checkpoint)
        refuse_other_cell(run, given)
        if checkpoint.parent != run.checkpoints:
            from experiments.checkpoints import content_of

            content_of(checkpoint, home_of(classes_given(given)["model"][-1][1]))
    elif command == "fit" and not restart:
        refuse_trained(given)
    check_machine(given)
    check_trainer(given)
