"""Which numeric precision the machine at hand is fast in."""

from __future__ import annotations

from typing import Literal


def best_precision() -> Literal["bf16-mixed", "32-true"]:
    """bf16 where the hardware computes in it, else float32.

    A processor without bf16 instructions emulates them, many times slower than float32.

    Returns:
        A value of Lightning's ``trainer.precision``.
    """
    import torch

    if torch.cuda.is_available():
        return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "32-true"
    # torch 2.11 cannot tell; float32 is right everywhere
    capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return "bf16-mixed" if capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") else "32-true"
