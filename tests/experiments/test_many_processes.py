"""Two processes against one, through the command line: the same losses, metrics, thresholds and records."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from callbacks.run_directory import RunDirectory
from datamodules.cohort import Cohort
from datamodules.splits import Splits, make_splits
from tests.experiments.many_processes import ARMS
from tests.tiny import RULE, frame_of

ROOT = Path(__file__).parents[2]
PATIENTS = tuple(f"P{number:02d}" for number in range(1, 20))
TESTED = ("P03", "P04", "P09", "P10", "P17")
TWO = ["--trainer.devices", "2", "--trainer.strategy", "ddp"]
NODES = ["--trainer.devices", "1", "--trainer.num_nodes", "2", "--trainer.strategy", "ddp"]


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nineteen patients: 7 train, 7 valid, 5 test, no number that two processes or a batch of four would divide."""
    folder = tmp_path_factory.mktemp("odd")
    frame = frame_of(folder, PATIENTS)
    frame["official_split"] = ["test" if patient in TESTED else "train" for patient in frame["patient_id"]]
    table = folder / "cohort.parquet"
    Cohort(frame, folder, str(table)).save(table)
    splits = make_splits(Cohort.load(table), RULE, folds=2, seed=0, official=True)
    splits.save(folder / "splits.json")
    fold = splits.folds[0]
    assert (len(fold.train), len(fold.valid), len(fold.test)) == (7, 7, 5)
    return folder


def specification(folder: Path, name: str, batch_size: int, words: list[str], arms: tuple[str, ...] = ARMS) -> Path:
    path = folder / f"{name}.json"
    spec = {
        "cohort": str(folder / "cohort.parquet"), "splits": str(folder / "splits.json"),
        "store": str(folder / "store"), "runs": str(folder / name), "batch_size": batch_size,
        "arms": arms, "words": words,
    }  # fmt: skip
    path.write_text(json.dumps(spec), encoding="utf-8")
    return path


