"""The report that W&B would get, as plain data; and, where the package is there, as W&B's own objects."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from datamodules.errors import InputError
from experiments.cli import main
from experiments.compare import compare
from experiments.wandb_report import report_spec
from experiments.wandb_report_send import available, check_available, send
from tests.experiments.study import add_segmenter, make_study
from tests.experiments.wandb_stub import KEY, stub_server


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    study = make_study(tmp_path_factory.mktemp("report"))
    add_segmenter(study)
    comparison = compare([study], resamples=200)
    return report_spec(comparison, project="liver", entity="radiology", run_id="liver-compare-0123")


def grids(spec: dict[str, Any]) -> list[dict[str, Any]]:
    return [block for block in spec["report"]["blocks"] if block["type"] == "panel_grid"]


def test_it_sets_direct_against_each_other_arm(spec: dict[str, Any]) -> None:
    runsets = [runset for grid in grids(spec) for runset in grid["runsets"]]
    names = [runset["name"] for runset in runsets]
    assert names.index("direct") == 0, "the reference first"
    for runset in runsets[:-1]:
        assert f"Config('arm') = '{runset['name']}'" in runset["filters"]
        assert "Config('study') = " in runset["filters"]
    assert runsets[-1]["filters"] == "Metric('ID') = 'liver-compare-0123'"


def test_it_holds_the_sentences_and_the_table_but_no_patient(spec: dict[str, Any]) -> None:
    text = " ".join(block["text"] for block in spec["report"]["blocks"] if block["type"] == "markdown")
    assert "AUC" in text and "| direct |" in text
    whole = json.dumps(spec)
    assert "P001" not in whole and "P059" not in whole
    assert json.loads(whole) == spec


def test_panels_ask_for_what_runs_log(spec: dict[str, Any]) -> None:
    panels = [panel for grid in grids(spec) for panel in grid["panels"]]
    wanted = {
        key for panel in panels for key in [*panel.get("y", []), *panel.get("metrics", []), *panel.get("keys", [])]
    }
    assert {"valid/auc", "test/auc", "test/roc_and_confusion", "test/dice", "test/overlays_worst"} <= wanted
    assert {panel["x"] for panel in panels if panel["type"] == "line"} == {"trainer/global_step"}


def test_offline_it_is_written_and_not_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    study = make_study(tmp_path)
    words = ["compare", str(study), "--out", str(tmp_path / "out"), "--resamples", "200", "--wandb-report"]
    assert main(words) == 0
    assert "offline: nothing was sent" in capsys.readouterr().out.replace("\n", " ")
    written = json.loads((tmp_path / "out" / "wandb-report.json").read_text())
    assert written["report"]["blocks"] and written["workspace"]["sections"]
    assert not (tmp_path / "out" / "wandb").exists(), "no run without --wandb"


def test_online_without_the_package_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("experiments.wandb_report_send.available", lambda: False)
    with pytest.raises(InputError, match="needs the package wandb-workspaces; install it with"):
        check_available()


def test_online_report_and_view_arrive(spec: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The package's own objects, saved to a server on loopback."""
    if not available():
        pytest.skip("the package wandb-workspaces is not installed")
    import wandb

    with stub_server() as stub:
        for key, value in {"WANDB_BASE_URL": stub.url, "WANDB_API_KEY": KEY, "WANDB_DIR": str(tmp_path)}.items():
            monkeypatch.setenv(key, value)
        monkeypatch.setenv("WANDB_SILENT", "true")
        wandb.teardown()
        report, view = send(spec)
        wandb.teardown()
    assert not stub.unknown
    assert report.startswith(f"{stub.url}/radiology/liver/reports/") and f"{stub.url}/radiology/liver?nw=" in view
    first, second = stub.views
    assert first["displayName"] == spec["report"]["title"] and first["type"] == "runs"
    for grid in grids(spec):
        for panel in grid["panels"]:
            assert panel["type"] == "run_comparer" or json.dumps(panel["title"]) in first["spec"]
        for runset in grid["runsets"]:
            assert json.dumps(runset["name"]) in first["spec"]
    assert second["displayName"] == spec["workspace"]["name"] and second["type"] == "project-view"
    assert all(json.dumps(section["name"]) in second["spec"] for section in spec["workspace"]["sections"])
