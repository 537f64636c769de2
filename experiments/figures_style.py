"""What all figures share: colours, look, axes and legends."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from experiments.compare_results import FamilyResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, MUTED, GRID, CARD = "#1b2430", "#5b6776", "#d9dee5", "#fefefe"
SERIES = ("#0b6bcb", "#c4420b", "#12805c", "#8a3ffc", "#a8780a", "#c2185b")
"""Distinct for the colour-blind in this order, and on paper; the page swaps them for lighter ones in the dark."""
SHOWN = len(SERIES)
_LONG = 22  # letters that half the width holds
_WIDTH = 4.4  # inches: about a phone's width, so that letters keep their size there


@contextmanager
def style(extra: dict[Any, Any] | None = None) -> Iterator[None]:
    """The look of all figures, for as long as the block lasts; matplotlib draws without a screen."""
    import matplotlib as mpl

    mpl.use("agg")
    settings: dict[Any, Any] = {
        "font.size": 9.5, "font.family": "sans-serif", "svg.fonttype": "none", "text.color": INK,
        "axes.edgecolor": MUTED, "axes.labelcolor": INK, "axes.spines.top": False, "axes.spines.right": False,
        "axes.linewidth": 0.8, "axes.grid": True, "grid.color": GRID, "grid.linewidth": 0.7, "axes.axisbelow": True,
        "xtick.color": MUTED, "ytick.color": MUTED, "xtick.labelcolor": INK, "ytick.labelcolor": INK,
        "legend.frameon": False, "lines.linewidth": 1.8, "figure.constrained_layout.use": True,
    }  # fmt: skip
    with mpl.rc_context({**settings, **(extra or {})}):
        yield


def new_axes(height: float) -> tuple[Figure, Axes]:
    """A figure of the usual width and this height in inches."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(_WIDTH, height))
    return figure, axes


def new_panels(height: float, count: int) -> tuple[Figure, list[Axes]]:
    """A figure of the usual width with two panels in a row, each row this high in inches; what is spare stays empty."""
    import matplotlib.pyplot as plt

    rows = -(-count // 2)
    figure, panels = plt.subplots(rows, 2, figsize=(_WIDTH, height * rows), squeeze=False)
    for axes in panels.flat[count:]:
        axes.set_axis_off()
    return figure, list(panels.flat[:count])


def drawn_arms(found: FamilyResult) -> list[str]:
    """The arms that curves show: reference first, probes left out, at most six."""
    return [arm.arm for arm in found.arms if arm.role != "probe"][:SHOWN]


def name_row(axes: Axes, height: float, name: str) -> None:
    """An arm's name above its row; the patch keeps grid lines from running through it."""
    patch = {"facecolor": CARD, "edgecolor": "none", "pad": 1.2}
    axes.text(0, height, name, transform=axes.get_yaxis_transform(), fontsize=9, va="bottom", bbox=patch)


def legend(axes: Axes, count: int) -> None:
    """The legend above the axes: two columns from three entries on, one where names are long; the figure grows by it.

    Args:
        axes: Where the entries were drawn.
        count: Number of entries.
    """
    _, labels = axes.get_legend_handles_labels()
    columns = 1 if count < 3 or max(map(len, labels), default=0) > _LONG else 2
    rows = -(-len(labels) // columns)
    figure = axes.get_figure(root=True)
    if rows > 2 and figure is not None:
        width, height = figure.get_size_inches()
        figure.set_size_inches(width, height + 0.18 * (rows - 2))
    axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=columns, fontsize=8.5, borderpad=0.1)
