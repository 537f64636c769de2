"""The study that Optuna keeps for a search: opening it, lost trials, counting. Imports Optuna, never torch."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import warnings
from collections.abc import Callable
from typing import Any

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from datamodules.errors import InputError
from experiments.grid_folder import held
from experiments.search_file import Search
from experiments.search_folder import SearchFolder
from experiments.search_journal import FileLock, Journal

HEARTBEAT_S = 30
"""Seconds between two signs of life of a trial in a database."""

MOST_LOSSES = 5
"""A trial whose worker has ended so often is not tried again."""

Note = Callable[[str], None]


def say(text: str) -> None:
    """A progress line on stderr, in one write, so that workers' lines do not mix."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def quieten_optuna() -> None:
    """Keep Optuna's own talk off the screen: our lines say the same."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    # the constant liar and heartbeats have been 'experimental' for years, and are what this rests on
    warnings.filterwarnings("ignore", category=ExperimentalWarning)
    # Study.optimize gives signs of life by itself; the workers give them by the same thread of Optuna's
    warnings.filterwarnings("ignore", message="Heartbeat of storage is supposed to be used with Study.optimize")


def open_study(search: Search, folder: SearchFolder, facts: dict[str, str] | None, note: Note = say) -> optuna.Study:
    """Open a search's study; make it where it is new.

    Args:
        search: The search.
        folder: Its folder.
        facts: What its trials must have in common; None opens what is there, for looking at it.
        note: Gets a line for each repair of the journal.

    Raises:
        InputError: It was begun with other facts, nothing is there to look at, or the storage cannot be opened.
    """
    quieten_optuna()
    if facts is None and search.storage is None and not folder.journal.is_file():
        raise InputError(f"{folder.search}: nothing has been searched yet; 'hepastage search run' does it")
    with FileLock(folder.asking).held() if facts is not None else contextlib.nullcontext():
        # one at a time: two processes that create a database's tables together fail
        storage = _storage(search, folder, note)
        directions = [StudyDirection[objective.direction.upper()] for objective in search.objectives]
        try:
            if facts is None:
                study = optuna.load_study(study_name=search.name, storage=storage)
            else:
                study = optuna.create_study(
                    study_name=search.name, storage=storage, directions=directions, load_if_exists=True
                )
        except KeyError as error:
            raise InputError(f"{search.name}: nothing has been searched yet; 'hepastage search run' does it") from error
        begun = study.user_attrs.get("facts")
        if facts is not None and begun is None:
            study.set_user_attr("facts", facts)
            study.set_user_attr("metrics", [objective.metric for objective in search.objectives])
            study.set_metric_names([objective.metric for objective in search.objectives])
        elif facts is not None and begun is not None and begun != facts:
            changed = [key for key in facts if begun.get(key) != facts[key]]
            raise InputError(
                *(
                    f"{key}: has changed since the search {search.name} was begun, and its trials would not be "
                    "comparable; put it back, or give the search another name"
                    for key in changed
                )
            )
    return study


def _storage(search: Search, folder: SearchFolder, note: Note) -> BaseStorage:
    if search.storage is None:
        return JournalStorage(Journal(folder.journal, note))
    try:
        return RDBStorage(
            search.storage,
            heartbeat_interval=HEARTBEAT_S,
            grace_period=4 * HEARTBEAT_S,
            heartbeat_stale_trial_callback=_queue_again,
        )
    except Exception as error:
        # SQLAlchemy and the database's drivers raise many kinds; a password may stand in the URL
        line = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"storage: cannot be opened ({type(error).__name__}: {line}); check the URL") from error


def sampler_of(search: Search, number: int) -> optuna.samplers.BaseSampler:
    """The sampler of one trial: what it draws depends on the search's seed, the trial's number and what has ended.

    Args:
        search: The search.
        number: The trial's number.
    """
    # a worker that begins anew must not draw what it has drawn before, nor two workers the same
    seed = (search.seed * 1_000_003 + number) % 2**32
    if search.sampler["name"] == "random":
        return optuna.samplers.RandomSampler(seed=seed)
    startup = int(search.sampler.get("startup_trials", 10))
    # the liar: running trials count as bad ones, so that workers do not crowd at one place
    return optuna.samplers.TPESampler(n_startup_trials=startup, constant_liar=True, seed=seed)


def pruner_of(search: Search) -> optuna.pruners.BasePruner:
    """The pruner; its steps are validation epochs, counted over all folds."""
    options = search.pruner
    if options["name"] == "median":
        return optuna.pruners.MedianPruner(
            n_startup_trials=int(options.get("startup_trials", 5)),
            n_warmup_steps=int(options.get("warmup_epochs", 0)),
        )
    if options["name"] == "hyperband":
        return optuna.pruners.HyperbandPruner(
            min_resource=int(options.get("min_epochs", 1)),
            max_resource=int(options["max_epochs"]) if "max_epochs" in options else "auto",
            reduction_factor=int(options.get("reduction_factor", 3)),
        )
    return optuna.pruners.NopPruner()


@dataclasses.dataclass(frozen=True, slots=True)
class Tally:
    """Trials by what became of them.

    Attributes:
        complete: Ended well.
        pruned: Stopped early.
        running: Asked for and not ended.
        waiting: Lost, and queued again.
        failed: Failed; they do not count toward the number asked for.
        lost: Whose worker ended; they have been queued again and count nowhere.
    """

    complete: int
    pruned: int
    running: int
    waiting: int
    failed: int
    lost: int

    @property
    def ended(self) -> int:
        """What counts toward the number asked for."""
        return self.complete + self.pruned


def tally(trials: list[FrozenTrial]) -> Tally:
    """Count trials."""
    states = [trial.state for trial in trials]
    failed = sum(has_failed(trial) for trial in trials)
    return Tally(
        complete=states.count(TrialState.COMPLETE),
        pruned=states.count(TrialState.PRUNED),
        running=states.count(TrialState.RUNNING),
        waiting=states.count(TrialState.WAITING),
        failed=failed,
        lost=states.count(TrialState.FAIL) - failed,
    )


def has_failed(trial: FrozenTrial) -> bool:
    """Whether a trial has failed by itself, or has been lost too often to be tried again."""
    attrs = trial.user_attrs
    return trial.state == TrialState.FAIL and ("reason" in attrs or attrs.get("losses", 0) >= MOST_LOSSES)


def reap(study: optuna.Study, folder: SearchFolder, note: Note = say) -> list[int]:
    """Mark trials whose worker has ended as failed and queue them again; the asking lock is held.

    With a journal a trial's worker holds a lock, which the kernel frees with it; with a database it gives signs of
    life, whose absence is noticed after two minutes.

    Args:
        study: The study.
        folder: The search's folder.
        note: Gets a line for each lost trial.

    Returns:
        Numbers of the lost trials.
    """
    if not isinstance(study._storage, JournalStorage):
        before = {trial.number for trial in running(study)}
        optuna.storages.fail_stale_trials(study)
        lost = sorted(before - {trial.number for trial in running(study)})
    else:
        lost = []
        for trial in running(study):
            if held(folder.lock(trial.number)):
                continue
            study.tell(trial.number, state=TrialState.FAIL)
            lost.append(trial.number)
            _queue_again(study, study.trials[trial.number])
    for number in lost:
        note(f"trial {number}: its worker has ended; it is queued again")
    return lost


def running(study: optuna.Study) -> list[FrozenTrial]:
    """Trials that have been asked for and have not ended."""
    return study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))


def arm_of(trial: FrozenTrial | optuna.Trial) -> str:
    """The folder of a trial's runs: a lost one that is tried again goes on in that of the first try."""
    return str(trial.user_attrs.get("arm", f"trial-{trial.number:04d}"))


def _queue_again(study: optuna.Study, trial: FrozenTrial) -> None:
    """Queue a lost trial's parameters; one that had failed already, or is lost again and again, is let go."""
    losses = int(trial.user_attrs.get("losses", 0)) + 1
    if "reason" in trial.user_attrs or losses > MOST_LOSSES:
        return
    attrs: dict[str, Any] = {"arm": arm_of(trial), "losses": losses}
    study.enqueue_trial(trial.params, user_attrs=attrs)
