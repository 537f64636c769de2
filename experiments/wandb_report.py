"""A W&B Report and a saved workspace view of a comparison, as plain data: what would be sent, before it is sent."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from experiments.compare_metrics import NAMES
from experiments.wandb_stages import comparison_study, summary_of

if TYPE_CHECKING:
    from experiments.compare_results import Comparison, FamilyResult

FORMAT = 1
FILE = "wandb-report.json"
"""Name of the file, beside the comparison's own."""

STEP = "trainer/global_step"


def report_spec(comparison: Comparison, *, project: str, entity: str | None, run_id: str | None) -> dict[str, Any]:
    """The report and the view, as JSON values; no patient or scan ids, no paths.

    Args:
        comparison: The comparison.
        project: W&B's project.
        entity: Its owner; None for the default one of whoever is logged in.
        run_id: The comparison's own W&B run, whose table is shown; None where it was not logged.

    Returns:
        ``report`` (title, text blocks, panel grids with run sets) and ``workspace`` (sections of panels, filter,
        grouping), which ``experiments.wandb_report_send`` turns into W&B's objects.
    """
    study = comparison_study(comparison)
    blocks: list[dict[str, Any]] = [
        {"type": "markdown", "text": _lead(comparison)},
    ]
    sections = []
    for found in comparison.families:
        title = _title(found)
        panels = _panels(found)
        blocks += [
            {"type": "h2", "text": title},
            {"type": "markdown", "text": _table(found)},
            {"type": "panel_grid", "runsets": _runsets(found), "panels": panels},
        ]
        sections.append({"name": title, "panels": panels})
    if run_id is not None:
        compare = [{"name": "the comparison", "filters": f"Metric('ID') = '{run_id}'"}]
        blocks += [
            {"type": "h2", "text": "The comparison's own run"},
            {"type": "panel_grid", "runsets": compare, "panels": _scalars(comparison)},
        ]
    return {
        "format": FORMAT,
        "project": project,
        "entity": entity,
        "report": {
            "title": f"{study}: direct against segmentation-first"[:128],
            "description": "Written by 'hepastage compare --wandb-report'. Numbers are per patient, on test patients.",
            "blocks": blocks,
        },
        "workspace": {
            "name": f"{study} by arm",
            "filters": _any_of("study", _studies(comparison)),
            "groupby": ["arm"],
            "pinned": sorted({f"summary:{key}" for found in comparison.families for key in _test_metrics(found)}),
            "sections": sections,
        },
    }


def _lead(comparison: Comparison) -> str:
    sentences = [sentence for found in comparison.families for sentence in found.sentences]
    notes = [f"Note: {note}" for note in comparison.notes]
    return "\n\n".join([*sentences, *notes]) or "No sentence was written."


def _title(found: FamilyResult) -> str:
    kind = {"binary": "Two classes", "multiclass": f"{found.family.classes} classes"}.get(
        found.family.kind, "Segmentation"
    )
    return f"{kind}, {len(found.family.patients)} patients"


def _table(found: FamilyResult) -> str:
    """The comparison's table as Markdown."""
    from experiments.compare_tables import header, row

    lines = [header(found), ["---"] * len(header(found)), *(row(found, arm) for arm in found.arms)]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") or " " for cell in line) + " |" for line in lines)


def _runsets(found: FamilyResult) -> list[dict[str, Any]]:
    """One run set for the reference, one for each other arm: the reader can hide each."""
    study = _any_of("study", sorted(map(str, found.family.frame["study"].dropna().unique())))
    arms = [found.reference, *(arm.arm for arm in found.arms if arm.arm != found.reference)]
    return [
        {"name": arm, "filters": f"{study} and Config('arm') = '{_quoted(arm)}'", "groupby": ["config.arm"]}
        for arm in arms
    ]


def _test_metrics(found: FamilyResult) -> list[str]:
    if found.family.kind == "segmentation":
        return ["test/dice", "test/hd95_mm"]
    return ["test/auc", "test/accuracy", "test/loss"]


def _panels(found: FamilyResult) -> list[dict[str, Any]]:
    main = "dice" if found.family.kind == "segmentation" else "auc"
    name = NAMES.get(main, main)
    panels: list[dict[str, Any]] = [
        {"type": "line", "title": f"{name}, validation", "x": STEP, "y": [f"valid/{main}"]},
        {"type": "line", "title": "Loss, training", "x": STEP, "y": ["train/loss"]},
    ]
    panels += [{"type": "bar", "title": key, "metrics": [key]} for key in _test_metrics(found)]
    if found.family.kind != "segmentation":
        panels.append({"type": "media", "title": "ROC and confusion", "keys": ["test/roc_and_confusion"]})
        panels.append({"type": "media", "title": "Attention, where shared", "keys": ["test/attention_worst"]})
    else:
        panels.append({"type": "media", "title": "Worst overlays, where shared", "keys": ["test/overlays_worst"]})
    return [*panels, {"type": "run_comparer", "title": "What differs"}]


def _scalars(comparison: Comparison) -> list[dict[str, Any]]:
    """The differences and their adjusted p-values."""
    keys = [key for key in summary_of(comparison) if "_minus_" in key]
    return [{"type": "scalar", "title": key, "metric": key} for key in keys]


def _studies(comparison: Comparison) -> list[str]:
    return sorted({str(name) for found in comparison.families for name in found.family.frame["study"].dropna()})


def _any_of(key: str, values: list[str]) -> str:
    """A filter by one configuration key, as W&B's language for filters writes it."""
    if len(values) == 1:
        return f"Config('{key}') = '{_quoted(values[0])}'"
    return f"Config('{key}') in [{', '.join(repr(_quoted(value)) for value in values)}]"


def _quoted(value: str) -> str:
    """A name within quotes: W&B's language for filters has no escapes."""
    return value.replace("'", "").replace('"', "")
