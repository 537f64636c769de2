"""How long the command line takes to answer, beside what importing torch alone takes.

    python -m benchmarks.startup --rounds 5

Each round runs every command once, in a fresh process, so that a busy machine slows all alike; medians are shown.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

FIT = ["fit", "-c", "direct", "--data.init_args.cohort", "cohort.csv", "--data.init_args.splits", "splits.json"]
MASKED = ["fit", "-c", "masked_attention_resnet", *FIT[3:]]
COMMANDS: dict[str, list[str]] = {
    "--help": ["--help"],
    "fit --help": ["fit", "--help"],
    "grid --help": ["grid", "--help"],
    "mistyped key": [*FIT, "--trainer.max_epoch", "3"],
    "mistyped key in a file": [*FIT, "-c", "own.yaml"],
    "unknown class": [*FIT, "--model", "lightning_modules.direct_classification.Direct"],
    "configuration that is not shipped": ["fit", "-c", "directt"],
    "no such run": ["test", "--run", "nowhere"],
    "wrong type": [*FIT, "--trainer.max_epochs", "many"],
    "spacing as one word": [*FIT, "--data.init_args.preprocessing.spacing", "2x2x6"],
    "no such choice": [*FIT, "--data.init_args.mask_source", "referenc"],
    "no such precision": [*FIT, "--trainer.precision", "16bit"],
    "no such strategy": [*FIT, "--trainer.strategy", "ddpp"],
    "optimiser without its module": [*FIT, "--model.init_args.optimizer.class_path", "AdamWW"],
    "cohort not given": ["fit", "-c", "direct"],
    "no such cohort": [*FIT, "--data.init_args.cohort", "liver.parquet"],
    "no such split": [*FIT, "--data.init_args.splits", "split.json"],
    "no such fold": [*FIT, "--data.init_args.fold", "5"],
    "no such sequence": [*FIT, "--data.init_args.sequence", "PD"],
    "rule other than the split's": [*FIT, "--data.init_args.rule", "metavir>=3"],
    "direct arm with masks": [*FIT, "--data.init_args.mask_source", "reference"],
    "masked arm without masks": [*MASKED, "--data.init_args.mask_source", "none"],
    "empty batch": [*FIT, "--data.init_args.batch_size", "0"],
    "unknown backbone": [*FIT, "--model.init_args.network.init_args.backbone", "resnet81"],
    "study that is no folder": [*FIT, "--study", "liver T2"],
    "class that is not there, of another package": [*FIT, "--model.init_args.optimizer.class_path", "torch.optim.Adan"],
    "normalisation that there is not": [*FIT, "--data.init_args.preprocessing.normalisation", "z"],
}


def seconds(words: list[str], folder: Path) -> float:
    """Wall time of a process."""
    began = time.perf_counter()
    subprocess.run([sys.executable, *words], cwd=folder, capture_output=True, check=False)
    return time.perf_counter() - began


def write_inputs(folder: Path) -> None:
    """A cohort table, its split, and a configuration with a mistyped key."""
    rows = ["scan_id,patient_id,sequence,image,source,lsm_kpa"]
    rows += [f"P{number:02d}_T2W,P{number:02d},T2W,P{number:02d}.nii.gz,A,{number}" for number in range(1, 25)]
    (folder / "cohort.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    (folder / "own.yaml").write_text("model: {init_args: {netwrok: 3}}\n", encoding="utf-8")
    words = ["split", "make", "cohort.csv", "--rule", "lsm>12", "--folds", "2", "--out", "splits.json"]
    subprocess.run([sys.executable, "-m", "experiments.cli", *words], cwd=folder, capture_output=True, check=True)


def main() -> None:
    """Measure and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="runs of each command")
    rounds = parser.parse_args().rounds
    taken: dict[str, list[float]] = {name: [] for name in ["import torch", *COMMANDS]}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_inputs(folder)
        for _ in range(rounds):
            taken["import torch"].append(seconds(["-c", "import torch"], folder))
            for title, words in COMMANDS.items():
                taken[title].append(seconds(["-m", "experiments.cli", *words], folder))
    torch = statistics.median(taken["import torch"])
    print("| command | median s | beyond importing torch |\n| --- | ---: | ---: |")
    for title, values in taken.items():
        median = statistics.median(values)
        print(f"| {title} | {median:.2f} | {max(0.0, median - torch):.2f} |")


if __name__ == "__main__":
    main()
