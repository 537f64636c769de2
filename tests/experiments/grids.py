"""Small studies on the tiny cohort, and callbacks that make their cells fail on purpose."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch import Callback

from datamodules.cohort import Cohort
from datamodules.splits import make_splits
from experiments.grid_folder import GridFolder
from tests.tiny import RULE, Tiny

SMALL: dict[str, Any] = {
    "data.init_args.preprocessing": {"spacing": [10, 10, 20], "shape": [24, 24, 8], "normalisation": "zscore"},
    "data.init_args.augmentation": None,
    "trainer.logger": [{"class_path": "callbacks.metrics_log.MetricsLog"}],
    "trainer.accelerator": "cpu",
    "trainer.max_epochs": 1,
    "trainer.check_val_every_n_epoch": 1,
}
SEGMENTER: dict[str, Any] = {
    "config": "segmentation",
    "set": {
        "model.init_args.network.init_args.features": [4, 8, 8, 8],
        "model.init_args.window": None,
        "model.init_args.optimizer.init_args.lr": 0.01,
        "data.init_args.patch": None,
        "trainer.max_epochs": 2,
    },
}
BASE: dict[str, Any] = {
    "config": "masked_attention_resnet",
    "set": {"model.init_args.network.init_args.backbone": "resnet10t"},
}


class Failing(Callback):
    """A training that always fails."""

    def on_fit_start(self, *_: object) -> None:
        raise RuntimeError("the sky is falling\nin many lines")


class Hungry(Callback):
    """A training whose batch does not fit: it takes two scans at a time, no more."""

    def on_train_batch_start(self, trainer: Any, _module: object, batch: Any, _index: int) -> None:
        if len(batch["image"]) > 2:
            raise MemoryError("out of memory: tried to allocate a whole liver")


def write_study(folder: Path, tiny: Tiny, folds: int = 2, **changes: Any) -> Path:
    """Write ``study.yaml`` with a split of some folds beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    make_splits(Cohort.load(tiny.cohort), RULE, folds=folds, seed=0, official=True).save(folder / "splits.json")
    study: dict[str, Any] = {
        "study": "tiny", "cohort": str(tiny.cohort), "splits": "splits.json", "set": SMALL, "base": BASE,
        "arms": {"reference": {"masks": "reference"}}, "retries": 0, **changes,
    }  # fmt: skip
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump({key: item for key, item in study.items() if item is not None}, sort_keys=False))
    return path


def start(study: Path, *words: str, action: str = "run", **environment: str) -> subprocess.Popen[str]:
    """Start the driver of a study as a person would."""
    command = [
        sys.executable,
        "-m",
        "experiments.cli",
        "grid",
        action,
        str(study),
        "--runs",
        str(study.parent / "runs"),
    ]
    return subprocess.Popen(
        [*command, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )


def run(study: Path, *words: str, action: str = "run", **environment: str) -> tuple[int, str]:
    """Run the driver of a study to its end."""
    process = start(study, *words, action=action, **environment)
    output, _ = process.communicate(timeout=1200)
    return process.returncode, output


def folder_of(study: Path) -> GridFolder:
    return GridFolder(study.parent / "runs" / "tiny")


def events(study: Path, *kinds: str) -> list[dict[str, Any]]:
    """What the jobs of a study have logged."""
    file = folder_of(study).events
    lines = file.read_text().splitlines() if file.is_file() else []
    found = [json.loads(line) for line in lines]
    return [event for event in found if not kinds or event["event"] in kinds]


def await_events(study: Path, number: int, kind: str, seconds: float = 300) -> None:
    """Wait until some jobs have started or finished."""
    end = time.monotonic() + seconds
    while len(events(study, kind)) < number:
        assert time.monotonic() < end, f"{len(events(study, kind))} of {number} {kind} after {seconds} s"
        time.sleep(0.05)


def kill_a_cell(study: Path, seconds: float = 60) -> str:
    """End the process of a cell that runs now by SIGKILL; its key."""
    folder = folder_of(study)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for key, state in folder.conditions(folder.plan()["cells"]).items():
            if state.state == "running" and state.record.get("pid"):
                os.kill(int(state.record["pid"]), signal.SIGKILL)
                return key
        time.sleep(0.01)
    raise AssertionError("no cell is running")


def await_quiet(study: Path, seconds: float = 20) -> None:
    """Wait until no job of a study holds its lock."""
    folder = folder_of(study)
    end = time.monotonic() + seconds
    while any(state.state == "running" for state in folder.conditions(folder.plan()["cells"]).values()):
        assert time.monotonic() < end, "a cell outlives its driver"
        time.sleep(0.1)


def check_once(study: Path, cells: int) -> None:
    """Every cell is finished exactly once: by done.json, by run directories, and by the log."""
    folder = folder_of(study)
    plan = folder.plan()
    assert len(plan["cells"]) == cells
    states = folder.conditions(plan["cells"])
    assert {state.state for state in states.values()} == {"done"}
    runs = {state.record["run"] for state in states.values()}
    assert len(runs) == cells, "no two cells share a run directory"
    on_disk = {str(path.parent) for path in folder.study.glob("[!.]*/*/done.json")}
    assert on_disk == runs, "nothing is lost, and nothing else was finished"
    finished = Counter(event["key"] for event in events(study, "finished"))
    assert all(finished[cell["key"]] == 1 for cell in plan["cells"]), finished
