"""A study through a real SLURM: finished, cancelled, requeued, preempted and tried again; a cell of two tasks.

Run by ``HEPASTAGE_TEST_SLURM=1 python -m pytest tests/slurm``; needs Debian's slurmctld, slurmd, slurm-client, munge.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
import yaml

from tests.experiments.grids import SMALL, check_once, events, folder_of, run, start, write_study
from tests.slurm.node import missing, slurm, slurm_node
from tests.tiny import Tiny

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.skipif("HEPASTAGE_TEST_SLURM" not in os.environ, reason="HEPASTAGE_TEST_SLURM is not set"),
    pytest.mark.skipif(bool(missing()), reason=f"SLURM is not installed: {', '.join(missing())}"),
]

PROFILE = {
    "executor": "slurm",
    "jobs": 4,
    "default-resources": ["slurm_partition=main", "slurm_account=nobody"],
    # there is no accounting database to ask
    "slurm-status-command": "squeue",
    "slurm-init-seconds-before-status-checks": 2,
    "seconds-between-status-checks": 2,
    "latency-wait": 5,
}


@pytest.fixture
def node() -> Iterator[dict[str, str]]:
    # a socket's path must be short
    with tempfile.TemporaryDirectory(prefix="slurm-") as folder, slurm_node(Path(folder)) as environment:
        yield environment


def write_profile(folder: Path, partition: str = "main") -> Path:
    profile = folder / "profile.yaml"
    resources = [f"slurm_partition={partition}", "slurm_account=nobody"]
    profile.write_text(yaml.safe_dump({**PROFILE, "default-resources": resources}))
    return profile


def only_run(study: Path) -> Path:
    (cell,) = folder_of(study).plan()["cells"]
    return Path(str(cell["run"]))


def epochs_of(run: Path) -> list[int]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["epoch"] for line in lines if "train/loss" in line]


def await_epoch(driver: subprocess.Popen[str], run: Path, epoch: int, seconds: float = 300) -> None:
    """Wait until a training has logged an epoch."""
    end = time.monotonic() + seconds
    while not (run / "metrics.jsonl").is_file() or epoch not in epochs_of(run):
        assert time.monotonic() < end and driver.poll() is None, driver.communicate()[0]
        time.sleep(0.2)


def running(environment: dict[str, str]) -> list[str]:
    return slurm(environment, "squeue", "-h", "-t", "R", "-o", "%A").split()


@pytest.mark.timeout(1800)
def test_cancelled_requeued_and_tried_again(node: dict[str, str], tiny_cohort: Tiny, tmp_path: Path) -> None:
    resources = {"gpus": 1, "cores": 1, "hours": 0.5}
    study = write_study(tmp_path, tiny_cohort, resources=resources, seeds=[0, 1])
    profile = write_profile(tmp_path)
    keep = {key: node[key] for key in ("SLURM_CONF", "PATH")}
    driver = start(study, "--slurm", str(profile), **keep)
    end = time.monotonic() + 240
    while len(events(study, "started")) < 2:
        assert time.monotonic() < end and driver.poll() is None, driver.communicate()[0]
        time.sleep(0.2)
    gpus = {event["gpus"] for event in events(study, "started")}
    cancelled, requeued = running(node)[:2]
    slurm(node, "scontrol", "requeue", requeued)
    slurm(node, "scancel", cancelled)
    output, _ = driver.communicate(timeout=600)
    assert driver.returncode == 1, output
    states = folder_of(study).conditions(folder_of(study).plan()["cells"])
    counted = sorted(state.state for state in states.values())
    assert counted == ["done", "done", "done", "failed"], f"{counted}\n{output}"
    assert gpus == {"0", "1"}, "SLURM gives each cell a GPU of its own"
    code, output = run(study, "--slurm", str(profile), action="retry", **keep)
    assert code == 0, output
    check_once(study, 4)
    for cell in folder_of(study).plan()["cells"]:
        assert Path(str(cell["run"]), "done.json").is_file()


EPOCHS = 60
LONG = {
    **SMALL,
    "trainer.max_epochs": EPOCHS,
    "trainer.callbacks+": [{"class_path": "callbacks.last_checkpoint.LastCheckpoint", "init_args": {"every_s": 0}}],
}
"""A training of a minute, with a checkpoint after each epoch."""


@pytest.mark.timeout(1800)
def test_warned_and_preempted(node: dict[str, str], tiny_cohort: Tiny, tmp_path: Path) -> None:
    """SIGUSR1, then a job of a better partition that needs the node: queued again, and no epoch is done twice.

    SLURM sends SIGTERM to a preempted job's processes; the driver sees nothing but a job that takes longer.
    """
    resources = {"gpus": 0, "cores": 2, "hours": 0.5}
    study = write_study(tmp_path, tiny_cohort, 1, resources=resources, set=LONG)
    keep = {key: node[key] for key in ("SLURM_CONF", "PATH")}
    driver = start(study, "--slurm", str(write_profile(tmp_path, "low")), **keep)
    end = time.monotonic() + 240
    while not events(study, "started"):
        assert time.monotonic() < end and driver.poll() is None, driver.communicate()[0]
        time.sleep(0.2)
    run = only_run(study)
    await_epoch(driver, run, 1)
    (job,) = running(node)
    slurm(node, "scancel", "--signal=USR1", job)
    await_epoch_after(driver, study, 2)
    assert running(node) == [job], "the same job, queued again"
    # all processors of the node: the job of the lower partition must go
    slurm(node, "sbatch", "--partition=main", "--cpus-per-task=2", "--output=/dev/null", "--wrap", "sleep 5")
    output, _ = driver.communicate(timeout=900)
    assert driver.returncode == 0, output
    assert len(events(study, "started")) == 3, "begun, and begun again twice"
    log = folder_of(study).log(folder_of(study).plan()["cells"][0]["key"]).read_text()
    assert "stopped by SIGUSR1; the same command goes on" in log and "the job is queued again" in log, log
    assert "stopped by SIGTERM; the same command goes on" in log and log.count("the job is queued again") == 2, log
    assert log.count("going on after epoch") == 2 and "Traceback" not in log, log
    assert epochs_of(run) == list(range(EPOCHS)), "no epoch twice, none left out"
    check_once(study, 1)


def await_epoch_after(driver: subprocess.Popen[str], study: Path, starts: int) -> None:
    """Wait until a cell has been started so often, and trains."""
    end = time.monotonic() + 300
    while len(events(study, "started")) < starts:
        assert time.monotonic() < end and driver.poll() is None, driver.communicate()[0]
        time.sleep(0.2)
    run = only_run(study)
    await_epoch(driver, run, epochs_of(run)[-1] + 1)


@pytest.mark.timeout(1800)
def test_a_cell_of_two_tasks(node: dict[str, str], tiny_cohort: Tiny, tmp_path: Path) -> None:
    """One cell is one allocation; its two processes are started by srun and train together, by DDP over gloo."""
    two = {
        **SMALL, "trainer.devices": 2, "trainer.strategy": "ddp", "data.init_args.batch_size": 2,
        "trainer.callbacks+": [{"class_path": "tests.experiments.many_processes.StepLosses"}],
    }  # fmt: skip
    resources = {"gpus": 0, "cores": 1, "tasks": 2, "hours": 0.5}
    study = write_study(tmp_path, tiny_cohort, 1, resources=resources, set=two)
    keep = {key: node[key] for key in ("SLURM_CONF", "PATH")}
    code, output = run(study, "--slurm", str(write_profile(tmp_path)), **keep)
    log = folder_of(study).log(folder_of(study).plan()["cells"][0]["key"]).read_text()
    assert code == 0, f"{output}\n{log}"
    check_once(study, 1)
    cell = only_run(study)
    losses = [json.loads((cell / f"losses{rank}.json").read_text()) for rank in range(2)]
    assert len(losses[0]) == len(losses[1]) >= 1 and losses[0] != losses[1], "two processes, each with its patients"
    assert not (cell / "losses2.json").exists()
    assert log.count("fit done: ") == log.count("test done: ") == 1, log
    assert len(pd.read_parquet(cell / "predictions.parquet")) == 4, "each test patient once"
