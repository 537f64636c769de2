"""Comparing a large study: 200 runs of 500 patients with 10,000 bootstrap resamples, on two cores, without torch.

    python -m benchmarks.compare [--runs 200] [--patients 500] [--resamples 10000] [--cores 2]

Forty arms of five seeds are made by the script (probabilities from a binormal model, one fixed test set), written as
run directories and compared in a process of its own, as ``hepastage compare`` does: reading, statistics, strata and
all files of the report. Bound: one minute on two cores. Exit code 1 where it took longer, or where torch was loaded.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
from rich.console import Console
from scipy.special import expit

from datamodules.records import write_records

SEEDS = 5
BOUND = 60.0
"""Seconds that a user may have to wait."""
CHILD = """
import resource, sys
from pathlib import Path
from experiments.compare import compare
from experiments.report import write_outputs
comparison = compare([Path(sys.argv[1])], resamples=int(sys.argv[3]))
write_outputs(comparison, Path(sys.argv[2]))
assert "torch" not in sys.modules, "torch was loaded"
spent = resource.getrusage(resource.RUSAGE_SELF)
print(f"{spent.ru_utime + spent.ru_stime:.1f} {spent.ru_maxrss / 2**20:.2f}")
"""


def make_study(folder: Path, runs: int, patients: int) -> None:
    """Write runs of ``runs / 5`` arms with five seeds each on the same patients."""
    target = np.arange(patients) % 2
    common = np.random.default_rng(0).normal(size=patients)
    for run in range(runs):
        arm, seed = divmod(run, SEEDS)
        noise = np.random.default_rng([1, run]).normal(size=patients)
        strength = 1 + 0.03 * arm
        frame = pd.DataFrame(
            {
                "patient_id": [f"P{index:04d}" for index in range(patients)],
                "source": np.where(np.arange(patients) % 3 == 0, "site A", "site B"),
                "study": "large",
                "arm": f"arm_{arm:02d}",
                "seed": seed,
                "fold": 0,
                "part": "test",
                "split_sha256": "5a" * 32,
                "target": target,
                "prob": expit(strength * (target - 0.5) + 0.6 * common + 0.8 * noise),
                "threshold": 0.5,
            }
        )
        write_records(frame, folder / f"arm_{arm:02d}" / f"seed{seed}" / "predictions.parquet")


def main() -> int:
    """Make the study, compare it in a process of its own, and print what it took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--patients", type=int, default=500)
    parser.add_argument("--resamples", type=int, default=10_000)
    parser.add_argument("--cores", type=int, default=2)
    args = parser.parse_args()
    threads = {name: str(args.cores) for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
    with tempfile.TemporaryDirectory() as place:
        study, out = Path(place) / "study", Path(place) / "out"
        make_study(study, args.runs, args.patients)
        start = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-c", CHILD, str(study), str(out), str(args.resamples)],
            capture_output=True, text=True, check=True, env={**os.environ, **threads},
        )  # fmt: skip
        clock = time.perf_counter() - start
        size = (out / "report.html").stat().st_size / 2**20
    processor, memory = done.stdout.split()
    Console().print(
        f"{args.runs} runs × {args.patients} patients × {args.resamples} resamples, {args.cores} threads: "
        f"{clock:.1f} s by the clock, {processor} s of processor time, {memory} GiB at most, report of {size:.1f} MiB",
        highlight=False,
    )
    return int(clock > BOUND)


if __name__ == "__main__":
    raise SystemExit(main())
