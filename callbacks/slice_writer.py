"""The prediction record of slice classifiers: one row per scan, the mean over its slices, and the slices beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from lightning.pytorch import Trainer

from callbacks.prediction_writer import PredictionWriter, write_rows
from callbacks.run_directory import RunDirectory
from datamodules.files import atomic_path
from datamodules.records import class_columns
from lightning_modules.task import gather_by_id

SLICES = "slices.parquet"
"""One row per test slice, beside ``predictions.parquet``: ``patient_id, scan_id, slice, target, prob…, x_leak``."""


class SliceWriter(PredictionWriter):
    """Write the test part by scan and by slice, and the validation part by scan.

    Slices are told from each other by the ``#`` and number at the end of their ids.
    """

    def _write(self, trainer: Trainer, path: Path) -> None:
        """Gather the slices of all ranks and write them once."""
        rows = gather_by_id(self._rows)
        self._rows = {}
        if not trainer.is_global_zero:
            return
        run = RunDirectory(trainer.default_root_dir)
        slices = pd.DataFrame(list(rows.values()))
        names = slices["scan_id"].str.rpartition("#")
        slices["scan_id"], slices["slice"] = names[0], names[2].astype(int)
        if path == run.predictions:
            kept = ["patient_id", "scan_id", "slice", "target", *_probabilities(slices), "threshold", "x_leak"]
            with atomic_path(run.path / SLICES) as temporary:
                slices[[name for name in kept if name in slices]].to_parquet(temporary, index=False)
        write_rows(by_scan(slices), path, run.identity())


def by_scan(slices: pd.DataFrame) -> list[dict[str, Any]]:
    """One row a scan: the mean of its slices' probabilities, the logarithms of their ratios as logits.

    Args:
        slices: Rows with ``scan_id``, ``slice``, and ``prob`` or ``prob_0 …``; other columns are the scan's own.
    """
    columns = _probabilities(slices)
    rows = []
    for _, group in slices.groupby("scan_id", sort=True):
        means = group[columns].mean().to_numpy(dtype=float)
        first = {str(key): value for key, value in group.iloc[0].items() if not str(key).startswith(("prob", "logit"))}
        first.pop("slice")
        bounded = np.clip(means, 1e-7, 1 - 1e-7)
        row: dict[str, Any] = {**first, "x_slices": len(group)}
        row |= {column: float(mean) for column, mean in zip(columns, means, strict=True)}
        if columns == ["prob"]:
            row["logit"] = float(np.log(bounded[0] / (1 - bounded[0])))
        else:
            row |= {f"logit_{number}": float(np.log(value)) for number, value in enumerate(bounded)}
        rows.append(row)
    return rows


def _probabilities(frame: pd.DataFrame) -> list[str]:
    return ["prob"] if "prob" in frame else class_columns(frame)
