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

FIT = ["fit", "-c", "direct", "--data.init_args.cohort", "liver.parquet", "--data.init_args.splits", "splits.json"]
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
    "no such cohort": FIT,
}


def seconds(words: list[str], folder: Path) -> float:
    """Wall time of a process."""
    began = time.perf_counter()
    subprocess.run([sys.executable, *words], cwd=folder, capture_output=True, check=False)
    return time.perf_counter() - began


def main() -> None:
    """Measure and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="runs of each command")
    rounds = parser.parse_args().rounds
    taken: dict[str, list[float]] = {name: [] for name in ["import torch", *COMMANDS]}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "own.yaml").write_text("model: {init_args: {netwrok: 3}}\n", encoding="utf-8")
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
