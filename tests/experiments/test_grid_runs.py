"""Studies that are really run, killed, continued and extended, by the command line in processes of their own.

The long ones, of 24 and of 12 cells among them, are run by ``make test-long``.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import time
from pathlib import Path

import pytest

from datamodules.records import read_records
from tests.experiments.grids import (
    BASE,
    SEGMENTER,
    SMALL,
    await_events,
    await_quiet,
    check_once,
    events,
    folder_of,
    kill_a_cell,
    run,
    start,
    write_study,
)
from tests.tiny import Tiny

FAILING = {"trainer.callbacks+": [{"class_path": "tests.experiments.grids.Failing"}]}


def test_killed_failing_and_extended(tiny_cohort: Tiny, tmp_path: Path) -> None:
    """The small version of the 24-cell study: 4 cells, one of which always fails, a killed driver, a new seed."""
    failing = {"masks": "reference", "set": FAILING}
    study = write_study(
        tmp_path, tiny_cohort, arms={"reference": {"masks": "reference"}, "failing": failing}, folds=2
    )  # fmt: skip
    driver = start(study, "--cores", "2")
    await_events(study, 2, "started")
    driver.send_signal(signal.SIGKILL)
    driver.communicate()
    await_quiet(study)
    code, output = run(study, "--cores", "2")
    assert code == 1, output
    assert "failing, fold 0, seed 0: RuntimeError: the sky is falling" in output
    states = folder_of(study).conditions(folder_of(study).plan()["cells"])
    assert sorted(state.state for state in states.values()) == ["done", "done", "failed", "failed"]
    code, output = run(study, action="status")
    assert code == 0 and "RuntimeError: the sky is falling" in output and "in many lines" not in output
    study = write_study(tmp_path, tiny_cohort, seeds=[0, 1])
    before = {event["key"] for event in events(study, "finished")}
    code, output = run(study, "--cores", "2")
    assert code == 0 and "4 cells: 2 done, 2 to run" in output, output
    assert len({event["key"] for event in events(study, "finished")} - before) == 2, "the new seed's cells alone"
    check_once_besides = folder_of(study).conditions(folder_of(study).plan()["cells"])
    assert {state.state for state in check_once_besides.values()} == {"done"}


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_study_of_24_cells_survives(tiny_cohort: Tiny, tmp_path: Path) -> None:
    """2 arms × 2 mask sources × 2 learning rates × 3 folds, with the 3 segmenters that half of them need."""
    means = {"set": {"model.init_args.network.init_args.aggregation": "mean"}}
    axes = {
        "masks": {"values": {"reference": {"masks": "reference"}, "predicted": {"masks": "out_of_fold"}}},
        "lr": {"key": "model.init_args.optimizer.init_args.lr", "values": [0.001, 0.003]},
    }
    parts = {"arms": {"attention": {}, "mean": means}, "axes": axes, "segmenter": SEGMENTER}
    study = write_study(tmp_path, tiny_cohort, 3, **parts)
    began = time.monotonic()
    code, output = run(study, action="plan")
    seconds = time.monotonic() - began
    assert code == 0 and "27 cells: 0 done, 27 to run" in output, output
    (tmp_path / "plan_seconds").write_text(f"{seconds:.1f}")
    driver = start(study, "--cores", "2")
    await_events(study, 7, "finished")
    killed = kill_a_cell(study)
    await_events(study, 10, "finished")
    second, said = run(study)
    assert second == 2 and "runs this study now" in said, said
    driver.send_signal(signal.SIGKILL)
    driver.communicate()
    await_quiet(study)
    done = len(events(study, "finished"))
    assert done < 28
    code, output = run(study, "--cores", "2")
    assert code == 0, output
    check_once(study, 27)
    assert killed in {event["key"] for event in events(study, "finished")}
    study = write_study(tmp_path, tiny_cohort, 3, **parts, seeds=[0, 1])
    before = {event["key"] for event in events(study, "finished")}
    code, output = run(study, "--cores", "2")
    assert code == 0 and "51 cells: 27 done, 24 to run" in output, output
    check_once(study, 51)
    assert len({event["key"] for event in events(study, "finished")} - before) == 24
    records = [read_records(path) for path in tmp_path.glob("runs/*/*/*/predictions.parquet")]
    classified = [record for record in records if "prob" in record]
    assert len(classified) == 48
    assert all(record["quality"].notna().all() for record in classified), "whoever waits for no masks has bands too"


@pytest.mark.slow
def test_gpus_are_leased_to_one_cell_each(tiny_cohort: Tiny, tmp_path: Path) -> None:
    """Four fake GPUs, 4 cells in the fast version: never two on one, and all free when the driver was killed."""
    check_leases(tiny_cohort, tmp_path, cells=4)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_twelve_cells_on_four_gpus(tiny_cohort: Tiny, tmp_path: Path) -> None:
    check_leases(tiny_cohort, tmp_path, cells=12)


def check_leases(tiny: Tiny, folder: Path, cells: int) -> None:
    study = write_study(folder, tiny, seeds=list(range(cells // 2)))
    fake = {"HEPASTAGE_GPU_COUNT": "4", "HEPASTAGE_LEASES": str(folder / "leases")}
    driver = start(study, "--cores", "4", "--gpus", "0-3", **fake)
    await_events(study, 4, "started")
    assert free_gpus(folder / "leases") == []
    os.kill(driver.pid, signal.SIGKILL)
    driver.communicate()
    await_quiet(study)
    assert free_gpus(folder / "leases") == [0, 1, 2, 3]
    # the jobs of the killed driver have no end in the log
    before = len(events(study))
    code, output = run(study, "--cores", "4", "--gpus", "0-3", **fake)
    assert code == 0, output
    times: dict[str, list[tuple[str, str]]] = {}
    begun: dict[str, tuple[str, str]] = {}
    for event in events(study)[before:]:
        if event["event"] == "started":
            begun[event["key"]] = (event["gpus"], event["time"])
        elif event["event"] == "finished" and event["key"] in begun:
            gpu, since = begun[event["key"]]
            times.setdefault(gpu, []).append((since, event["time"]))
    assert set(times) <= {"0", "1", "2", "3"}
    assert len(begun) == sum(len(spans) for spans in times.values()) > 0
    for spans in times.values():
        for (_, end), (begin, _) in itertools.pairwise(sorted(spans)):
            assert end <= begin, "two cells had one GPU at once"


def free_gpus(folder: Path) -> list[int]:
    from experiments.grid_lease import SLOTS, _free

    if not folder.is_dir():
        return [0, 1, 2, 3]
    found = []
    for device in range(4):
        descriptors = _free(folder, device)
        for descriptor in descriptors:
            os.close(descriptor)
        if len(descriptors) == SLOTS:
            found.append(device)
    return found


@pytest.mark.slow
def test_out_of_memory_is_told_and_tried_again_in_parts(tiny_cohort: Tiny, tmp_path: Path) -> None:
    """The cell keeps its id; the effective batch stays."""
    hungry = {"trainer.callbacks+": [{"class_path": "tests.experiments.grids.Hungry"}], "data.init_args.batch_size": 4}
    study = write_study(
        tmp_path, tiny_cohort, folds=2, set=SMALL, base={**BASE, "set": {**BASE["set"], **hungry}}
    )  # fmt: skip
    words = ("--only", "fold=0")
    code, output = run(study, *words)
    code, output = run(study, *words) if "fits no cell" in output else (code, output)
    assert code == 1 and "out of memory: MemoryError" in output, output
    (cell,) = [cell for cell in folder_of(study).plan()["cells"] if cell["fold"] == 0]
    code, output = run(study, "--set", "trainer.max_epochs=3", action="retry")
    assert code == 2 and "would make another cell" in output, output
    code, output = run(study, "--set", "data.init_args.batch_size=2", action="retry")
    assert code == 0, output
    state = folder_of(study).conditions([cell])[cell["key"]]
    assert state.state == "done" and state.record["run"] == cell["run"]
    provenance = json.loads((Path(str(cell["run"])) / "provenance.json").read_text())
    assert "--part_size 2" in provenance["command"]
