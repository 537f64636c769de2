"""From 10 to 1000 scans, and with loader processes: time of an epoch, and memory.

    python -m benchmarks.scaling [--counts 10,100,1000] [--workers 0,1,2] [--json FILE]

Scans of 64×56×24 voxels with a mask are written and put into the store. For each number of scans a process of its own
draws one patch a scan, augments it as ``segmentation.yaml`` does, and so on for two epochs, of which the second is
measured: seconds and processor seconds a scan, and the process's private memory at its highest (pages of the memory
map are the system's cache and not counted). Linear in time and flat in memory is what should come out. Loader
processes are measured at the largest number.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

SHAPE, SPACING, PATCH, BATCH = (64, 56, 24), (4.0, 4.0, 8.0), (48, 48, 16), 2


def main() -> None:
    """Make the scans, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", default="all", choices=["all", "epoch"], help="epoch is for the script")
    parser.add_argument("--out", type=Path, help="folder to work in; a temporary one where not given")
    parser.add_argument("--counts", default="10,100,1000")
    parser.add_argument("--workers", default="0,1,2")
    parser.add_argument("--json", type=Path, help="write the numbers here as well")
    options = parser.parse_args()
    counts, workers = ([int(word) for word in text.split(",")] for text in (options.counts, options.workers))
    if options.what == "epoch":
        sys.stdout.write(json.dumps(epoch(options.out, counts[0], workers[0])) + "\n")
        return
    with tempfile.TemporaryDirectory() as name:
        rows = measure(Path(name) if options.out is None else options.out, counts, workers)
    if options.json is not None:
        options.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def measure(out: Path, counts: list[int], workers: list[int]) -> list[dict[str, Any]]:
    """One row a number of scans, and one a number of loaders at the largest; printed and returned."""
    make_scans(out, max(counts))
    pairs = [(count, workers[0]) for count in counts] + [(max(counts), number) for number in workers[1:]]
    table = Table("scans", "loaders", "ms a scan", "processor ms a scan", "private MB", title="An epoch of patches")
    rows = []
    for count, number in pairs:
        words = [sys.executable, "-m", "benchmarks.scaling", "epoch", "--out", str(out)]
        words += ["--counts", str(count), "--workers", str(number)]
        done = subprocess.run(words, capture_output=True, text=True, check=True)
        row = json.loads(done.stdout.splitlines()[-1])
        rows.append(row)
        cells = (f"{1e3 * row['seconds'] / count:.1f}", f"{1e3 * row['processor'] / count:.1f}")
        table.add_row(str(count), str(number), *cells, f"{row['private_mb']:.0f}")
    Console().print(table)
    return rows


def make_scans(out: Path, count: int) -> None:
    """Write scans and cohort, and fill the store."""
    import nibabel as nib
    import pandas as pd

    from datamodules.cohort import Cohort
    from datamodules.preprocessing import Preprocessing
    from datamodules.store import Store

    (out / "scans").mkdir(parents=True, exist_ok=True)
    affine = np.diag([*SPACING, 1.0])
    place = np.meshgrid(*(np.linspace(-1, 1, edge) for edge in SHAPE), indexing="ij")
    body = sum(axis**2 for axis in place) < 0.9
    liver = (place[0] - 0.3) ** 2 + place[1] ** 2 + place[2] ** 2 < 0.2
    rows = []
    for number in range(count):
        rng = np.random.default_rng(number)
        image = (body * 300 + liver * 100 + rng.normal(0, 20, SHAPE)).clip(0).astype(np.int16)
        paths = [out / "scans" / f"{kind}_{number:04d}.nii" for kind in ("image", "mask")]
        for path, array in zip(paths, (image, liver.astype(np.uint8)), strict=True):
            nib.save(nib.Nifti1Image(array, affine), path)
        rows.append({
            "scan_id": f"S{number:04d}", "patient_id": f"P{number:04d}", "sequence": "T2W", "source": "synthetic",
            "image": str(paths[0]), "mask": str(paths[1]), "mask_labels": "1",
        })  # fmt: skip
    cohort = Cohort(pd.DataFrame(rows), out)
    cohort.save(out / "cohort.parquet")
    Store(out / "store", Preprocessing(spacing=SPACING)).fill(cohort, workers=1, progress=False)


def epoch(out: Path, count: int, workers: int) -> dict[str, float]:
    """Two epochs over the first scans; the second one's seconds, and the highest private memory in MB."""
    import torch
    from torch.utils.data import DataLoader

    from datamodules.augmentation import BatchedAugmentation, segmentation_preset
    from datamodules.cohort import Cohort
    from datamodules.preprocessing import Preprocessing
    from datamodules.sampling import SeededItems, TrainingSampler
    from datamodules.segmentation import PatchDataset
    from datamodules.store import Store

    torch.set_num_threads(1)
    scans = list(Cohort.load(out / "cohort.parquet").scans)[:count]
    store = Store(out / "store", Preprocessing(spacing=SPACING))
    dataset = PatchDataset(scans, store, PATCH, count, 0.33)
    sampler = TrainingSampler(count, 0, BATCH)
    loader: DataLoader[Any] = DataLoader(
        SeededItems(dataset), BATCH, sampler=sampler, num_workers=workers, persistent_workers=workers > 0
    )
    chain = BatchedAugmentation(segmentation_preset(), spacing=SPACING)
    highest = 0.0
    began, processor = 0.0, 0.0
    for number in range(2):
        sampler.set_epoch(number)
        began, processor = time.perf_counter(), group_processor()
        for batch in loader:
            chain(batch["image"], batch["mask"], batch["seed"].tolist())
            highest = max(highest, private_mb())
    seconds, spent = time.perf_counter() - began, group_processor() - processor
    return {"count": count, "workers": workers, "seconds": seconds, "processor": spent, "private_mb": highest}


def group_processor() -> float:
    """Processor seconds of this process and of those that it started (Linux)."""
    total = 0
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                fields = (entry / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()
                if os.getpid() in (int(entry.name), int(fields[1])):
                    total += int(fields[11]) + int(fields[12])
    return total / os.sysconf("SC_CLK_TCK")


def private_mb() -> float:
    """Memory of this process that no file backs, in MB (Linux)."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("/proc/self/status has no RssAnon")


if __name__ == "__main__":
    main()
