"""Filling and reading the store, side by side with TorchIO, MONAI and nibabel.

    python -m benchmarks.store [--rounds 7] [--json FILE]

Volumes of 320×260×80 voxels (1.2×1.2×3.6 mm, int16, LPS, ``.nii.gz``) with a liver-like mask are made by the script.
Everything runs on one thread, the contestants take turns within each round, and ratios are taken within a round, so
that a busy machine slows all alike. Times are shown by the clock and by the processor (which does not count waiting
for a busy core). Our filling includes hashing and writing the entry; the peers write nothing.
"""

from __future__ import annotations

import os

# one core each: set before any library starts its threads, hence the late imports
# ruff: noqa: E402
for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"):
    os.environ[_name] = "1"

import argparse
import json
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table

from datamodules.cohort import Cohort
from datamodules.preprocessing import Preprocessing
from datamodules.store import Store

SHAPE = (320, 260, 80)
NATIVE_SPACING = (1.2, 1.2, 3.6)
SPACING = (1.5, 1.5, 3.0)
TARGET_SHAPE = (240, 208, 96)
PATCH = (128, 128, 64)


class Seconds(NamedTuple):
    """How long a piece of work took."""

    clock: float
    processor: float

    @classmethod
    def of(cls, work: Callable[[], object]) -> Seconds:
        """Do the work once and time it."""
        clock, processor = time.perf_counter(), time.process_time()
        work()
        return cls(time.perf_counter() - clock, time.process_time() - processor)


Contestants = dict[str, Callable[[], Seconds]]


def make_scans(folder: Path, count: int) -> Cohort:
    """Write synthetic scans: a bright body in air, smooth texture, Rician noise; a mask of about 1.5 litres."""
    import nibabel as nib
    from scipy.ndimage import gaussian_filter

    i, j, k = np.meshgrid(*(np.linspace(-1, 1, n, dtype=np.float32) for n in SHAPE), indexing="ij")
    body = (i / 0.85) ** 2 + (j / 0.8) ** 2 < 1
    liver = ((i - 0.35) / 0.4) ** 2 + (j / 0.45) ** 2 + (k / 0.6) ** 2 < 1
    affine = np.diag([-NATIVE_SPACING[0], -NATIVE_SPACING[1], NATIVE_SPACING[2], 1.0])
    affine[:3, 3] = (190, 150, -140)
    rows = []
    for number in range(count):
        rng = np.random.default_rng(number)
        texture = gaussian_filter(rng.normal(size=SHAPE).astype(np.float32), (4, 4, 2))
        signal = body * (300 + texture / texture.std() * 60 + 120 * liver)
        noisy = np.hypot(signal + rng.normal(scale=12, size=SHAPE), rng.normal(scale=12, size=SHAPE))
        image, mask = folder / f"image_{number}.nii.gz", folder / f"mask_{number}.nii.gz"
        nib.save(nib.Nifti1Image(np.rint(noisy).astype(np.int16), affine), image)
        nib.save(nib.Nifti1Image(liver.astype(np.uint8), affine), mask)
        rows.append({
            "scan_id": f"s{number}", "patient_id": f"p{number}", "sequence": "T1W", "source": "synthetic",
            "image": image.name, "mask": mask.name, "mask_labels": "1",
        })  # fmt: skip
    return Cohort(pd.DataFrame(rows), folder)


def filling(cohort: Cohort, folder: Path) -> Contestants:
    """One scan after another, from ``.nii.gz`` to what a network sees: orient, resample, crop or pad, z-score."""
    import monai.transforms as mt
    import torchio as tio

    turn = {"hepastage": 0, "TorchIO": 0, "MONAI": 0}
    chain = tio.Compose(
        [
            tio.ToCanonical(),
            tio.Resample(SPACING),
            tio.CropOrPad(TARGET_SHAPE),
            tio.ZNormalization(masking_method=tio.ZNormalization.mean),
        ]
    )
    keys = ("image", "mask")
    monai_chain = mt.Compose(
        [
            mt.LoadImaged(keys, image_only=True, ensure_channel_first=True),
            mt.Orientationd(keys, "RAS", labels=None),
            mt.Spacingd(keys, SPACING, mode=("bilinear", "nearest")),
            mt.ResizeWithPadOrCropd(keys, TARGET_SHAPE),
            mt.NormalizeIntensityd("image", nonzero=True),
        ]
    )

    def next_row(name: str) -> int:
        turn[name] += 1
        return (turn[name] - 1) % len(cohort)

    def ours() -> Seconds:
        row = next_row("hepastage")
        one = Cohort(cohort.frame.iloc[[row]].reset_index(drop=True), cohort.root)
        # a new folder each time: a store never makes an entry twice
        store = Store(folder / f"store_{turn['hepastage']}", params)
        return Seconds.of(lambda: store.fill(one, workers=1, progress=False))

    def torchio() -> object:
        scan = cohort.scans[next_row("TorchIO")]
        subject = tio.Subject(image=tio.ScalarImage(scan.image), mask=tio.LabelMap(scan.mask))
        result = chain(subject)
        return result["image"].data, result["mask"].data

    def monai() -> object:
        scan = cohort.scans[next_row("MONAI")]
        return monai_chain({"image": str(scan.image), "mask": str(scan.mask)})

    params = Preprocessing(spacing=SPACING, shape=TARGET_SHAPE)
    return {"hepastage": ours, "TorchIO": lambda: Seconds.of(torchio), "MONAI": lambda: Seconds.of(monai)}


