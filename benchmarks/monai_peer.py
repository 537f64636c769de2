"""A plain MONAI loop as the peer: DynUNet, cached volumes and MONAI's transforms, as tutorials write it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from benchmarks.turns import Diary
from datamodules.cohort import Cohort
from datamodules.splits import Fold


def network(work: dict[str, Any]) -> Any:
    """MONAI's nnU-Net topology with our features, strides and kernels."""
    from monai.networks.nets import DynUNet

    strides, kernels, features = work["strides"], work["kernel_sizes"], work["features"]
    return DynUNet(
        spatial_dims=3, in_channels=1, out_channels=2, kernel_size=kernels, strides=strides,
        upsample_kernel_size=strides[1:], filters=features, deep_supervision=True,
        deep_supr_num=max(1, len(features) - 2),
    )  # fmt: skip


def train(
    cohort: Cohort, fold: Fold, spacing: tuple[float, ...], work: dict[str, Any], iterations: int, diary: Path
) -> None:
    """Train in float32 with the same patch, batch and kinds of augmentation; each volume is read once.

    Args:
        cohort: Scans with reference masks.
        fold: Its training patients are trained on.
        spacing: Target spacing in mm along our axes (I, J, K).
        work: ``patch``, ``batch_size``, ``features``, ``strides``, ``kernel_sizes`` along our axes.
        iterations: Iterations in all.
        diary: Where each iteration's times go.
    """
    import numpy as np
    import torch
    from monai import transforms as mt
    from monai.data import CacheDataset, DataLoader
    from monai.losses import DeepSupervisionLoss, DiceCELoss

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    both, turn = ("image", "mask"), tuple(np.deg2rad((10.0, 10.0, 20.0)))
    scans = [scan for scan in cohort.scans if scan.patient_id in set(fold.train)]
    items = [{"image": str(scan.image), "mask": str(scan.mask), "labels": scan.mask_labels} for scan in scans]
    chain: Any = mt.Compose(
        [
            mt.LoadImaged(both, image_only=True, ensure_channel_first=True), mt.Orientationd(both, "RAS", labels=None),
            mt.Lambdad("mask", lambda mask: (mask == items[0]["labels"][0]).float()),
            mt.Spacingd(both, spacing, mode=("bilinear", "nearest")), mt.NormalizeIntensityd("image", nonzero=True),
            mt.SpatialPadd(both, work["patch"]),
            mt.RandCropByPosNegLabeld(both, "mask", work["patch"], pos=1, neg=1, num_samples=1),
            mt.RandAffined(
                both, prob=0.7, rotate_range=turn, scale_range=(0.2,) * 3, translate_range=(3, 3, 1),
                mode=("bilinear", "nearest"), padding_mode="zeros",
            ),
            mt.Rand3DElasticd(
                both, sigma_range=(5, 7), magnitude_range=(50, 150), prob=0.2, mode=("bilinear", "nearest"),
                padding_mode="zeros",
            ),
            mt.RandBiasFieldd("image", prob=0.3), mt.RandGaussianNoised("image", prob=0.15, std=0.2),
            mt.RandScaleIntensityd("image", 0.25, prob=0.15), mt.RandAdjustContrastd("image", prob=0.3),
        ]
    )  # fmt: skip
    loader = DataLoader(
        CacheDataset(items, chain, progress=False), batch_size=work["batch_size"], shuffle=True, num_workers=0
    )
    model = network(work).train()
    loss = DeepSupervisionLoss(DiceCELoss(to_onehot_y=True, softmax=True, batch=True))
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=1e-4)
    book, done = Diary(diary), 0
    book.pause()
    while done < iterations:
        for batch in loader:
            optimizer.zero_grad()
            levels = [
                level.as_tensor() if hasattr(level, "as_tensor") else level for level in model(batch["image"]).unbind(1)
            ]
            value = loss(levels, batch["mask"])
            value.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            book.tick()
            done += 1
            if done == iterations:
                break


def predict(model: Any, image: Path, spacing: tuple[float, ...], patch: tuple[int, ...], out: Path) -> None:
    """Segment one NIfTI file as tutorials do: sliding windows in float32, logits back on the native grid, saved.

    Args:
        model: From :func:`network`, in evaluation mode.
        image: The image.
        spacing: Target spacing in mm (I, J, K).
        patch: Window in voxels.
        out: The mask's file.
    """
    import torch
    from monai import transforms as mt
    from monai.inferers.utils import sliding_window_inference

    chain: Any = mt.Compose(
        [
            mt.LoadImaged("image", image_only=True, ensure_channel_first=True),
            mt.Orientationd("image", "RAS", labels=None), mt.Spacingd("image", spacing),
            mt.NormalizeIntensityd("image", nonzero=True),
        ]
    )  # fmt: skip
    back: Any = mt.Compose(
        [
            mt.Invertd("logits", chain, orig_keys="image", nearest_interp=False),
            mt.AsDiscreted("logits", argmax=True),
            mt.SaveImaged("logits", output_dir=out.parent, output_postfix=out.name, print_log=False),
        ]
    )
    data = chain({"image": str(image)})
    with torch.inference_mode():
        logits = sliding_window_inference(data["image"][None], patch, 4, model, overlap=0.5, mode="gaussian")
    back({**data, "logits": logits[0]})
