"""The thin Lightning command line: parse, place the run, train or test, record."""

from __future__ import annotations

import copy
import dataclasses
import math
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from jsonargparse import ArgumentError, Namespace
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import MisconfigurationException, SIGTERMException

from callbacks.last_checkpoint import ResumePoint, prepare, resume_point, tidy
from callbacks.provenance import provenance_record
from callbacks.run_directory import Identity, RunDirectory
from datamodules.base import CohortDataModule
from datamodules.cohort import Cohort
from datamodules.errors import InputError
from datamodules.files import read_json, sha256_of_file, sha256_of_json, write_json, write_text
from datamodules.masks import RECORD
from datamodules.splits import Splits
from experiments.cli_errors import explained, misfits
from experiments.cli_words import expand_run, take_restart, with_shipped
from experiments.quiet import quieten_lightning
from experiments.run_logging import check_loggers, tell_configuration
from experiments.wandb_media import log_results
from experiments.wandb_runs import Sharing, finish_wandb, go_on, is_wandb, place_wandb
from lightning_modules.classification import PatientClassifier

PATH_KEYS = ("cohort", "splits", "store", "masks", "quality_from")
"""Data arguments that say where something lies, not what it is; a cell's id does not depend on them."""

MACHINE_KEYS = ("logger", "default_root_dir", "accelerator", "enable_progress_bar", "enable_model_summary")
"""Trainer arguments that say where and how visibly a cell runs, not what it is."""

WATCHERS: dict[str, dict[str, Any]] = {"callbacks.last_checkpoint.LastCheckpoint": {"every_s": 10.0}}
"""Callbacks that each run has, with their arguments; a cell's id does not depend on them."""

Role = Literal["segmenter", "classifier", "staging", "probe"]


