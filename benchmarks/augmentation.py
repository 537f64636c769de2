"""Augmenting one training patch, side by side with TorchIO, MONAI and batchgeneratorsv2.

    python -m benchmarks.augmentation [--rounds 9] [--shape 128,128,64] [--json FILE]

A patch with its mask passes every transform of a chain each time (all probabilities 1), so all do the same kind and
number of operations. Two chains: TorchIO's usual six (flip, affine, elastic deformation, bias field, gamma, noise),
beside TorchIO and MONAI; and nnU-Net's kind (flip, affine, elastic deformation, gamma, contrast, noise), beside
batchgeneratorsv2, which has no bias field. Everything runs on one thread; the contestants take turns within each
round and ratios are taken within a round.
"""

from __future__ import annotations

# first: it sets one thread before any library starts its own
from benchmarks.store import Contestants, Seconds, race, report  # isort: skip

import argparse
import json
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from datamodules.augmentation import (
    BatchedAugmentation,
    RandomAffine,
    RandomBiasField,
    RandomContrast,
    RandomElasticDeformation,
    RandomFlip,
    RandomGamma,
    RandomNoise,
)

SHAPE, SPACING = (128, 128, 64), (1.5, 1.5, 3.0)
SPATIAL = (
    RandomFlip(axes=(0, 1, 2)),
    RandomAffine(scales=0.15, degrees=15.0, translation=5.0),
    RandomElasticDeformation(num_control_points=7, max_displacement=7.5),
)


def make_patch(shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """A smooth normalised image (1, I, J, K) and a ball for its mask."""
    from scipy.ndimage import gaussian_filter

    image = gaussian_filter(np.random.default_rng(0).normal(size=shape), 2).astype(np.float32)
    axes = np.meshgrid(*(np.linspace(-1, 1, edge) for edge in shape), indexing="ij")
    mask = np.sum(np.square(axes), axis=0) < 0.5
    return torch.from_numpy(image / image.std())[None], torch.from_numpy(mask.astype(np.uint8))[None]


def batched(chain: BatchedAugmentation, image: Tensor, mask: Tensor) -> Contestants:
    """Ours: a batch of this one patch."""
    seeds = iter(range(10**9))
    return {"hepastage": lambda: Seconds.of(lambda: chain(image[None], mask[None], seeds=(next(seeds),)))}


def six(image: Tensor, mask: Tensor) -> Contestants:
    """TorchIO's usual chain, by ours, TorchIO and MONAI."""
    import monai.transforms as mt
    import torchio

    tio: Any = torchio  # only partly typed
    chain = BatchedAugmentation(
        [*SPATIAL, RandomBiasField(0.5), RandomGamma(0.3), RandomNoise(std=(0.0, 0.25))], spacing=SPACING
    )
    affine = np.diag([*SPACING, 1.0])
    theirs = tio.Compose(
        [
            tio.RandomFlip(axes=(0, 1, 2)), tio.RandomAffine(0.15, 15, 5), tio.RandomElasticDeformation(),
            tio.RandomBiasField(), tio.RandomGamma(), tio.RandomNoise(),
        ]
    )  # fmt: skip

    def torchio_chain() -> object:
        subject = tio.Subject(
            image=tio.ScalarImage(tensor=image, affine=affine), mask=tio.LabelMap(tensor=mask, affine=affine)
        )
        result = theirs(subject)
        return result["image"].data, result["mask"].data

    both, turn = ("image", "mask"), (float(np.deg2rad(15)),) * 3
    monai_chain: Any = mt.Compose(
        [
            *(mt.RandFlipd(both, prob=0.5, spatial_axis=axis) for axis in range(3)),
            mt.Rand3DElasticd(
                both, sigma_range=(5, 7), magnitude_range=(50, 150), prob=1.0, rotate_range=turn,
                scale_range=(0.15,) * 3, translate_range=(3, 3, 2), mode=("bilinear", "nearest"), padding_mode="zeros",
            ),
            mt.RandBiasFieldd("image", prob=1.0), mt.RandAdjustContrastd("image", prob=1.0),
            mt.RandGaussianNoised("image", prob=1.0),
        ]
    )  # fmt: skip

    return {
        **batched(chain, image, mask),
        "TorchIO": lambda: Seconds.of(torchio_chain),
        "MONAI": lambda: Seconds.of(lambda: monai_chain({"image": image.clone(), "mask": mask.clone()})),
    }


def nnunet_kind(image: Tensor, mask: Tensor) -> Contestants:
    """nnU-Net's kind of chain with elastic deformation on, by ours and batchgeneratorsv2."""
    from batchgeneratorsv2.helpers.scalar_type import RandomScalar  # noqa: F401  # the package's own order of imports
    from batchgeneratorsv2.transforms.intensity.contrast import BGContrast, ContrastTransform
    from batchgeneratorsv2.transforms.intensity.gamma import GammaTransform
    from batchgeneratorsv2.transforms.intensity.gaussian_noise import GaussianNoiseTransform
    from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
    from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
    from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms

    chain = BatchedAugmentation(
        [*SPATIAL, RandomGamma(0.35), RandomContrast((0.75, 1.25)), RandomNoise(std=(0.0, 0.3))], spacing=SPACING
    )
    reach = float(np.deg2rad(15))
    theirs = ComposeTransforms(
        [
            SpatialTransform(
                tuple(image.shape[1:]), 0, False, p_elastic_deform=1.0, elastic_deform_scale=(0.1, 0.2),
                elastic_deform_magnitude=(2.0, 5.0), p_rotation=1.0, rotation=(-reach, reach), p_scaling=1.0,
                scaling=(0.85, 1.15), border_mode_seg="constant",
            ),
            GaussianNoiseTransform((0, 0.1), 1.0, True), ContrastTransform(BGContrast((0.75, 1.25)), True, False, 1.0),
            GammaTransform(BGContrast((0.7, 1.5)), 0.0, False, 1.0, 1.0), MirrorTransform((0, 1, 2)),
        ]
    )  # fmt: skip
    labels = mask.to(torch.int16)

    return {
        **batched(chain, image, mask),
        "batchgeneratorsv2": lambda: Seconds.of(
            lambda: theirs(image=image.clone(), segmentation=labels.clone())  # it works in place
        ),
    }


def measure(shape: tuple[int, ...], rounds: int, repeats: int, console: Console) -> dict[str, object]:
    """Run both races and print their tables."""
    image, mask = make_patch(shape)
    size = "×".join(str(edge) for edge in shape)
    out: dict[str, object] = {}
    for title, chain in (("TorchIO's six transforms", six), ("nnU-Net's kind, elastic", nnunet_kind)):
        seconds = race(chain(image, mask), rounds, {"hepastage": repeats})
        out[title] = report(f"{title}: one patch of {size} with mask", seconds, console)
    return out


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--shape", default=",".join(str(edge) for edge in SHAPE), help="voxels of the patch, I,J,K")
    parser.add_argument("--json", type=Path, help="write the numbers here as well")
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")  # peers' notes on their own defaults
    console = Console(width=110)
    shape = tuple(int(edge) for edge in args.shape.split(","))
    results = measure(shape, args.rounds, 5, console)
    load = os.getloadavg()[0]
    console.print(f"{os.cpu_count()} cores, load {load:.1f} (another's work on the machine widens the ranges)")
    if args.json is not None:
        args.json.write_text(json.dumps({"load": load, "cores": os.cpu_count(), **results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
