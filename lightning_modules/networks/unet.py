"""nnU-Net's networks, built by dynamic-network-architectures with nnU-Net's defaults."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet
from torch import Tensor, nn

from lightning_modules.networks.instance_norm import InstanceNorm3d, as_channels_last
from lightning_modules.networks.transposed_conv import use_products

# the residual-encoder presets' blocks per stage; deeper stages repeat the last number
_RESIDUAL_BLOCKS = (1, 3, 4, 6)
_MINIMUM_EDGE = 4  # voxels: nnU-Net never pools an axis below this

Axes = tuple[int, ...]


class NNUNet(nn.Module):
    """A U-Net of nnU-Net's plain or residual-encoder topology.

    In training mode with deep supervision, ``forward`` returns the logits of all decoder levels; in
    evaluation mode it returns one tensor. ``train()`` and ``eval()`` decide, so nothing has to be
    switched by hand.

    Args:
        in_channels: Image channels.
        classes: Classes with the background, so 2 for a liver.
        topology: ``"plain"`` (PlainConvUNet) or ``"residual"`` (ResidualEncoderUNet).
        features: Channels of each stage, highest resolution first.
        strides: One entry a stage and in it one number an axis, beginning with ones. None pools
            every axis by 2 at each stage. See :func:`strides_for`.
        kernel_sizes: Convolution kernels in voxels, one entry a stage. None means 3 everywhere. See
            :func:`kernel_sizes_for`.
        blocks: Convolutions (plain) or residual blocks (residual) of each encoder stage. None means
            2, or nnU-Net's 1, 3, 4, 6, 6, ….
        decoder_blocks: Convolutions of each decoder stage. None means 2 (plain) or 1 (residual).
        deep_supervision: Whether training returns logits at all levels.
        normalisation: ``"instance"`` (nnU-Net's) or ``"batch"``.
        dimensions: 3 for (B, C, I, J, K), 2 for (B, C, I, J).

    Raises:
        ValueError: Lists of differing lengths, fewer than two stages, or an unknown name.

    Source: Isensee et al. 2021, Nature Methods 18; residual encoder presets of Isensee et al. 2024,
    arXiv:2404.09556.
    """

    def __init__(
        self,
        in_channels: int = 1,
        classes: int = 2,
        topology: Literal["plain", "residual"] = "plain",
        features: Sequence[int] = (32, 64, 128, 256, 320, 320),
        strides: Sequence[Sequence[int]] | None = None,
        kernel_sizes: Sequence[Sequence[int]] | None = None,
        blocks: Sequence[int] | None = None,
        decoder_blocks: Sequence[int] | None = None,
        deep_supervision: bool = True,
        normalisation: Literal["instance", "batch"] = "instance",
        dimensions: Literal[2, 3] = 3,
    ) -> None:
        super().__init__()
        stages = len(features)
        if stages < 2:
            raise ValueError(f"features={tuple(features)}: a U-Net needs at least two stages")
        if topology not in ("plain", "residual"):
            raise ValueError(f"topology={topology!r} is unknown; use 'plain' or 'residual'")
        if normalisation not in ("instance", "batch"):
            raise ValueError(f"normalisation={normalisation!r} is unknown; use 'instance' or 'batch'")
        if dimensions not in (2, 3):
            raise ValueError(f"dimensions={dimensions!r}: use 2 or 3")
        if strides is None:
            strides = [(1,) * dimensions] + [(2,) * dimensions] * (stages - 1)
        if kernel_sizes is None:
            kernel_sizes = [(3,) * dimensions] * stages
        if blocks is None:
            tail = [_RESIDUAL_BLOCKS[-1]] * max(0, stages - len(_RESIDUAL_BLOCKS))
            blocks = [2] * stages if topology == "plain" else [*_RESIDUAL_BLOCKS[:stages], *tail]
        if decoder_blocks is None:
            decoder_blocks = [2 if topology == "plain" else 1] * (stages - 1)
        lengths = {"strides": strides, "kernel_sizes": kernel_sizes, "blocks": blocks}
        for name, value in lengths.items():
            if len(value) != stages:
                raise ValueError(f"{name} has {len(value)} entries but features has {stages}; give one a stage")
        if len(decoder_blocks) != stages - 1:
            raise ValueError(
                f"decoder_blocks has {len(decoder_blocks)} entries; give {stages - 1}, one less than stages"
            )
        for name, axes in (("strides", strides), ("kernel_sizes", kernel_sizes)):
            if any(len(entry) != dimensions for entry in axes):
                raise ValueError(f"{name}: each entry needs {dimensions} numbers, one an axis")
        self.strides: tuple[Axes, ...] = tuple(tuple(int(n) for n in entry) for entry in strides)
        self.deep_supervision = deep_supervision
        convolution = nn.Conv3d if dimensions == 3 else nn.Conv2d
        instance = InstanceNorm3d if dimensions == 3 else nn.InstanceNorm2d
        batch = nn.BatchNorm3d if dimensions == 3 else nn.BatchNorm2d
        common = {
            "input_channels": in_channels,
            "n_stages": stages,
            "features_per_stage": list(features),
            "conv_op": convolution,
            "kernel_sizes": [list(entry) for entry in kernel_sizes],
            "strides": [list(entry) for entry in self.strides],
            "num_classes": classes,
            "n_conv_per_stage_decoder": list(decoder_blocks),
            "conv_bias": True,
            "norm_op": instance if normalisation == "instance" else batch,
            "norm_op_kwargs": {"eps": 1e-5, "affine": True},
            "nonlin": nn.LeakyReLU,
            "nonlin_kwargs": {"inplace": True},
            "deep_supervision": deep_supervision,
        }
        self.network: nn.Module
        if topology == "plain":
            self.network = PlainConvUNet(n_conv_per_stage=list(blocks), **common)
        else:
            self.network = ResidualEncoderUNet(n_blocks_per_stage=list(blocks), **common)
        self.network.apply(self.network.initialize)  # type: ignore[arg-type]  # a static method of the engine
        use_products(self.network)

    @property
    def divisible_by(self) -> Axes:
        """What each edge of the input must be divisible by, in voxels."""
        total = [1] * len(self.strides[0])
        for stride in self.strides:
            total = [a * b for a, b in zip(total, stride, strict=True)]
        return tuple(total)

    @property
    def level_strides(self) -> tuple[Axes, ...]:
        """The factor by which each level's logits are smaller than the input, highest resolution first."""
        levels: list[Axes] = []
        total = [1] * len(self.strides[0])
        for stride in self.strides[:-1]:
            total = [a * b for a, b in zip(total, stride, strict=True)]
            levels.append(tuple(total))
        return tuple(levels)

    def forward(self, image: Tensor) -> Tensor | list[Tensor]:
        """Segment.

        Args:
            image: Normalised image, shape (B, C, I, J, K), each edge a multiple of ``divisible_by``.

        Returns:
            Logits, shape (B, classes, I, J, K); in training with deep supervision a list of them,
            highest resolution first, one less than there are stages.

        Raises:
            ValueError: An edge is not a multiple of ``divisible_by``.
        """
        edges = image.shape[2:]
        if any(edge % factor for edge, factor in zip(edges, self.divisible_by, strict=True)):
            raise ValueError(f"image of {tuple(edges)} voxels: each edge must be a multiple of {self.divisible_by}")
        # asked anew each time: after a validation Lightning sets modules' mode back without calling train()
        self.network.decoder.deep_supervision = self.training and self.deep_supervision  # type: ignore[union-attr]  # the engine's own switch
        logits: Tensor | list[Tensor] = self.network(as_channels_last(image))
        return logits


def nnunet(
    in_channels: int = 1,
    classes: int = 2,
    topology: Literal["plain", "residual"] = "plain",
    features: Sequence[int] = (32, 64, 128, 256, 320, 320),
    strides: Sequence[Sequence[int]] | None = None,
    kernel_sizes: Sequence[Sequence[int]] | None = None,
    blocks: Sequence[int] | None = None,
    decoder_blocks: Sequence[int] | None = None,
    deep_supervision: bool = True,
    normalisation: Literal["instance", "batch"] = "instance",
    dimensions: Literal[2, 3] = 3,
) -> NNUNet:
    """Build an :class:`NNUNet`; the arguments are its own."""
    return NNUNet(
        in_channels,
        classes,
        topology,
        features,
        strides,
        kernel_sizes,
        blocks,
        decoder_blocks,
        deep_supervision,
        normalisation,
        dimensions,
    )


def strides_for(shape: Sequence[float], spacing: Sequence[float], max_stages: int = 6) -> list[Axes]:
    """Choose the strides of each stage by nnU-Net's rule.

    An axis is pooled while it keeps at least 4 voxels, and only once its spacing is less than twice
    the smallest spacing among the axes that can still be pooled: thick slices wait.

    Args:
        shape: Edges of the patch, in voxels; a median over scans may have halves.
        spacing: Voxel spacing along the same axes, in mm.
        max_stages: Most stages to make.

    Returns:
        One entry a stage, beginning with ones.

    Raises:
        ValueError: Lengths differ, or a number is not positive.

    Source: nnU-Net v2, ``get_pool_and_conv_props``.
    """
    return topology_for(shape, spacing, max_stages)[0]


def kernel_sizes_for(shape: Sequence[float], spacing: Sequence[float], max_stages: int = 6) -> list[Axes]:
    """Choose the convolution kernels of each stage by nnU-Net's rule; arguments as for :func:`strides_for`.

    Returns:
        One entry a stage: 1 along axes whose spacing is still at least twice the smallest, else 3.
    """
    return topology_for(shape, spacing, max_stages)[1]


def topology_for(
    shape: Sequence[float], spacing: Sequence[float], max_stages: int = 6
) -> tuple[list[Axes], list[Axes]]:
    """Strides and kernel sizes of all stages: :func:`strides_for` and :func:`kernel_sizes_for` at once."""
    if len(shape) != len(spacing):
        raise ValueError(f"shape {tuple(shape)} and spacing {tuple(spacing)} differ in length")
    if min(shape) < 1 or min(spacing) <= 0 or max_stages < 1:
        raise ValueError(f"shape {tuple(shape)}, spacing {tuple(spacing)} and max_stages must be positive")
    axes = range(len(shape))
    size, distance = [float(n) for n in shape], [float(n) for n in spacing]
    kernel = [1] * len(shape)
    strides: list[Axes] = [(1,) * len(shape)]
    kernels: list[Axes] = []
    while len(strides) < max_stages:
        candidates = [axis for axis in axes if size[axis] >= 2 * _MINIMUM_EDGE]
        if not candidates:
            break
        finest = min(distance[axis] for axis in candidates)
        pooled = [axis for axis in candidates if distance[axis] / finest < 2]
        # a lone axis that could be pooled only once more is not worth a stage
        if len(pooled) == 1 and size[pooled[0]] < 3 * _MINIMUM_EDGE:
            break
        kernel = [3 if kernel[axis] == 3 or distance[axis] / min(distance) < 2 else 1 for axis in axes]
        kernels.append(tuple(kernel))
        strides.append(tuple(2 if axis in pooled else 1 for axis in axes))
        for axis in pooled:
            distance[axis] *= 2
            size[axis] = math.ceil(size[axis] / 2)
    kernels.append((3,) * len(shape))  # the bottleneck always sees all axes
    return strides, kernels
