"""How a trained segmenter is asked: mirroring, precision, and what becomes of its log-odds on the native grid.

Light: the commands' parsers import it.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from datamodules.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

Precision = Literal["32", "bf16"]


@dataclasses.dataclass(frozen=True, slots=True)
class Inference:
    """Options of a prediction that need no new training.

    Attributes:
        mirror: Average over mirrored copies, along the axes that training mirrored.
        precision: ``32`` or ``bf16``; None computes as in training where the hardware is fast in that, else in 32.
        largest_component: Keep the largest connected part of each mask alone.
    """

    mirror: bool = False
    precision: Precision | None = None
    largest_component: bool = False

    @classmethod
    def of(cls, options: argparse.Namespace) -> Inference:
        """The options as :func:`add_arguments` has parsed them."""
        return cls(options.mirror, options.precision, options.largest_component)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of a prediction to a command's parser."""
    parser.add_argument(
        "--mirror", action="store_true", help="average over mirrored copies, along the axes that training mirrored"
    )
    parser.add_argument(
        "--precision", choices=("32", "bf16"), help="number format (that of training, where the hardware is fast in it)"
    )
    parser.add_argument(
        "--largest-component", action="store_true", help="keep each mask's largest connected part alone"
    )


def mask_of(log_odds: Sequence[npt.NDArray[np.float32]], inference: Inference) -> npt.NDArray[np.uint8]:
    """The mask of one or several models on the native grid.

    Args:
        log_odds: Log-odds of liver of each model, native grid, shape (I, J, K).
        inference: Says whether parts are dropped.

    Returns:
        uint8, 0 or 1: where the mean log-odds are above zero, which for two classes is the arg-max of the mean logits.
    """
    from datamodules.components import largest_component

    mask = (mean_of(log_odds) > 0).astype("uint8")
    return largest_component(mask) if inference.largest_component else mask


def probability_of(log_odds: Sequence[npt.NDArray[np.float32]]) -> npt.NDArray[np.float32]:
    """Probability of liver in [0, 1] from the mean log-odds of one or several models, float32, native grid."""
    import numpy as np
    from scipy.special import expit

    return np.asarray(expit(mean_of(log_odds)), dtype=np.float32)


def mean_of(log_odds: Sequence[npt.NDArray[np.float32]]) -> npt.NDArray[np.float32]:
    """Mean over models, float32."""
    import numpy as np

    return log_odds[0] if len(log_odds) == 1 else np.mean(log_odds, axis=0, dtype=np.float32)


def mirror_axes_of(config: dict[str, Any], name: str) -> tuple[int, ...]:
    """The axes along which a saved configuration's training was mirrored.

    Args:
        config: The resolved configuration.
        name: What errors call the run.

    Raises:
        InputError: None; a network that never saw a mirrored liver gets it wrong.
    """
    axes = set(config["model"]["init_args"].get("mirror_axes") or ())
    augmentation = config["data"]["init_args"].get("augmentation") or {}
    for transform in (augmentation.get("init_args") or {}).get("transforms") or ():
        if transform["class_path"].rpartition(".")[2] == "RandomFlip":
            given = transform["init_args"]["axes"]
            axes |= {given} if isinstance(given, int) else set(given)
    if not axes:
        raise InputError(
            f"--mirror: {name} was trained without mirroring (no RandomFlip in its augmentation), and would get "
            "mirrored livers wrong; leave --mirror out"
        )
    return tuple(sorted(axes))
