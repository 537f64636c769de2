"""What speed costs in accuracy: float32 with TorchIO's augmentation beside bf16, compiled, fused and batched.

    python -m benchmarks.accuracy [--patients 40] [--seeds 3] [--epochs 20] [--out DIR]

The demo's segmenter and its direct classifier are trained on the same phantom patients, with the same seeds, in two
ways: ``reference`` (float32, augmentation by TorchIO with the same parameters, optimisers not fused) and ``fast``
(bf16, batched augmentation, fused optimisers; the segmenter compiled). Dice and AUC are of the test patients.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

import pandas as pd
from rich.console import Console
from rich.table import Table
from sklearn.metrics import roc_auc_score

from benchmarks.cohorts import hepastage, write_cohort

AUGMENTATION = "--data.init_args.augmentation"
WAYS = {
    "reference": [
        "--trainer.precision", "32-true", "--model.init_args.optimizer.init_args.fused", "false",
        f"{AUGMENTATION}.class_path", "datamodules.augmentation_torchio.TorchIOAugmentation",
    ],
    "fast": ["--trainer.precision", "bf16-mixed"],
}  # fmt: skip
TASKS = {"segmentation": "demo/segmentation", "direct": "demo/classification"}


def main() -> None:
    """Train all, and print one line a task and way."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patients", type=int, default=40, help="half of them are tested")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--out", type=Path, default=Path(tempfile.gettempdir()) / "hepastage-accuracy")
    parser.add_argument("--task", choices=list(TASKS), help="one of them alone")
    options = parser.parse_args()
    out: Path = options.out.absolute()
    make_cohort(out, options.patients)
    table = Table("", "way", "each seed", "mean", "processor s a run", title="Test patients: Dice or AUC")
    for task in TASKS if options.task is None else [options.task]:
        for way in WAYS:
            results = [train(out, task, way, seed, options.epochs) for seed in range(options.seeds)]
            values = [value for value, _ in results]
            seconds = statistics.median(spent for _, spent in results)
            shown = ", ".join(f"{value:.3f}" for value in values)
            table.add_row(task, way, shown, f"{statistics.mean(values):.3f}", f"{seconds:.0f}")
    Console(width=110).print(table)


def make_cohort(out: Path, patients: int) -> None:
    """Phantom patients: half are tested, four validate, the others train."""
    from datamodules.cohort import Cohort

    if (out / "splits.json").is_file():
        return
    cohort = write_cohort(out, None, patients)
    names = sorted({scan.patient_id for scan in Cohort.load(cohort).scans})
    words = ["--rule", "lsm>12", "--test-patients", ",".join(names[: patients // 2])]
    words += ["--valid-patients", ",".join(names[-4:]), "--out", str(out / "splits.json")]
    hepastage("split", "make", str(cohort), *words)


def train(out: Path, task: str, way: str, seed: int, epochs: int) -> tuple[float, float]:
    """Train and test one cell; its mean Dice or its AUC, and the processor seconds it took."""
    from experiments.lightning_cli import fit_and_test

    data = "--data.init_args"
    words = ["-c", task, "-c", TASKS[task]]
    if way == "fast" and task == "segmentation":
        words += ["-c", "trainer/compile"]
    words += [
        "--study", task, "--arm", way, "--runs", str(out / "runs"), "--seed_everything", str(seed),
        "--trainer.max_epochs", str(epochs), "--trainer.check_val_every_n_epoch", str(max(1, epochs // 4)),
        "--trainer.accelerator", "cpu", f"{data}.cohort", str(out / "cohort" / "cohort.parquet"),
        f"{data}.splits", str(out / "splits.json"), f"{data}.store", str(out / "store"),
        "--trainer.logger", "[{class_path: callbacks.metrics_log.MetricsLog}]", *WAYS[way],
    ]  # fmt: skip
    began = time.process_time()
    fit_and_test(words)
    spent = time.process_time() - began
    paths = sorted((out / "runs" / task / way).glob("*/predictions.parquet"))
    frame = pd.concat([pd.read_parquet(path) for path in paths])
    frame = frame[frame["seed"] == seed]
    if task == "segmentation":
        return float(frame["dice"].mean()), spent
    return float(roc_auc_score(frame["target"], frame["prob"])), spent


if __name__ == "__main__":
    os.environ.setdefault("WANDB_MODE", "disabled")
    main()
