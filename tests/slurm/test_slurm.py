"""A study through a real SLURM: finished, cancelled, requeued and tried again.

Run by ``HEPASTAGE_TEST_SLURM=1 python -m pytest tests/slurm``; needs Debian's slurmctld, slurmd, slurm-client, munge.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.experiments.grids import check_once, events, folder_of, run, start, write_study
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


def running(environment: dict[str, str]) -> list[str]:
    return slurm(environment, "squeue", "-h", "-t", "R", "-o", "%A").split()


@pytest.mark.timeout(1800)
def test_cancelled_requeued_and_tried_again(node: dict[str, str], tiny_cohort: Tiny, tmp_path: Path) -> None:
    resources = {"gpus": 1, "cores": 1, "hours": 0.5}
    study = write_study(tmp_path, tiny_cohort, resources=resources, seeds=[0, 1])
    profile = tmp_path / "profile.yaml"
    profile.write_text(yaml.safe_dump(PROFILE))
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
