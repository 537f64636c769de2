"""The driver of a study's grid: plan, workflow, progress, and what became of each cell. Light, torch-free."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import platform
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from datamodules.errors import InputError
from experiments import grid_workflow
from experiments.grid_folder import COMPARE_KEY, GridFolder, Plan, Planned, locked, masks_key, read_maybe, study_folder
from experiments.grid_job import ask_worker
from experiments.grid_lease import devices_of
from experiments.grid_processes import WORKER, end_with
from experiments.grid_words import Places, code_name, code_state, reason_of
from experiments.grid_workflow import Machine
from experiments.study import Study

Selection = Callable[[Planned], bool]


def say(text: str) -> None:
    """A progress line on stderr."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def machine_of(cores: int | None = None, gpus: str | None = None, slurm: Path | None = None) -> Machine:
    """What jobs run on.

    Args:
        cores: Processor cores to use; all that this process may use if None.
        gpus: GPUs to use, such as ``0-3``; all that it may see if None.
        slurm: Snakemake's profile of a cluster, or None for this machine.

    Raises:
        InputError: The machine has no such GPU, or there is no such profile.
    """
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if slurm is not None:
        # read once, so that a wrong one is refused before anything is begun
        grid_workflow.profile_of(slurm)
    return Machine(cores=cores or available, gpus=[] if slurm else devices_of(gpus), profile=slurm)


def run_study(
    study: Study,
    cohort: Path,
    splits: Path,
    runs: Path,
    store: Path | None = None,
    settings: Mapping[str, Any] | None = None,
    *,
    machine: Machine | None = None,
    keep_going: bool = True,
    warm: bool = True,
    wait: bool = False,
    selection: Selection | None = None,
) -> list[str]:
    """Train and test every cell of a study that is not done yet, make the masks between, and compare at the end.

    A cell that fails leaves the others to go on; arms that need masks are not started without them.

    Args:
        study: The study.
        cohort: Its cohort table.
        splits: Its split file.
        runs: Folder of all runs; the study's cells lie in ``runs/<study>/<arm>/<cell>``.
        store: Folder of preprocessed scans; ``runs/store`` if None.
        settings: Single keys over all cells' configurations, such as ``trainer.precision``.
        machine: What the jobs run on; all of this machine if None.
        keep_going: Whether a failed cell leaves the others to be started.
        warm: Whether jobs of this machine are forked from one warm process, which saves them the imports.
        wait: Whether to wait for another driver of the study, in place of leaving.
        selection: The cells wanted; those that they need are added. All if None.

    Returns:
        One line for each cell that is wanted and not done; empty where all is done.

    Raises:
        InputError: Study, cohort or split do not fit together, or another driver runs this study.
    """
    places = Places.of(cohort, splits, runs, store, settings)
    machine = machine or machine_of()
    folder = study_folder(places.runs, study.name)
    with _driving(folder, wait), _warm_worker(folder, warm and machine["profile"] is None) as address:
        code = code_state(folder.path / "diffs")
        plan = _planned(study, places, folder, code, address)
        folder.log_event("run", "", code=code, host=platform.node())
        return _Driver(folder, plan, machine, address, keep_going, selection).work()


