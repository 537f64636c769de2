"""A classification epoch beside a plain PyTorch + timm + MONAI loop on the same network, in one run.

    python -m benchmarks.classification [--scans DIR] [--patients 16] [--epochs 4] [--backbone resnet18] [--out DIR]

Ours is ``hepastage fit -c direct`` in bf16 with mean pooling over locations and attention over slices. The plain loop
has the same network (timm's encoder over all slices at once, gated attention, one logit), AdamW, the same kinds of
augmentation by MONAI and float32: once as tutorials write it, which reads and resamples each NIfTI file in every
epoch, and once over MONAI's ``CacheDataset``. All load in the training process, on as many threads as
``OMP_NUM_THREADS`` says (1 where it is not set), and take turns on the whole machine (benchmarks/turns.py). Measured
is the processor time of whole epochs after the first. With ``--scans`` patients are derived from real scans, two from
each, and files are as large as real ones; without, phantom patients are made, whose files are small.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.cohorts import hepastage, write_cohort
from benchmarks.turns import Contestant, Diary, spread, take_turns
from datamodules.cohort import Cohort
from datamodules.splits import Splits

GRID: dict[str, Any] = {"spacing": [2.5, 2.5, 8.0], "shape": [128, 112, 24]}
BATCH = 4
NAMES = {"ours": "hepastage", "plain": "plain loop", "cached": "plain loop, cached"}


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", default="all", choices=["all", *NAMES], help="all but the first: internal")
    parser.add_argument("--out", type=Path, default=Path(tempfile.gettempdir()) / "hepastage-classification")
    parser.add_argument("--scans", type=Path, help="folder with image_N.nii.gz and label_N.nii.gz, 1 is liver")
    parser.add_argument("--patients", type=int, default=16, help="training patients, without --scans")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--grid", type=json.loads, default=GRID, help="spacing and shape of the volumes, as JSON")
    parser.add_argument("--turn", type=float, default=30.0, help="seconds of a turn")
    options = parser.parse_args()
    out: Path = options.out.absolute()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if options.what == "all":
        race(out, options)
    elif options.what == "ours":
        ours(out, options)
    else:
        plain(out, options, cached=options.what == "cached")


def race(out: Path, options: argparse.Namespace) -> dict[str, float]:
    """Make the cohort, let all take turns, and print processor seconds a volume; returns ratios to ours."""
    patients = make_cohort(out, options)
    words = [f"--{name}={getattr(options, name)}" for name in ("patients", "epochs", "backbone")]
    words += ["--grid", json.dumps(options.grid), "--out", str(out)]
    contestants = []
    for name in NAMES:
        (out / f"{name}.jsonl").unlink(missing_ok=True)
        command = [sys.executable, "-m", "benchmarks.classification", name, *words]
        contestants.append(Contestant(name, command, out / f"{name}.jsonl", out / f"{name}.log"))
    take_turns(contestants, options.turn)
    volumes = -(-patients // BATCH) * BATCH
    seconds = {item.name: [value / volumes for value in item.processor(skip=0)] for item in contestants}
    own = statistics.median(seconds["ours"])
    title = f"{options.backbone}, volumes of {'×'.join(map(str, options.grid['shape']))}: an epoch after the first"
    table = Table("", "processor s a volume", "volumes a processor s", "ours / this", title=title)
    ratios = {}
    for name, values in seconds.items():
        ratios[name] = own / statistics.median(values)
        table.add_row(NAMES[name], spread(values), f"{1 / statistics.median(values):.2f}", f"{ratios[name]:.3f}")
    console = Console(width=110)
    console.print(table)
    (log,) = (out / "runs").glob("*/*/*/metrics.jsonl")
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    waits = [line["speed/data_wait"] for line in lines if "speed/data_wait" in line][1:]
    console.print(f"ours waited for data: {spread(waits)} of the epochs after the first, augmentation included")
    (out / "classification.json").write_text(json.dumps({"seconds": seconds, "data_wait": waits}), encoding="utf-8")
    return ratios


def make_cohort(out: Path, options: argparse.Namespace) -> int:
    """Patients of whom eight validate and test, and the others train: how many do."""
    shutil.rmtree(out / "runs", ignore_errors=True)
    cohort = out / "cohort" / "cohort.parquet"
    if not (out / "splits.json").is_file():
        write_cohort(out, options.scans, options.patients + 8, copies=2)
        names = sorted({scan.patient_id for scan in Cohort.load(cohort).scans})
        words = ["--rule", "lsm>12", "--test-patients", ",".join(names[-4:])]
        words += ["--valid-patients", ",".join(names[-8:-4]), "--out", str(out / "splits.json")]
        hepastage("split", "make", str(cohort), *words)
    return len(Splits.load(out / "splits.json", Cohort.load(cohort)).folds[0].train)


def ours(out: Path, options: argparse.Namespace) -> None:
    """Train as the command line does, with a diary of epochs."""
    from lightning.pytorch import Callback

    from experiments.lightning_cli import parsed
    from experiments.run_stages import fit

    book = Diary(out / "ours.jsonl")

    class Watch(Callback):
        def on_train_epoch_end(self, trainer: Any, *unused: object) -> None:
            if trainer.current_epoch:
                book.tick()
            book.pause()

    data, network = "--data.init_args", "--model.init_args.network.init_args"
    words = [
        "-c", "direct", "--runs", str(out / "runs"), "--trainer.max_epochs", str(options.epochs),
        "--trainer.check_val_every_n_epoch", str(options.epochs), "--trainer.precision", "bf16-mixed",
        "--trainer.accelerator", "cpu", f"{data}.cohort", str(out / "cohort" / "cohort.parquet"),
        f"{data}.splits", str(out / "splits.json"), f"{data}.store", str(out / "store"),
        f"{data}.batch_size", str(BATCH), f"{data}.preprocessing.spacing", json.dumps(options.grid["spacing"]),
        f"{data}.preprocessing.shape", json.dumps(options.grid["shape"]), f"{network}.backbone", options.backbone,
        f"{network}.pooling", "mean", "--trainer.logger", "[{class_path: callbacks.metrics_log.MetricsLog}]",
    ]  # fmt: skip
    cli = parsed("fit", words)
    cli.trainer.callbacks.append(Watch())  # type: ignore[attr-defined]  # Lightning's trainer keeps a list there
    fit(cli)


def plain(out: Path, options: argparse.Namespace, *, cached: bool) -> None:
    """The loop that one would write by hand."""
    import timm
    import torch
    from monai import transforms as mt
    from monai.data import CacheDataset, Dataset
    from torch import nn
    from torch.utils.data import DataLoader

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = timm.create_model(options.backbone, in_chans=1, num_classes=0)
            width: Any = self.encoder.num_features
            self.value, self.gate, self.score = nn.Linear(width, 64), nn.Linear(width, 64), nn.Linear(64, 1)
            self.head = nn.Linear(width, 1)

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            count = image.shape[-1]
            slices = image.permute(0, 4, 1, 2, 3).flatten(0, 1)
            features = self.encoder(slices).view(len(image), count, -1)
            scores = self.score(torch.tanh(self.value(features)) * torch.sigmoid(self.gate(features)))
            logits: torch.Tensor = self.head((scores.softmax(1) * features).sum(1))[:, 0]
            return logits

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    torch.manual_seed(0)
    cohort = Cohort.load(out / "cohort" / "cohort.parquet")
    splits = Splits.load(out / "splits.json", cohort)
    trained = set(splits.folds[0].train)
    scans = [scan for scan in cohort.select(sequences=["T2W"]).scans if scan.patient_id in trained]
    items = [{"image": str(scan.image), "target": float(scan.lsm_kpa > 12)} for scan in scans if scan.lsm_kpa]
    turn = (0.087, 0.087, 0.17)
    chain: Any = mt.Compose(
        [
            mt.LoadImaged("image", image_only=True, ensure_channel_first=True),
            mt.Orientationd("image", "RAS", labels=None), mt.Spacingd("image", options.grid["spacing"]),
            mt.ResizeWithPadOrCropd("image", options.grid["shape"]), mt.NormalizeIntensityd("image", nonzero=True),
            mt.RandAffined(
                "image", prob=0.7, rotate_range=turn, scale_range=(0.1,) * 3, translate_range=(4, 4, 1.25),
                padding_mode="border",
            ),
            mt.RandBiasFieldd("image", prob=0.3), mt.RandGaussianNoised("image", prob=0.2),
            mt.RandScaleIntensityd("image", 0.15, prob=0.3), mt.RandAdjustContrastd("image", prob=0.3),
        ]
    )  # fmt: skip
    dataset: Any = CacheDataset(items, chain, progress=False) if cached else Dataset(items, chain)
    loader: Any = DataLoader(dataset, batch_size=BATCH, shuffle=True)
    network = Network()
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-4)
    book = Diary(out / f"{'cached' if cached else 'plain'}.jsonl")
    for epoch in range(options.epochs):
        for batch in loader:
            optimizer.zero_grad()
            logits = network(batch["image"].as_tensor())
            loss = nn.functional.binary_cross_entropy_with_logits(logits, batch["target"].float())
            loss.backward()  # type: ignore[no-untyped-call]  # torch's own
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
        if epoch:
            book.tick()
        book.pause()


if __name__ == "__main__":
    os.environ.setdefault("WANDB_MODE", "disabled")
    main()
