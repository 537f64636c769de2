"""Two workers of a search against one with the same total: the best value found on Branin's function.

    python -m benchmarks.workers [--seeds 20] [--trials 40 80] [--json FILE]

Each seed is a search by one worker and a search by two on the same journal, with TPE as shipped (running trials count
as bad ones). A trial is Branin's function after a moment, so that the second worker asks while the first one's trial
runs. Shown are medians over seeds of the distance to the lowest value, and the one-sided p-values of Wilcoxon's signed
ranks over the pairs: a small one for 'two are worse' would speak against two workers.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml
from scipy.stats import wilcoxon

from experiments.search_file import Search
from experiments.search_folder import SearchFolder
from experiments.search_storage import open_study
from experiments.search_trial import Setting, Task
from experiments.search_worker import Job, work

BEST = 0.397887
"""The lowest value of Branin's function."""


def branin(task: Task) -> list[float]:
    """Branin's function, in five hundredths of a second."""
    time.sleep(0.05)
    x, y = task.values["x"], task.values["y"]
    bend = y - 5.1 / (4 * math.pi**2) * x**2 + 5 / math.pi * x - 6
    return [bend**2 + 10 * (1 - 1 / (8 * math.pi)) * math.cos(x) + 10]


def write_search(folder: Path, trials: int, seed: int) -> Path:
    """A search over two keys, whatever they mean; its cohort and split are names alone."""
    space = {
        "x": {"key": "model.init_args.optimizer.init_args.lr", "low": -5.0, "high": 10.0},
        "y": {"key": "model.init_args.optimizer.init_args.weight_decay", "low": 0.0, "high": 15.0},
    }
    value = {
        "search": "branin", "cohort": "cohort.csv", "splits": "splits.json", "folds": [0], "config": "direct",
        "space": space, "objective": {"metric": "valid/loss", "direction": "minimize"}, "trials": trials, "seed": seed,
    }  # fmt: skip
    path = folder / "search.yaml"
    folder.mkdir(parents=True)
    path.write_text(yaml.safe_dump(value), encoding="utf-8")
    return path


def distance(folder: Path, trials: int, seed: int, workers: int) -> float:
    """How far above the lowest value the best of a search lies."""
    search = Search.load(write_search(folder, trials, seed))
    place = SearchFolder(folder / "runs" / "branin")
    place.make()
    facts = {"function": "branin"}
    job = Job(Setting(search, folder / "runs", folder / "store", (0,)), facts, runner="benchmarks.workers:branin")
    # forked from a process that has imported Optuna
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["experiments.search_worker"])
    processes = [context.Process(target=work, args=(job,)) for _ in range(workers)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        if process.exitcode:
            raise RuntimeError(f"a worker ended with {process.exitcode}")
    study = open_study(search, place, None)
    assert len(study.trials) == trials
    return float(study.best_value) - BEST


def main() -> None:
    """Measure and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--trials", type=int, nargs="+", default=[40, 80])
    parser.add_argument("--json", type=Path, help="write the numbers here as well")
    args = parser.parse_args()
    found: dict[str, Any] = {}
    print("| trials | seeds | one worker | two workers | two lower | p: two are worse | p: two are better |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    with tempfile.TemporaryDirectory() as name:
        for trials in args.trials:
            pairs = [
                [distance(Path(name) / f"{trials}-{seed}-{workers}", trials, seed, workers) for workers in (1, 2)]
                for seed in range(args.seeds)
            ]
            one, two = zip(*pairs, strict=True)
            # ratios are what counts near the lowest value
            logs = [math.log(b / a) for a, b in pairs]
            worse, better = (wilcoxon(logs, alternative=side).pvalue for side in ("greater", "less"))
            lower = sum(b < a for a, b in pairs)
            found[str(trials)] = {"one": one, "two": two, "worse": float(worse), "better": float(better)}
            middle = f"{statistics.median(one):.3f} | {statistics.median(two):.3f}"
            print(f"| {trials} | {args.seeds} | {middle} | {lower} | {worse:.2f} | {better:.2f} |", flush=True)
    if args.json is not None:
        args.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
