"""Learning rates that fall towards the input, for fine-tuning, and parameters without weight decay."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

from torch import nn


@runtime_checkable
class Layered(Protocol):
    """A module whose parameters lie in layers, such as ``SliceEncoder``."""

    def layers(self) -> Sequence[Sequence[nn.Parameter]]:
        """Parameters by layer, the input's first; what is new in a pretrained encoder is left out."""


def layered_groups(module: nn.Module, layer_decay: float = 1.0, decay_norms: bool = True) -> list[dict[str, Any]]:
    """Groups for an optimiser.

    In each encoder of L layers, the layer l (from 0 at the input) learns at ``layer_decay ** (L - l)`` of the rate;
    all other parameters learn at the whole rate.

    Args:
        module: Holds the encoders.
        layer_decay: Factor from a layer to the one before it, in (0, 1].
        decay_norms: False spares biases and norms (parameters of one axis or none) the weight decay.

    Returns:
        Groups with ``params``, ``lr_scale``, and ``weight_decay`` 0 where it is spared; frozen parameters are left
        out. The scale is to be multiplied onto the optimiser's rate.

    Source: Clark et al. 2020 (ELECTRA), and Bao et al. 2022 (BEiT), for vision transformers.
    """
    scales: dict[int, float] = {}
    for encoder in module.modules():
        if isinstance(encoder, Layered):
            layers = encoder.layers()
            for place, layer in enumerate(layers):
                scales.update({id(parameter): layer_decay ** (len(layers) - place) for parameter in layer})
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for parameter in module.parameters():
        if parameter.requires_grad:
            spared = not decay_norms and parameter.ndim <= 1
            groups.setdefault((scales.get(id(parameter), 1.0), spared), []).append(parameter)
    return [
        {"params": parameters, "lr_scale": scale, **({"weight_decay": 0.0} if spared else {})}
        for (scale, spared), parameters in groups.items()
    ]
