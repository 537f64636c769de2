"""A SLURM cluster of one node on loopback: munged, slurmctld and slurmd as plain processes that end with this one.

It needs Debian's packages ``slurmctld slurmd slurm-client munge``, and neither systemd, cgroups nor an accounting
database. Its two GPUs are pretended: SLURM hands them out and sets ``CUDA_VISIBLE_DEVICES``, nothing computes on them.
"""

from __future__ import annotations

import getpass
import os
import platform
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from experiments.grid_processes import end_with

DAEMONS = ("munged", "slurmctld", "slurmd")
CLIENTS = ("sbatch", "scancel", "scontrol", "sinfo", "squeue", "srun")
SEARCH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"])


def missing() -> list[str]:
    """Programs that a node needs and this machine does not have."""
    return [name for name in (*DAEMONS, *CLIENTS) if shutil.which(name, path=SEARCH) is None]


@contextmanager
def slurm_node(folder: Path, cpus: int = 2, gpus: int = 2) -> Iterator[dict[str, str]]:
    """Run a node while the block lasts.

    Args:
        folder: An empty folder with a short path without blanks, for state and logs.
        cpus: Processors that it offers.
        gpus: GPUs that it pretends to have.

    Yields:
        The environment in which SLURM's commands speak to it.
    """
    for name in ("munge", "state", "spool", "log", "bin"):
        (folder / name).mkdir(parents=True)
    folder.chmod(0o755)
    (folder / "munge").chmod(0o755)
    (folder / "munge" / "key").write_bytes(secrets.token_bytes(128))
    (folder / "munge" / "key").chmod(0o600)
    _configure(folder, cpus, gpus)
    environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf"), "LC_ALL": "C"}
    environment["PATH"] = f"{folder / 'bin'}{os.pathsep}{SEARCH}"
    for name in CLIENTS:
        # an installed cluster has its configuration in /etc; Snakemake drops SLURM_CONF before its inner srun
        script = folder / "bin" / name
        real = shutil.which(name, path=SEARCH)
        script.write_text(f'#!/bin/sh\nSLURM_CONF={folder / "slurm.conf"} exec {real} "$@"\n')
        script.chmod(0o755)
    munge = folder / "munge"
    with ExitStack() as stack:
        command = ["munged", "--foreground", "--force", f"--key-file={munge / 'key'}", f"--socket={munge / 'socket'}"]
        command += [f"--pid-file={munge / 'pid'}", f"--log-file={munge / 'log'}", f"--seed-file={munge / 'seed'}"]
        stack.enter_context(_daemon(folder, environment, command))
        _await("munge's socket", lambda: (munge / "socket").exists())
        stack.enter_context(_daemon(folder, environment, ["slurmctld", "-D", "-i", "-f", str(folder / "slurm.conf")]))
        stack.enter_context(_daemon(folder, environment, ["slurmd", "-D", "-f", str(folder / "slurm.conf")]))
        _await("an idle node", lambda: "idle" in slurm(environment, "sinfo", "-h", "-N", "-o", "%T"))
        try:
            yield environment
        finally:
            for job in slurm(environment, "squeue", "-h", "-o", "%A").split():
                slurm(environment, "scancel", job)
            _await(
                "an empty queue", lambda: not slurm(environment, "squeue", "-h", "-t", "R,PD,CG", "-o", "%A").strip()
            )


def slurm(environment: dict[str, str], *words: str) -> str:
    """What one of SLURM's commands prints."""
    return subprocess.run(
        words, env=environment, capture_output=True, text=True, timeout=30, check=False
    ).stdout  # fmt: skip


@contextmanager
def _daemon(folder: Path, environment: dict[str, str], command: list[str]) -> Iterator[None]:
    program = shutil.which(command[0], path=SEARCH)
    assert program is not None
    with (folder / "log" / command[0]).open("wb") as log:
        process = subprocess.Popen(
            [program, *command[1:]],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=environment,
            start_new_session=True,
            preexec_fn=end_with(os.getpid()),
        )
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _await(what: str, reached: object, seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    assert callable(reached)
    while not reached():
        assert time.monotonic() < end, f"no {what} within {seconds:.0f} s"
        time.sleep(0.2)


def _configure(folder: Path, cpus: int, gpus: int) -> None:
    """Write slurm.conf and gres.conf: two ports that are free now, no accounting, generic resources by name."""
    ports = []
    with ExitStack() as stack:
        for _ in range(2):
            listener = stack.enter_context(socket.socket())
            listener.bind(("127.0.0.1", 0))
            ports.append(listener.getsockname()[1])
    for number in range(gpus):
        # slurmd insists on device files
        (folder / f"gpu{number}").symlink_to("/dev/null")
    (folder / "gres.conf").write_text(f"AutoDetect=off\nName=gpu File={folder}/gpu[0-{gpus - 1}]\n")
    user, host = getpass.getuser(), platform.node().split(".")[0]
    settings = {
        "ClusterName": "loopback", "SlurmctldHost": "localhost(127.0.0.1)", "SlurmUser": user, "SlurmdUser": user,
        "SlurmctldPort": ports[0], "SlurmdPort": ports[1], "AuthType": "auth/munge",
        # a requeued job waits as long as its credential lives
        "AuthInfo": f"socket={folder}/munge/socket,cred_expire=5",
        "StateSaveLocation": folder / "state", "SlurmdSpoolDir": folder / "spool",
        "SlurmctldPidFile": folder / "slurmctld.pid", "SlurmdPidFile": folder / "slurmd.pid",
        "ProctrackType": "proctrack/linuxproc", "TaskPlugin": "task/none", "SwitchType": "switch/none",
        "MpiDefault": "none", "JobAcctGatherType": "jobacct_gather/none",
        "AccountingStorageType": "accounting_storage/none", "MailProg": "/bin/true",
        "SelectType": "select/cons_tres", "SelectTypeParameters": "CR_CPU", "GresTypes": "gpu",
        "SchedulerType": "sched/backfill", "SchedulerParameters": "sched_interval=2,bf_interval=2,batch_sched_delay=0",
        "SlurmdParameters": "config_overrides", "ReturnToService": 2, "KillWait": 5, "MinJobAge": 3600,
        "PreemptType": "preempt/partition_prio", "PreemptMode": "REQUEUE",
    }  # fmt: skip
    lines = [f"{key}={value}" for key, value in settings.items()]
    # memory is not enforced; Snakemake asks for some by default
    node = f"NodeName=localhost NodeHostname={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory=16000"
    lines.append(f"{node} Gres=gpu:{gpus} State=UNKNOWN")
    common = "Nodes=localhost MaxTime=INFINITE DefaultTime=60 State=UP"
    lines.append(f"PartitionName=main {common} Default=YES PriorityTier=2 PreemptMode=off")
    # jobs of this one give way to the other's: SIGTERM, some seconds, and they are queued again
    lines.append(f"PartitionName=low {common} PriorityTier=1 PreemptMode=requeue GraceTime=60")
    (folder / "slurm.conf").write_text("\n".join(lines) + "\n")
