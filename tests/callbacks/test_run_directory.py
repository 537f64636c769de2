from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path

import pytest

from callbacks.metrics_log import MetricsLog
from callbacks.provenance import git_state, provenance_record, wandb_id
from callbacks.run_directory import Identity, RunDirectory
from datamodules.errors import InputError
from datamodules.files import write_json

IDENTITY = Identity("s", "direct", "classifier", 3, 1, "c" * 12, "5" * 64, "6" * 64)


def test_a_cell_has_a_folder_of_its_own(tmp_path: Path) -> None:
    run = RunDirectory.of_cell(tmp_path, "s", "direct", "abc")
    assert run.path == tmp_path / "s" / "direct" / "abc"
    for study, arm in (("a/b", "x"), ("..", "x"), ("x", ""), ("x", "a b"), ("-x", "y")):
        with pytest.raises(InputError, match="cannot name a folder"):
            RunDirectory.of_cell(tmp_path, study, arm, "abc")


def test_identity_comes_back_and_torn_provenance_is_one_line(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    write_json(run.provenance, provenance_record(IDENTITY, "7" * 64, ["fit", "-c", "direct"]))
    assert run.identity() == IDENTITY
    write_json(run.provenance, {"identity": {"study": "s"}})
    with pytest.raises(InputError, match="holds no run identity"):
        run.identity()
    run.provenance.unlink()
    with pytest.raises(InputError, match="a run's provenance is expected there"):
        run.identity()


def test_provenance_tells_how_a_run_came_to_be(tmp_path: Path) -> None:
    arguments = ["fit", "-c", "direct", "--runs", str(Path.home() / "runs of mine")]
    record = provenance_record(IDENTITY, "7" * 64, arguments)
    assert record["identity"] == dataclasses.asdict(IDENTITY)
    assert record["command"] == "hepastage fit -c direct --runs '~/runs of mine'"
    assert record["wandb_id"] == wandb_id(IDENTITY) == "s-direct-cccccccccccc"
    assert set(record["versions"]) >= {"python", "torch", "lightning"}
    assert record["hardware"]["cores"] >= 1
    json.dumps(record, allow_nan=False)
    assert git_state(tmp_path) == {"sha": None, "dirty": None}


def test_done_keeps_what_was_recorded_before(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    assert run.finished() == {}
    run.mark_done("fit", epochs=3)
    run.mark_done("test", checkpoint="best.ckpt")
    assert run.finished()["fit"]["epochs"] == 3
    assert set(run.finished()) == {"fit", "test"}
    run.done.write_text("{")
    with pytest.raises(InputError, match=r"done\.json: cannot be read"):
        run.finished()


def test_checkpoints(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    with pytest.raises(InputError, match=r"best\.ckpt: no such checkpoint"):
        run.checkpoint()
    run.checkpoints.mkdir()
    (run.checkpoints / "last.ckpt").write_bytes(b"x")
    assert run.checkpoint("last") == run.checkpoints / "last.ckpt"
    assert run.checkpoint(str(run.checkpoints / "last.ckpt")) == run.checkpoints / "last.ckpt"
    with pytest.raises(InputError, match="not a run directory"):
        RunDirectory.existing(tmp_path)


def test_metrics_are_on_disk_at_once(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path)
    before = time.time()
    log.log_metrics({"train/loss": 0.5, "valid/auc": float("nan"), "x": float("inf")}, step=7)
    # not closed: a killed process would leave it so
    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    value = json.loads(line)
    assert before - 1 <= value.pop("time") <= time.time() + 1
    assert value == {"step": 7, "train/loss": 0.5, "valid/auc": None, "x": None}
    log.finalize("success")
    log.log_metrics({"a": 1}, step=8)
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2


def test_a_log_without_a_place() -> None:
    with pytest.raises(ValueError, match="no save_dir"):
        MetricsLog().log_metrics({"a": 1.0})
