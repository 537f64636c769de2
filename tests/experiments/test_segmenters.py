"""Any network by its class path: built from YAML's words, trained for a step, and used for a prediction."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest
import torch
import yaml
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import Tensor

from experiments.lightning_cli import HepastageCLI, parsed
from lightning_modules.losses.segmentation import DeepSupervisionLoss, DiceCELoss
from lightning_modules.segmentation import SegmentationModule
from lightning_modules.task import rate_factor
from tests.tiny import ONE_LOGGER, Tiny

NETWORKS = {
    "DynUNet": {
        "class_path": "monai.networks.nets.DynUNet",
        "init_args": {
            "spatial_dims": 3, "in_channels": 1, "out_channels": 2, "filters": [4, 8, 8, 8],
            "kernel_size": [[3, 3, 1], 3, 3, 3], "strides": [1, [2, 2, 1], 2, 2],
            "upsample_kernel_size": [[2, 2, 1], 2, 2], "deep_supervision": True, "deep_supr_num": 2,
        },
    },
    "SwinUNETR": {
        "class_path": "monai.networks.nets.SwinUNETR",
        "init_args": {
            "in_channels": 1, "out_channels": 2, "feature_size": 12, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2],
            "window_size": 4,
        },
    },
    "SegResNet": {
        "class_path": "monai.networks.nets.SegResNet",
        "init_args": {"in_channels": 1, "out_channels": 2, "init_filters": 8},
    },
    "SegResNetDS": {
        "class_path": "monai.networks.nets.SegResNetDS",
        "init_args": {"in_channels": 1, "out_channels": 2, "init_filters": 8, "blocks_down": [1, 1, 1], "dsdepth": 2},
    },
}  # fmt: skip
EDGES = {"DynUNet": [8, 8, 4], "SwinUNETR": [32, 32, 32], "SegResNet": [8, 8, 8], "SegResNetDS": [4, 4, 4]}


def built(name: str, tiny: Tiny, tmp_path: Path, window: str = "null") -> HepastageCLI:
    overlay = tmp_path / f"{name}.yaml"
    overlay.write_text(yaml.safe_dump({"model": {"init_args": {"network": NETWORKS[name]}}}))
    patch = str([64, 32, 32] if name == "SwinUNETR" else [16, 16, 8])
    words = [*tiny.words("segmentation", str(overlay), runs=tmp_path), *ONE_LOGGER, "--data.init_args.patch", patch]
    words += ["--model.init_args.window", patch if window == "patch" else "null", "--trainer.accelerator", "cpu"]
    words += ["--model.init_args.divisible_by", str(EDGES[name])]
    return parsed("fit", words)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_monai_network_learns_and_predicts(name: str, tiny_cohort: Tiny, tmp_path: Path) -> None:
    module = built(name, tiny_cohort, tmp_path).model
    assert isinstance(module, SegmentationModule)
    assert type(module.network).__name__ == name, "the overlay's network, not nnU-Net's"
    assert isinstance(module.loss, DeepSupervisionLoss)
    torch.manual_seed(0)
    edges = (64, 32, 32) if name == "SwinUNETR" else (16, 16, 8)
    image, mask = torch.randn(2, 1, *edges), torch.randint(0, 2, (2, 1, *edges)).float()
    optimiser = torch.optim.AdamW(module.parameters(), lr=1e-3)
    module.train()
    losses = []
    for _ in range(3):
        output = module.network(image)
        loss: Tensor = module.loss(output, mask)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch's own
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0], "the step goes downhill"
    levels = {"DynUNet": 3, "SegResNetDS": 2}
    if name in levels:
        assert len(output.unbind(1) if isinstance(output, Tensor) else output) == levels[name]
    module.eval()
    odd = torch.randn(1, 1, 35, 17, 9)
    with torch.inference_mode():
        whole = module(odd)
        module.window = edges
        windows = module(odd)
    assert whole.shape == windows.shape == (1, 2, 35, 17, 9)
    assert torch.isfinite(whole).all() and torch.isfinite(windows).all()


def test_a_monai_network_through_the_whole_command(tiny_cohort: Tiny, tmp_path: Path) -> None:
    cli = built("DynUNet", tiny_cohort, tmp_path, window="patch")
    cli.trainer.fit_loop.max_epochs = 1
    cli.trainer.limit_train_batches = 1
    cli.trainer.fit(cli.model, datamodule=cli.datamodule)
    assert cli.trainer.global_step == 1


def test_nnunets_preset_is_nnunets(tiny_cohort: Tiny, tmp_path: Path) -> None:
    source = inspect.getsource(nnUNetTrainer)

    def number(name: str) -> float:
        found = re.search(rf"self\.{name} = ([0-9.e-]+)$", source, re.MULTILINE)
        assert found, f"nnU-Net's trainer sets no {name}"
        return float(found.group(1))

    words = tiny_cohort.words("segmentation", "segmentation_nnunet", runs=tmp_path)
    resolved = parsed("fit", [*words, *ONE_LOGGER]).resolved
    model, data, trainer = resolved["model"]["init_args"], resolved["data"]["init_args"], resolved["trainer"]
    optimiser = model["optimizer"]
    assert optimiser["class_path"] == "torch.optim.SGD"
    assert "torch.optim.SGD" in source and "momentum=0.99, nesterov=True" in source
    assert (optimiser["init_args"]["momentum"], optimiser["init_args"]["nesterov"]) == (0.99, True)
    assert optimiser["init_args"]["lr"] == number("initial_lr")
    assert optimiser["init_args"]["weight_decay"] == number("weight_decay")
    assert trainer["max_epochs"] == number("num_epochs")
    assert data["patches_per_epoch"] / data["batch_size"] == number("num_iterations_per_epoch")
    assert data["foreground"] == number("oversample_foreground_percent")
    assert "clip_grad_norm_(self.network.parameters(), 12)" in source
    assert (trainer["gradient_clip_val"], trainer["gradient_clip_algorithm"]) in ((12.0, None), (12.0, "norm"))
    assert (model["schedule"], model["warmup"]) == ("poly", 0.0)
    weight = torch.nn.Parameter(torch.zeros(1))
    schedule = PolyLRScheduler(torch.optim.SGD([weight], lr=1.0), 1.0, 1000)
    for epoch in (0, 1, 250, 500, 999):
        schedule.step(epoch)
        assert schedule.optimizer.param_groups[0]["lr"] == pytest.approx(rate_factor(epoch / 1000, "poly", 0.0))


def test_the_loss_is_configured_by_its_class_path(tiny_cohort: Tiny, tmp_path: Path) -> None:
    path = "lightning_modules.losses.segmentation"
    inner = {"class_path": f"{path}.DiceCELoss", "init_args": {"batch_dice": False}}
    loss = {"class_path": f"{path}.DeepSupervisionLoss", "init_args": {"loss": inner}}
    words = [*tiny_cohort.words("segmentation", runs=tmp_path), *ONE_LOGGER, "--model.init_args.loss", yaml.dump(loss)]
    module = parsed("fit", words).model
    assert isinstance(module, SegmentationModule) and isinstance(module.loss, DeepSupervisionLoss)
    assert isinstance(module.loss.loss, DiceCELoss) and not module.loss.loss.batch_dice
