"""Where a classifier looked, voxel by voxel: its own attention, and Grad-CAM. Pure torch, any patient network."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  # torch's own habit
from torch import Tensor

from lightning_modules.networks.patient_network import ClassifierOutput, PatientNetwork
from lightning_modules.networks.volume_classifier import scatter_slices


def attention_map(output: ClassifierOutput, shape: tuple[int, int, int], inside: Tensor | None = None) -> Tensor | None:
    """Attention over the voxels of the volumes: that of the slice times that of the location in it.

    Args:
        output: What the network gave.
        shape: Voxels of the volumes (I, J, K).
        inside: The mask that restricted the attention (the way ``attention``), shape (B, 1, I, J, K): what a location
            at the liver's edge got, it got for its liver voxels alone. None where attention was free.

    Returns:
        float32, shape (B, I, J, K), summing to 1 in each volume; None for a network without attention over locations.
    """
    if output.location_attention is None:
        return None
    locations = output.location_attention.float()
    if locations.shape[1] != shape[2]:
        raise ValueError(f"attention over {locations.shape[1]} slices does not fit volumes of {shape[2]}")
    planes = F.interpolate(locations, size=shape[:2], mode="bilinear", align_corners=False)
    if inside is not None:
        # an empty mask restricts nothing
        share = torch.where(output.empty_mask.view(-1, 1, 1, 1), 1.0, inside[:, 0].float())
        planes = planes * share.permute(0, 3, 1, 2)
    planes = planes / planes.sum((2, 3), keepdim=True).clamp(min=1e-12)
    weighted = planes * output.slice_attention.float()[:, :, None, None]
    total = weighted.sum((1, 2, 3), keepdim=True).clamp(min=1e-12)
    return (weighted / total).permute(0, 2, 3, 1)


def grad_cam(network: PatientNetwork, image: Tensor, mask: Tensor | None) -> Tensor:
    """What in the encoder's last feature maps raises the logit: of the positive class, of several the predicted one.

    Channels are weighted by the mean gradient of the logit over the locations of a slice (of the volume, for a 3D
    encoder), and what is negative is cut.

    Args:
        network: The network, in evaluation mode; its parameters get no gradient.
        image: See ``PatientNetwork``.
        mask: See ``PatientNetwork``.

    Returns:
        float32, shape (B, I, J, K), not negative; zero in slices that were left out, and everywhere where nothing
        raises the logit.

    Raises:
        ValueError: The network has no encoder whose last maps are (N, C, H, W) or (N, C, H, W, D).

    Source: Selvaraju et al. 2017, eq. 1 and 2.
    """
    encoder: Any = getattr(network, "encoder", None)
    if encoder is None:
        raise ValueError(f"{type(network).__name__} has no encoder to look at")
    kept: dict[str, Tensor] = {}

    def keep_maps(module: Any, inputs: Any, maps: Any) -> None:
        kept["maps"] = maps[-1]

    def keep_used(module: Any, inputs: Any) -> None:
        kept["used"] = inputs[1]

    hooks = [encoder.register_forward_hook(keep_maps)]
    aggregate: Any = getattr(network, "aggregate", None)
    if aggregate is not None:
        hooks.append(aggregate.register_forward_pre_hook(keep_used))
    try:
        # a test runs in inference mode, whose tensors know no gradient
        with torch.inference_mode(False), torch.enable_grad():
            own = image.detach().clone().requires_grad_()
            logits = network(own, None if mask is None else mask.detach().clone()).logits.float()
            score = logits[:, 0] if logits.shape[1] == 1 else logits.amax(1)
            maps = kept["maps"]
            (gradient,) = torch.autograd.grad(score.sum(), maps)
    finally:
        for hook in hooks:
            hook.remove()
    maps, gradient = maps.detach().float(), gradient.float()
    if maps.ndim not in (4, 5):
        raise ValueError(f"feature maps of shape {tuple(maps.shape)} are neither of slices nor of volumes")
    weights = gradient.mean(tuple(range(2, maps.ndim)), keepdim=True)
    cam = (weights * maps).sum(1).clamp(min=0)
    edge_i, edge_j, slices = image.shape[2:]
    if maps.ndim == 5:
        return F.interpolate(cam[:, None], size=(edge_i, edge_j, slices), mode="trilinear", align_corners=False)[:, 0]
    planes = scatter_slices(cam, kept["used"])
    return F.interpolate(planes, size=(edge_i, edge_j), mode="bilinear", align_corners=False).permute(0, 2, 3, 1)


def share_inside(weights: Tensor, liver: Tensor) -> float:
    """Share of a map's weight that lies in the liver, in [0, 1]; NaN where the map is zero everywhere.

    Args:
        weights: Not negative, shape (I, J, K).
        liver: bool, the same shape.
    """
    total = float(weights.sum())
    return float(weights[liver].sum()) / total if total > 0 else float("nan")
