"""A timm backbone over slices that hands out the feature maps of every stage, gated on the way if asked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_modules.networks.backbones import unknown_backbone
from lightning_modules.networks.feature_memory import FeatureMemory
from lightning_modules.networks.initial_weights import initial_weights_wanted, is_sketched
from lightning_modules.networks.mask_injection import MaskGate, resize_mask


class SliceEncoder(nn.Module):
    """Encode slices with a timm backbone.

    timm's ``features_only`` gives the backbone as a chain of modules, some of which end a stage. We
    walk the chain ourselves, so that a gated map is what the next stage sees. This holds for ResNet,
    DenseNet, VGG, ConvNeXt, Swin, PVTv2 and MambaOut alike; maps are handed out as (N, C, H, W)
    whatever the backbone's own layout. Plain vision transformers are no such chain: there each block
    that hands out features is wrapped, and its patch tokens are gated.

    Args:
        backbone: timm's name of the model.
        in_channels: Channels of a slice.
        pretrained: Load timm's weights. Fails where they cannot be had; never random in silence.
        weights_file: A local file with weights in timm's naming (``.pth`` or ``.safetensors``), used
            instead of downloading.
        gate: Gate each stage's maps by the mask.
        initial_pass: Share of the outside that a gate lets pass at the start.
        freeze: Train nothing of the backbone; its batch norms and dropout stay as in evaluation. Gates are trained.

    Raises:
        ValueError: Unknown backbone, frozen random weights, weights that cannot be had or do not fit, or a
            backbone that cannot be gated.
    """

    def __init__(
        self,
        backbone: str = "resnet18",
        in_channels: int = 1,
        pretrained: bool = False,
        weights_file: str | Path | None = None,
        gate: bool = False,
        initial_pass: float = 0.5,
        freeze: bool = False,
    ) -> None:
        super().__init__()
        self.channels: tuple[int, ...]
        self.reductions: tuple[int, ...]
        self.gates: nn.ModuleList | None
        self.memory: FeatureMemory | None
        if not initial_weights_wanted():
            pretrained, weights_file = False, None
        elif freeze and not pretrained and weights_file is None:
            raise ValueError(
                f"freeze: the weights of {backbone} would stay random; set pretrained: true or weights_file, or leave "
                "freeze out"
            )
        if is_sketched():
            self.channels, self.reductions, self.channels_last_output = (8,) * 4, (4, 8, 16, 32), False
            self.gates, self.gated, self.frozen, self.memory, self.is_chain = None, gate, freeze, None, True
            return
        # timm takes seconds to import
        from timm.models._features import FeatureListNet

        # timm gives its feature networks no types
        self.backbone: Any = _build(backbone, in_channels, pretrained, weights_file)
        # as the slices will be: 2D convolutions are fastest so, and else would reorder their weights in each step
        self.backbone.to(memory_format=torch.channels_last)
        self.is_chain = isinstance(self.backbone, FeatureListNet)
        if gate and not self.is_chain:
            _wrap_blocks(self.backbone, backbone, initial_pass)
        self.channels = tuple(self.backbone.feature_info.channels())
        self.reductions = tuple(self.backbone.feature_info.reduction())
        self.channels_last_output = str(getattr(self.backbone, "output_fmt", "NCHW")).upper().endswith("NHWC")
        self.gates = nn.ModuleList(MaskGate(n, initial_pass) for n in self.channels) if gate and self.is_chain else None
        self.gated = gate
        self.frozen = freeze
        self.memory = None  # set by callbacks.keep_features
        if freeze:
            for layer in self.layers():
                for parameter in layer:
                    parameter.requires_grad_(False)
            self.train(self.training)

    def train(self, mode: bool = True) -> SliceEncoder:
        """Set training or evaluation mode; a frozen backbone stays in evaluation."""
        super().train(mode)
        if self.frozen:
            self.backbone.eval()
        return self

    def layers(self) -> list[list[nn.Parameter]]:
        """The backbone's parameters, the input's first: one layer a stage, of a vision transformer one a block.

        Gates are left out: they are new, and always trained.
        """
        new = {id(p) for module in self.modules() if isinstance(module, MaskGate) for p in module.parameters()}
        found: list[list[nn.Parameter]] = [[]]
        if self.is_chain:
            for name, module in self.backbone.items():
                found[-1] += module.parameters()
                if name in self.backbone.return_layers:
                    found.append([])
        else:
            model = getattr(self.backbone, "model", self.backbone)
            found += [list(block.parameters()) for block in getattr(model, "blocks", ())]
            held = {id(p) for layer in found for p in layer}
            found[0] = [p for p in self.backbone.parameters() if id(p) not in held]
        kept = [[p for p in layer if id(p) not in new] for layer in found]
        return [layer for layer in kept if layer]

    def forward(
        self, slices: Tensor, mask: Tensor | None = None, counts: Sequence[int] | None = None, stages: int = 1
    ) -> list[Tensor]:
        """Encode.

        Args:
            slices: Shape (N, C, I, J).
            mask: Share of liver, in [0, 1], shape (N, 1, I, J); needed where stages are gated.
            counts: Slices of each volume, one volume after the other, which a memory of features goes by.
            stages: How many of the last stages are needed; a memory keeps no others.

        Returns:
            The stages' feature maps, highest resolution first, each (N, C', H, W); with a memory the last ``stages``.

        Raises:
            ValueError: The stages are gated and no mask was given, or the backbone takes no slices of this size.
        """
        if self.gated and mask is None:
            raise ValueError("the encoder's stages are gated by the mask, but the batch holds no mask")
        try:
            # who asks for the gradient of the image (Grad-CAM) needs the encoder itself
            if self.memory is not None and counts is not None and not slices.requires_grad:
                return self.memory.recall(slices, counts, stages, lambda new: self._stages(new, None))
            return self._stages(slices, mask)
        except AssertionError as error:
            # timm's own checks of a slice's edges
            edges = " x ".join(str(edge) for edge in slices.shape[2:])
            raise ValueError(
                f"backbone: slices of {edges} voxels do not suit it ({error}); give edges that do in "
                "data.init_args.preprocessing.shape"
            ) from error

    def _stages(self, slices: Tensor, mask: Tensor | None) -> list[Tensor]:
        """The stages' maps of :meth:`forward`."""
        slices = slices.contiguous(memory_format=torch.channels_last)
        if not self.is_chain:
            if mask is not None:
                for module in self.backbone.modules():
                    if isinstance(module, GatedBlock):
                        module.share = resize_mask(mask, [edge // self.reductions[0] for edge in mask.shape[2:]])
            return [self._channels_first(features) for features in self.backbone(slices)]
        stages: list[Tensor] = []
        features = slices
        for name, module in self.backbone.items():
            features = module(features)
            if name in self.backbone.return_layers:
                stage = self._channels_first(features)
                if self.gates is not None and mask is not None:
                    stage = self.gates[len(stages)](stage, resize_mask(mask, stage.shape[2:]))
                    features = stage.permute(0, 2, 3, 1) if self.channels_last_output else stage
                stages.append(stage)
        return stages

    def _channels_first(self, features: Tensor) -> Tensor:
        return features.permute(0, 3, 1, 2) if self.channels_last_output else features


class GatedBlock(nn.Module):
    """A transformer block whose patch tokens pass the gate of the mask.

    Args:
        block: The block, tokens (N, prefix + H * W, C) in and out.
        channels: Width C of a token.
        prefix: Class and register tokens in front, which are let through.
        initial_pass: Share of the outside that passes at the start.
    """

    def __init__(self, block: nn.Module, channels: int, prefix: int, initial_pass: float) -> None:
        super().__init__()
        self.block = block
        self.gate = MaskGate(channels, initial_pass)
        self.prefix = prefix
        self.share: Tensor | None = None  # set anew for every batch by the encoder

    def forward(self, tokens: Tensor, *args: Any, **options: Any) -> Tensor:
        """Run the block and gate its patch tokens."""
        tokens = self.block(tokens, *args, **options)
        if self.share is None:
            return tokens
        patches = tokens[:, self.prefix :].transpose(1, 2).unsqueeze(3)
        patches = self.gate(patches, self.share.flatten(2).unsqueeze(3))
        return torch.cat([tokens[:, : self.prefix], patches.squeeze(3).transpose(1, 2)], 1)


def _wrap_blocks(network: Any, backbone: str, initial_pass: float) -> None:
    """Wrap the blocks of a vision transformer that hand out features."""
    model = getattr(network, "model", None)
    blocks, prefix = getattr(model, "blocks", None), getattr(model, "num_prefix_tokens", None)
    names = network.feature_info.module_name()
    if not isinstance(blocks, (nn.Sequential, nn.ModuleList)) or prefix is None or "blocks" not in names[0]:
        raise ValueError(f"backbone {backbone}: its stages cannot be gated; leave 'gate' out of mask_injection")
    for name, channels in zip(names, network.feature_info.channels(), strict=True):
        place = int(name.split(".")[-1])
        blocks[place] = GatedBlock(blocks[place], channels, int(prefix), initial_pass)


def _build(backbone: str, in_channels: int, pretrained: bool, weights_file: str | Path | None) -> Any:
    """Build the backbone, with weights from the index, from a file, or none."""
    import timm

    if not timm.is_model(backbone.split(".")[0]):
        raise ValueError(unknown_backbone(backbone, timm.list_models(), timm.__version__))
    options: dict[str, Any] = {"features_only": True, "in_chans": in_channels}
    if "swin" in backbone:
        options["strict_img_size"] = False  # otherwise only the size it was trained at is taken
    if backbone.startswith(("vit_", "eva", "deit")):
        options["dynamic_img_size"] = True
    if weights_file is not None:
        _check_weights(backbone, Path(weights_file))
        options["pretrained_cfg_overlay"] = {"file": str(weights_file), "custom_load": False}
        try:
            return _create(backbone, True, options)
        except RuntimeError as error:  # shapes differ
            first = str(error).splitlines()[-1].strip()
            raise ValueError(f"weights_file {weights_file}: does not fit {backbone}: {first}") from error
    if not pretrained:
        return _create(backbone, False, options)
    if not timm.is_model_pretrained(backbone):
        raise ValueError(f"backbone {backbone}: timm has no weights for it; set pretrained: false or weights_file")
    try:
        return _create(backbone, True, options)
    except Exception as error:  # whatever the hub, the network or the cache raises: the user's way out is the same
        raise ValueError(
            f"backbone {backbone}: the pretrained weights could not be loaded ({type(error).__name__}); "
            "connect once so that they are cached, or give weights_file, or set pretrained: false"
        ) from error


def _create(backbone: str, pretrained: bool, options: dict[str, Any]) -> nn.Module:
    import timm

    model: nn.Module = timm.create_model(backbone, pretrained=pretrained, **options)
    return model


def _check_weights(backbone: str, path: Path) -> None:
    """Check that the file holds every weight that the feature maps need, since timm only logs what is missing."""
    import timm
    from timm.models import load_state_dict

    if not path.is_file():
        raise ValueError(f"weights_file {path}: there is no such file; check the path")
    try:
        found = {_flat(key) for key in load_state_dict(str(path))}
    except Exception as error:  # unpickling a broken file can raise nearly anything
        message = f"weights_file {path}: cannot be read ({type(error).__name__}); give a .pth or .safetensors file"
        raise ValueError(message) from error
    with torch.device("meta"):
        model = timm.create_model(backbone, features_only=True)
    needed = [key for key in model.state_dict() if not key.endswith(("num_batches_tracked", "relative_position_index"))]
    missing = [key for key in needed if _flat(key.removeprefix("model.")) not in found]
    if missing:
        raise ValueError(
            f"weights_file {path}: {len(missing)} of {len(needed)} weights of {backbone} are missing "
            f"(first: {missing[0]}); the file must hold this backbone in timm's naming"
        )


def _flat(key: str) -> str:
    """A weight's name as it is before and after timm unrolls a model into a chain."""
    return key.replace(".", "_")
