"""All four modules through the command line, in as many processes as the launcher makes; run as a module.

``python -m tests.experiments.many_processes SPEC.json``: Lightning starts this module again for each further
process, as it does with ``hepastage`` itself, and torchrun starts it on each node. One start for all modules, because
importing torch takes longer than training them.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from callbacks.run_directory import RunDirectory
from datamodules.errors import InputError

ARMS = ("segmenter", "direct", "masked", "staging")


class StepLosses(Callback):
    """Write each step's loss, as this process computed it, into the run directory: ``losses<rank>.json``."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Get the signal that ``HEPASTAGE_TEST_SIGNAL`` names: ``SIGNAL:RANK:STEP``, steps counted from 0."""
        name, rank, step = os.environ.get("HEPASTAGE_TEST_SIGNAL", "SIGKILL:-1:-1").split(":")
        if (trainer.global_rank, trainer.global_step) == (int(rank), int(step)):
            os.kill(os.getpid(), signal.Signals[name])

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Keep the loss."""
        self.losses.append(float(outputs["loss"]))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write."""
        path = RunDirectory(trainer.default_root_dir).path / f"losses{trainer.global_rank}.json"
        path.write_text(json.dumps(self.losses), encoding="utf-8")


class Fails(Callback):
    """Meet a scan that cannot be read, in one process alone, in the second step.

    Args:
        rank: The process.
    """

    def __init__(self, rank: int) -> None:
        self.rank = rank

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Fail."""
        if trainer.global_rank == self.rank and batch_idx == 1:
            raise InputError(f"images/P05.nii.gz: is torn (in process {self.rank}); copy it again")


def words_of(arm: str, spec: dict[str, Any]) -> list[str]:
    """The words of ``hepastage fit`` for one module on the tiny cohort."""
    # in-plane 32 voxels: what the convnext reduces to one location
    grid = "{spacing: [7.5, 7.5, 20], shape: [32, 32, 8], normalisation: zscore}"
    words = {
        "segmenter": [
            "-c", "segmentation", "--model.init_args.network.init_args.features", "[4, 8, 8, 8]",
            "--model.init_args.window", "null", "--model.init_args.optimizer.init_args.lr", "0.003",
            "--data.init_args.patch", "[16, 16, 8]", "--data.init_args.patches_per_epoch", "13",
        ],
        "direct": ["-c", "direct"],
        "masked": ["-c", "masked_attention_resnet"],
        "staging": [
            "-c", "staging", "--model.init_args.classes", "2", "--model.init_args.network.init_args.classes", "1",
        ],
    }[arm]  # fmt: skip
    if arm != "segmenter":
        # layer norm, and nothing dropped: what is random in a network is drawn by each process
        words += ["--model.init_args.network.init_args.backbone", "test_convnext"]
        words += ["--model.init_args.network.init_args.dropout", "0.0"]
        words += ["--data.init_args.augmentation", json.dumps(augmentation(arm))]
    words += [
        "--runs", spec["runs"], "--study", "many", "--arm", arm,
        "--data.init_args.cohort", spec["cohort"], "--data.init_args.splits", spec["splits"],
        "--data.init_args.store", spec["store"], "--data.init_args.preprocessing", grid,
        "--data.init_args.batch_size", str(spec["batch_size"]),
        "--trainer.logger", "[{class_path: callbacks.metrics_log.MetricsLog}]",
        "--trainer.callbacks+", "tests.experiments.many_processes.StepLosses",
        "--trainer.max_epochs", "3", "--trainer.check_val_every_n_epoch", "1", "--trainer.accelerator", "cpu",
    ]  # fmt: skip
    return [*words, *spec["words"]]


def augmentation(arm: str) -> dict[str, Any] | None:
    """The classifiers' preset; none for staging, which has none in its shipped configuration."""
    if arm == "staging":
        return None
    transforms = [
        {"class_path": "datamodules.augmentation.RandomAffine", "init_args": {"p": 0.8, "translation": 10.0}},
        {"class_path": "datamodules.augmentation.RandomNoise", "init_args": {"p": 0.8}},
        {"class_path": "datamodules.augmentation.RandomGamma", "init_args": {"p": 0.8}},
    ]
    return {"class_path": "datamodules.augmentation.BatchedAugmentation", "init_args": {"transforms": transforms}}


def main() -> int:
    """Train and test the arms that the specification names, one after the other."""
    from experiments.cli import main as hepastage

    spec = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    for arm in spec["arms"]:
        words = words_of(arm, spec)
        for command in ("fit", "test"):
            code = hepastage([command, *words])
            if code:
                return code
    return 0


if __name__ == "__main__":
    sys.exit(main())
