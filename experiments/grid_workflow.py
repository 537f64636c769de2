"""The Snakemake workflow of a study's open jobs, and the process that works it off. Light, torch-free."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypedDict

import yaml

from datamodules.errors import InputError
from datamodules.files import write_json, write_text
from experiments.grid_folder import COMPARE_KEY, GridFolder, Plan, masks_key
from experiments.grid_lease import SLOTS, slots_of
from experiments.grid_processes import end_with

SNAKEFILE = """\
# Written by 'hepastage grid run'; made anew each time. Only what is not finished is in it.
import json
import re

JOBS = json.load(open(WORKFLOW_FILE))
# what other cells wait for is run before what nobody waits for
AWAITED = sorted({need for key, job in JOBS.items() if key != "COMPARE_KEY" for need in job["needs"]})
AWAITED = "|".join(map(re.escape, AWAITED)) or "(?!)"


def of(wildcards):
    return JOBS[wildcards.key]


def resource(name):
    return lambda wildcards: of(wildcards)["resources"].get(name, 0)


localrules:
    all,


rule all:
    input:
        expand("ended/{key}", key=JOBS),


"""
RULE = """

rule NAME:
    input:
        lambda wildcards: expand("ended/{key}", key=of(wildcards)["needs"]),
    output:
        "ended/{key}",
    wildcard_constraints:
        key=PATTERN,
    threads: lambda wildcards: of(wildcards)["cores"]
    priority: PRIORITY
    retries: RETRIES
    resources:
        RESOURCES
    params:
        command=lambda wildcards: of(wildcards)["command"],
    shell:
        "{params.command}"
"""
RULES = (("awaited", "AWAITED", "2"), ("job", 'f"(?!(?:{AWAITED})$)[^/]+"', "1"))
"""Name, pattern of the keys, and priority of the workflow's two rules."""


class Job(TypedDict):
    """A job of the workflow: what it needs first, its command and what it may use."""

    needs: list[str]
    command: str
    cores: int
    resources: dict[str, Any]


class Machine(TypedDict):
    """What the jobs run on: this machine's cores and GPUs, or a cluster's profile."""

    cores: int
    gpus: list[int]
    profile: Path | None


def jobs_of(plan: Plan, folder: GridFolder, open_keys: Sequence[str], machine: Machine) -> dict[str, Job]:
    """The jobs that are still to be done.

    Args:
        plan: The study's plan.
        folder: Its grid folder.
        open_keys: Keys of cells, masks and the comparison that are open and wanted.
        machine: What they run on.
    """
    wanted = set(open_keys)
    made: dict[str, tuple[list[str], dict[str, Any]]] = {}
    for cell in plan["cells"]:
        needs = [] if cell["masks"] is None else [masks_key(cell["masks"])]
        made[cell["key"]] = (needs, cell["resources"])
    for name, keys in plan["masks"].items():
        made[masks_key(name)] = (keys, made[keys[0]][1] if keys else {})
    made[COMPARE_KEY] = ([cell["key"] for cell in plan["cells"]], {"gpus": 0})
    made = {key: item for key, item in made.items() if key in wanted}
    threads = threads_of(len(plan["cells"]), made, machine)
    return {
        key: _job(key, [need for need in needs if need in wanted], wish, folder, machine, threads)
        for key, (needs, wish) in made.items()
    }


