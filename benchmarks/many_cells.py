"""A grid of 40 classification cells beside the same cells as independent scripts with TorchIO in the loop.

    python -m benchmarks.many_cells --scans chaos_t2 [--epochs 28] [--cores 2] [--measured 3] [--out DIR] [--json FILE]

Ours is ``hepastage grid run`` of 2 arms (direct, and masked attention with the reference masks) × 4 learning rates × 5
folds from an empty store: planning, preprocessing, training, testing; in bf16 where the processor computes in it. The
scripts train the same networks on the same folds in float32 and read, resample and augment each NIfTI file in every
epoch. They are not run to their end: both arms' run side by side for a few epochs and a test, and start, epochs and
test are added up to the whole (an estimate, and said to be one). Two chains of augmentation: ``usual`` is TorchIO's
flip, affine, elastic deformation, bias field, gamma and noise, each time; ``same`` is ours' kinds and probabilities.
Patients are derived from the scans as ``hepastage cohort semisynthetic`` does, so that files are as large as real ones;
without ``--scans`` they are phantoms, whose files are small.
"""

from __future__ import annotations

import argparse
import itertools
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
from rich.console import Console
from rich.table import Table

from benchmarks.cohorts import hepastage, write_cohort
from experiments.precision import best_precision

FOLDS, PATIENTS, BATCH = 5, 40, 4
RATES = [0.0005, 0.001, 0.002, 0.004]
CHAINS = ("usual", "same")
PARTS = ("start", "epoch", "test")
ARMS = {"direct": "direct", "masked": "masked_attention_resnet"}
GRID: dict[str, Any] = {"spacing": [4.0, 4.0, 8.0], "shape": [80, 64, 20]}


def main() -> None:
    """Parse, measure both, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", default="all", choices=["all", *CHAINS], help="all but the first: internal")
    parser.add_argument("--scans", type=Path, help="folder with image_N.nii.gz and label_N.nii.gz, 1 is liver")
    parser.add_argument("--epochs", type=int, default=28)
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--measured", type=int, default=3, help="epochs that a script is run for")
    parser.add_argument("--arm", choices=[*ARMS], default="direct", help="internal")
    parser.add_argument("--out", type=Path, help="folder to work in; a temporary one where not given")
    parser.add_argument("--json", type=Path, help="write the numbers here as well")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    if options.what != "all":
        sys.stdout.write(json.dumps(script(options.out, options.what, options.arm, options.measured)) + "\n")
        return
    with tempfile.TemporaryDirectory() as name:
        out = (options.out or Path(name)).absolute()
        numbers = compare(out, options)
    if options.json is not None:
        options.json.write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")


def compare(out: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Measure the grid and the scripts; print and return the numbers."""
    study = write_study(out, options.scans, options.epochs)
    words = ["grid", "run", str(study), "--runs", str(out / "runs"), "--cores", str(options.cores)]
    began = time.monotonic()
    subprocess.run([sys.executable, "-m", "experiments.cli", *words], check=True, stdout=subprocess.DEVNULL)
    ours = time.monotonic() - began
    cells = len(list((out / "runs").glob("*/*/*/done.json")))
    numbers: dict[str, Any] = {"cells": cells, "ours_s": ours, "scripts": {}}
    title = f"{cells} cells of {options.epochs} epochs on {options.cores} cores"
    table = Table("", "start s", "epoch s", "test s", "all cells s", "ours / this", title=title)
    table.add_row("hepastage", "", "", "", f"{ours:.0f}", "1")
    for chain in CHAINS:
        arms = side_by_side(out, chain, options)
        each = [parts["start"] + options.epochs * parts["epoch"] + parts["test"] for parts in arms.values()]
        total = cells / options.cores * statistics.mean(each)
        numbers["scripts"][chain] = {"arms": arms, "all_s": total, "ratio": ours / total}
        for arm, parts in arms.items():
            table.add_row(f"scripts, {chain} chain, {arm}", *(f"{parts[name]:.2f}" for name in PARTS))
        table.add_row(f"scripts, {chain} chain", "", "", "", f"{total:.0f} (estimated)", f"{ours / total:.3f}")
    Console(width=110).print(table)
    return numbers


