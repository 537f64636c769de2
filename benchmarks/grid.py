"""A grid of 24 cells on a few cores: start of a cell, efficiency of the grid, beside Hydra's multirun.

    python -m benchmarks.grid [--cores 2] [--epochs 12] [--out DIR] [--hydra TARGET] [--json FILE]

2 arms × 2 mask sources × 2 learning rates × 3 folds on phantom patients, with the 3 segmenters and the out-of-fold
masks that half of the cells need. Measured are: the plan, from start to end of its command; from the start of a cell to
its first training step, warm and with ``--cold``; and the efficiency, which is the sum of all jobs' seconds over cores
times the whole time of the command that runs them, its own start included. Hydra (``pip install --target TARGET
hydra-core``; it is no dependency) runs the same 24 cells, masks made, by its own launcher: one after the other, in one
process, with as many threads as there are cores. Hydra's row is left out without ``--hydra``.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch import Callback
from rich.console import Console
from rich.table import Table

FIRST_STEP = "first_step"

HYDRA = """
import json, os, sys
sys.path.insert(0, os.getcwd())
import hydra
from hydra.core.config_store import ConfigStore

ConfigStore.instance().store(name="cell", node={"index": 0})

@hydra.main(version_base=None, config_name="cell")
def main(config):
    from experiments.lightning_cli import fit_and_test
    fit_and_test(json.load(open(os.environ["GRID_CELLS"]))[config.index])

main()
"""


class FirstStep(Callback):
    """Notes when the first training step begins, in the run directory."""

    def on_train_batch_start(self, trainer: Any, *_: object) -> None:
        """Write the time once."""
        file = Path(trainer.default_root_dir) / FIRST_STEP
        if not file.is_file():
            file.write_text(str(time.time()))


def write_study(folder: Path, patients: int, epochs: int) -> Path:
    """Make phantom patients, their split of three folds, and the study of 24 cells."""
    from datamodules.phantom import make_phantom
    from datamodules.splits import make_splits

    cohort = make_phantom(folder / "cohort", patients, 0, sequences=("T2W",), progress=False)
    make_splits(cohort, "lsm>12", folds=3, seed=0, official=True).save(folder / "splits.json")
    everywhere = {
        "trainer.max_epochs": epochs,
        "trainer.check_val_every_n_epoch": max(1, epochs // 3),
        "trainer.logger": [{"class_path": "callbacks.metrics_log.MetricsLog"}],
        "trainer.callbacks+": [{"class_path": "benchmarks.grid.FirstStep"}],
    }
    study = {
        "study": "grid", "cohort": "cohort/cohort.parquet", "splits": "splits.json", "set": everywhere,
        "segmenter": {"config": ["segmentation", "demo/segmentation"]},
        "base": {"config": ["masked_attention_resnet", "demo/classification"]},
        "arms": {"attention": {}, "mean": {"set": {"model.init_args.network.init_args.aggregation": "mean"}}},
        "axes": {
            "masks": {"values": {"reference": {"masks": "reference"}, "predicted": {"masks": "out_of_fold"}}},
            "lr": {"key": "model.init_args.optimizer.init_args.lr", "values": [0.001, 0.002]},
        },
    }  # fmt: skip
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(study, sort_keys=False), encoding="utf-8")
    return path


def grid(action: str, study: Path, runs: Path, *words: str) -> float:
    """Run a command of the grid; its seconds by the clock."""
    began = time.time()
    command = [sys.executable, "-m", "experiments.cli", "grid", action, str(study), "--runs", str(runs), *words]
    # the cells' callback is this file's, and benchmarks are not installed
    paths = [str(Path(__file__).resolve().parent.parent), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in paths if path)}
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment)
    return time.time() - began


def starts(folder: Path) -> list[float]:
    """Seconds from the start of each cell's job to its first training step."""
    plan = json.loads((folder / ".grid" / "plan.json").read_text())
    begun: dict[str, float] = {}
    for line in (folder / ".grid" / "events.jsonl").read_text().splitlines():
        event = json.loads(line)
        if event["event"] == "started":
            begun[event["key"]] = _seconds(event["time"])
    found = []
    for cell in plan["cells"]:
        record = folder / ".grid" / "cells" / f"{cell['key']}.json"
        if record.is_file() and cell["key"] in begun:
            step = Path(json.loads(record.read_text())["run"]) / FIRST_STEP
            if step.is_file():
                found.append(float(step.read_text()) - begun[cell["key"]])
    return found


