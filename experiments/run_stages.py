"""Train, validate and test a parsed cell: go on where it stopped, and record what was reached."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch.utilities.exceptions import SIGTERMException

from callbacks.last_checkpoint import ResumePoint, prepare, reached, resume_point, tidy
from callbacks.preemption import Preemption, is_preempted, queue_again
from callbacks.run_directory import RunDirectory
from datamodules.errors import RunFailedError
from datamodules.saying import say
from experiments.checkpoints import differences, weights_of
from experiments.cli_cells import refuse_if_trained
from experiments.precision import faster_precision, slow_convolutions
from experiments.wandb_media import log_results
from experiments.wandb_runs import finish_wandb, go_on
from lightning_modules.classification import PatientClassifier

if TYPE_CHECKING:
    from experiments.lightning_cli import HepastageCLI


def evaluate(cli: HepastageCLI, command: str, which: str, verbose: bool = True) -> None:
    """Validate or test with a checkpoint; the configuration stays what was parsed.

    Args:
        cli: The parsed cell.
        command: ``validate`` or ``test``.
        which: ``best``, ``last`` or a checkpoint file.
        verbose: Whether to print the metrics as a table.

    Raises:
        InputError: The cell's training has not ended, or there is no such checkpoint.
    """
    cli.directory.require_trained()
    checkpoint = cli.directory.checkpoint(which)
    weights_of(checkpoint, cli.model)
    if checkpoint.parent != cli.directory.checkpoints:
        for line in differences(checkpoint, cli.resolved):
            say(f"{_shown(checkpoint)}: {line}")
    go_on(cli.trainer.loggers, cli.directory, fresh=False)
    # a classifier leaves its validation patients' record too, predicted by the very weights that are tested
    commands = ["validate", "test"] if command == "test" and isinstance(cli.model, PatientClassifier) else [command]
    for name in commands:
        # our own file: weights and plain values
        action = getattr(cli.trainer, name)
        action(
            cli.model,
            datamodule=cli.datamodule,
            ckpt_path=str(checkpoint),
            weights_only=True,
            verbose=verbose and name == command,
        )
    own = checkpoint.parent == cli.directory.checkpoints
    finish(cli, command, checkpoint=checkpoint.name if own else str(checkpoint.absolute()))


def fit(cli: HepastageCLI, restart: bool = False) -> None:
    """Train a cell and mark it as fitted; an unfinished training goes on from its last whole checkpoint.

    Args:
        cli: The parsed cell.
        restart: Train from the start, whatever is there.

    Raises:
        InputError: The cell is already fitted.
        SystemExit: A SIGTERM ended the training, with code 143.
    """
    run = cli.directory
    if not restart:
        refuse_if_trained(run)
    # each process finds the same: rank zero leaves these files alone until all have read them
    point, notes = (None, []) if restart else resume_point(run)
    if cli.trainer.is_global_zero:
        # all scans and masks are checked before the run directory is begun; Lightning's own call finds them done
        cli.datamodule.prepare_data()
        begin(run, point, notes)
        asked, device = cli.config.trainer.precision, cli.trainer.strategy.root_device.type
        for line in (faster_precision(asked, device), slow_convolutions(cli.model, asked, device)):
            if line is not None:
                say(line)
    cli.log_configuration()
    cli.record(point)
    go_on(cli.trainer.loggers, run, fresh=True)
    epochs, metrics = (0, {}) if point is None else (point.epoch, point.reached)
    if point is None or not point.ended:
        try:
            cli.trainer.fit(
                cli.model,
                datamodule=cli.datamodule,
                ckpt_path=None if point is None else str(point.path),
                weights_only=None if point is None else True,
            )
        except SIGTERMException as stop:
            _leave(cli)
            raise SystemExit(143) from stop
        except SystemExit as stop:
            # Lightning turns the keyboard's interrupt into an exit of its own
            if cli.trainer.interrupted:
                raise KeyboardInterrupt from stop
            raise
        except ValueError as error:
            if "diverged" in str(error):
                # the metrics refuse what is not finite
                raise RunFailedError(f"{run.path}: {error}") from error
            raise
        epochs, metrics = cli.trainer.current_epoch, reached(cli.trainer)
    if cli.trainer.is_global_zero:
        tidy(run)
    finish(cli, "fit", epochs=epochs, metrics=metrics)


def _leave(cli: HepastageCLI) -> None:
    """Say why a training has stopped; a job that was warned or preempted is queued again."""
    if not cli.trainer.is_global_zero:
        return
    found = [callback for callback in cli.trainer.callbacks if isinstance(callback, Preemption)]  # type: ignore[attr-defined]  # a list
    name = next((callback.signal.name for callback in found if callback.signal is not None), "SIGTERM")
    say(f"hepastage: stopped by {name}; the same command goes on from the last checkpoint")
    if (name == "SIGUSR1" or is_preempted()) and queue_again():
        say("hepastage: the job is queued again")


def begin(run: RunDirectory, point: ResumePoint | None, notes: Sequence[str]) -> None:
    """Bring a run directory to where its training begins or goes on, and say which.

    Args:
        run: The run directory.
        point: Where it goes on; None where it begins.
        notes: Checkpoints that cannot be used.
    """
    for note in notes:
        say(f"hepastage: {note}")
    if point is None:
        # a log must not be appended to that of a training that is begun anew
        run.metrics.unlink(missing_ok=True)
        for name in ("last.ckpt", "best.ckpt"):
            (run.checkpoints / name).unlink(missing_ok=True)
        tidy(run)
    else:
        prepare(run, point)
        say(f"going on after epoch {point.epoch}, from {_shown(point.path)}")
    run.predictions.unlink(missing_ok=True)
    run.validation.unlink(missing_ok=True)
    run.done.unlink(missing_ok=True)


def finish(cli: HepastageCLI, command: str, **facts: Any) -> None:
    """Close the loggers, mark the command as done and say where everything lies."""
    log_results(cli.trainer.loggers, cli.directory, command, cli.sharing)
    for logger in cli.trainer.loggers:
        logger.finalize("success")
    finish_wandb(cli.trainer.loggers, cli.directory)
    if cli.trainer.is_global_zero:
        cli.directory.mark_done(command, **facts)
        best = cli.trainer.checkpoint_callback if command == "fit" else None
        score = getattr(best, "best_model_score", None)
        text = "" if score is None else f"best {getattr(best, 'monitor', '')} {float(score):.3f}, in "
        say(f"{command} done: {text}{_shown(cli.directory.path)}")
    # all processes must see that it is done before one of them asks whether it is
    cli.trainer.strategy.barrier("finished")


def _shown(path: Path) -> str:
    """A path relative to the working directory where it lies below it."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return shlex.quote(str(path))
