"""A 3D network's encoder as a chain of stages, gated between them if asked."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F  # noqa: N812  # torch's own habit
from torch import Tensor, nn

from lightning_modules.networks.initial_weights import (
    initial_weights_wanted,
    load_into,
    stage_one_weights,
    weights_in,
)
from lightning_modules.networks.mask_injection import MaskGate, resize_mask

_LATER = (("layer2",), ("layer3",), ("layer4",))
_PROBE = 128  # voxels: an edge that every usual network can halve often enough


class VolumeEncoder(nn.Module):
    """Encode whole volumes with the encoder of a 3D network.

    Taken are MONAI's ``ResNet`` and ``DenseNet`` kinds, its ``SwinUNETR`` (or ``SwinTransformer`` alone), and nnU-Net's
    networks: ``lightning_modules.networks.unet.NNUNet``, or those of dynamic-network-architectures. Classifying
    heads and decoders are dropped; what is left is a chain of stages.

    Args:
        network: The 3D network; its input channels must be ``in_channels``.
        in_channels: Channels of the volumes, the mask's included where it is one.
        weights_from: A segmenter's run directory or checkpoint, whose encoder's weights are taken.
        weights_file: A file with weights in the network's own naming.
        gate: Gate each stage's maps by the mask.
        initial_pass: Share of the outside that a gate lets pass at the start.
        freeze: Train nothing of the encoder but its gates.

    Raises:
        ValueError: A network of another kind or with other channels, weights that do not fit, two sources of
            weights, or frozen random weights.
    """

    def __init__(
        self,
        network: nn.Module,
        in_channels: int = 1,
        weights_from: str | Path | None = None,
        weights_file: str | Path | None = None,
        gate: bool = False,
        initial_pass: float = 0.5,
        freeze: bool = False,
    ) -> None:
        super().__init__()
        if weights_from is not None and weights_file is not None:
            raise ValueError("weights_from and weights_file are both set; give one source of the encoder's weights")
        if freeze and weights_from is None and weights_file is None:
            raise ValueError(
                "freeze: the encoder's weights would stay random; set weights_from or weights_file, or leave freeze out"
            )
        self.stages = stages_of(network)
        if initial_weights_wanted() and (weights_from is not None or weights_file is not None):
            named = dict(network.named_parameters(remove_duplicate=False)) | dict(network.named_buffers())
            # nnU-Net's modules are held under several names: the first one counts
            name_of = {id(tensor): name for name, tensor in reversed(named.items())}
            own: dict[str, Tensor] = dict(self.stages.named_parameters(remove_duplicate=False))
            own |= dict(self.stages.named_buffers(remove_duplicate=False))
            names = {name: name_of[id(tensor)] for name, tensor in own.items()}
            weights = weights_in(Path(weights_file)) if weights_file else stage_one_weights(Path(str(weights_from)))
            where = f"weights_file {weights_file}" if weights_file else f"weights_from {weights_from}"
            load_into(self.stages, names, weights, where)
        self.channels: tuple[int, ...] = _channels(self.stages, in_channels)
        self.gates = nn.ModuleList(MaskGate(n, initial_pass) for n in self.channels) if gate else None
        self.frozen = freeze
        if freeze:
            self.stages.requires_grad_(False)
            self.train(self.training)

    def train(self, mode: bool = True) -> VolumeEncoder:
        """Set training or evaluation mode; a frozen encoder stays in evaluation."""
        super().train(mode)
        if self.frozen:
            self.stages.eval()
        return self

    def layers(self) -> list[list[nn.Parameter]]:
        """Parameters by stage, the input's first; gates are new, and left out."""
        return [list(stage.parameters()) for stage in self.stages]

    def forward(self, volume: Tensor, mask: Tensor | None = None) -> list[Tensor]:
        """Encode.

        Args:
            volume: Shape (B, C, I, J, K).
            mask: Share of liver, in [0, 1], shape (B, 1, I, J, K); needed where stages are gated.

        Returns:
            The stages' feature maps, highest resolution first, each (B, C', H, W, D).

        Raises:
            ValueError: The stages are gated and no mask was given.
        """
        if self.gates is not None and mask is None:
            raise ValueError("the encoder's stages are gated by the mask, but the batch holds no mask")
        features, maps = volume, []
        for place, stage in enumerate(self.stages):
            features = stage(features)
            if self.gates is not None and mask is not None:
                features = self.gates[place](features, resize_mask(mask, features.shape[2:]))
            maps.append(features)
        return maps


