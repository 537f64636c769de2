"""On one GPU: nnU-Net's 3D full resolution beside nnU-Net v2's own trainer, and the masked classifier, in one command.

    python -m benchmarks.gpu [--iterations 200] [--compile] [--out DIR]

Patch 224×160×56 (nnU-Net writes it 56×160×224), batch 2, nnU-Net's plain network with 32 to 320 features. Ours trains
as ``hepastage fit -c segmentation -c trainer/gpu`` does, nnU-Net with its own trainer, loaders and ``torch.compile``,
in turns (benchmarks/turns.py). Printed are: seconds an iteration; GPU busy, as nvidia-smi says in each one's turns;
share of time waiting for data; and the arithmetic floor, the step's operations at the GPU's speed in a matrix product.
Then the masked arm (``masked_attention_resnet`` with reference masks) in the same way, alone. Scans are made by the
script. ``--rehearse`` goes through all of it on a processor with a small patch: those numbers mean nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.turns import Contestant, Diary, spread, take_turns

EPOCH = 50  # iterations
SPACING = (1.2, 1.2, 3.6)


class Busy(threading.Thread):
    """Asks nvidia-smi twice a second how busy the first GPU is, in percent."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.samples: list[tuple[float, float]] = []
        self.ended = threading.Event()

    def run(self) -> None:
        """Until told to end; without nvidia-smi there are no samples."""
        words = ["nvidia-smi", "--id=0", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits"]
        while not self.ended.wait(0.5):
            try:
                found = subprocess.run(words, capture_output=True, text=True, check=True, timeout=10)
            except (OSError, subprocess.SubprocessError):
                return
            self.samples.append((time.monotonic(), float(found.stdout.strip())))

    def share(self, contestant: Contestant) -> str:
        """Mean over the second half of a contestant's turns, without each turn's first two seconds."""
        windows = contestant.windows[len(contestant.windows) // 2 :]
        inside = [
            value for at, value in self.samples if any(window.start + 2 <= at <= window.end for window in windows)
        ]
        return f"{statistics.mean(inside):.0f} %" if inside else "unknown"


def main() -> int:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", default="all", choices=["all", "ours", "peer", "masked"])
    parser.add_argument("--out", type=Path, default=Path(tempfile.gettempdir()) / "hepastage-gpu")
    parser.add_argument("--iterations", type=int, default=200)
    parser.add_argument("--compile", action="store_true", help="ours with trainer/compile")
    parser.add_argument("--turn", type=float, default=20.0, help="seconds of a turn")
    parser.add_argument("--rehearse", action="store_true", help="on a processor, small: to see whether all runs")
    options = parser.parse_args()
    import torch

    if not torch.cuda.is_available() and not options.rehearse:
        sys.stderr.write("benchmarks.gpu: there is no GPU on this machine; --rehearse goes through it on a processor\n")
        return 2
    out: Path = options.out.absolute()
    {"all": measure, "ours": ours, "peer": peer, "masked": masked}[options.what](out, options)
    return 0


def work_of(options: argparse.Namespace) -> dict[str, Any]:
    """Patch, batch and network, along our axes, by nnU-Net's rules."""
    from lightning_modules.networks.unet import kernel_sizes_for, strides_for

    patch = (32, 32, 16) if options.rehearse else (224, 160, 56)
    strides = strides_for(patch, SPACING)
    features = [min(320, (4 if options.rehearse else 32) * 2**stage) for stage in range(len(strides))]
    kernels = kernel_sizes_for(patch, SPACING)
    return {"patch": patch, "batch_size": 2, "features": features, "strides": strides, "kernel_sizes": kernels}


def measure(out: Path, options: argparse.Namespace) -> None:
    """Both trainings in turns, then the masked arm alone."""
    from benchmarks import nnunet_peer
    from datamodules.cohort import Cohort
    from datamodules.splits import Splits

    make_cohort(out, options)
    cohort = Cohort.load(out / "cohort.parquet")
    fold = Splits.load(out / "splits.json", cohort).folds[0]
    nnunet_peer.prepare(out, cohort, fold, SPACING, work_of(options))
    console = Console(width=120)
    table = Table(
        "", "s an iteration", "GPU busy", "waiting for data", "TFLOP/s", "of peak", "floor s", title="One GPU"
    )
    for names in (["ours", "peer"], ["masked"]):
        contestants = [contestant(out, name, options) for name in names]
        busy = Busy()
        busy.start()
        take_turns(contestants, options.turn)
        busy.ended.set()
        for item in contestants:
            seconds = item.iterations(skip=1 if options.rehearse else 20)
            table.add_row(item.name, spread(seconds) if seconds else "none whole", busy.share(item), *facts(out, item))
    console.print(table)


def contestant(out: Path, name: str, options: argparse.Namespace) -> Contestant:
    """A process of this script in another role."""
    words = [sys.executable, "-m", "benchmarks.gpu", name, "--out", str(out), "--iterations", str(options.iterations)]
    words += [f"--{flag}" for flag in ("compile", "rehearse") if getattr(options, flag)]
    (out / f"{name}.jsonl").unlink(missing_ok=True)
    return Contestant(name, words, out / f"{name}.jsonl", out / f"{name}.log")


def facts(out: Path, item: Contestant) -> list[str]:
    """What our throughput callback logged, the median of epochs after the first; nothing of nnU-Net's."""
    logs = list((out / "runs" / "gpu" / item.name).glob("*/metrics.jsonl"))
    if not logs:
        return ["", "", "", ""]
    lines = [json.loads(line) for line in logs[0].read_text(encoding="utf-8").splitlines()]
    epochs = [line for line in lines if "speed/data_wait" in line]
    middle = {
        key: statistics.median(line[f"speed/{key}"] for line in epochs[1:] or epochs)
        for key in ("data_wait", "tflops", "share_of_peak", "steps_per_s")
    }
    floor = middle["share_of_peak"] / middle["steps_per_s"]
    return [
        f"{100 * middle['data_wait']:.1f} %", f"{middle['tflops']:.2f}", f"{100 * middle['share_of_peak']:.1f} %",
        f"{floor:.4f}",
    ]  # fmt: skip


def make_cohort(out: Path, options: argparse.Namespace) -> None:
    """Scans with masks and stiffness, and a split: two for validation and two for the test, which are not used."""
    from benchmarks.store import make_scans
    from experiments.cli import main as hepastage

    if (out / "splits.json").is_file():
        return
    out.mkdir(parents=True, exist_ok=True)
    if options.rehearse:
        words = ["cohort", "phantom", "--out", str(out / "phantom"), "--patients", "8", "--seed", "0"]
        assert hepastage(words) == 0
        (out / "cohort.parquet").symlink_to(out / "phantom" / "cohort.parquet")
    else:
        (out / "scans").mkdir(exist_ok=True)
        made = make_scans(out / "scans", 12)
        frame = made.frame.copy()
        frame["sequence"] = "T2W"
        frame["lsm_kpa"] = [5.0 if row % 2 else 20.0 for row in range(len(frame))]
        type(made)(frame, made.root).save(out / "cohort.parquet")
    from datamodules.cohort import Cohort

    names = sorted({scan.patient_id for scan in Cohort.load(out / "cohort.parquet").scans})
    words = ["split", "make", str(out / "cohort.parquet"), "--rule", "lsm>12"]
    words += ["--test-patients", ",".join(names[:2]), "--valid-patients", ",".join(names[2:4])]
    assert hepastage([*words, "--out", str(out / "splits.json")]) == 0


def fitted(out: Path, name: str, options: argparse.Namespace, epochs: int, words: list[str]) -> None:
    """Train as the command line does, with a diary."""
    from lightning.pytorch import Callback

    from experiments.lightning_cli import parsed
    from experiments.run_stages import fit

    book = Diary(out / f"{name}.jsonl")

    class Watch(Callback):
        def on_train_epoch_start(self, *unused: object) -> None:
            book.pause()

        def on_train_batch_end(self, *unused: object) -> None:
            book.tick()

    words += [
        "-c", "trainer/laptop" if options.rehearse else "trainer/gpu", "--study", "gpu", "--arm", name,
        "--runs", str(out / "runs"), "--trainer.max_epochs", str(epochs),
        "--trainer.check_val_every_n_epoch", str(epochs), "--trainer.limit_val_batches", "1",
        "--data.init_args.cohort", str(out / "cohort.parquet"), "--data.init_args.splits", str(out / "splits.json"),
        "--data.init_args.store", str(out / "store"),
        "--trainer.logger", "[{class_path: callbacks.metrics_log.MetricsLog}]",
    ]  # fmt: skip
    cli = parsed("fit", words)
    cli.trainer.callbacks.append(Watch())  # type: ignore[attr-defined]  # Lightning's trainer keeps a list there
    fit(cli, restart=True)


def ours(out: Path, options: argparse.Namespace) -> None:
    """The segmenter."""
    work = work_of(options)
    data, network = "--data.init_args", "--model.init_args.network.init_args"
    count = min(EPOCH, options.iterations) * work["batch_size"]
    words = ["-c", "segmentation", *(["-c", "trainer/compile"] if options.compile else [])]
    words += [
        f"{data}.preprocessing.spacing", json.dumps(SPACING), f"{data}.patch", json.dumps(work["patch"]),
        f"{data}.batch_size", str(work["batch_size"]), f"{data}.patches_per_epoch", str(count),
        "--model.init_args.window", json.dumps(work["patch"]), f"{network}.features", json.dumps(work["features"]),
        f"{network}.strides", json.dumps(work["strides"]),
        f"{network}.kernel_sizes", json.dumps(work["kernel_sizes"]),
    ]  # fmt: skip
    fitted(out, "ours", options, max(1, options.iterations // EPOCH), words)


def peer(out: Path, options: argparse.Namespace) -> None:
    """nnU-Net's own trainer."""
    from benchmarks import nnunet_peer

    epoch = min(EPOCH, options.iterations)
    device = "cpu" if options.rehearse else "cuda"
    epochs = max(1, options.iterations // EPOCH)
    nnunet_peer.train(out, 0, epochs, epoch, out / "peer.jsonl", device=device)


def masked(out: Path, options: argparse.Namespace) -> None:
    """The masked classifier on reference masks; with the scans that the script makes an epoch is two iterations."""
    data = "--data.init_args"
    grid = [f"{data}.preprocessing", "{spacing: [10, 10, 20], shape: [32, 32, 8], normalisation: zscore}"]
    words = ["-c", "masked_attention_resnet", f"{data}.mask_source", "reference", f"{data}.batch_size", "4"]
    fitted(out, "masked", options, max(2, options.iterations // 2), [*words, *(grid if options.rehearse else [])])


if __name__ == "__main__":
    os.environ.setdefault("WANDB_MODE", "disabled")
    raise SystemExit(main())