class _Driver:
    """One run of a plan."""

    def __init__(
        self,
        folder: GridFolder,
        plan: Plan,
        machine: Machine,
        address: str | None,
        keep_going: bool,
        selection: Selection | None,
    ) -> None:
        self.folder, self.plan, self.machine = folder, plan, machine
        self.environment = {} if address is None else {WORKER: address}
        # what a job prints is shown here in the end
        self.environment["COLUMNS"] = os.environ.get("COLUMNS", str(shutil.get_terminal_size().columns))
        self.keep_going = keep_going
        self.titles = {cell["key"]: title_of(cell) for cell in plan["cells"]}
        self.wanted = {cell["key"] for cell in plan["cells"] if selection is None or selection(cell)}
        self.number = 0
        self.heard = folder.events.stat().st_size if folder.events.is_file() else 0

    def work(self) -> list[str]:
        """Run what is open; what is left is returned."""
        keys = self._open()
        done = len(self.plan["cells"]) - sum(key in self.titles for key in keys)
        self.number = done
        self._introduce(done, sum(key in self.titles for key in keys))
        for key in keys:
            self.folder.failed(key).unlink(missing_ok=True)
        if keys:
            self._snakemake(keys)
        return self._left()

    def _open(self) -> list[str]:
        """Keys of all jobs that are to be done for what is wanted, each after those it needs."""
        cells = {cell["key"]: cell for cell in self.plan["cells"]}
        states = self.folder.conditions(self.plan["cells"])
        wanted = [key for key in cells if key in self.wanted and states[key].state != "done"]
        names = {name for key in wanted if (name := cells[key]["masks"]) is not None}
        # the comparison and the user want all masks that are planned, once all cells are wanted
        if len(self.wanted) == len(cells):
            names |= self.plan["masks"].keys()
        masks = [name for name in self.plan["masks"] if name in names and not self._made(name)]
        first = [
            key
            for name in masks
            for key in self.plan["masks"][name]
            if states[key].state != "done" and key not in wanted
        ]
        keys = [*first, *wanted, *map(masks_key, masks)]
        all_done = all(key in wanted or states[key].state == "done" for key in cells)
        compared = read_maybe(self.folder.record(COMPARE_KEY)).get("cells") == sorted(cells)
        if self.plan["compare"] is not None and all_done and (keys or not compared):
            keys.append(COMPARE_KEY)
        return keys

    def _made(self, name: str) -> bool:
        record = read_maybe(self.folder.record(masks_key(name)))
        return record.get("segmenters") == self.plan["masks"][name] and self.folder.masks_sha256(name) is not None

    def _introduce(self, done: int, left: int) -> None:
        machine = self.machine
        where = f"{machine['cores']} core{'s' if machine['cores'] > 1 else ''}"
        where += f", {len(machine['gpus'])} GPUs" if machine["gpus"] else ""
        where = "the cluster" if machine["profile"] is not None else where
        say(f"{len(self.plan['cells'])} cells: {done} done, {left} to run on {where}")
        now = code_name(self.plan["code"])
        states = self.folder.conditions(self.plan["cells"]).values()
        others = {code_name(state.record.get("code")) for state in states if state.state == "done"} - {now}
        if others:
            say(f"note: finished cells are of code {', '.join(sorted(others))}; now it is {now}")

    def _snakemake(self, keys: Collection[str]) -> int:
        jobs = grid_workflow.jobs_of(self.plan, self.folder, list(keys), self.machine)
        grid_workflow.write_workflow(self.folder, jobs, self.plan["retries"], self.machine)
        process = grid_workflow.start(self.folder, self.machine, self.keep_going, self.environment)
        try:
            while process.poll() is None:
                self._tell()
                time.sleep(0.1)
            self._tell()
        finally:
            grid_workflow.stop(process, self.machine["profile"] is not None)
        return process.returncode

    def _tell(self) -> None:
        """Print what the jobs have logged since the last time."""
        if not self.folder.events.is_file():
            return
        with self.folder.events.open("rb") as stream:
            stream.seek(self.heard)
            data = stream.read()
        whole = data[: data.rfind(b"\n") + 1]
        self.heard += len(whole)
        for line in whole.splitlines():
            event = json.loads(line)
            self._print(event)

    def _print(self, event: dict[str, Any]) -> None:
        key, what = event["key"], event["event"]
        title = self.titles.get(key) or _stage_title(key)
        if what == "finished":
            if key in self.titles:
                self.number += 1
                title = f"[{self.number}/{len(self.titles)}] {title}"
            say(f"{title} … done in {event['seconds']:.0f} s{self._facts(key)}")
            if key == COMPARE_KEY:
                self._show_comparison(event)
        elif what == "failed":
            failure = read_maybe(self.folder.failed(key))
            reason = f"{failure.get('error', 'failed')}: {failure.get('line', '')}"
            say(f"{title} … failed after {event['seconds']:.0f} s ({reason}); log: {self.folder.log(key)}")
        elif what == "waiting":
            say(f"{title} … waits: another process has begun it")

    def _facts(self, key: str) -> str:
        record = read_maybe(self.folder.record(key))
        if record.get("mean_dice") is None:
            return ""
        return f": {record['masks']} masks, mean Dice {record['mean_dice']:.3f}, worst {record['worst_dice']:.3f}"

    def _show_comparison(self, event: dict[str, Any]) -> None:
        # the log holds earlier comparisons too
        start = int(read_maybe(self.folder.record(COMPARE_KEY)).get("log_start", 0))
        with self.folder.log(COMPARE_KEY).open("rb") as stream:
            stream.seek(start)
            sys.stdout.write(stream.read().decode("utf-8", "replace"))
            sys.stdout.flush()

    def _left(self) -> list[str]:
        states = self.folder.conditions(self.plan["cells"])
        lines = []
        for name in self.plan["masks"]:
            failure = read_maybe(self.folder.failed(masks_key(name)))
            if failure:
                lines.append(f"masks of {name}: {failure['error']}: {failure['line']}")
        for cell in self.plan["cells"]:
            state = states[cell["key"]]
            if cell["key"] not in self.wanted or state.state == "done":
                continue
            if state.failure:
                memory = "out of memory: " if state.failure.get("out_of_memory") else ""
                reason = f"{memory}{state.failure['error']}: {state.failure['line']}"
            elif cell["masks"] is not None and not self._made(cell["masks"]):
                reason = f"not started, because {'a segmenter failed' if cell['masks'] else 'its masks are missing'}"
            else:
                reason = f"not finished; Snakemake's log is {self.folder.path / 'snakemake.log'}"
            lines.append(f"{title_of(cell)}: {reason}")
        failure = read_maybe(self.folder.failed(COMPARE_KEY))
        if failure and not lines:
            lines.append(f"comparison: {failure['error']}: {failure['line']}")
        return lines


