"""One self-contained HTML page of a search: Optuna's own plots, with plotly inside. Never torch."""

from __future__ import annotations

import html
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import optuna

from datamodules.files import write_text
from experiments.search_file import Search
from experiments.search_folder import SearchFolder
from experiments.search_status import best_text, overview, status_text

MOST_PARAMETERS = 6
"""Of more than these, pairs are not drawn."""


def write_page(search: Search, study: optuna.Study, folder: SearchFolder, path: Path) -> list[str]:
    """Write the page.

    Args:
        search: The search.
        study: Its study.
        folder: Its folder.
        path: The HTML file.

    Returns:
        Plots that could not be drawn yet, with the reason.
    """
    view = overview(search, study, folder)
    parts, missing = [], []
    first = True
    for title, draw in _plots(search, study):
        try:
            figure = draw()
        except (ValueError, RuntimeError, ZeroDivisionError) as error:
            # too few trials for this one
            missing.append(f"{title}: {' '.join(str(error).split())}")
            continue
        # the library itself stands in the page once: it works without a network
        body = figure.to_html(full_html=False, include_plotlyjs=first)
        parts.append(f"<h2>{html.escape(title)}</h2>\n{body}")
        first = False
    parts += [f"<p>not drawn: {html.escape(line)}</p>" for line in missing]
    text = html.escape(status_text(view, search) + best_text(view, search))
    page = (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(search.name)}</title>\n'
        "<style>body{font-family:sans-serif;max-width:1100px;margin:2em auto}pre{white-space:pre-wrap}</style></head>\n"
        f"<body><h1>Search {html.escape(search.name)}</h1>\n<pre>{text}</pre>\n"
        "<p>All values are of validation patients; the best of many trials is better than it would be on others.</p>\n"
        + "\n".join(parts)
        + "\n</body></html>\n"
    )
    write_text(path, page)
    return missing


def _plots(search: Search, study: optuna.Study) -> list[tuple[str, Callable[[], Any]]]:
    """Titles, and what draws each plot."""
    show = optuna.visualization
    # the other evaluator takes every target for one to be minimised
    forest = optuna.importance.FanovaImportanceEvaluator(seed=search.seed)
    plots: list[tuple[str, Callable[[], Any]]] = []
    metrics = [objective.metric for objective in search.objectives]
    several = len(metrics) > 1
    if several:
        plots.append(("Pareto front", partial(show.plot_pareto_front, study, target_names=metrics)))
    for index, metric in enumerate(metrics):
        options: dict[str, Any] = {"target_name": metric}
        if several:
            options["target"] = partial(_value, index=index)
        suffix = f" ({metric})" if several else ""
        plots += [
            (f"History{suffix}", partial(show.plot_optimization_history, study, **options)),
            (f"Importance{suffix}", partial(show.plot_param_importances, study, evaluator=forest, **options)),
            (f"Each parameter{suffix}", partial(show.plot_slice, study, **options)),
            (f"Parallel coordinates{suffix}", partial(show.plot_parallel_coordinate, study, **options)),
        ]
        if 2 <= len(search.space) <= MOST_PARAMETERS:
            plots.append((f"Pairs{suffix}", partial(show.plot_contour, study, **options)))
    if not several:
        plots.append(("Learning curves", partial(show.plot_intermediate_values, study)))
    plots.append(("Timeline", partial(show.plot_timeline, study)))
    return plots


def _value(trial: optuna.trial.FrozenTrial, index: int) -> float:
    return float(trial.values[index])
