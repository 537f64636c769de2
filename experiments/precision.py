"""Which numeric precision the machine at hand is fast in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch.nn import Module

_CUDNN = 91500
"""From this version on cuDNN is fast at 3D convolutions in 16 bits."""


def best_precision(device: str | None = None) -> Literal["bf16-mixed", "32-true"]:
    """bf16 where the hardware computes in it, else float32.

    A processor without bf16 instructions emulates them, many times slower than float32.

    Args:
        device: Kind of the device that computes, as torch names it (``cpu``, ``cuda``); None takes a GPU where there is
            one.

    Returns:
        A value of Lightning's ``trainer.precision``.
    """
    import torch

    if device in (None, "cuda") and torch.cuda.is_available():
        return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "32-true"
    # torch 2.11 cannot tell; float32 is right everywhere
    capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return "bf16-mixed" if capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") else "32-true"


def faster_precision(asked: str | int | None, device: str) -> str | None:
    """A line for a run that leaves the precision open on a machine that is fast in bf16; None where there is nothing.

    It is not chosen without asking: a cell would be computed in other numbers on another machine of the same grid,
    and arms of one comparison with it.

    Args:
        asked: ``trainer.precision`` as configured.
        device: Kind of the device that the run computes on.
    """
    if asked is not None or best_precision(device) != "bf16-mixed":
        return None
    return (
        "precision: 32-true, as nothing is asked for; this machine computes in bf16 too, mostly faster: -c trainer/bf16"
    )


def slow_convolutions(network: Module, asked: str | int | None, device: str) -> str | None:
    """A line for a run whose 3D convolutions cuDNN is slow at; None where there is nothing.

    Before version 9.15 torch goes round its kernels for 16 bits, at about four times the time and several times the
    memory (PyTorch's issues 166122 and 166643).

    Args:
        network: What is trained.
        asked: ``trainer.precision`` as configured.
        device: Kind of the device that the run computes on.
    """
    import torch

    version = torch.backends.cudnn.version() if device == "cuda" else None  # type: ignore[no-untyped-call]  # torch's own
    if version is None or version >= _CUDNN or not str(asked).startswith(("bf16", "16")):
        return None
    if not any(isinstance(layer, torch.nn.Conv3d) for layer in network.modules()):
        return None
    cuda = str(torch.version.cuda).partition(".")[0]
    found = f"{version // 10000}.{version // 100 % 100}.{version % 100}"
    return (
        f"trainer.precision: {asked}, and with cuDNN {found} 3D convolutions in 16 bits are slow and take more memory: "
        f"pip install 'nvidia-cudnn-cu{cuda}>=9.15', or 32-true"
    )