def title_of(cell: Planned) -> str:
    """What progress lines call a cell."""
    return f"{cell['arm']}, fold {cell['fold']}, seed {cell['seed']}"


def _stage_title(key: str) -> str:
    if key == COMPARE_KEY:
        return "comparison"
    name = key.removeprefix("masks.")
    return "out-of-fold masks" if name == "segmenter" else f"out-of-fold masks of {name}"


@contextmanager
def _driving(folder: GridFolder, wait: bool) -> Iterator[None]:
    """Be the only driver of the study.

    Raises:
        InputError: There is another one.
    """
    note = folder.path / "driver.json"
    told = False
    while True:
        with locked(folder.path / "driver.lock") as descriptor:
            if descriptor is not None:
                note.write_text(json.dumps({"pid": os.getpid(), "host": platform.node(), "since": time.time()}))
                yield
                return
        other = read_maybe(note)
        who = f"process {other.get('pid', '?')} on {other.get('host', '?')}"
        if not wait:
            raise InputError(
                f"{folder.study}: {who} runs this study now; look with 'hepastage grid status', or give --wait"
            )
        if not told:
            say(f"waiting for {who}, which runs this study now")
            told = True
        time.sleep(1)


@contextmanager
def _warm_worker(folder: GridFolder, wanted: bool) -> Iterator[str | None]:
    """The warm worker's socket while it runs; None where none is wanted or possible."""
    if not wanted or not hasattr(os, "fork"):
        yield None
        return
    from experiments.grid_worker import ENVIRONMENT

    # a socket's path must be short
    place = Path(tempfile.mkdtemp(prefix="hepastage-"))
    address = str(place / "worker")
    with (folder.path / "worker.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "experiments.grid_worker", address],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**os.environ, **ENVIRONMENT},
            start_new_session=True,
            preexec_fn=end_with(os.getpid()),
        )
    try:
        _await(address, process, folder)
        yield address
    finally:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        shutil.rmtree(place, ignore_errors=True)


def _await(address: str, process: subprocess.Popen[bytes], folder: GridFolder) -> None:
    """Wait until the worker has imported all and listens."""
    while process.poll() is None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            try:
                probe.connect(address)
                return
            except OSError:
                time.sleep(0.05)
    raise RuntimeError(
        f"the worker process ended while starting (code {process.returncode}); see {folder.path}/worker.log"
    )


def _planned(study: Study, places: Places, folder: GridFolder, code: Mapping[str, Any], address: str | None) -> Plan:
    """The plan: the one at hand where nothing has changed since, else a new one, made where torch is loaded anyway."""
    reason = reason_of(study, places, code)
    found = read_maybe(folder.plan_file)
    if found.get("reason") == reason:
        return folder.plan()
    if address is None:
        from experiments.grid_resolve import make_plan

        return make_plan(study, places, folder, reason, code)
    request = {"study": study, "places": places, "reason": reason, "code": code}
    (folder.path / "request.pickle").write_bytes(pickle.dumps(request))
    folder.log("plan").parent.mkdir(parents=True, exist_ok=True)
    with folder.log("plan").open("wb") as log:
        status = ask_worker(address, folder, "plan", {}, [log.fileno()], forward=False)
    if status != 0:
        failure = read_maybe(folder.failed("plan"))
        folder.failed("plan").unlink(missing_ok=True)
        if failure.get("faults"):
            raise InputError(*failure["faults"])
        raise RuntimeError(f"the plan could not be made ({failure.get('error', status)}); see {folder.log('plan')}")
    return folder.plan()
