"""Turn the plain data of a report into W&B's own objects and, online, save them. Needs the package wandb-workspaces."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from typing import Any

from datamodules.errors import InputError

PACKAGE = "wandb-workspaces"


def available() -> bool:
    """Whether the package is installed."""
    return importlib.util.find_spec("wandb_workspaces") is not None


def check_available() -> None:
    """Refuse to go on without the package.

    Raises:
        InputError: It is not installed.
    """
    if not available():
        raise InputError(f"--wandb-report: needs the package {PACKAGE}; install it with 'pip install {PACKAGE}'")


def report_objects(spec: Mapping[str, Any], entity: str) -> tuple[Any, Any]:
    """W&B's Report and Workspace; nothing is sent.

    Args:
        spec: What ``experiments.wandb_report.report_spec`` made.
        entity: Owner of the project.

    Raises:
        InputError: The package is missing.
    """
    check_available()
    import wandb_workspaces.expr as expressions
    import wandb_workspaces.reports.v2 as reports
    import wandb_workspaces.workspaces as workspaces

    place = {"entity": entity, "project": spec["project"]}
    report = spec["report"]
    view = spec["workspace"]
    blocks = [_block(reports, block, place) for block in report["blocks"]]
    made = reports.Report(title=report["title"], description=report["description"], blocks=blocks, **place)
    workspace = workspaces.Workspace(
        name=view["name"],
        sections=[
            workspaces.Section(
                name=section["name"], panels=[_panel(reports, panel) for panel in section["panels"]], is_open=True
            )
            for section in view["sections"]
        ],
        runset_settings=workspaces.RunsetSettings(
            filters=view["filters"],
            groupby=[expressions.Config(key) for key in view["groupby"]],
            pinned_columns=view["pinned"],
        ),
        **place,
    )
    return made, workspace


def send(spec: Mapping[str, Any]) -> list[str]:
    """Save the report and the view at W&B.

    Args:
        spec: What ``experiments.wandb_report.report_spec`` made.

    Returns:
        Their addresses.

    Raises:
        InputError: The package is missing, nobody is logged in, or the server cannot be reached.
    """
    check_available()
    import wandb

    from experiments.wandb_runs import explained_failures

    with explained_failures():
        api = wandb.Api()
        entity = spec["entity"] or api.default_entity
    if not entity:
        raise InputError("--wandb-report: W&B names no owner for the project; set 'entity' for the WandbLogger")
    report, workspace = report_objects(spec, str(entity))
    try:
        with explained_failures():
            report.save()
            workspace.save()
    except ValueError as error:
        # a project that is not there yet, most of all
        text = " ".join(str(error).split())
        raise InputError(f"--wandb-report: {text} Send the runs first, with 'hepastage wandb sync'") from error
    return [str(report.url), str(workspace.url)]


def _block(reports: Any, block: Mapping[str, Any], place: Mapping[str, str]) -> Any:
    if block["type"] == "h2":
        return reports.H2(block["text"])
    if block["type"] == "markdown":
        return reports.MarkdownBlock(block["text"])
    runsets = [
        reports.Runset(name=runset["name"], filters=runset["filters"], groupby=runset.get("groupby", []), **place)
        for runset in block["runsets"]
    ]
    return reports.PanelGrid(runsets=runsets, panels=[_panel(reports, panel) for panel in block["panels"]])


def _panel(reports: Any, panel: Mapping[str, Any]) -> Any:
    kind, title = panel["type"], panel["title"]
    if kind == "line":
        return reports.LinePlot(
            title=title, x=panel["x"], y=panel["y"], groupby=reports.Config("arm"), groupby_rangefunc="minmax"
        )
    if kind == "bar":
        return reports.BarPlot(title=title, metrics=panel["metrics"], groupby=reports.Config("arm"))
    if kind == "media":
        return reports.MediaBrowser(title=title, media_keys=panel["keys"])
    if kind == "scalar":
        return reports.ScalarChart(title=title, metric=panel["metric"])
    return reports.RunComparer(diff_only=True)
