"""A worker of a search: ask for parameters, have them trained, tell the result; until the number asked for is done.

Started by the driver, which sends what to do by stdin. It imports Optuna, never torch.
"""

from __future__ import annotations

import dataclasses
import importlib
import math
import pickle
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages._heartbeat import get_heartbeat_thread
from optuna.trial import TrialState

from datamodules.errors import InputError
from experiments.grid_folder import locked
from experiments.grid_lease import lease
from experiments.search_file import Search
from experiments.search_folder import SearchFolder
from experiments.search_journal import FileLock
from experiments.search_space import ask, settings_of
from experiments.search_storage import arm_of, open_study, pruner_of, reap, sampler_of, say, tally
from experiments.search_trial import PrunedError, Runner, Setting, Task, TrialError

TOO_MANY_FAILURES = 1
WRONG_REQUEST = 2
IDLE_S = 0.1


@dataclasses.dataclass(frozen=True, slots=True)
class Job:
    """What a worker has to do.

    Attributes:
        setting: The search and where everything lies.
        facts: What its trials must have in common.
        devices: GPUs that may be leased.
        gpus: GPUs of a trial.
        threads: Threads of a trial.
        hidden: Whether trials may see no GPU.
        runner: What carries a trial out, as ``module:function``.
    """

    setting: Setting
    facts: dict[str, str]
    devices: tuple[int, ...] = ()
    gpus: float = 0.0
    threads: int = 1
    hidden: bool = False
    runner: str = "experiments.search_trial:train"


def work(job: Job) -> int:
    """Carry trials out until the number asked for has ended.

    Args:
        job: What to do.

    Returns:
        0 where that number has ended, 1 where too many have failed, 2 where the request was wrong.
    """
    module, _, name = job.runner.partition(":")
    runner: Runner = getattr(importlib.import_module(module), name)
    search, folder = job.setting.search, job.setting.folder
    study = open_study(search, folder, job.facts)
    study.pruner = pruner_of(search)
    asking = FileLock(folder.asking)
    while True:
        with ExitStack() as stack:
            trial = None
            with asking.held():
                # counting, finding the lost and asking are one step: no trial is asked for twice or too often
                reap(study, folder)
                trials = study.get_trials(deepcopy=False)
                counts = tally(trials)
                if counts.failed > search.max_failures:
                    return TOO_MANY_FAILURES
                if counts.ended >= search.trials:
                    return 0
                if counts.ended + counts.running < search.trials:
                    study.sampler = sampler_of(search, len(trials))
                    trial = study.ask()
                    lock = stack.enter_context(locked(folder.lock(trial.number)))
                    stack.enter_context(_alive(study, trial))
            if trial is None:
                # others are at the last ones; one of them may be lost
                time.sleep(IDLE_S)
                continue
            status = _carry_out(job, study, trial, runner, () if lock is None else (lock,), asking)
            if status:
                return status


def _carry_out(
    job: Job, study: optuna.Study, trial: optuna.Trial, runner: Runner, held: tuple[int, ...], asking: FileLock
) -> int:
    """One trial from its parameters to its result; 2 where it shows that the search cannot go on."""
    search = job.setting.search
    began = time.monotonic()
    trial.set_user_attr("arm", arm_of(trial))
    values = ask(trial, search.space)
    with ExitStack() as stack:
        environment = {"OMP_NUM_THREADS": str(job.threads)}
        descriptors = list(held)
        if job.gpus and job.devices:
            leased, leases = stack.enter_context(lease(job.devices, job.gpus))
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, leased))
            descriptors += leases
        elif job.hidden:
            environment["CUDA_VISIBLE_DEVICES"] = ""
        task = Task(
            setting=job.setting,
            arm=arm_of(trial),
            values=values,
            settings=settings_of(values, search.space),
            report=_Reporter(trial, len(search.objectives)),
            note=trial.set_user_attr,
            environment=environment,
            held=tuple(descriptors),
        )
        state, objectives, status = TrialState.COMPLETE, None, 0
        try:
            objectives = runner(task)
            wrong = [value for value in objectives if not math.isfinite(value)]
            if wrong:
                raise TrialError(f"the objective is {wrong[0]}, which is not a number")
        except PrunedError:
            state, objectives = TrialState.PRUNED, None
        except Exception as error:
            # whatever it was: the others go on, up to the number of failures that is put up with
            state, objectives = TrialState.FAIL, None
            known = isinstance(error, TrialError)
            trial.set_user_attr("reason", str(error) if known else f"{type(error).__name__}: {error}")
            # of wrong words the next trial would have as many; a trial that ended well shows that they can be right
            if (
                isinstance(error, TrialError)
                and error.wrong_request
                and not tally(study.get_trials(deepcopy=False)).ended
            ):
                status = WRONG_REQUEST
    trial.set_user_attr("seconds", round(time.monotonic() - began, 3))
    with asking.held():
        study.tell(trial, objectives, state=state)
        if search.keep_checkpoints == "best" and state != TrialState.FAIL:
            drop_checkpoints(study, job.setting.folder)
        say(_line(study, search, trial, state))
    return status


class _Reporter:
    """Takes the objective so far; several objectives are not pruned on."""

    def __init__(self, trial: optuna.Trial, objectives: int) -> None:
        self.trial, self.several = trial, objectives > 1

    def __call__(self, step: int, value: float) -> bool:
        if self.several:
            return False
        self.trial.report(value, step)
        # a NumPy value, which JSON does not know
        return bool(self.trial.should_prune())


@contextmanager
def _alive(study: optuna.Study, trial: optuna.Trial) -> Iterator[None]:
    """Give a database signs of life; a journal needs none, the trial's lock is one."""
    if isinstance(study._storage, JournalStorage):
        yield
        return
    # Optuna gives them in optimize() alone, which cannot ask here and train there
    with get_heartbeat_thread(trial._trial_id, study._storage):
        yield


def drop_checkpoints(study: optuna.Study, folder: SearchFolder) -> None:
    """Delete the checkpoints of ended trials that are not the best; the asking lock is held.

    Args:
        study: The study.
        folder: The search's folder.
    """
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    best = {arm_of(trial) for trial in study.best_trials} if complete else set()
    for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED)):
        if arm_of(trial) not in best:
            for checkpoints in (folder.search / arm_of(trial)).glob("*/checkpoints"):
                shutil.rmtree(checkpoints, ignore_errors=True)


def _line(study: optuna.Study, search: Search, trial: optuna.Trial, state: TrialState) -> str:
    """What became of a trial, in one line."""
    trials = study.get_trials(deepcopy=False)
    found = trials[trial.number]
    counts = tally(trials)
    seconds = f"{found.user_attrs.get('seconds', 0):.0f} s"
    title = f"[{counts.ended}/{search.trials}] trial {trial.number}"
    if state == TrialState.FAIL:
        return f"{title}: failed after {seconds}: {found.user_attrs.get('reason', '')}"
    if state == TrialState.PRUNED:
        return f"{title}: pruned after {seconds}, {len(found.intermediate_values)} epochs"
    shown = ", ".join(f"{o.metric} {value:.4g}" for o, value in zip(search.objectives, found.values, strict=True))
    best = "" if len(search.objectives) > 1 else f"; best {study.best_value:.4g} (trial {study.best_trial.number})"
    return f"{title}: {shown} in {seconds}{best}"


def main() -> int:
    """Do the job that the driver sends."""
    job: Any = pickle.load(sys.stdin.buffer)
    # the driver's SIGTERM ends the trial's processes as well
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        return work(job)
    except InputError as error:
        for fault in error.faults:
            say(f"hepastage: {fault}")
        return WRONG_REQUEST
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
