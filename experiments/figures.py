"""Figures of the comparison by matplotlib: inline SVG that follows the page's theme, SVG and PDF for paper."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from experiments.compare_metrics import NAMES
from experiments.compare_records import Unit
from experiments.compare_results import FamilyResult
from experiments.figures_masks import dice_figure, mask_quality_figure, volumes_figure
from experiments.figures_roc import roc_figure
from experiments.figures_style import (
    CARD,
    GRID,
    INK,
    MUTED,
    SERIES,
    drawn_arms,
    legend,
    name_row,
    new_axes,
    style,
)
from experiments.statistics_calibration import net_benefit, reliability_curve, usual_bins

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Floats = NDArray[np.float64]

_Row = tuple[str, float, float, float, Sequence[float], str]
Draw = Callable[[FamilyResult], "Figure | None"]


def figures_of(found: FamilyResult) -> Iterator[tuple[str, str, str, Figure]]:
    """The figures that a family allows.

    Yields:
        File name stem, heading, a sentence on how to read it, and the figure (close it after use).
    """
    for name, heading, sentence, draw in _FIGURES:
        with style():
            figure = draw(found)
        if figure is not None:
            yield f"{found.family.kind}_{name}", heading, sentence, figure


def inline_svg(figure: Figure, name: str, label: str) -> str:
    """A figure as SVG for an HTML page: text stays text, colours become the page's CSS variables.

    Args:
        figure: The figure; it is closed.
        name: Unique on the page.
        label: Read out in place of the picture.
    """
    import matplotlib.pyplot as plt

    stream = io.StringIO()
    # the salt keeps clip paths of different figures on one page apart, and the same file byte for byte
    with style({"svg.hashsalt": name}):
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    plt.close(figure)
    text = stream.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'<g id="[^"]*"', "<g", text)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    for place, colour in enumerate(SERIES):
        text = text.replace(colour, f"var(--s{place})")
    for colour, variable in ((INK, "ink"), (MUTED, "muted"), (GRID, "grid"), (CARD, "card")):
        text = text.replace(colour, f"var(--{variable})")
    from markupsafe import escape

    return text.replace("<svg", f'<svg role="img" aria-label="{escape(label)}"', 1)


def write_figures(found: FamilyResult, folder: Path) -> list[Path]:
    """Write each figure as SVG and PDF for a paper.

    Returns:
        The files written.
    """
    import matplotlib.pyplot as plt

    from datamodules.files import atomic_path

    written = []
    for name, _, _, figure in figures_of(found):
        for suffix in ("svg", "pdf"):
            path = folder / f"{name}.{suffix}"
            metadata: dict[str, Any] = {"Date": None} if suffix == "svg" else {"CreationDate": None}
            with style({"svg.hashsalt": name, "pdf.fonttype": 42}), atomic_path(path) as temporary:
                figure.savefig(temporary, format=suffix, metadata=metadata)
            written.append(path)
        plt.close(figure)
    return written


def _units(found: FamilyResult, arm: str) -> list[Unit]:
    return [unit for unit in found.units if unit.arm == arm]


def _estimable(found: FamilyResult) -> bool:
    return found.family.kind == "binary" and min(found.counts) > 0


def _forest(rows: Sequence[_Row], label: str, at: float | None) -> Figure:
    """Intervals below one another: (name, estimate, low, high, points of seeds, colour)."""
    figure, axes = new_axes(0.85 + 0.62 * len(rows))
    for place, (name, estimate, low, high, points, colour) in enumerate(rows):
        axes.plot([low, high], [place, place], color=colour, linewidth=2.4, solid_capstyle="round")
        axes.plot(points, np.full(len(points), place + 0.2), "o", color=colour, alpha=0.45, markersize=3.5, mew=0)
        axes.plot(estimate, place, "s", color=colour, markersize=7)
        name_row(axes, place - 0.26, name)
    if at is not None:
        axes.axvline(at, color=MUTED, linewidth=1, linestyle=(0, (3, 3)))
    axes.set(ylim=(len(rows) - 0.5, -0.72), xlabel=label, yticks=[])
    axes.spines["left"].set_visible(False)
    axes.grid(visible=False, axis="y")
    axes.margins(x=0.06)
    axes.locator_params(axis="x", nbins=6)
    return figure


def _arms(found: FamilyResult) -> Figure | None:
    rows: list[_Row] = []
    colours = {arm: SERIES[place] for place, arm in enumerate(drawn_arms(found))}
    for arm in found.arms:
        value = arm.metrics.get(found.metric)
        if value is None or np.isnan(value.low):
            continue
        points = [seed[found.metric].estimate for seed in arm.per_seed if seed.get(found.metric)]  # type: ignore[union-attr]
        name = arm.arm + (f" ({arm.light} light)" if arm.light else "")
        shown = points if len(points) > 1 else []
        rows.append((name, value.estimate, value.low, value.high, shown, colours.get(arm.arm, MUTED)))
    chance = 0.5 if found.metric == "auc" else found.majority if found.metric == "accuracy" else None
    return _forest(rows, NAMES[found.metric], chance) if rows else None


def _differences(found: FamilyResult) -> Figure | None:
    colours = {arm: SERIES[place] for place, arm in enumerate(drawn_arms(found))}
    rows: list[_Row] = [
        (item.arm, item.interval.estimate, item.interval.low, item.interval.high, [], colours.get(item.arm, MUTED))
        for item in found.differences
        if not np.isnan(item.interval.low)
    ]
    return _forest(rows, f"{NAMES[found.metric]}: arm minus {found.reference}", 0.0) if rows else None


def _calibration(found: FamilyResult) -> Figure | None:
    if not _estimable(found):
        return None
    figure, axes = new_axes(4.5)
    arms = drawn_arms(found)
    for place, arm in enumerate(arms):
        members = _units(found, arm)
        mean = np.mean([unit.scores for unit in members], axis=0)
        bins = usual_bins(len(mean))
        said, seen = [], []
        for risk, share, _ in reliability_curve(members[0].target, mean, bins):
            said.append(risk)
            seen.append(share.estimate)
            axes.plot([risk, risk], [share.low, share.high], color=SERIES[place], alpha=0.4, linewidth=1.2)
        axes.plot(said, seen, "o-", color=SERIES[place], markersize=5, label=arm)
    axes.plot([0, 1], [0, 1], color=MUTED, linestyle=(0, (3, 3)), linewidth=1)
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), xlabel="Predicted risk", ylabel="Observed share")
    axes.set_box_aspect(1)
    legend(axes, len(arms))
    return figure


def _decision(found: FamilyResult) -> Figure | None:
    if not _estimable(found):
        return None
    figure, axes = new_axes(3.6)
    limits = np.linspace(0.01, 0.9, 90)
    target = _units(found, found.reference)[0].target
    everyone = net_benefit(target, np.ones(len(target)), limits)
    axes.plot(limits, everyone, color=MUTED, linewidth=1, linestyle=(0, (3, 3)))
    axes.axhline(0, color=MUTED, linewidth=1)
    top = float(target.mean())
    arms = drawn_arms(found)
    for place, arm in enumerate(arms):
        curves = [net_benefit(unit.target, unit.scores, limits) for unit in _units(found, arm)]
        axes.plot(limits, np.mean(curves, axis=0), color=SERIES[place], label=arm)
    axes.set(xlim=(0, 0.9), ylim=(-0.25 * top, 1.08 * top), xlabel="Risk at which one would act", ylabel="Net benefit")
    legend(axes, len(arms))
    return figure


def _patients(found: FamilyResult) -> Figure | None:
    if found.family.kind != "binary":
        return None
    arms = drawn_arms(found)
    figure, axes = new_axes(0.9 + 0.85 * len(arms))
    generator = np.random.default_rng(0)
    for place, arm in enumerate(arms):
        members = _units(found, arm)
        mean = np.mean([unit.scores for unit in members], axis=0)
        for value, marker, colour in ((0, "o", SERIES[0]), (1, "D", SERIES[1])):
            inside = members[0].target == value
            height = place + (0.17 if value else -0.17) + generator.uniform(-0.1, 0.1, int(inside.sum()))
            label = ("negative", "positive")[value] if place == 0 else None
            axes.plot(mean[inside], height, marker, color=colour, alpha=0.65, markersize=4, mew=0, label=label)
        if members[0].has_threshold:
            limits = np.unique(np.concatenate([unit.threshold for unit in members]))
            axes.plot(limits, np.full(len(limits), place), "|", color=INK, markersize=26, mew=1.1, alpha=0.7)
        name_row(axes, place - 0.33, arm)
    axes.set(ylim=(len(arms) - 0.55, -0.75), xlim=(-0.02, 1.02), xlabel="Mean probability over seeds", yticks=[])
    axes.spines["left"].set_visible(False)
    axes.grid(visible=False, axis="y")
    legend(axes, 3)
    return figure


_FIGURES: tuple[tuple[str, str, str, Draw], ...] = (
    ("arms", "Every arm, every seed", "Square and line: mean over seeds with its interval; dots: single seeds.", _arms),
    (
        "differences",
        "Paired differences",
        "Right of the dashed line the arm scores higher than the reference; a line that crosses it settles nothing.",
        _differences,
    ),
    ("roc", "ROC curves", "Mean over seeds; the band holds 95 % of resampled curves at each point.", roc_figure),
    (
        "patients",
        "Each patient",
        "Mean probability of every patient; upright strokes are thresholds chosen on validation patients.",
        _patients,
    ),
    (
        "calibration",
        "Calibration",
        "On the dashed line, predicted risks come true; upright lines are Wilson intervals.",
        _calibration,
    ),
    (
        "decision",
        "Decision curve",
        "Higher is better; dashed: calling everyone positive, zero: calling nobody.",
        _decision,
    ),
    (
        "masks",
        "Against the Dice of the masks",
        "Squares: all patients, with intervals; dots: thirds of the patients by Dice. An arm that rises with the Dice "
        "while the arm without masks does not is limited by its masks.",
        mask_quality_figure,
    ),
    ("dice", "Dice of every patient", "One dot per patient; the stroke is the median.", dice_figure),
    ("volumes", "Liver volume", "On the dashed line, predicted and reference volume agree.", volumes_figure),
)
