"""Which numeric precision the machine at hand is fast in."""

from __future__ import annotations

from typing import Literal


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
