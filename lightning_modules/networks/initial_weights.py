"""Weights that a network begins its training with, and when they are not wanted; where they come from."""

from __future__ import annotations

import contextlib
import pickle
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path

import torch
from torch import Tensor, nn

_WANTED = ContextVar("initial_weights_wanted", default=True)
_SKETCHED = ContextVar("sketched", default=False)


@contextlib.contextmanager
def without_initial_weights() -> Iterator[None]:
    """Build networks whose weights a checkpoint replaces: nothing is downloaded, and no file is read."""
    token = _WANTED.set(False)
    try:
        yield
    finally:
        _WANTED.reset(token)


@contextlib.contextmanager
def sketched() -> Iterator[None]:
    """Build networks with a stand-in for timm's backbone, whose import takes seconds: to hear what is refused."""
    token = _SKETCHED.set(True)
    try:
        with without_initial_weights():
            yield
    finally:
        _SKETCHED.reset(token)


def is_sketched() -> bool:
    """Whether a network that is built now is thrown away at once."""
    return _SKETCHED.get()


def initial_weights_wanted() -> bool:
    """Whether a network that is built now is to load the weights that it was configured with."""
    return _WANTED.get()


def stage_one_weights(path: Path) -> dict[str, Tensor]:
    """The network's weights in a segmenter's checkpoint, by their names in the network.

    Args:
        path: A checkpoint, or a run directory, of which ``checkpoints/best.ckpt`` is taken.

    Raises:
        ValueError: There is none, or it holds no learning module's network.
    """
    file = path / "checkpoints" / "best.ckpt" if path.is_dir() else path
    if not file.is_file():
        raise ValueError(f"weights_from {path}: there is no checkpoint; give a segmenter's run directory, or a .ckpt")
    state = _state_of(file, "weights_from")
    found = {name.removeprefix("network."): value for name, value in state.items() if name.startswith("network.")}
    if not found:
        raise ValueError(f"weights_from {file}: is no checkpoint of a segmenter; give one of its run directory")
    return found


def weights_in(path: Path) -> dict[str, Tensor]:
    """The weights in a file, bare or under ``state_dict``, without the prefix of a parallel wrapper.

    Args:
        path: A ``.pth`` or ``.pt`` file, in the network's own naming.

    Raises:
        ValueError: There is none, or it cannot be read.
    """
    if not path.is_file():
        raise ValueError(f"weights_file {path}: there is no such file; check the path")
    return {name.removeprefix("module."): value for name, value in _state_of(path, "weights_file").items()}


def load_into(parts: nn.ModuleList, names: dict[str, str], weights: dict[str, Tensor], what: str) -> None:
    """Put weights into an encoder, all that it has.

    A first convolution that takes more channels than the file's keeps zeros for those: at first, the further
    channel (the mask's) changes nothing.

    Args:
        parts: The encoder.
        names: For each name in the encoder's state, that in the network that it was taken from.
        weights: By the network's names.
        what: What errors call the source.

    Raises:
        ValueError: A weight is missing or has another shape.
    """
    state = parts.state_dict()
    missing = [names[name] for name in state if names[name] not in weights and not name.endswith("num_batches_tracked")]
    if missing:
        raise ValueError(
            f"{what}: {len(missing)} of {len(state)} weights of the encoder are missing (first: {missing[0]}); "
            "configure the encoder as the network that the file holds"
        )
    loaded = {}
    for name, own in state.items():
        given = weights.get(names[name], own)
        if given.shape != own.shape:
            further = own.ndim == given.ndim and own.ndim > 2 and own.shape[1] > given.shape[1]
            if not further or own.shape[0] != given.shape[0] or own.shape[2:] != given.shape[2:]:
                raise ValueError(
                    f"{what}: {names[name]} has the shape {list(given.shape)}, the encoder's {list(own.shape)}; "
                    "configure the encoder as the network that the file holds"
                )
            given = torch.cat([given, torch.zeros_like(own[:, given.shape[1] :])], 1)
        loaded[name] = given
    parts.load_state_dict(loaded)


def _state_of(path: Path, what: str) -> dict[str, Tensor]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        state: dict[str, Tensor] = content.get("state_dict", content)
        return dict(state)
    except (OSError, RuntimeError, EOFError, AttributeError, TypeError, ValueError, pickle.UnpicklingError) as error:
        cause = " ".join(str(error).split())[:120]
        raise ValueError(f"{what} {path}: cannot be read ({cause}); give another file") from error
