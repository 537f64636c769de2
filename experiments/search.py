"""The driver of a search: check it, start its workers, replace those that are killed, leave nothing running."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from datamodules.errors import InputError
from experiments.cli_given import given_of
from experiments.cli_precheck import precheck
from experiments.cli_words import with_shipped
from experiments.grid import machine_of
from experiments.grid_processes import end_with, ended_by
from experiments.search_file import Search
from experiments.search_folder import SearchFolder, seal
from experiments.search_journal import FileLock
from experiments.search_space import Parameter
from experiments.search_storage import Tally, open_study, reap, say, tally
from experiments.search_trial import Setting
from experiments.search_worker import TOO_MANY_FAILURES, WRONG_REQUEST, Job

POLL_S = 0.1
MOST_RESTARTS = 10
"""Killed workers that are replaced, for each worker asked for."""


def run_search(
    search: Search,
    cohort: Path,
    splits: Path,
    runs: Path,
    store: Path | None = None,
    *,
    workers: int = 1,
    cores: int | None = None,
    gpus: str | None = None,
    runner: str = "experiments.search_trial:train",
) -> tuple[int, Tally]:
    """Run trials until the number asked for has ended; go on where an earlier run was stopped.

    Args:
        search: The search.
        cohort: Its cohort table.
        splits: Its split file.
        runs: Folder of all runs; a trial's cells lie in ``runs/<search>/trial-0007/<cell>``.
        store: Folder of preprocessed scans; ``runs/store`` if None.
        workers: Trials at once on this machine. Other machines may run the same search meanwhile.
        cores: Processor cores to share out; all that this process may use if None.
        gpus: GPUs to use, such as ``0-3``; all that it may see if None.
        runner: What carries a trial out, as ``module:function``.

    Returns:
        0 where the number asked for has ended, 1 where too many failed, 2 where the request was wrong; and the trials.

    Raises:
        InputError: Search, cohort, split and an earlier run do not fit together.
    """
    check_keys(search)
    machine = machine_of(cores, gpus)
    if search.gpus and search.gpus > len(machine["gpus"]):
        raise InputError(
            f"resources: a trial is to have {search.gpus:g} GPUs, and there are {len(machine['gpus'])}; "
            "correct it, or give others with --gpus"
        )
    folder = SearchFolder(runs / search.name)
    folder.make()
    facts = search.facts(cohort, splits)
    study = open_study(search, folder, facts)
    with FileLock(folder.asking).held():
        sealed = seal(folder, cohort, splits, search.folds)
        reap(study, folder)
    if sealed.tuned_on:
        say(
            f"note: {sealed.tuned_on} patients are tested in one of these folds and trained or validated on in "
            "another; what is found must not be tested on them (search one fold, or split with a fixed test part)"
        )
    setting = Setting(search, runs.absolute(), (runs / "store" if store is None else store).absolute(), sealed.folds)
    job = Job(
        setting=setting,
        facts=facts,
        devices=tuple(machine["gpus"]),
        gpus=search.gpus if search.gpus is not None else float(bool(machine["gpus"])),
        threads=search.cores or max(1, machine["cores"] // workers),
        hidden=gpus == "none" or search.gpus == 0,
        runner=runner,
    )
    counts = tally(study.get_trials(deepcopy=False))
    left = max(0, search.trials - counts.ended)
    say(f"{search.trials} trials: {counts.ended} ended, {left} to run by {workers} worker{'s' * (workers > 1)}")
    try:
        code = _Pool(job, workers).work() if left else 0
    finally:
        with FileLock(folder.asking).held():
            # whatever has ended this driver's workers, the keyboard too: no trial of theirs stays running
            reap(study, folder)
    return code, tally(study.get_trials(deepcopy=False))


class _Pool:
    """The workers of one driver."""

    def __init__(self, job: Job, workers: int) -> None:
        self.message = pickle.dumps(job)
        self.restarts = MOST_RESTARTS * workers
        self.processes = [self._start() for _ in range(workers)]

    def _start(self) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, "-m", "experiments.search_worker"],
            stdin=subprocess.PIPE,
            preexec_fn=end_with(os.getpid()),
        )
        assert process.stdin is not None
        process.stdin.write(self.message)
        process.stdin.close()
        return process

    def work(self) -> int:
        """Wait for the workers; a killed one is replaced. Returns the worst of their codes."""
        codes: list[int] = []
        try:
            while self.processes:
                time.sleep(POLL_S)
                for process in list(self.processes):
                    code = process.poll()
                    if code is None:
                        continue
                    self.processes.remove(process)
                    if code in (0, TOO_MANY_FAILURES, WRONG_REQUEST):
                        codes.append(code)
                        if code == WRONG_REQUEST:
                            self._stop()
                    elif self.restarts > 0:
                        self.restarts -= 1
                        say(f"a worker was {ended_by(code)}; another one is started")
                        self.processes.append(self._start())
                    else:
                        say(f"a worker was {ended_by(code)}")
                        codes.append(TOO_MANY_FAILURES)
        finally:
            self._stop()
        return max(codes, default=0)

    def _stop(self) -> None:
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            process.wait()
        self.processes = []


def check_keys(search: Search) -> None:
    """Refuse keys that the configurations do not have, before anything is trained.

    Each choice is looked at under the choices that its condition names.

    Raises:
        InputError: A key or class is unknown: all faults, each with the parameter's name.
    """
    base = [word for config in search.configs for word in ("-c", config)]
    base = [*with_shipped(base), *_words(search.settings)]
    precheck(given_of(base))
    faults = []
    space = {parameter.name: parameter for parameter in search.space}
    for parameter in search.space:
        values = list(parameter.choices) if parameter.kind == "choice" else [parameter.low]
        for value in values:
            try:
                precheck(given_of([*base, *_words({**_condition(parameter, space), **parameter.sets(value)})]))
            except InputError as error:
                faults += [f"space.{parameter.name}: {fault}" for fault in error.faults]
    if faults:
        raise InputError(*dict.fromkeys(faults))


def _condition(parameter: Parameter, space: Mapping[str, Parameter]) -> dict[str, Any]:
    """What the first choices under which a parameter is searched set."""
    settings: dict[str, Any] = {}
    for name, wanted in parameter.when.items():
        settings |= {**_condition(space[name], space), **space[name].sets(wanted[0])}
    return settings


def _words(settings: Mapping[str, Any]) -> list[str]:
    """Settings as words of the command line."""
    return [
        word
        for key, value in settings.items()
        for word in (f"--{key}", value if isinstance(value, str) else json.dumps(value))
    ]