class ChannelNorm(nn.Module):
    """Layer norm over channels without weights, as Swin's encoder norms what it hands out."""

    def forward(self, features: Tensor) -> Tensor:
        """Normalise features (B, C, H, W, D)."""
        last = features.movedim(1, -1)
        return F.layer_norm(last, (last.shape[-1],)).movedim(-1, 1)


def stages_of(network: nn.Module) -> nn.ModuleList:
    """The encoder of a known kind of network, as a chain.

    Raises:
        ValueError: It is of none of the known kinds.
    """
    found = getattr(network, "network", network)  # NNUNet holds the engine's network
    encoder = getattr(found, "encoder", found)
    if isinstance(getattr(encoder, "stages", None), (nn.Sequential, nn.ModuleList)):
        stages = list(cast("nn.Sequential", encoder.stages))
        stem = getattr(encoder, "stem", None)
        return nn.ModuleList(
            [nn.Sequential(stem, stages[0]) if isinstance(stem, nn.Module) else stages[0], *stages[1:]]
        )
    swin = getattr(network, "swinViT", network)
    if hasattr(swin, "patch_embed") and hasattr(swin, "layers4"):
        return _swin_stages(swin)
    if hasattr(network, "layer1") and hasattr(network, "conv1"):
        names = ["conv1", "bn1", "act", *([] if getattr(network, "no_max_pool", False) else ["maxpool"]), "layer1"]
        return _chain(*([getattr(network, name) for name in part] for part in (names, *_LATER)))
    features = getattr(network, "features", None)
    if isinstance(features, nn.Sequential) and any(
        name.startswith("denseblock") for name, _ in features.named_children()
    ):
        parts: list[list[nn.Module]] = [[]]
        for name, module in features.named_children():
            if name.startswith("transition"):
                parts.append([])
            parts[-1].append(module)
        parts[-1].append(nn.ReLU(inplace=True))
        return _chain(*parts)
    raise ValueError(
        f"encoder: {type(network).__name__} is of no known kind; give MONAI's ResNet, DenseNet121 or SwinUNETR, or "
        "lightning_modules.networks.unet.NNUNet"
    )


def _swin_stages(swin: nn.Module) -> nn.ModuleList:
    parts: list[list[nn.Module]] = []
    for place in range(1, 5):
        part: list[nn.Module] = [swin.patch_embed, swin.pos_drop] if place == 1 else []  # type: ignore[list-item]  # MONAI's
        if getattr(swin, "use_v2", False):
            part.append(getattr(swin, f"layers{place}c")[0])
        part.append(getattr(swin, f"layers{place}")[0])
        parts.append(part)
    parts[-1].append(ChannelNorm())
    return _chain(*parts)


def _chain(*parts: list[nn.Module]) -> nn.ModuleList:
    return nn.ModuleList(nn.Sequential(*part) for part in parts)


def _channels(stages: nn.ModuleList, in_channels: int) -> tuple[int, ...]:
    """Channels of each stage's maps, by shapes alone: nothing is computed.

    Raises:
        ValueError: The first stage takes other channels.
    """
    chain = copy.deepcopy(stages).to("meta").eval()
    features = torch.empty(1, in_channels, _PROBE, _PROBE, _PROBE, device="meta")
    channels = []
    for place, stage in enumerate(chain):
        try:
            features = stage(features)
        except RuntimeError as error:
            if place == 0:
                first = next((p for p in stage.parameters() if p.ndim == 5), None)
                taken = "another number" if first is None else str(first.shape[1])
                raise ValueError(
                    f"encoder: takes {taken} of input channels, but gets {in_channels} (the image's, and one for the "
                    f"mask where mask_injection has channel); set its input channels to {in_channels}"
                ) from error
            raise
        channels.append(int(features.shape[1]))
    return tuple(channels)
