"""ROC curves with bands: of two classes, and of each of several classes against the rest."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from experiments.compare_results import FamilyResult
from experiments.figures_style import MUTED, SERIES, drawn_arms, legend, new_axes, new_panels
from experiments.statistics_bootstrap import patient_weights

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Floats = NDArray[np.float64]
_RESAMPLES = 400


def roc_values(target: NDArray[np.int64], scores: Floats, weights: Floats, grid: Floats) -> Floats:
    """Sensitivity at given false positive rates for rows of weights, shape (R, len(grid)); ties drawn as diagonals."""
    _, groups = np.unique(-scores, return_inverse=True)
    result = np.empty((len(weights), len(grid)))
    positive = target == 1
    for index, row in enumerate(weights):
        up = np.bincount(groups, row * positive).cumsum()
        out = np.bincount(groups, row * ~positive).cumsum()
        # at a vertical step the higher sensitivity counts
        x, y = np.concatenate([[0], out / out[-1]]), np.concatenate([[0], up / up[-1]])
        last = np.append(np.diff(x) > 0, True)
        result[index] = np.interp(grid, x[last], y[last])
    return result


def roc_figure(found: FamilyResult) -> Figure | None:
    """ROC curves of all arms; for several classes a panel for each class against the rest."""
    if found.family.kind == "segmentation":
        return None
    if found.family.kind == "binary":
        if min(found.counts) == 0:
            return None
        figure, axes = new_axes(4.5)
        _draw(axes, found, 1)
        axes.set(xlabel="1 − specificity", ylabel="Sensitivity")
        legend(axes, len(drawn_arms(found)))
        return figure
    present = [index for index, count in enumerate(found.counts) if 0 < count < sum(found.counts)]
    if not present:
        return None
    figure, panels = new_panels(2.4, len(present))
    for axes, index in zip(panels, present, strict=True):
        _draw(axes, found, index)
        axes.set(xticks=[0, 0.5, 1], yticks=[0, 0.5, 1])
        axes.set_title(f"class {index} against the rest", fontsize=9, loc="left")
    figure.supxlabel("1 − specificity", fontsize=9)
    figure.supylabel("Sensitivity", fontsize=9)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", fontsize=8.5, frameon=False)
    return figure


def _draw(axes: Axes, found: FamilyResult, index: int) -> None:
    """One class against the rest: the mean curve over seeds of every arm, with its band."""
    grid = np.linspace(0, 1, 101)
    binary = found.family.kind == "binary"
    for place, arm in enumerate(drawn_arms(found)):
        members = [unit for unit in found.units if unit.arm == arm]
        target = (members[0].target == index).astype(np.int64)
        scores = [unit.scores if binary else unit.scores[:, index] for unit in members]
        ones = np.ones((1, len(target)))
        curve = np.mean([roc_values(target, values, ones, grid)[0] for values in scores], axis=0)
        weights = np.concatenate(list(patient_weights(target, _RESAMPLES, seed=0))).astype(float)
        spread = np.mean([roc_values(target, values, weights, grid) for values in scores], axis=0)
        low, high = np.quantile(spread, [0.025, 0.975], axis=0)
        area = found.result(arm).metrics.get("auc") if binary else None
        label = arm if area is None else f"{arm}  {area.estimate:.2f}"
        axes.fill_between(grid, low, high, color=SERIES[place], alpha=0.13, linewidth=0)
        axes.plot(grid, curve, color=SERIES[place], label=label)
    axes.plot([0, 1], [0, 1], color=MUTED, linestyle=(0, (3, 3)), linewidth=1)
    axes.set(xlim=(0, 1), ylim=(0, 1.005))
    axes.set_box_aspect(1)
