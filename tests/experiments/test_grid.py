"""The parts of a grid by themselves: words of a cell, states, leases, selections, cleaning, the workflow."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from datamodules.errors import InputError
from experiments.cli import main
from experiments.grid_clean import remnants
from experiments.grid_folder import GridFolder, Plan, Planned, held, locked, write_record
from experiments.grid_lease import SLOTS, devices_of, lease, slots_of
from experiments.grid_retry import selected, set_for_retry
from experiments.grid_status import overview, rows_of, status_text, table_csv
from experiments.grid_words import Places, bands_of, words_of
from experiments.grid_workflow import Machine, jobs_of
from experiments.study import Arm, Cell, Study

SEGMENTER = Arm("segmenter", ("segmentation",), "none", "segmenter", {})
DIRECT = Arm("direct", ("direct", "demo/classification"), "none", "classifier", {"trainer.max_epochs": 3})
MASKED = Arm("masked", ("masked_attention_resnet",), "out_of_fold", "classifier", {}, segmenter="segmenter")
STUDY = Study("s", None, None, None, (0,), (SEGMENTER,), (DIRECT, MASKED))
PLACES = Places(Path("/c"), Path("/s"), Path("/runs"), Path("/store"), {"trainer.precision": "32-true"})


def pairs(words: list[str]) -> list[tuple[str, str]]:
    return list(zip(words[::2], words[1::2], strict=True))


def test_the_words_of_a_cell() -> None:
    words = pairs(words_of(Cell(DIRECT, 1, 7), STUDY, PLACES))
    assert words[:2] == [("-c", "direct"), ("-c", "demo/classification")]
    for pair in (
        ("--study", "s"), ("--arm", "direct"), ("--role", "classifier"), ("--seed_everything", "7"),
        ("--data.init_args.fold", "1"), ("--trainer.max_epochs", "3"), ("--trainer.precision", "32-true"),
    ):  # fmt: skip
        assert pair in words
    assert not [key for key, _ in words if "mask" in key or "quality" in key]


def test_only_masked_arms_get_masks() -> None:
    masked = dict(pairs(words_of(Cell(MASKED, 0, 0), STUDY, PLACES)))
    assert masked["--data.init_args.mask_source"] == "out_of_fold"
    assert masked["--data.init_args.masks"] == "/runs/s/masks"
    assert bands_of(Cell(DIRECT, 0, 0), STUDY) == "segmenter", "the direct arm is shown by the same bands"
    assert bands_of(Cell(MASKED, 0, 0), STUDY) is None
    assert bands_of(Cell(DIRECT, 0, 0), Study("s", None, None, None, (0,), (SEGMENTER,), (DIRECT,))) is None


def cell(key: str, **changes: Any) -> Planned:
    value: dict[str, Any] = {
        "key": key, "arm": "a", "axes": {}, "fold": 0, "seed": 0, "role": "classifier", "run": None, "words": [],
        "masks": None, "bands": None, "differs": {}, "resources": {}, **changes,
    }  # fmt: skip
    return value  # type: ignore[return-value] # every key of it is there


def planned(folder: GridFolder, *cells: Planned, **changes: Any) -> Plan:
    value: dict[str, Any] = {
        "study": "s", "reason": "", "cwd": "/", "runs": "/runs", "code": {"sha": "ab" * 20, "diff": None},
        "cells": list(cells), "masks": {}, "compare": None, "retries": 0, **changes,
    }  # fmt: skip
    write_record(folder.plan_file, value)
    return folder.plan()


def finish(folder: GridFolder, item: Planned, run: str, **facts: Any) -> Path:
    """A finished run directory, and the record that leads to it."""
    path = folder.study / item["arm"] / run
    path.mkdir(parents=True)
    (path / "config.yaml").write_text("{}")
    fitted = {"finished": "", "metrics": {"valid/auc": 0.75}}
    (path / "done.json").write_text(json.dumps({"fit": fitted, "test": {"finished": ""}}))
    write_record(folder.record(item["key"]), {"run": str(path), "seconds": 90.0, **facts})
    return path


def test_states(tmp_path: Path) -> None:
    folder = GridFolder(tmp_path)
    names = ("done", "running", "failed", "unfinished", "waiting")
    cells = {name: cell(name, run=str(tmp_path / "a" / name)) for name in names}
    finish(folder, cells["done"], "done")
    (tmp_path / "a" / "unfinished").mkdir()
    (tmp_path / "a" / "unfinished" / "config.yaml").write_text("{}")
    write_record(folder.failed("failed"), {"error": "RuntimeError", "line": "x"})
    with locked(folder.lock("running")) as mine:
        assert mine is not None
        states = folder.conditions(list(cells.values()))
    assert {key: state.state for key, state in states.items()} == {name: name for name in names}
    assert folder.conditions([cells["running"]])["running"].state == "waiting", "the lock is free again"


def test_new_masks_make_another_cell(tmp_path: Path) -> None:
    folder = GridFolder(tmp_path)
    item = cell("k", masks="segmenter")
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks" / "masks.json").write_text("{}")
    sha = "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
    write_record(folder.record("masks.segmenter"), {"folder": str(tmp_path / "masks"), "masks_sha256": sha})
    finish(folder, item, "x", masks_sha256=sha)
    assert folder.conditions([item])["k"].state == "done"
    (tmp_path / "masks" / "masks.json").write_text('{"other": 1}')
    assert folder.conditions([item])["k"].state == "waiting"


def test_a_thousand_cells_are_shown_in_a_second_without_torch(tmp_path: Path) -> None:
    folder = GridFolder(tmp_path / "runs" / "s")
    cells = [cell(f"a.f{number}", fold=number, resources={"gpus": 1.0}) for number in range(1000)]
    for item in cells[:600]:
        finish(folder, item, item["key"], code={"sha": ("ab" if item["fold"] else "cd") * 20, "diff": None})
    write_record(folder.failed("a.f700"), {"error": "RuntimeError", "line": "CUDA said no", "out_of_memory": True})
    planned(folder, *cells)
    (tmp_path / "study.yaml").write_text("study: s\narms: {a: {config: direct}}\n")
    words = ["grid", "status", str(tmp_path / "study.yaml"), "--runs", str(tmp_path / "runs")]
    script = (
        "import sys, time; began = time.process_time(); from experiments.cli import main; code = main(sys.argv[1:]); "
        "assert not {'torch', 'pandas', 'lightning'} & set(sys.modules); print(code, time.process_time() - began)"
    )
    answer = subprocess.run([sys.executable, "-c", script, *words], capture_output=True, text=True, check=True).stdout
    code, seconds = answer.splitlines()[-1].split()
    assert code == "0" and float(seconds) < 1.5, "processor seconds, imports included"
    assert "out of memory: RuntimeError: CUDA said no" in answer
    assert "finished cells are of 2 code versions: abababab (599 cells), cdcdcdcd (1 cells)" in answer
    assert "about 10.0 hours of cells, 10.0 GPU hours" in answer, "400 cells left of 90 s each"
    rows = rows_of(folder, folder.plan())
    assert rows[0]["validation"] == "auc 0.750" and rows[0]["minutes"] == 1.5
    assert len(table_csv(rows).splitlines()) == 1001
    assert status_text(overview(folder, folder.plan())).splitlines()[1].split() == ["a", "600", "1", "399"]


def test_locks_end_with_their_process(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    script = (
        "import sys, time; from pathlib import Path; from experiments.grid_folder import locked\n"
        "with locked(Path(sys.argv[1])) as mine: print(mine is not None, flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "True\n"
        assert held(path)
        with locked(path) as second:
            assert second is None
        process.kill()
    assert not held(path)


def _holder(folder: str, gpus: float, log: str, seconds: float) -> None:
    os.environ["HEPASTAGE_LEASES"] = folder
    with lease([0, 1, 2, 3], gpus, poll=0.01) as (taken, _), Path(log).open("a") as stream:
        stream.write(json.dumps({"pid": os.getpid(), "gpus": taken, "from": time.monotonic()}) + "\n")
        stream.flush()
        time.sleep(seconds)
        stream.write(json.dumps({"pid": os.getpid(), "gpus": taken, "until": time.monotonic()}) + "\n")


@pytest.mark.parametrize(("gpus", "together"), [(1.0, 1), (0.5, 2), (2.0, 1), (0.3, 3)])
def test_a_gpu_is_never_leased_beyond_its_share(gpus: float, together: int, tmp_path: Path) -> None:
    """Four fake GPUs, 12 processes; which run at once is read from their log."""
    context = multiprocessing.get_context("spawn")
    log = tmp_path / "log"
    workers = [context.Process(target=_holder, args=(str(tmp_path / "l"), gpus, str(log), 0.1)) for _ in range(12)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    spans: dict[int, dict[str, Any]] = {}
    for line in log.read_text().splitlines():
        event = json.loads(line)
        spans.setdefault(event["pid"], {}).update(event)
    assert len(spans) == 12 and all(len(span["gpus"]) == max(1, gpus) for span in spans.values())
    for gpu in range(4):
        users = [span for span in spans.values() if gpu in span["gpus"]]
        for user in users:
            at = user["from"]
            assert sum(other["from"] <= at < other["until"] for other in users) <= together


def test_a_killed_holder_frees_its_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEPASTAGE_LEASES", str(tmp_path / "l"))
    context = multiprocessing.get_context("spawn")
    log = tmp_path / "log"
    holder = context.Process(target=_holder, args=(str(tmp_path / "l"), 4.0, str(log), 60.0))
    holder.start()
    while not log.is_file() or not log.read_text():
        time.sleep(0.05)
    assert holder.pid is not None
    os.kill(holder.pid, signal.SIGKILL)
    holder.join()
    with lease([0, 1, 2, 3], 4.0) as (taken, descriptors):
        assert taken == [0, 1, 2, 3] and len(descriptors) == 4 * SLOTS


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEPASTAGE_GPU_COUNT", "4")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert devices_of(None) == [0, 1, 2, 3] and devices_of("0-2") == [0, 1, 2] and devices_of("3,1") == [1, 3]
    assert devices_of("none") == []
    for wrong, match in (("0-4", "there is no GPU 4; this machine has 4"), ("a", "is no list of GPUs")):
        with pytest.raises(InputError, match=match):
            devices_of(wrong)
    assert [slots_of(gpus) for gpus in (0.5, 1.0, 2.0, 0.3, 0.25)] == [6, 12, 24, 4, 3]


def test_only_and_set(tmp_path: Path) -> None:
    folder = GridFolder(tmp_path)
    cells = [cell(f"{arm}{fold}", arm=f"{arm}+x", axes={"arm": arm}, fold=fold) for arm in "ab" for fold in (0, 1)]
    planned(folder, *cells)
    for key in ("a0", "b1"):
        write_record(folder.failed(key), {"error": "E", "line": "x"})
    chosen = selected(folder, ["arm=a"], failed_only=False)
    assert chosen is not None and [item["key"] for item in cells if chosen(item)] == ["a0", "a1"]
    chosen = selected(folder, ["arm=b+x", "fold=1"], failed_only=False)
    assert chosen is not None and [item["key"] for item in cells if chosen(item)] == ["b1"]
    chosen = selected(folder, [], failed_only=True)
    assert chosen is not None and [item["key"] for item in cells if chosen(item)] == ["a0", "b1"]
    set_for_retry(folder, ["data.init_args.batch_size=2"], chosen)
    assert json.loads(folder.override("a0").read_text())["words"] == ["--part_size", "2"]
    assert not folder.override("a1").exists()
    for settings, match in ((["trainer.max_epochs=2"], "another cell"), (["x"], "no KEY=VALUE")):
        with pytest.raises(InputError, match=match):
            set_for_retry(folder, settings, chosen)
    with pytest.raises(InputError, match="fits no cell"):
        selected(folder, ["arm=c"], failed_only=False)


def test_clean_lists_and_never_takes_a_finished_cell(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = GridFolder(tmp_path / "runs" / "s")
    item, begun = cell("k"), cell("l", run=str(folder.study / "a" / "begun"))
    planned(folder, item, begun)
    good, orphan = finish(folder, item, "good"), finish(folder, cell("gone"), "orphan")
    torn = folder.study / "b" / "torn"
    for path in (torn, folder.study / "a" / "begun"):
        path.mkdir(parents=True)
        (path / "config.yaml").write_text("{}")
    found = {item.path: (item.why, item.finished) for item in remnants(folder, folder.plan())}
    assert found == {
        orphan: ("orphaned", True),
        torn: ("orphaned", False),
        folder.study / "a" / "begun": ("unfinished", False),
    }
    (tmp_path / "study.yaml").write_text("study: s\narms: {a: {config: direct}}\n")
    words = ["grid", "clean", str(tmp_path / "study.yaml"), "--runs", str(tmp_path / "runs")]
    assert main(words) == 0 and torn.exists()
    assert main([*words, "--yes"]) == 0
    assert not torn.exists() and orphan.exists() and good.exists()
    assert "kept:" in capsys.readouterr().out
    assert main([*words, "--yes", "--finished"]) == 0
    assert not orphan.exists() and good.exists()


def jobs(*cells: Planned, machine: Machine, keys: list[str] | None = None) -> dict[str, Any]:
    masks = {"segmenter": ["s0"]} if any(item["key"] == "s0" for item in cells) else {}
    plan: Any = {"cells": list(cells), "masks": masks, "compare": None}
    wanted = keys or [*(item["key"] for item in cells), "masks.segmenter", "compare"]
    return dict(jobs_of(plan, GridFolder(Path("/runs/s")), wanted, machine))


def test_stages_depend_on_each_other() -> None:
    cells = [cell("s0", role="segmenter"), cell("direct", bands="segmenter"), cell("masked", masks="segmenter")]
    machine = Machine(cores=4, gpus=[], profile=None)
    made = jobs(*cells, machine=machine)
    assert made["masks.segmenter"]["needs"] == ["s0"] and made["masked"]["needs"] == ["masks.segmenter"]
    assert made["direct"]["needs"] == [], "its bands are filled in later"
    assert made["compare"]["needs"] == ["s0", "direct", "masked"]
    assert jobs(*cells, machine=machine, keys=["masked"])["masked"]["needs"] == [], "what is done is not needed again"


def test_what_a_job_may_use() -> None:
    half = cell("half", resources={"gpus": 0.5, "memory_gb": 8})
    local = jobs(half, machine=Machine(cores=8, gpus=[0, 2], profile=None), keys=["half"])["half"]
    assert local["resources"] == {"leases": 6, "mem_mb": 8000} and "--devices 0,2" in local["command"]
    assert jobs(cell("c"), machine=Machine(cores=8, gpus=[], profile=None), keys=["c"])["c"]["cores"] == 8
    many = jobs(*(cell(str(n)) for n in range(9)), machine=Machine(cores=8, gpus=[], profile=None))
    assert {job["cores"] for job in many.values()} == {1}, "each its share of the cores"
    wide = cell("w", resources={"gpus": 2, "nodes": 2, "tasks": 4, "hours": 1.5, "cores": 3})
    slurm = jobs(wide, machine=Machine(cores=8, gpus=[], profile=Path("p")), keys=["w"])["w"]
    assert slurm["resources"] == {"gpu": 2, "runtime": 90, "mpi": "srun", "tasks": 4, "nodes": 2}
    assert "srun --nodes=2 --ntasks=4 --ntasks-per-node=2" in slurm["command"] and slurm["cores"] == 3