def threads_of(cells: int, made: dict[str, Any], machine: Machine) -> int:
    """Threads of a cell that names none: the cores, shared by the cells that can run at once."""
    width = min(machine["cores"], sum(not key.startswith("masks.") for key in made) or 1)
    if machine["gpus"]:
        width = min(width, max(1, len(machine["gpus"])))
    return max(1, machine["cores"] // max(1, width))


def _job(key: str, needs: list[str], wish: dict[str, Any], folder: GridFolder, machine: Machine, threads: int) -> Job:
    cluster = machine["profile"] is not None
    gpus = wish.get("gpus")
    if gpus is None:
        gpus = 1.0 if machine["gpus"] else 0.0
    cores = wish.get("cores") or (1 if cluster else threads)
    cores = cores if cluster else min(cores, machine["cores"])
    words = [sys.executable, "-m", "experiments.grid_job", str(folder.study), key, "--threads", str(cores)]
    tasks = int(wish.get("tasks") or 1)
    resources: dict[str, Any] = {}
    if cluster:
        # several cells cannot share a GPU there unless the cluster is set up for it: a share counts as one
        whole = -int(-gpus // 1)
        resources = {"gpu": whole} if whole else {}
        resources |= {"mem_mb": int(1000 * wish["memory_gb"])} if wish.get("memory_gb") else {}
        resources |= {"runtime": max(1, int(60 * wish["hours"]))} if wish.get("hours") else {}
        nodes = int(wish.get("nodes") or 1)
        if tasks % nodes:
            raise InputError(f"{key}: resources: {tasks} tasks are not the same number on each of {nodes} nodes")
        if tasks > 1:
            # Snakemake's own srun would start one process; the job itself starts one for each rank
            resources |= {"mpi": "srun", "tasks": tasks, "nodes": nodes}
            words += [
                "--launcher",
                # Lightning asks for the number on each node
                f"srun --nodes={nodes} --ntasks={tasks} --ntasks-per-node={tasks // nodes} --cpus-per-task={cores} "
                "--kill-on-bad-exit=1",
            ]
    else:
        words += ["--local"]
        if gpus and machine["gpus"]:
            words += ["--gpus", str(gpus), "--devices", ",".join(map(str, machine["gpus"]))]
            resources["leases"] = slots_of(gpus)
        if wish.get("memory_gb"):
            resources["mem_mb"] = int(1000 * wish["memory_gb"])
    return Job(needs=needs, command=shlex.join(words), cores=cores, resources=resources)


def write_workflow(folder: GridFolder, jobs: dict[str, Job], retries: int, machine: Machine) -> None:
    """Write the workflow anew; what earlier runs have left in its folder is removed."""
    shutil.rmtree(folder.workflow, ignore_errors=True)
    folder.marker("x").parent.mkdir(parents=True)
    write_json(folder.workflow / "jobs.json", jobs)
    names = sorted({name for job in jobs.values() for name in job["resources"]})
    lines = [f'{name}=resource("{name}"),' for name in names if name != "mpi"]
    if "mpi" in names:
        lines.append("mpi=lambda wildcards: of(wildcards)['resources'].get('mpi', ''),")
    text = SNAKEFILE.replace("WORKFLOW_FILE", repr(str(folder.workflow / "jobs.json"))).rstrip() + "\n"
    for name, pattern, priority in RULES:
        text += RULE.replace("NAME", name).replace("PATTERN", pattern).replace("PRIORITY", priority)
    text = text.replace("COMPARE_KEY", COMPARE_KEY)
    text = text.replace("RETRIES", str(retries))
    block = "".join(["    resources:\n", *(f"        {line}\n" for line in lines)]) if lines else ""
    text = text.replace("    resources:\n        RESOURCES\n", block)
    write_text(folder.workflow / "Snakefile", text)
    if machine["profile"] is not None:
        write_text(folder.workflow / "profile" / "config.yaml", yaml.safe_dump(profile_of(machine["profile"])))


def profile_of(path: Path) -> dict[str, Any]:
    """A Snakemake profile for a cluster.

    Raises:
        InputError: It is no mapping of Snakemake's options.
    """
    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"--slurm {path}: cannot be read as YAML ({' '.join(str(error).split())})") from error
    if not isinstance(value, dict):
        raise InputError(f"--slurm {path}: is no mapping of Snakemake's options; docs/grids.md shows one")
    value.setdefault("executor", "slurm")
    return value


def start(
    folder: GridFolder, machine: Machine, keep_going: bool, environment: dict[str, str]
) -> subprocess.Popen[bytes]:
    """Start Snakemake in a session of its own; it ends with this process.

    Args:
        folder: The study's grid folder, with its workflow.
        machine: What the jobs run on.
        keep_going: Whether a failed job leaves the others to go on.
        environment: What is added to the environment.
    """
    words = [sys.executable, "-m", "snakemake", "--snakefile", str(folder.workflow / "Snakefile")]
    words += ["--directory", str(folder.workflow), "--rerun-incomplete", "--nolock", "--nocolor"]
    words += ["--rerun-triggers", "mtime", "--scheduler", "greedy"]
    words += ["--keep-going"] if keep_going else []
    if machine["profile"] is not None:
        words += ["--profile", str(folder.workflow / "profile")]
    else:
        # our own lock keeps other drivers out; the jobs' markers are on this machine
        words += ["--executor", "local", "--cores", str(machine["cores"]), "--latency-wait", "2"]
        resources = [f"leases={SLOTS * len(machine['gpus'])}"] if machine["gpus"] else []
        pages = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        words += ["--resources", *resources, f"mem_mb={pages // 1_000_000}"]
    with (folder.path / "snakemake.log").open("ab") as log:
        return subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**os.environ, **environment},
            start_new_session=True,
            preexec_fn=end_with(os.getpid()),
        )


def stop(process: subprocess.Popen[bytes], cluster: bool) -> None:
    """End Snakemake and all that it has started; on a cluster it first cancels its jobs."""
    if process.poll() is None and cluster:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(20)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