def working(folder: Path) -> float:
    """Sum of all finished jobs' seconds."""
    lines = (folder / ".grid" / "events.jsonl").read_text().splitlines()
    events = [json.loads(line) for line in lines]
    return sum((float(event["seconds"]) for event in events if event["event"] == "finished"), 0.0)


def _seconds(text: str) -> float:
    import datetime

    return datetime.datetime.fromisoformat(text).timestamp()


def hydra(target: Path, folder: Path, cores: int) -> float:
    """Run the 24 cells by Hydra's own launcher into another folder of runs; its seconds."""
    plan = json.loads((folder / "runs" / "grid" / ".grid" / "plan.json").read_text())
    words = []
    for cell in plan["cells"]:
        if cell["role"] != "segmenter":
            place = cell["words"].index("--runs") + 1
            words.append([*cell["words"][:place], str(folder / "hydra"), *cell["words"][place + 1 :]])
    (folder / "cells.json").write_text(json.dumps(words))
    script = folder / "hydra_cells.py"
    script.write_text(HYDRA)
    paths = [str(Path.cwd()), str(target)]
    environment = {**os.environ, "GRID_CELLS": str(folder / "cells.json"), "PYTHONPATH": os.pathsep.join(paths)}
    environment["OMP_NUM_THREADS"] = str(cores)
    sweep = ["-m", f"index=range(0,{len(words)})", f"hydra.sweep.dir={folder / 'multirun'}"]
    began = time.time()
    subprocess.run(
        [sys.executable, str(script), *sweep], check=True, env=environment, stdout=subprocess.DEVNULL, timeout=7200
    )
    done = len(list((folder / "hydra").glob("*/*/*/done.json")))
    if done != len(words):
        raise RuntimeError(f"Hydra finished {done} of {len(words)} cells")
    return time.time() - began


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--patients", type=int, default=40)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--out", type=Path, help="keep everything here, in place of a temporary folder")
    parser.add_argument("--hydra", type=Path, metavar="TARGET", help="where 'pip install --target' put hydra-core")
    parser.add_argument("--json", type=Path, help="write the numbers here as well")
    args = parser.parse_args()
    console = Console()
    with tempfile.TemporaryDirectory() as name:
        folder = (args.out or Path(name)).absolute()
        study = write_study(folder, args.patients, args.epochs)
        runs = folder / "runs"
        load = os.getloadavg()[0]
        numbers: dict[str, Any] = {"cores": args.cores, "load": load}
        numbers["plan_s"] = grid("plan", study, runs)
        numbers["run_s"] = grid("run", study, runs, "--cores", str(args.cores))
        numbers["jobs_s"] = working(runs / "grid")
        numbers["efficiency"] = numbers["jobs_s"] / (args.cores * numbers["run_s"])
        numbers["start_warm_s"] = statistics.median(starts(runs / "grid"))
        cold = ("--cores", str(args.cores), "--cold", "--only", "arm=mean", "--only", "masks=reference")
        grid("plan", study, folder / "cold")
        grid("run", study, folder / "cold", *cold)
        numbers["start_cold_s"] = statistics.median(starts(folder / "cold" / "grid"))
        if args.hydra is not None:
            numbers["hydra_s"] = hydra(args.hydra.absolute(), folder, args.cores)
            masks = list((runs / "grid" / ".grid" / "cells").glob("masks.*.json"))
            numbers["masks_s"] = sum(json.loads(key.read_text())["seconds"] for key in masks)
        numbers["step_load"] = os.getloadavg()[0]
    table = Table(title=f"27 cells on {args.cores} cores, load before {load:.1f}")
    table.add_column("measure")
    table.add_column("value", justify="right")
    for key, value in numbers.items():
        table.add_row(key, f"{value:.2f}" if isinstance(value, float) else str(value))
    console.print(table)
    if args.json is not None:
        args.json.write_text(json.dumps(numbers, indent=2) + "\n")


if __name__ == "__main__":
    main()