def patches(cohort: Cohort, folder: Path) -> Contestants:
    """One patch with its mask at a random place: from the store, and from ``.nii.gz`` by nibabel."""
    import nibabel as nib

    # native grid: the same voxels for both
    store = Store(folder / "patches", Preprocessing())
    store.fill(cohort, workers=1, progress=False)
    entries = [store.entry(scan) for scan in cohort]
    rng = np.random.default_rng(0)

    def place() -> tuple[int, tuple[slice, slice, slice]]:
        i, j, k = (
            slice(start, start + size)
            for start, size in ((int(rng.integers(n - p + 1)), p) for n, p in zip(SHAPE, PATCH, strict=True))
        )
        return int(rng.integers(len(cohort))), (i, j, k)

    def ours() -> object:
        row, window = place()
        return entries[row].image(window), entries[row].mask(window)

    def nibabel() -> object:
        row, window = place()
        scan = cohort.scans[row]
        image = np.asarray(nib.load(scan.image).dataobj[window], dtype=np.float32)
        mask = np.asarray(nib.load(scan.mask).dataobj[window])
        return image, mask

    for _ in range(20):
        ours()
    return {"hepastage": lambda: Seconds.of(ours), "nibabel .nii.gz": lambda: Seconds.of(nibabel)}


def race(contestants: Contestants, rounds: int, repeats: dict[str, int]) -> dict[str, list[Seconds]]:
    """Seconds of each contestant in each round, the median of its repeats. A first round warms up and is left out."""
    seconds: dict[str, list[Seconds]] = {name: [] for name in contestants}
    for turn in range(rounds + 1):
        for name, work in contestants.items():
            times = [work() for _ in range(repeats.get(name, 1))]
            if turn:
                seconds[name].append(Seconds(*(statistics.median(column) for column in zip(*times, strict=True))))
    return seconds


def report(title: str, seconds: dict[str, list[Seconds]], console: Console) -> dict[str, object]:
    """Print medians, ranges and ratios to ours, and return them."""
    table = Table(title=title)
    for column in ("", "measure", "median ms", "range ms", "times ours", "range"):
        table.add_column(column, justify="right" if column.startswith(("median", "range", "times")) else "left")
    out: dict[str, object] = {}
    for measure in Seconds._fields:
        ours = [getattr(value, measure) for value in seconds["hepastage"]]
        for name, rounds in seconds.items():
            values = [getattr(value, measure) for value in rounds]
            ratios = [value / own for value, own in zip(values, ours, strict=True)]
            table.add_row(
                name,
                measure,
                f"{1e3 * statistics.median(values):.2f}",
                f"{1e3 * min(values):.2f} to {1e3 * max(values):.2f}",
                f"{statistics.median(ratios):.1f}",
                f"{min(ratios):.1f} to {max(ratios):.1f}",
            )
            out[f"{name} {measure}"] = {
                "seconds": values,
                "median_seconds": statistics.median(values),
                "median_ratio": statistics.median(ratios),
                "ratios": ratios,
            }
    console.print(table)
    return out


def main() -> None:
    """Run both races and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--scans", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the numbers here as well")
    parser.add_argument("--only", choices=("filling", "patches"))
    args = parser.parse_args()
    import SimpleITK as sitk  # noqa: N813 - the name that ITK's own manual uses
    import torch

    torch.set_num_threads(1)
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    warnings.filterwarnings("ignore", category=UserWarning)  # peers' notes on their own defaults
    console = Console()
    results = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cohort = make_scans(folder, args.scans)
        if args.only != "patches":
            seconds = race(filling(cohort, folder), args.rounds, {})
            results["filling"] = report("Filling: one scan with mask, .nii.gz to network input", seconds, console)
        if args.only != "filling":
            seconds = race(patches(cohort, folder), args.rounds, {"hepastage": 50})
            results["patch"] = report("Reading: a 128×128×64 patch with mask", seconds, console)
    load = os.getloadavg()[0]
    console.print(f"{os.cpu_count()} cores, load {load:.1f} (another's work on the machine widens the ranges)")
    if args.json is not None:
        args.json.write_text(json.dumps({"load": load, "cores": os.cpu_count(), **results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
