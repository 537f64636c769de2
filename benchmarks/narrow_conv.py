"""The gradient of a convolution's weights over narrow maps: as a product of matrices, beside oneDNN's.

    python -m benchmarks.narrow_conv [--rounds 9]

Layers of a ResNet over slices and of the nnU-Net topology, in bfloat16, channels last, from above and from below the
limits in ``lightning_modules/networks/narrow_conv.py``; both ways take turns within a round, on as many threads as
``OMP_NUM_THREADS`` says (1 where it is not set). On a processor without a matrix unit for bfloat16 the table says what
the product would take: training uses torch's own gradient there.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table


class Layer(NamedTuple):
    """A convolution with a kernel of 3, padded by 1: items, channels in and out, edges of the image, and stride."""

    items: int
    channels: int
    outputs: int
    edges: tuple[int, ...]
    stride: int = 1


LAYERS = [
    Layer(96, 128, 128, (16, 14)), Layer(96, 128, 256, (16, 14), 2), Layer(96, 256, 256, (8, 7)),
    Layer(96, 256, 512, (8, 7), 2), Layer(96, 512, 512, (4, 4)), Layer(24, 256, 256, (8, 7)),
    Layer(24, 512, 512, (4, 4)), Layer(24, 512, 512, (8, 7)), Layer(24, 512, 512, (12, 12)),
    Layer(2, 128, 128, (16, 16, 8)), Layer(2, 128, 256, (16, 16, 8), 2), Layer(2, 256, 256, (8, 8, 4)),
    Layer(2, 512, 256, (8, 8, 4)), Layer(2, 256, 320, (8, 8, 4), 2), Layer(2, 320, 320, (4, 4, 4)),
    Layer(2, 320, 320, (7, 5, 7)), Layer(2, 320, 320, (8, 8, 8)), Layer(2, 256, 256, (14, 10, 14)),
]  # fmt: skip


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    from lightning_modules.networks.narrow_conv import MATRIX_UNIT, product_pays

    console = Console(width=110)
    if not MATRIX_UNIT:
        console.print("this processor has no matrix unit for bfloat16: torch's own gradient is used")
    table = Table("layer", "result", "oneDNN ms", "product ms", "product / oneDNN", "product is used")
    for layer in LAYERS:
        theirs, ours, places = race(layer, options.rounds)
        ratios = [own / other for own, other in zip(ours, theirs, strict=True)]
        used = product_pays(layer.channels, places[-1])
        table.add_row(
            f"{layer.items} × {layer.channels} to {layer.outputs}", " × ".join(map(str, places)),
            f"{statistics.median(theirs):.1f}", f"{statistics.median(ours):.1f}",
            f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})", "yes" if used else "no",
        )  # fmt: skip
    console.print(table)


def race(layer: Layer, rounds: int) -> tuple[list[float], list[float], tuple[int, ...]]:
    """Milliseconds of each round, oneDNN's and ours, and the result's edges; the gradients are compared first."""
    import torch

    from lightning_modules.networks.narrow_conv import weight_gradient

    torch.manual_seed(0)
    axes = len(layer.edges)
    order: Any = torch.channels_last if axes == 2 else torch.channels_last_3d
    kernel, stride, padding = (3,) * axes, (layer.stride,) * axes, (1,) * axes
    image = torch.randn(layer.items, layer.channels, *layer.edges).bfloat16().contiguous(memory_format=order)
    weight = torch.randn(layer.outputs, layer.channels, *kernel).bfloat16().contiguous(memory_format=order)
    result = torch.ops.aten.convolution(image, weight, None, stride, padding, [1] * axes, False, [0] * axes, 1)
    gradient = torch.randn_like(result)

    def theirs() -> torch.Tensor:
        found: torch.Tensor = torch.ops.aten.convolution_backward(
            gradient, image, weight, None, stride, padding, [1] * axes, False, [0] * axes, 1, [False, True, False]
        )[1]
        return found

    def ours() -> torch.Tensor:
        return weight_gradient(image, gradient, kernel, stride, padding)

    expected = theirs().float()
    assert torch.linalg.vector_norm(ours().float() - expected) < 0.01 * torch.linalg.vector_norm(expected)
    times: tuple[list[float], list[float]] = [], []
    for _ in range(rounds):
        for way, spent in zip((theirs, ours), times, strict=True):
            spent.append(_milliseconds(way))
    return *times, tuple(result.shape[2:])


def _milliseconds(way: Callable[[], object], repeats: int = 3) -> float:
    began = time.perf_counter()
    for _ in range(repeats):
        way()
    return 1000 * (time.perf_counter() - began) / repeats


if __name__ == "__main__":
    main()
