"""Figures about masks: Dice and volume of segmenters, and the classifiers' metric against the Dice of their masks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from experiments.compare_metrics import NAMES
from experiments.compare_results import FamilyResult
from experiments.figures_style import INK, MUTED, SERIES, drawn_arms, legend, name_row, new_axes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SPAN = 0.05  # of Dice


def dice_figure(found: FamilyResult) -> Figure | None:
    """Dice of every patient, one row an arm (segmentation only)."""
    if found.family.kind != "segmentation":
        return None
    arms = drawn_arms(found)
    figure, axes = new_axes(0.9 + 0.8 * len(arms))
    generator = np.random.default_rng(0)
    frame = found.family.frame
    for place, arm in enumerate(arms):
        values = frame.loc[frame["arm"] == arm].groupby("patient_id")["dice"].mean().to_numpy()
        axes.plot(
            values,
            place + generator.uniform(-0.14, 0.2, len(values)),
            "o",
            color=SERIES[place],
            alpha=0.55,
            mew=0,
            markersize=4.5,
        )
        axes.plot(np.median(values), place + 0.03, "|", color=INK, markersize=24, mew=2)
        name_row(axes, place - 0.3, arm)
    axes.set(ylim=(len(arms) - 0.55, -0.75), xlabel="Dice of each patient; bar at the median", yticks=[])
    axes.spines["left"].set_visible(False)
    axes.grid(visible=False, axis="y")
    axes.locator_params(axis="x", nbins=6)
    return figure


def volumes_figure(found: FamilyResult) -> Figure | None:
    """Predicted against reference volume in ml (segmentation only)."""
    frame = found.family.frame
    if found.family.kind != "segmentation" or not {"volume_ml", "reference_volume_ml"} <= set(frame):
        return None
    figure, axes = new_axes(4.2)
    arms = drawn_arms(found)
    for place, arm in enumerate(arms):
        rows = frame[frame["arm"] == arm]
        axes.plot(
            rows["reference_volume_ml"],
            rows["volume_ml"],
            "o",
            color=SERIES[place],
            alpha=0.6,
            markersize=4.5,
            mew=0,
            label=arm,
        )
    both = frame[["reference_volume_ml", "volume_ml"]].to_numpy(dtype=float)
    ends = [float(np.nanmin(both)), float(np.nanmax(both))]
    axes.plot(ends, ends, color=MUTED, linestyle=(0, (3, 3)), linewidth=1)
    axes.set(xlabel="Reference volume (ml)", ylabel="Predicted volume (ml)")
    axes.set_box_aspect(1)
    legend(axes, len(arms))
    return figure


def mask_quality_figure(found: FamilyResult) -> Figure | None:
    """The primary metric against the mean Dice of the masks, over all patients and by thirds of Dice."""
    arms = [arm for arm in drawn_arms(found) if any(point.arm == arm for point in found.mask_points)]
    if not any(point.masked and point.arm in arms for point in found.mask_points):
        return None
    colours = {arm: SERIES[place] for place, arm in enumerate(drawn_arms(found))}
    figure, axes = new_axes(3.9)
    shown = [point.dice for point in found.mask_points if point.arm in arms and point.interval is not None]
    # a span of some points of Dice at least, so that equal masks do not look far apart
    reach = max(float(np.ptp(shown)) if shown else 0.0, _SPAN)
    for place, arm in enumerate(arms):
        # arms that see the same masks have the same Dice: set them side by side
        aside = reach * 0.018 * (place - (len(arms) - 1) / 2)
        points = [point for point in found.mask_points if point.arm == arm and point.interval is not None]
        whole = next((point for point in points if point.part == 0), None)
        parts = [point for point in points if point.part > 0]
        colour = colours[arm]
        line = "-" if whole is None or whole.masked else (0, (3, 2))
        for point in points:
            if point.interval is not None:
                wide, strong = (2.4, 0.9) if point.part == 0 else (1.0, 0.45)
                ends = [point.interval.low, point.interval.high]
                axes.plot(
                    [point.dice + aside] * 2, ends, color=colour, linewidth=wide, alpha=strong, solid_capstyle="round"
                )
        values = [point.interval.estimate for point in parts if point.interval is not None]
        dice = [point.dice + aside for point in parts]
        axes.plot(dice, values, "o", linestyle=line, color=colour, markersize=4, linewidth=1)
        if whole is not None and whole.interval is not None:
            label = arm if whole.masked else f"{arm} (no mask)"
            face = colour if whole.masked else "none"
            axes.plot(
                whole.dice + aside, whole.interval.estimate, "s", color=colour, markersize=8, mfc=face, label=label
            )
    axes.set(xlabel="Mean Dice of the masks", ylabel=NAMES[found.metric])
    if found.metric == "auc":
        axes.axhline(0.5, color=MUTED, linewidth=1, linestyle=(0, (3, 3)))
    if shown:
        middle = (max(shown) + min(shown)) / 2
        axes.set_xlim(middle - 0.57 * reach, middle + 0.57 * reach)
    axes.locator_params(axis="x", nbins=6)
    legend(axes, len(arms))
    return figure
