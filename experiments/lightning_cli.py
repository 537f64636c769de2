"""The thin Lightning command line: parse, place the run, train or test, record."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from jsonargparse import ArgumentError, Namespace
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from callbacks.last_checkpoint import ResumePoint
from callbacks.provenance import provenance_record
from callbacks.run_directory import Identity, RunDirectory
from datamodules.base import CohortDataModule
from datamodules.errors import InputError
from datamodules.files import read_json, sha256_of_json, write_json, write_text
from datamodules.saying import say
from experiments.batch_parts import compute_in_parts
from experiments.cell import PATH_KEYS, add_watchers, identity_of, place
from experiments.cli_cells import request_of, require_cell
from experiments.cli_checks import process_faults
from experiments.cli_errors import misfits
from experiments.cli_given import Given, class_changes, given_of, located
from experiments.cli_machine import trainer_faults
from experiments.cli_readable import explained
from experiments.cli_words import expand_run, take_restart, with_shipped
from experiments.memory import keep_memory
from experiments.quiet import quieten_lightning
from experiments.run_logging import tell_configuration
from experiments.run_stages import evaluate, fit
from experiments.transfer import KEY, settled, transfer_faults
from experiments.wandb_runs import Sharing
from lightning_modules.networks.initial_weights import without_initial_weights

__all__ = ["PATH_KEYS", "HepastageCLI", "fit_and_test", "identity_of", "parsed", "run_command"]

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
        parser.add_argument("--part_size", type=int | None, default=None, help="compute each batch in parts of N scans")
        parser.add_argument("--wandb", type=Sharing, default=Sharing(), help="what else W&B gets")

    def before_instantiate_classes(self) -> None:
        """Decide the cell's id and directory, and send checkpoints and logs there."""
        if faults := trainer_faults(self.config.trainer):
            raise InputError(*faults)
        for key in PATH_KEYS:
            value = self.config.data.init_args.get(key)
            if value is not None:
                # the saved configuration must mean the same from any working directory
                self.config.data.init_args[key] = str(Path(value).absolute())
        for key, value in list(self.config.model.items()):
            if key.endswith(f".{KEY}") and value is not None:
                fold, seed = self.config.data.init_args.get("fold") or 0, int(self.config.seed_everything)
                self.config.model[key] = str(settled(value, fold, seed))
        add_watchers(self.config)
        # how a batch is computed is the machine's affair: it is no part of the configuration, nor of the id
        part_size = self.config.pop("part_size", None)
        resolved = yaml.safe_load(self.parser.dump(self.config, skip_none=False, format="yaml"))
        self.identity = identity_of(resolved)
        self.directory = RunDirectory.of_cell(
            self.config.runs, self.identity.study, self.identity.arm, self.identity.cell
        )
        self.resolved = resolved
        if self.command == "fit" and (faults := transfer_faults(resolved)):
            raise InputError(*faults)
        place(self.config.trainer, self.directory, self.identity)
        compute_in_parts(self.config, part_size)

    def instantiate_classes(self) -> None:
        """Build everything; weights to begin with are read where a training begins."""
        with contextlib.nullcontext() if self.command == "fit" else without_initial_weights():
            super().instantiate_classes()

    @rank_zero_only
    def record(self, point: ResumePoint | None = None) -> None:
        """Write configuration and provenance before the first step.

        Args:
            point: Where an unfinished run goes on: its provenance is kept, the new one added to it.
        """
        text = yaml.safe_dump(self.resolved, sort_keys=False, allow_unicode=True)
        write_text(self.directory.config, text)
        record = provenance_record(self.identity, sha256_of_json(self.resolved), [self.command, *self.arguments])
        record["request"] = request_of(given_of(self.arguments))
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
        known = [action.dest for action in self._actions if action.dest not in ("help", "config")]
        raise explained(message, ex, known) from ex


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
    if run_dir is not None:
        require_cell(run_dir, cli.directory)
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
    words = with_shipped(arguments)
    given = given_of(words)
    with explaining(given):
        cli = HepastageCLI(command, words)
    check_built(cli, given)
    if cli.trainer.strategy.root_device.type == "cpu":
        keep_memory()
    return cli


@contextlib.contextmanager
def explaining(given: Sequence[Given]) -> Iterator[None]:
    """Turn what parser, networks, modules and trainer refuse into faults that name their key.

    Args:
        given: All that was given.

    Raises:
        InputError: What was refused.
    """
    try:
        yield
    except InputError as error:
        raise InputError(located(error.faults[0], given), *error.faults[1:]) from error
    except (ArgumentError, ValueError, MisconfigurationException) as error:
        # networks, modules and the trainer know nothing of the command line: what they refuse is a wrong configuration
        raise InputError(located(explained(str(error), error).faults[0], given)) from error
    except TypeError as error:
        if not str(error).startswith("`"):
            # one of the code, not of the words; Lightning begins with the argument's name in backticks
            raise
        raise explained(str(error), error) from error


def check_built(cli: HepastageCLI, given: Sequence[Given]) -> None:
    """Hold trainer, model and data module against each other, and say which classes were changed.

    Args:
        cli: The parsed cell, with all that was built.
        given: All that was given.

    Raises:
        InputError: They do not fit together.
    """
    if cli.trainer.is_global_zero:
        for line in class_changes(given, cli.resolved):
            say(line)
    if not isinstance(cli.datamodule, CohortDataModule):
        raise InputError("data: is not one of hepastage's data modules; set data.class_path")
    if getattr(cli.datamodule, "leaks", False) and cli.identity.role != "probe":
        raise InputError(
            "data.init_args.leak: an arm that leaks is a probe and no result; set role: probe (--role probe)"
        )
    faults = [*misfits(cli.model, cli.datamodule), *process_faults(cli.model, cli.datamodule, cli.trainer)]
    if faults:
        raise InputError(*faults)