def command(spec: Path, *torchrun: str, **more: str) -> subprocess.Popen[str]:
    launcher = ["-m", "torch.distributed.run", *torchrun] if torchrun else []
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "TORCHELASTIC"))}
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **more}
    return subprocess.Popen(
        [sys.executable, *launcher, "-m", "tests.experiments.many_processes", str(spec)],
        cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Exit code and all that was written."""
    try:
        out, err = process.communicate(timeout=500)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    return process.returncode, out + err


@pytest.fixture(scope="module")
def one(odd: Path) -> Path:
    """All arms in one process, in batches of four."""
    code, text = ended(command(specification(odd, "one", 4, ["--trainer.devices", "1"])))
    assert code == 0, text
    return odd / "one"


def run_of(runs: Path, arm: str) -> RunDirectory:
    (done,) = runs.glob(f"many/{arm}/*/done.json")
    return RunDirectory(done.parent)


def lines_of(run: RunDirectory) -> list[dict[str, Any]]:
    """The log of metrics, without the times and what depends on them."""
    kept = ("step", "epoch", "train/loss", "lr", "valid/", "test/")
    lines = [json.loads(line) for line in run.metrics.read_text(encoding="utf-8").splitlines()]
    found = [{key: value for key, value in line.items() if key.startswith(kept)} for line in lines]
    return [line for line in found if set(line) - {"step", "epoch"}]


def check_equal(first: Path, second: Path) -> None:
    """All that a run leaves is the same, to 1e-6, for each arm."""
    for arm in ARMS:
        alone, shared = run_of(first, arm), run_of(second, arm)
        losses = [json.loads(path.read_text()) for path in sorted(shared.path.glob("losses*.json"))]
        assert len(losses) == 2
        expected = json.loads((alone.path / "losses0.json").read_text())
        np.testing.assert_allclose(np.mean(losses, axis=0), expected, rtol=0, atol=1e-6, err_msg=arm)
        assert len(set(np.round(expected, 4))) > 2, "it learns: the losses are not one number"
        lines = lines_of(alone), lines_of(shared)
        assert len(lines[0]) == len(lines[1]) >= 6
        for line, other in zip(*lines, strict=True):
            assert line == pytest.approx(other, abs=1e-6, nan_ok=True)
        for name in ("predictions", "validation"):
            tables = [getattr(run, name) for run in (alone, shared)]
            assert tables[0].exists() == tables[1].exists() == (name == "predictions" or arm != "segmenter")
            if tables[0].exists():
                rows = pd.read_parquet(tables[1])
                pd.testing.assert_frame_equal(pd.read_parquet(tables[0]), rows, rtol=0, atol=1e-6)
                assert rows["scan_id"].is_unique and len(rows) == (5 if name == "predictions" else 7)
        best = [torch.load(run.checkpoint("best"), weights_only=True) for run in (alone, shared)]
        assert best[0]["epoch"] == best[1]["epoch"], "the same checkpoint is the best"
        done = [json.loads(run.done.read_text()) for run in (alone, shared)]
        assert done[0].keys() == done[1].keys()
        reached = [
            {k: v for k, v in d["fit"]["metrics"].items() if k.startswith(("valid/", "train/loss"))} for d in done
        ]
        assert reached[0] == pytest.approx(reached[1], abs=1e-6, nan_ok=True)
        for folder in ("masks", "overlays") if arm == "segmenter" else ():
            files = sorted((alone.path / folder).glob("*"))
            assert len(files) >= len(TESTED)
            for file in files:
                assert file.read_bytes() == (shared.path / folder / file.name).read_bytes(), file.name
    faced = [set(rank_targets(second.parent, rank)) for rank in range(2)]
    assert min(len(classes) for classes in faced) == 1, "a process saw one class alone, and the AUC is still right"


def rank_targets(folder: Path, rank: int) -> list[int]:
    """The classes of a process's test patients: every second one, from the rank on."""
    table = Cohort.load(folder / "cohort.parquet")
    tested = set(Splits.load(folder / "splits.json", table).folds[0].test)
    return [int(patient[1:]) % 2 for patient in [p for p in table.patients if p in tested][rank::2]]


def check_said_once(text: str) -> None:
    """Each message once, whatever the number of processes, and no talk of the libraries'."""
    for arm in ARMS:
        for name in ("fit", "test"):
            assert sum(f"{name} done: " in line and f"many/{arm}/" in line for line in text.splitlines()) == 1
    for noise in ("sync_dist", "DistributedSampler", "bucket view", "deprecated", "Traceback"):
        assert noise not in text, text


@pytest.mark.slow
def test_two_processes_equal_one(odd: Path, one: Path) -> None:
    code, text = ended(command(specification(odd, "two", 2, TWO)))
    assert code == 0, text
    check_equal(one, odd / "two")
    check_said_once(text)


@pytest.mark.slow
def test_two_nodes_by_torchrun_equal_one_process(odd: Path, one: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    spec = specification(odd, "nodes", 2, NODES)
    nodes = [
        command(spec, "--nnodes", "2", "--node_rank", str(node), "--nproc_per_node", "1",
                "--rdzv_endpoint", f"127.0.0.1:{port}")
        for node in range(2)
    ]  # fmt: skip
    for code, text in [ended(node) for node in nodes]:
        assert code == 0, text
    check_equal(one, odd / "nodes")


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_fault_in_one_process_ends_all_and_is_said_once(rank: int, odd: Path) -> None:
    words = [*TWO, "--trainer.callbacks+", json.dumps(fails_on(rank))]
    code, text = ended(command(specification(odd, f"fails{rank}", 2, words, ("direct",))))
    assert code == 2, text
    said = [line for line in text.splitlines() if "is torn" in line]
    assert said == [f"hepastage: images/P05.nii.gz: is torn (in process {rank}); copy it again"]
    assert "Traceback" not in text, text


def fails_on(rank: int) -> dict[str, Any]:
    return {"class_path": "tests.experiments.many_processes.Fails", "init_args": {"rank": rank}}


@pytest.mark.slow
def test_accumulated_batches_equal_one_large_batch(odd: Path, one: Path) -> None:
    words = ["--trainer.devices", "1", "--trainer.accumulate_grad_batches", "2"]
    code, text = ended(command(specification(odd, "accumulated", 2, words, ("direct", "masked", "staging"))))
    assert code == 0, text
    for arm in ("direct", "masked", "staging"):
        alone, parts = run_of(one, arm), run_of(odd / "accumulated", arm)
        whole = json.loads((alone.path / "losses0.json").read_text())
        halves = np.array(json.loads((parts.path / "losses0.json").read_text()))
        np.testing.assert_allclose(halves.reshape(-1, 2).mean(1) * factor(halves, whole), whole, rtol=0, atol=1e-6)
        rows = pd.read_parquet(parts.predictions)
        pd.testing.assert_frame_equal(pd.read_parquet(alone.predictions), rows, rtol=0, atol=1e-6)


def factor(halves: np.ndarray, whole: list[float]) -> float:
    """Lightning hands the loss out as it was, or divided by the number of accumulated batches."""
    return float(round(whole[0] / halves[:2].mean()))


EXACT = [
    *TWO, "--trainer.deterministic", "true", "--trainer.callbacks+",
    "{class_path: callbacks.last_checkpoint.LastCheckpoint, init_args: {every_s: 0}}",
]  # fmt: skip
"""Two processes, and a checkpoint after each epoch."""


@pytest.fixture(scope="module")
def two_whole(odd: Path) -> RunDirectory:
    """The direct arm in two processes, not interrupted: three epochs of two steps."""
    code, text = ended(command(specification(odd, "whole", 2, EXACT, ("direct",))))
    assert code == 0, text
    run = run_of(odd / "whole", "direct")
    assert torch.load(run.checkpoint("last"), weights_only=True)["global_step"] == 6
    return run


def check_resumed(run: RunDirectory, whole: RunDirectory) -> None:
    """Weights, optimizer and schedule to the last bit; log and records the same, and no epoch twice."""
    for name in ("last", "best"):
        first, second = (torch.load(r.checkpoint(name), weights_only=True) for r in (run, whole))
        torch.testing.assert_close(first["state_dict"], second["state_dict"], rtol=0, atol=0)
        torch.testing.assert_close(first["optimizer_states"], second["optimizer_states"], rtol=0, atol=0)
        assert first["lr_schedulers"] == second["lr_schedulers"]
        assert first["epoch"] == second["epoch"] and first["global_step"] == second["global_step"]
    assert lines_of(run) == lines_of(whole)
    assert [line["epoch"] for line in lines_of(run) if "train/loss" in line] == [0, 1, 2]
    for name in ("predictions", "validation"):
        pd.testing.assert_frame_equal(pd.read_parquet(getattr(run, name)), pd.read_parquet(getattr(whole, name)))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_two_processes_killed_and_resumed_are_as_never_killed(seed: int, odd: Path, two_whole: RunDirectory) -> None:
    """One process is killed at a random step, and with it the run; the same command goes on."""
    random = np.random.default_rng(seed)
    # either of the two, and at a step from the second one on
    where = f"SIGKILL:{(seed + 1) % 2}:{random.integers(1, 6)}"
    spec = specification(odd, f"killed{seed}", 2, EXACT, ("direct",))
    code, text = ended(command(spec, HEPASTAGE_TEST_SIGNAL=where))
    assert code != 0, text
    assert not list((odd / f"killed{seed}").glob("many/direct/*/done.json"))
    code, text = ended(command(spec))
    assert code == 0, f"{where}\n{text}"
    check_resumed(run_of(odd / f"killed{seed}", "direct"), two_whole)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1"])
def test_a_signal_to_one_process_lets_both_leave(name: str, odd: Path, two_whole: RunDirectory) -> None:
    """A scheduler's signal reaches one of the two; both leave after the same batch, with a message and no traceback."""
    spec = specification(odd, name, 2, EXACT, ("direct",))
    code, text = ended(command(spec, HEPASTAGE_TEST_SIGNAL=f"{name}:1:3"))
    assert code == 143 and text.count("the same command goes on from the last checkpoint") == 1, text
    assert "Traceback" not in text, text
    code, text = ended(command(spec))
    assert code == 0 and "going on after epoch 1" in text, text
    check_resumed(run_of(odd / name, "direct"), two_whole)
