"""Sending offline runs: against a server on loopback that answers what W&B's own client asks."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import wandb

from datamodules.errors import InputError
from datamodules.files import write_json
from experiments import wandb_sync
from experiments.cli import main
from experiments.wandb_lineage import Made, artifact_name, log_made, note
from experiments.wandb_runs import SUPERSEDED, artifacts_in
from tests.experiments.wandb_disk import offline
from tests.experiments.wandb_stub import KEY, Stub, stub_server

SHA = {name: f"{number}" * 64 for number, name in enumerate(("segmenter", "masks", "direct"), start=1)}


def offline_run(folder: Path, role: str, kind: str, uses: list[str], rows: range, payload: Path | None = None) -> str:
    """Leave one offline folder, as a cell does; returns how its artifact is named by who uses it."""
    name = folder.name
    made = Made(f"liver-{name}-{kind}", kind, SHA[name], {"study": "liver"}, {payload.name: payload} if payload else {})
    folder.mkdir(parents=True, exist_ok=True)
    with artifacts_in(folder):
        run = wandb.init(
            project="hepastage", id=f"liver-{name}", mode="offline", dir=str(folder), resume="allow",
            group="liver", job_type=role, config={"arm": name},
        )  # fmt: skip
        for step in rows:
            run.log({"valid/loss": 1.0 / (step + 1), "trainer/global_step": 10 * step}, step=step)
        note(run, folder, uses)
        if rows.start == 0:
            log_made(run, folder, made, uses)
        run.finish()
    return made.reference


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier (made first by the clock), a segmenter with its weights, and the masks between them."""
    root = tmp_path_factory.mktemp("sync") / "liver"
    weights = root / "best.ckpt"
    root.mkdir()
    weights.write_bytes(b"weights" * 1000)
    with offline():
        masks = f"liver-masks-masks:{SHA['masks'][:12]}"
        offline_run(root / "direct", "classifier", "predictions", [masks], range(3))
        segmenter = offline_run(root / "segmenter", "segmenter", "segmenter", [], range(2), weights)
        assert offline_run(root / "masks", "masks", "masks", [segmenter], range(1)) == masks
        # the same cell's test: another folder, the same run, steps that go on
        offline_run(root / "direct", "classifier", "predictions", [masks], range(3, 5))
        torn = root / "direct" / "wandb" / f"{SUPERSEDED}offline-run-20260101_000000-liver-direct"
        torn.mkdir()
        (torn / "run-liver-direct.wandb").write_bytes(b"torn")
    return root


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stub]:
    with stub_server() as stub, offline():
        for key, value in {"WANDB_BASE_URL": stub.url, "WANDB_API_KEY": KEY}.items():
            monkeypatch.setenv(key, value)
        monkeypatch.delenv("WANDB_MODE", raising=False)
        wandb.teardown()
        yield stub
        wandb.teardown()


def test_a_dry_run_says_what_would_be_sent_and_sends_nothing(
    study: Path, server: Stub, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["wandb", "sync", str(study), "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "would send 4 offline folders of 3 runs; 0 folders are sent already"
    assert [line.split()[0] for line in lines[1:5]] == ["segmenter", "masks", "classifier", "classifier"]
    assert any("would declare: liver-masks uses liver-segmenter-segmenter:111111111111" in line for line in lines)
    assert server.operations == []


def test_everything_arrives_in_the_order_of_the_stages(study: Path, server: Stub) -> None:
    assert main(["wandb", "sync", str(study)]) == 0
    assert not server.unknown
    assert server.order == ["liver-segmenter", "liver-masks", "liver-direct"]
    jobs = {name: (run["groupName"], run["jobType"]) for name, run in server.runs.items() if "jobType" in run}
    assert jobs["liver-masks"] == ("liver", "masks")
    rows = server.runs["liver-direct"]["history"]
    assert [row["_step"] for row in rows] == [0, 1, 2, 3, 4], "two folders are one history"
    assert [row["trainer/global_step"] for row in rows] == [0, 10, 20, 30, 40]
    made = {item["name"]: key for key, item in server.artifacts.items()}
    assert all(item["state"] == "COMMITTED" for item in server.artifacts.values())
    assert server.stored(made["liver-segmenter-segmenter"], "best.ckpt") == b"weights" * 1000
    assert set(server.uses) == {
        ("liver-masks", made["liver-segmenter-segmenter"]),
        ("liver-direct", made["liver-masks-masks"]),
    }
    assert not [run for run in server.runs.values() if run.get("host") not in (None, "not-recorded")]
    before = len(server.operations)
    assert main(["wandb", "sync", str(study)]) == 0
    assert len(server.operations) == before, "a second call finds all sent and declared"


def test_what_was_not_sent_is_told_and_sent_by_the_next_call(
    study: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for mark in study.rglob("*.synced"):
        mark.unlink()
    monkeypatch.setattr(wandb_sync, "client_sync", lambda folders, entity, project: None)
    assert main(["wandb", "sync", str(study)]) == 1
    assert capsys.readouterr().err.count("was not sent") == 4


def test_a_missing_artifact_is_named(tmp_path: Path, server: Stub, capsys: pytest.CaptureFixture[str]) -> None:
    server.runs["liver-compare"] = {"history": [], "config": "{}"}
    place = tmp_path / "wandb"
    record = {"run": "liver-compare", "project": "hepastage", "entity": None, "uses": ["nowhere:000000000000"]}
    write_json(place / "lineage.json", record)
    assert wandb_sync.declare_all([tmp_path], None, None)
    error = capsys.readouterr().err
    assert "liver-compare uses nowhere:000000000000" in error and "send the run that made it" in error
    assert not server.uses


def test_refusals(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["wandb", "sync", str(tmp_path / "nowhere")]) == 2
    assert main(["wandb", "sync", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "no such folder" in error and "no offline W&B run lies there" in error
    with pytest.raises(InputError, match=r"holds no \.wandb file"):
        (tmp_path / "wandb" / "offline-run-20260101_000000-x").mkdir(parents=True)
        wandb_sync.offline_runs([tmp_path])


def test_artifact_names_are_what_the_server_takes() -> None:
    name = artifact_name("liver+spleen", "a" * 200, "predictions")
    assert len(name) == 128 and name.endswith("-predictions")
    assert artifact_name("liver+spleen", "b", "masks") == "liver-spleen-b-masks"


def test_staging_goes_back_to_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_DATA_DIR", "elsewhere")
    with artifacts_in(tmp_path):
        assert os.environ["WANDB_DATA_DIR"] == str(tmp_path / "wandb")
    assert os.environ["WANDB_DATA_DIR"] == "elsewhere"