class HepastageCLI(LightningCLI):
    """Lightning's command line without its subcommands, so that configuration always wins over checkpoints.

    ``run=False`` keeps ``--ckpt_path`` out of the parser: a checkpoint's hyperparameters can then never
    overlay what was configured. Callbacks and loggers are in the shipped YAML, so the saved configuration
    is complete.

    Args:
        command: ``fit``, ``validate``, ``test`` or ``predict``.
        arguments: Words after the command.
    """

    def __init__(self, command: str, arguments: Sequence[str]) -> None:
        self.command = command
        self.arguments = list(arguments)
        self.directory: RunDirectory
        self.identity: Identity
        quieten_lightning()
        super().__init__(
            save_config_callback=None,
            seed_everything_default=0,
            subclass_mode_model=True,
            subclass_mode_data=True,
            parser_class=_Parser,
            parser_kwargs={"allow_abbrev": False, "exit_on_error": False, "prog": f"hepastage {command}"},
            args=self.arguments,
            run=False,
            auto_configure_optimizers=False,
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add what says where the cell belongs."""
        parser.add_argument("--study", type=str, default="study", help="name of the study: a folder, W&B's group")
        parser.add_argument("--arm", type=str, default="arm", help="name of the configuration under test")
        parser.add_argument("--role", type=Role, default="classifier", help="the cell's stage: W&B's job type")
        parser.add_argument("--runs", type=str, default="runs", help="folder of all runs")
        parser.add_argument("--wandb", type=Sharing, default=Sharing(), help="what else W&B gets")

    def before_instantiate_classes(self) -> None:
        """Decide the cell's id and directory, and send checkpoints and logs there."""
        for key in PATH_KEYS:
            value = self.config.data.init_args.get(key)
            if value is not None:
                # the saved configuration must mean the same from any working directory
                self.config.data.init_args[key] = str(Path(value).absolute())
        add_watchers(self.config)
        resolved = yaml.safe_load(self.parser.dump(self.config, skip_none=False, format="yaml"))
        self.identity = identity_of(resolved)
        self.directory = RunDirectory.of_cell(
            self.config.runs, self.identity.study, self.identity.arm, self.identity.cell
        )
        self.resolved = resolved
        place(self.config.trainer, self.directory, self.identity)

    @rank_zero_only
    def record(self, point: ResumePoint | None = None) -> None:
        """Write configuration and provenance before the first step.

        Args:
            point: Where an unfinished run goes on: its provenance is kept, the new one added to it.
        """
        text = yaml.safe_dump(self.resolved, sort_keys=False, allow_unicode=True)
        write_text(self.directory.config, text)
        record = provenance_record(self.identity, sha256_of_json(self.resolved), [self.command, *self.arguments])
        if point is not None and self.directory.provenance.is_file():
            earlier = read_json(self.directory.provenance, "a run's provenance")
            now = {key: value for key, value in record.items() if key not in ("identity", "wandb_id")}
            record = {**earlier, "resumed": [*earlier.get("resumed", []), {"epoch": point.epoch, **now}]}
        write_json(self.directory.provenance, record)

    def log_configuration(self) -> None:
        """Give the resolved configuration and the cell's identity to every logger, without paths of this machine."""
        tell_configuration(self.trainer.loggers, self.directory, self.identity, self.resolved, PATH_KEYS)

    @property
    def sharing(self) -> Sharing:
        """What of the patients may go to W&B."""
        return Sharing(**self.resolved["wandb"])


class _Parser(LightningArgumentParser):
    """Errors become one line; the command's usage, which fills screens, is not repeated."""

    def dump(self, cfg: Namespace, *args: Any, **kwargs: Any) -> str:
        """The configuration as text, with the callbacks that each run has: ``--print_config`` is complete."""
        if isinstance(cfg.get("trainer"), Namespace):
            cfg = cfg.clone()
            add_watchers(cfg)
        return str(super().dump(cfg, *args, **kwargs))

    def error(self, message: str, ex: Exception | None = None) -> Any:
        """Raise what the front door prints."""
        raise explained(message, ex) from ex


def run_command(command: str, arguments: Sequence[str]) -> int:
    """Carry out ``fit``, ``validate``, ``test`` or ``predict``.

    Args:
        command: The command.
        arguments: Its words; ``--run DIR`` stands for the configuration of that run.

    Returns:
        0.

    Raises:
        InputError: The request was wrong.
    """
    # jsonargparse prints what it has read so far: the word must come last
    words = sorted(arguments, key=lambda word: word.startswith("--print_config"))
    restart = False
    if command == "fit":
        restart, words = take_restart(words)
    run_dir, which, rest = expand_run(command, words)
    cli = parsed(command, rest)
    if run_dir is not None and cli.directory.path != run_dir.path:
        raise InputError(
            f"{run_dir.path}: its configuration, with the arguments given, now means the cell {cli.identity.cell}; the "
            "cohort, the split or an argument differs from what it was trained with"
        )
    if command == "fit":
        fit(cli, restart)
    else:
        evaluate(cli, command, which)
    return 0


def fit_and_test(arguments: Sequence[str]) -> bool:
    """Train a cell and test its best checkpoint, unless both are done.

    Args:
        arguments: The words of ``hepastage fit``.

    Returns:
        True where there was nothing left to do.
    """
    restart, words = take_restart(arguments)
    cli = parsed("fit", words)
    finished = {} if restart else cli.directory.finished()
    if "fit" not in finished:
        fit(cli, restart)
        # the saved configuration, so that nothing that changed meanwhile can make it another cell
        cli = parsed("test", ["-c", str(cli.directory.config), "--runs", str(cli.config.runs)])
    # what an unfinished training was tested with is not what the finished one gives
    done = {"fit", "test"} <= set(finished)
    if not done:
        evaluate(cli, "test", "best", verbose=False)
    return done


def parsed(command: str, arguments: Sequence[str]) -> HepastageCLI:
    """Parse the words of a command and build trainer, model and data module.

    Raises:
        InputError: The words are wrong, or the data module is not one of hepastage's.
    """
    try:
        cli = HepastageCLI(command, with_shipped(arguments))
    except InputError:
        raise
    except (ArgumentError, ValueError, MisconfigurationException) as error:
        # networks, modules and the trainer know nothing of the command line: what they refuse is a wrong configuration
        raise explained(str(error), error) from error
    if not isinstance(cli.datamodule, CohortDataModule):
        raise InputError("data: is not one of hepastage's data modules; set data.class_path")
    faults = misfits(cli.model, cli.datamodule)
    if faults:
        raise InputError(*faults)
    return cli


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
    if "fit" not in cli.directory.finished():
        raise InputError(f"{cli.directory.path}: the training of this cell has not ended; run 'hepastage fit' first")
    checkpoint = cli.directory.checkpoint(which)
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
    finish(cli, command, checkpoint=checkpoint.name)


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
    if "fit" in run.finished() and not restart:
        raise InputError(
            f"{run.path}: this cell is already trained; test it with 'hepastage test --run', "
            "or train it again with 'hepastage fit ... --restart'"
        )
    # each process finds the same: rank zero leaves these files alone until all have read them
    point, notes = (None, []) if restart else resume_point(run)
    if cli.trainer.is_global_zero:
        # all scans and masks are checked before the run directory is begun; Lightning's own call finds them done
        cli.datamodule.prepare_data()
        begin(run, point, notes)
    cli.log_configuration()
    cli.record(point)
    go_on(cli.trainer.loggers, run, fresh=True)
    epochs, reached = (0, {}) if point is None else (point.epoch, point.reached)
    if point is None or not point.ended:
        try:
            cli.trainer.fit(
                cli.model,
                datamodule=cli.datamodule,
                ckpt_path=None if point is None else str(point.path),
                weights_only=None if point is None else True,
            )
        except SIGTERMException as stop:
            say("hepastage: stopped by SIGTERM; the same command goes on from the last checkpoint")
            raise SystemExit(143) from stop
        except SystemExit as stop:
            # Lightning turns the keyboard's interrupt into an exit of its own
            if cli.trainer.interrupted:
                raise KeyboardInterrupt from stop
            raise
        epochs = cli.trainer.current_epoch
        reached = {key: float(value) for key, value in cli.trainer.callback_metrics.items() if math.isfinite(value)}
    finish(cli, "fit", epochs=epochs, metrics=reached)
    if cli.trainer.is_global_zero:
        tidy(run)


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
        say(f"{command} done: {_shown(cli.directory.path)}")


def identity_of(resolved: dict[str, Any]) -> Identity:
    """Which cell a resolved configuration is.

    The id is a hash of the configuration without paths, loggers, names and the kind of machine; cohort, split and
    masks enter by their content.

    Args:
        resolved: The whole configuration as plain values.

    Raises:
        InputError: Cohort or split cannot be read.
    """
    data = resolved["data"]["init_args"]
    cohort = Cohort.load(data["cohort"])
    splits = None if data.get("splits") is None else Splits.load(Path(data["splits"]), cohort)
    split_sha256 = "" if splits is None else splits.sha256
    content = copy.deepcopy(resolved)
    for key in ("runs", "study", "arm", "role", "config", "wandb"):
        content.pop(key, None)
    for key in PATH_KEYS:
        content["data"]["init_args"].pop(key, None)
    for key in MACHINE_KEYS:
        content["trainer"].pop(key, None)
    content["trainer"]["callbacks"] = [
        callback for callback in content["trainer"].get("callbacks") or [] if callback["class_path"] not in WATCHERS
    ]
    content["data"]["init_args"].pop("workers", None)
    record = None if data.get("masks") is None else Path(data["masks"]) / RECORD
    masks_sha256 = "" if record is None or not record.is_file() else sha256_of_file(record)
    contents = {"cohort": cohort.sha256, "split": split_sha256, "masks": masks_sha256}
    cell = sha256_of_json({"config": content, **contents})[:12]
    seed = resolved["seed_everything"]
    if isinstance(seed, bool):
        raise InputError("seed_everything: is false; a cell is named by its seed, give a whole number")
    return Identity(
        study=resolved["study"],
        arm=resolved["arm"],
        role=resolved["role"],
        seed=int(seed),
        fold=data.get("fold") if splits is not None else None,
        cell=cell,
        split_sha256=split_sha256,
        cohort_sha256=cohort.sha256,
    )


def add_watchers(config: Namespace) -> None:
    """Add the callbacks that each run has where a configuration does not name them, so that it can be resumed.

    Args:
        config: The parsed configuration; changed in place.
    """
    callbacks = _as_list(config.trainer.get("callbacks"))
    present = {callback.class_path for callback in callbacks}
    for class_path, arguments in WATCHERS.items():
        if class_path not in present:
            callbacks.append(Namespace(class_path=class_path, init_args=Namespace(**arguments)))
    config.trainer.callbacks = callbacks


def place(trainer: Namespace, directory: RunDirectory, identity: Identity) -> None:
    """Point checkpoints and loggers of a trainer's configuration at the run directory.

    Args:
        trainer: The ``trainer`` part of the parsed configuration; changed in place.
        directory: The run directory.
        identity: The cell, for W&B's group, job type, tags and id.
    """
    trainer.default_root_dir = str(directory.path)
    for callback in _as_list(trainer.callbacks):
        if callback.class_path.endswith("ModelCheckpoint"):
            callback.init_args.dirpath = str(directory.checkpoints)
            # LastCheckpoint writes it, in a way that survives a kill at any moment
            callback.init_args.save_last = False
    check_loggers([logger.class_path for logger in _as_list(trainer.logger)])
    for logger in _as_list(trainer.logger):
        settings = logger.init_args
        if "save_dir" in settings:
            settings.save_dir = str(directory.path)
        if is_wandb(logger.class_path):
            place_wandb(logger, identity)


def say(text: str) -> None:
    """A line on stderr."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def _as_list(value: Any) -> list[Any]:
    if value is None or isinstance(value, bool):
        return []
    return list(value) if isinstance(value, list) else [value]


def _shown(path: Path) -> str:
    """A path relative to the working directory where it lies below it."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return shlex.quote(str(path))
