"""Benchmarks run at all, at a size at which their numbers mean nothing; and what they measure with is right."""

from __future__ import annotations

import sys
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from rich.console import Console

from benchmarks import gpu, scaling
from benchmarks.turns import Contestant, take_turns

WORK = """
import sys, time
from pathlib import Path
from benchmarks.turns import Diary
book = Diary(Path(sys.argv[1]))
book.pause()
for _ in range(4):
    began = time.process_time()
    while time.process_time() - began < 0.15:
        pass
    book.tick()
"""


def test_processor_time_does_not_count_what_a_contestant_was_frozen_for(tmp_path: Path) -> None:
    contestants = [
        Contestant(name, [sys.executable, "-c", WORK, str(tmp_path / name)], tmp_path / name, tmp_path / f"{name}.log")
        for name in ("first", "second")
    ]
    # shorter than an iteration: each one is frozen in the middle
    take_turns(contestants, 0.1)
    for contestant in contestants:
        spent = contestant.processor(skip=0)
        assert len(spent) == 4
        assert 0.5 < sum(spent) < 1.0, "four times 0.15 s of work, whatever lay between"


@pytest.mark.slow
def test_augmentation_beside_its_peers(capsys: pytest.CaptureFixture[str]) -> None:
    from benchmarks import augmentation

    results = augmentation.measure((24, 24, 16), 1, 1, Console(width=110))
    assert set(results) == {"TorchIO's six transforms", "nnU-Net's kind, elastic"}
    shown = capsys.readouterr().out
    assert all(name in shown for name in ("hepastage", "TorchIO", "MONAI", "batchgeneratorsv2"))


def test_scaling_counts_private_memory_and_time(tmp_path: Path) -> None:
    scaling.make_scans(tmp_path, 4)
    threads = torch.get_num_threads()
    try:
        found = scaling.epoch(tmp_path, 4, 0)
    finally:
        torch.set_num_threads(threads)
    assert found["seconds"] > 0 and 10 < found["private_mb"] < 20_000


def test_without_a_gpu_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu"])
    assert gpu.main() == 2
    said = capsys.readouterr().err
    assert "there is no GPU on this machine" in said and len(said.splitlines()) == 1


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_many_cells_beside_scripts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks import many_cells

    for name, value in (("RATES", [0.001]), ("FOLDS", 2), ("PATIENTS", 16)):
        monkeypatch.setattr(many_cells, name, value)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    numbers = many_cells.compare(tmp_path, Namespace(scans=None, epochs=1, cores=2, measured=1))
    assert numbers["cells"] == 4 and set(numbers["scripts"]) == {"usual", "same"}
    for chain in numbers["scripts"].values():
        assert set(chain["arms"]) == {"direct", "masked"}
        each = [parts["start"] + parts["epoch"] + parts["test"] for parts in chain["arms"].values()]
        # four cells on two cores
        assert chain["all_s"] == pytest.approx(sum(each))
        assert all(min(parts.values()) > 0 for parts in chain["arms"].values())
