from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import torch
import torch.distributed
import torch.multiprocessing
from scipy.special import expit, softmax

from callbacks.prediction_writer import PredictionWriter, classification_rows, datamodule_of
from callbacks.run_directory import Identity, RunDirectory
from datamodules.classification import ClassificationDataModule
from datamodules.files import write_json
from datamodules.preprocessing import Preprocessing
from datamodules.records import read_records
from tests.tiny import TESTED, Tiny

IDENTITY = Identity("s", "direct", "classifier", 3, 1, "c" * 12, "5" * 64, "6" * 64)
LOGITS = {f"{patient}_T2W": 0.5 * number - 0.7 for number, patient in enumerate(TESTED)}


def begun(path: Path) -> RunDirectory:
    run = RunDirectory(path)
    write_json(run.provenance, {"identity": {name: getattr(IDENTITY, name) for name in Identity.__slots__}})
    return run


def write_from(rank: int, cohort: str, splits: str, folder: str, scans: list[str]) -> None:
    """What one rank's test does: two batches, then the end of the epoch."""
    grid = Preprocessing(spacing=(10.0, 10.0, 20.0), shape=(24, 24, 8))
    datamodule = ClassificationDataModule(cohort=cohort, splits=splits, preprocessing=grid)
    trainer: Any = SimpleNamespace(datamodule=datamodule, default_root_dir=folder, is_global_zero=rank == 0)
    writer = PredictionWriter()
    for start in range(0, len(scans), 2):
        ids = scans[start : start + 2]
        outputs = {
            "logits": torch.tensor([[LOGITS[scan]] for scan in ids]),
            "scan_id": ids,
            "threshold": 0.4,
            "temperature": 1.0,
            "empty_mask": torch.tensor([scan == "P09_T2W" for scan in ids]),
        }
        writer.on_test_batch_end(trainer, None, outputs, None, 0)  # type: ignore[arg-type]  # the module is not asked
    writer.on_test_epoch_end(trainer, None)  # type: ignore[arg-type]  # as above


def _rank(rank: int, store: str, cohort: str, splits: str, folder: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    scans = list(LOGITS)
    # three scans on two ranks, padded with the first, as a distributed sampler does
    write_from(rank, cohort, splits, folder, [scans[0], scans[2]] if rank == 0 else [scans[1], scans[0]])
    torch.distributed.destroy_process_group()


def test_one_process(tiny_cohort: Tiny, tmp_path: Path) -> None:
    run = begun(tmp_path)
    write_from(0, str(tiny_cohort.cohort), str(tiny_cohort.splits), str(tmp_path), list(LOGITS))
    rows = read_records(run.predictions)
    assert list(rows["scan_id"]) == list(LOGITS)
    assert rows["prob"].tolist() == pytest.approx([float(expit(value)) for value in LOGITS.values()], abs=1e-6)
    assert rows["logit"].tolist() == pytest.approx(list(LOGITS.values()), abs=1e-6)
    assert rows["target"].tolist() == [1, 0, 1, 0]
    assert rows["x_empty_mask"].tolist() == [False, False, True, False]
    for column, value in {
        "study": "s", "arm": "direct", "role": "classifier", "seed": 3, "fold": 1, "part": "test", "threshold": 0.4,
        "split_sha256": tiny_cohort.split.sha256, "mask_source": "none", "sequence": "T2W",
    }.items():  # fmt: skip
        assert set(rows[column]) == {value}
    assert rows["source"].tolist() == ["A", "A", "B", "B"]


def test_two_processes_write_what_one_writes(tiny_cohort: Tiny, tmp_path: Path) -> None:
    alone, together = begun(tmp_path / "one"), begun(tmp_path / "two")
    write_from(0, str(tiny_cohort.cohort), str(tiny_cohort.splits), str(alone.path), list(LOGITS)[:3])
    arguments = (str(tmp_path / "store"), str(tiny_cohort.cohort), str(tiny_cohort.splits), str(together.path))
    torch.multiprocessing.spawn(  # type: ignore[attr-defined, no-untyped-call]  # untyped in torch
        _rank, arguments, nprocs=2
    )
    pd.testing.assert_frame_equal(read_records(together.predictions), read_records(alone.predictions))


def test_several_classes() -> None:
    logits = torch.tensor([[1.0, 2.0, -1.0]])
    (row,) = classification_rows(logits, ["a"], 0.5)
    expected = softmax(logits.numpy()[0])
    assert [row[f"prob_{k}"] for k in range(3)] == pytest.approx(expected.tolist(), abs=1e-6)
    assert "threshold" not in row and "prob" not in row


def test_a_foreign_data_module() -> None:
    with pytest.raises(TypeError, match="hepastage's data modules"):
        datamodule_of(SimpleNamespace(datamodule=None))  # type: ignore[arg-type]  # a fake
