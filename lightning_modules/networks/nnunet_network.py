"""Networks as nnU-Net's plans describe them, and its sliding window."""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor, nn

from lightning_modules.networks.instance_norm import InstanceNorm3d, as_channels_last
from lightning_modules.networks.transposed_conv import use_products

_ALLOWED = ("dynamic_network_architectures.", "torch.nn.")
_SIGMA = 1 / 8  # of the patch's edge


def network_of(architecture: Mapping[str, Any], in_channels: int, classes: int) -> nn.Module:
    """Build the network of a plan, with fresh weights and without deep supervision.

    Args:
        architecture: ``network_class_name``, ``arch_kwargs`` and ``_kw_requires_import`` of ``plans.json``.
        in_channels: Image channels.
        classes: Outputs.

    Raises:
        ValueError: A name is not of dynamic-network-architectures or torch.nn; or arguments do not fit.
    """
    arguments = dict(architecture["arch_kwargs"])
    for name in architecture.get("_kw_requires_import", ()):
        if isinstance(arguments.get(name), str):
            arguments[name] = _located(arguments[name])
    if arguments.get("norm_op") is nn.InstanceNorm3d:
        arguments["norm_op"] = InstanceNorm3d
    build = _located(str(architecture["network_class_name"]))
    try:
        network: nn.Module = build(
            input_channels=in_channels, num_classes=classes, **{**arguments, "deep_supervision": False}
        )
    except TypeError as error:
        raise ValueError(f"{architecture['network_class_name']}: {error}") from error
    use_products(network)
    return network


def _located(name: str) -> Any:
    """A class by its path; only of the two packages, for a plan must not run any code there is."""
    if not name.startswith(_ALLOWED):
        raise ValueError(f"{name}: networks are built of dynamic_network_architectures and torch.nn only")
    module, _, attribute = name.rpartition(".")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{name}: there is no such class ({error})") from error


@torch.inference_mode()
def sliding_logits(
    network: nn.Module, image: Tensor, patch: Sequence[int], step: float = 0.5, mirror_axes: Sequence[int] = ()
) -> Tensor:
    """Logits of a volume by nnU-Net's sliding window.

    Windows are spread evenly, at most ``step`` of a patch apart; each is weighted by a Gaussian of an eighth of the
    patch; a volume smaller than the patch is padded with zeros on both sides.

    Args:
        network: Maps (B, 1, *patch) to (B, classes, *patch).
        image: Shape (D, H, W).
        patch: Three edges in voxels, or two: then each (H, W) slice goes by itself.
        step: Share of the patch, in (0, 1].
        mirror_axes: Mirror over these axes of the patch and all their combinations, and average.

    Returns:
        float32 logits, shape (classes, D, H, W), on the image's device.

    Source: Isensee et al. 2021, supplement; nnU-Net 2.8, ``nnUNetPredictor``. nnU-Net adds in half precision, this
    in single.
    """
    flat = len(patch) == 2
    edges = (1, *patch) if flat else tuple(patch)
    before = [max(0, edge - size) // 2 for edge, size in zip(edges, image.shape, strict=True)]
    after = [max(0, edge - size) - low for edge, size, low in zip(edges, image.shape, before, strict=True)]
    padding = [value for low, high in zip(reversed(before), reversed(after), strict=True) for value in (low, high)]
    padded = nn.functional.pad(image, padding)
    weight = importance(tuple(edges)).to(image.device)
    total: Tensor | None = None
    norm = torch.zeros(padded.shape, device=image.device)
    for window in windows(tuple(padded.shape), edges, step):
        part = padded[window][None, None]
        logits = _mirrored(network, part[:, :, 0] if flat else as_channels_last(part), mirror_axes)[0].float()
        if flat:
            logits = logits[:, None]
        if total is None:
            total = torch.zeros((len(logits), *padded.shape), device=image.device)
        total[(slice(None), *window)] += logits * weight
        norm[window] += weight
    if total is None:
        raise ValueError("the image has no voxels")
    total /= norm
    kept = tuple(slice(low, low + size) for low, size in zip(before, image.shape, strict=True))
    return total[(slice(None), *kept)]


def windows(shape: Sequence[int], patch: Sequence[int], step: float = 0.5) -> Iterator[tuple[slice, slice, slice]]:
    """Where the windows lie: as few as keep at most ``step`` of a patch between them, evenly spread.

    Args:
        shape: Voxels of the volume, at least the patch's.
        patch: Voxels of the window.
        step: Share of the patch, in (0, 1].
    """
    starts = []
    for size, edge in zip(shape, patch, strict=True):
        # a window of one voxel cannot move by half of it
        count = int(np.ceil((size - edge) / max(1.0, edge * step))) + 1
        gap = (size - edge) / (count - 1) if count > 1 else 0.0
        starts.append([int(np.round(gap * index)) for index in range(count)])
    for i, j, k in itertools.product(*starts):
        yield slice(i, i + patch[0]), slice(j, j + patch[1]), slice(k, k + patch[2])


@lru_cache(maxsize=4)
def importance(patch: tuple[int, ...]) -> Tensor:
    """Gaussian weight of each voxel of a window, 10 in the middle, never 0."""
    peak = np.zeros(patch)
    peak[tuple(edge // 2 for edge in patch)] = 1
    # an axis of one voxel is a slice, over which nothing is spread
    sigmas = [0.0 if edge == 1 else edge * _SIGMA for edge in patch]
    weight = gaussian_filter(peak, sigmas, 0, mode="constant", cval=0)
    # half precision as in nnU-Net: what is 0 there gets the least other weight
    half = torch.from_numpy(weight / weight.max() * 10).half().float()
    half[half == 0] = half[half > 0].min()
    return half


def _mirrored(network: nn.Module, part: Tensor, mirror_axes: Sequence[int]) -> Tensor:
    logits: Tensor = network(part)
    axes = [axis + 2 for axis in mirror_axes]
    combinations = [chosen for count in range(1, len(axes) + 1) for chosen in itertools.combinations(axes, count)]
    for chosen in combinations:
        logits = logits + network(part.flip(chosen)).flip(chosen)
    return logits / (len(combinations) + 1)
