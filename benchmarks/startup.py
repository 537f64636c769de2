"""How long the command line takes to answer, beside what importing torch alone takes.

    python -m benchmarks.startup --rounds 5

Each round runs every command once, in a fresh process, so that a busy machine slows all alike; medians are shown, of
seconds by the clock and of processor time.
"""

from __future__ import annotations

import argparse
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

FIT = ["fit", "-c", "direct", "--data.init_args.cohort", "cohort.csv", "--data.init_args.splits", "splits.json"]
SEGMENT = ["fit", "-c", "segmentation", *FIT[3:]]
TRAINED = [
    "fit", "-c", "direct", "--data.init_args.cohort", "phantom/cohort.parquet", "--data.init_args.splits",
    "phantom.json", "--trainer.max_epochs", "1", "--trainer.logger", "false", "--trainer.accelerator", "cpu",
]  # fmt: skip
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
    "axis that there is not": [*SEGMENT, "--model.init_args.mirror_axes", "[7]"],
    "patch that does not suit the strides": [*SEGMENT, "--data.init_args.patch", "[50, 64, 16]"],
    "learning rate below 0": [*FIT, "--model.init_args.optimizer.init_args.lr", "-1"],
    "number that a constructor refuses": [*FIT, "--model.init_args.warmup", "2"],
    "number that a layer refuses": [*FIT, "--model.init_args.network.init_args.dropout", "2"],
    "one value for two": [*FIT, "--model.init_args.optimizer.init_args.betas", "0.9"],
    "rate that an optimiser refuses": [*FIT, "--model.init_args.optimizer.init_args.betas", "[0.9, 2.0]"],
    "word that the trainer does not know": [*FIT, "--trainer.gradient_clip_algorithm", "nrom"],
    "metric that is not logged": [
        *FIT, "--trainer.callbacks+",
        '{class_path: lightning.pytorch.callbacks.EarlyStopping, init_args: {monitor: valid/aucc, mode: max}}',
    ],
    "number that a callback of Lightning refuses": [
        *FIT, "--trainer.callbacks+",
        '{class_path: lightning.pytorch.callbacks.ModelCheckpoint, init_args: {save_top_k: -3}}',
    ],
    "callback that there is not": [*FIT, "--trainer.callbacks+", "EarlyStoping"],
    "loggers' options that contradict": [
        *FIT, "--trainer.logger",
        '[{class_path: lightning.pytorch.loggers.WandbLogger, init_args: {offline: true, log_model: true}}]',
    ],
    "share that the trainer refuses": [*FIT, "--trainer.val_check_interval", "2.5"],
    "range upside down": [
        *FIT, "--data.init_args.augmentation.init_args.transforms",
        "[{class_path: datamodules.augmentation.RandomAffine, init_args: {scales: [2.0, 1.0]}}]",
    ],
    "no such accelerator": [*FIT, "--trainer.accelerator", "gpuu"],
    "no process": [*FIT, "--trainer.devices", "0"],
    "FSDP without a GPU": [*FIT, "--trainer.strategy", "fsdp", "--trainer.accelerator", "cpu"],
    "more processes than patients": [*FIT, "--trainer.devices", "99", "--trainer.strategy", "ddp"],
    "other number of classes than the rule's": [*FIT, "--model.init_args.classes", "4"],
    "cell that is trained already": TRAINED,
    "torn checkpoint": ["test", "--run", "run", "--ckpt", "torn.ckpt"],
    "checkpoint of another class": ["test", "--run", "run", "--ckpt", "other.ckpt"],
    "test with an argument changed": ["test", "--run", "run", "--data.init_args.batch_size", "2"],
    "test before the training has ended": ["test", "--run", "unfinished"],
}  # fmt: skip


def seconds(words: list[str], folder: Path) -> tuple[float, float]:
    """Seconds of a process by the clock, and of processor time."""
    began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, *words], cwd=folder, capture_output=True, text=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if "Traceback" in done.stderr:
        raise RuntimeError(f"{' '.join(words)}: {done.stderr}")
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return time.perf_counter() - began, used


def write_inputs(folder: Path) -> None:
    """A cohort table, its split, a configuration with a mistyped key, and a cell trained on phantoms."""
    rows = ["scan_id,patient_id,sequence,image,source,lsm_kpa"]
    rows += [f"P{number:02d}_T2W,P{number:02d},T2W,P{number:02d}.nii.gz,A,{number}" for number in range(1, 25)]
    (folder / "cohort.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    (folder / "own.yaml").write_text("model: {init_args: {netwrok: 3}}\n", encoding="utf-8")
    words = ["split", "make", "cohort.csv", "--rule", "lsm>12", "--folds", "2", "--out", "splits.json"]
    hepastage(folder, *words)
    hepastage(folder, "cohort", "phantom", "--out", "phantom", "--patients", "12", "--seed", "0")
    words = ["split", "make", "phantom/cohort.parquet", "--rule", "lsm>12", "--folds", "2", "--out", "phantom.json"]
    hepastage(folder, *words)
    hepastage(folder, *TRAINED)
    (run,) = folder.glob("runs/*/*/*/done.json")
    (folder / "run").symlink_to(run.parent)
    shutil.copytree(run.parent, folder / "unfinished", ignore=shutil.ignore_patterns("done.json"))
    last = run.parent / "checkpoints" / "last.ckpt"
    (folder / "torn.ckpt").write_bytes(last.read_bytes()[:5000])
    import torch

    content = torch.load(last, weights_only=True)
    content["model_class"] = "lightning_modules.masked_classification.MaskedClassificationModule"
    torch.save(content, folder / "other.ckpt")


def hepastage(folder: Path, *words: str) -> None:
    """Run a command that must end well."""
    subprocess.run([sys.executable, "-m", "experiments.cli", *words], cwd=folder, capture_output=True, check=True)


def main() -> None:
    """Measure and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="runs of each command")
    rounds = parser.parse_args().rounds
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in ["import torch", *COMMANDS]}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_inputs(folder)
        for _ in range(rounds):
            taken["import torch"].append(seconds(["-c", "import torch"], folder))
            for title, words in COMMANDS.items():
                taken[title].append(seconds(["-m", "experiments.cli", *words], folder))
    torch = [statistics.median(values) for values in zip(*taken["import torch"], strict=True)]
    print("| command | median s | beyond importing torch | processor s | beyond importing torch |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for title, values in taken.items():
        wall, used = (statistics.median(column) for column in zip(*values, strict=True))
        beyond = f"{max(0.0, wall - torch[0]):.2f} | {used:.2f} | {max(0.0, used - torch[1]):.2f}"
        print(f"| {title} | {wall:.2f} | {beyond} |", flush=True)


if __name__ == "__main__":
    main()