def write_study(out: Path, scans: Path | None, epochs: int) -> Path:
    """The cohort, its split of five folds, and the study of 40 cells."""
    table = write_cohort(out, scans, PATIENTS)
    words = ["--rule", "lsm>12", "--folds", str(FOLDS), "--seed", "0", "--out", str(out / "splits.json")]
    hepastage("split", "make", str(table), *words)
    study = {
        "study": "many", "cohort": "cohort/cohort.parquet", "splits": "splits.json",
        "base": {
            "set": {
                "trainer.precision": best_precision(),
                "trainer.max_epochs": epochs,
                "trainer.check_val_every_n_epoch": max(1, epochs // 4),
                "trainer.logger": [{"class_path": "callbacks.metrics_log.MetricsLog"}],
            },
        },
        "arms": {arm: {"config": [name, "demo/classification"]} for arm, name in ARMS.items()},
        "axes": {"lr": {"key": "model.init_args.optimizer.init_args.lr", "values": RATES}},
    }  # fmt: skip
    path = out / "study.yaml"
    path.write_text(yaml.safe_dump(study, sort_keys=False), encoding="utf-8")
    return path


def side_by_side(out: Path, chain: str, options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Run a script of each arm, as many at the same time as there are cores: seconds of start, epoch and test."""
    command = [sys.executable, "-m", "benchmarks.many_cells", chain, "--out", str(out)]
    command += ["--measured", str(options.measured)]
    found: dict[str, dict[str, float]] = {}
    for arms in (list(ARMS)[first : first + options.cores] for first in range(0, len(ARMS), options.cores)):
        running = {}
        for arm in arms:
            running[arm] = time.time(), subprocess.Popen([*command, "--arm", arm], stdout=subprocess.PIPE, text=True)
        for arm, (began, process) in running.items():
            said, _ = process.communicate()
            if process.returncode:
                raise RuntimeError(f"a script ended with {process.returncode}")
            parts = json.loads(said.splitlines()[-1])
            found[arm] = {**parts, "start": parts["start"] - began}
    return found


def script(out: Path, chain: str, arm: str, epochs: int) -> dict[str, float]:
    """The script that one would write by hand for one cell, but for validation, whose lack is in its favour.

    Returns:
        When its first epoch began, median seconds of an epoch, and seconds of its test.
    """
    import torch
    import torchio
    from torch import nn

    from datamodules.cohort import Cohort
    from datamodules.splits import Splits
    from lightning_modules.networks.volume_classifier import SliceClassifier

    tio: Any = torchio  # only partly typed
    torch.set_num_threads(1)
    torch.manual_seed(0)
    cohort = Cohort.load(out / "cohort" / "cohort.parquet")
    part = Splits.load(out / "splits.json", cohort).folds[0]
    masked = arm == "masked"

    def loader(patients: Any, transform: Any, *, shuffle: bool) -> Any:
        scans = [scan for scan in cohort.select(sequences=["T2W"]).scans if scan.patient_id in set(patients)]
        subjects = []
        for scan in scans:
            if scan.lsm_kpa is not None:
                mask = {"mask": tio.LabelMap(scan.mask)} if masked else {}
                subjects.append(tio.Subject(image=tio.ScalarImage(scan.image), target=float(scan.lsm_kpa > 12), **mask))
        return tio.SubjectsLoader(tio.SubjectsDataset(subjects, transform), batch_size=BATCH, shuffle=shuffle)

    grid = [tio.ToCanonical(), tio.Resample(GRID["spacing"]), tio.CropOrPad(GRID["shape"]), tio.ZNormalization()]
    train = loader(part.train, tio.Compose([*grid, *augmentation(chain)]), shuffle=True)
    test = loader(part.test, tio.Compose(grid), shuffle=False)
    ways = ("multiply", "gate", "attention") if masked else ()
    network = SliceClassifier(
        "test_resnet", pooling="attention", aggregation="attention", dropout=0.2, mask_injection=ways
    )

    def logits_of(batch: Any) -> torch.Tensor:
        mask = (batch["mask"]["data"] == 1).float() if masked else None
        logits: torch.Tensor = network(batch["image"]["data"].float(), mask).logits
        return logits[:, 0]

    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    began, moments = time.time(), [time.monotonic()]
    for _ in range(epochs):
        for batch in train:
            optimizer.zero_grad()
            nn.functional.binary_cross_entropy_with_logits(logits_of(batch), batch["target"].float()).backward()  # type: ignore[no-untyped-call]  # torch's own
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
        moments.append(time.monotonic())
    network.eval()
    with torch.inference_mode():
        for batch in test:
            logits_of(batch)
    seconds = [after - before for before, after in itertools.pairwise(moments)]
    return {"start": began, "epoch": statistics.median(seconds), "test": time.monotonic() - moments[-1]}


def augmentation(chain: str) -> list[Any]:
    """TorchIO's transforms of a chain."""
    import torchio

    tio: Any = torchio  # only partly typed
    if chain == "usual":
        return [
            tio.RandomFlip(axes=(0, 1, 2)), tio.RandomAffine(0.15, 15, 5), tio.RandomElasticDeformation(),
            tio.RandomBiasField(), tio.RandomGamma(), tio.RandomNoise(),
        ]  # fmt: skip
    return [
        tio.RandomAffine(0.1, (5, 5, 10), 10, isotropic=True, p=0.7), tio.RandomBiasField(0.2, p=0.3),
        tio.RandomNoise(std=(0, 0.1), p=0.2), tio.RandomGamma((-0.2, 0.2), p=0.3),
    ]  # fmt: skip


if __name__ == "__main__":
    os.environ.setdefault("WANDB_MODE", "disabled")
    main()
