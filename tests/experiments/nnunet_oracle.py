"""The installed nnU-Net as an oracle: its own planner, preprocessor and predictor, on data sets made by tests."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from experiments.plan_fingerprint import Fingerprint

PLANNERS = {
    "plain": "default_experiment_planner.ExperimentPlanner",
    "residual-m": "residual_unets.residual_encoder_unet_planners.nnUNetPlannerResEncM",
    "residual-l": "residual_unets.residual_encoder_unet_planners.nnUNetPlannerResEncL",
    "residual-xl": "residual_unets.residual_encoder_unet_planners.nnUNetPlannerResEncXL",
}


def needed() -> None:
    """Skip where nnU-Net is not installed."""
    pytest.importorskip("nnunetv2", reason="nnunetv2 (a development dependency) is not installed: no oracle")


@pytest.fixture
def nnunet_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folders of an nnU-Net installation, named by its environment variables; no extra processes."""
    needed()
    for name in ("raw", "preprocessed", "results"):
        monkeypatch.setenv(f"nnUNet_{name}", str(tmp_path / name))
        (tmp_path / name).mkdir()
    monkeypatch.setenv("nnUNet_n_proc_DA", "1")
    monkeypatch.setenv("nnUNet_compile", "f")
    return tmp_path


def oracle_fingerprint(folder: Path, cases: Sequence[str]) -> dict[str, Any]:
    """nnU-Net's fingerprint of some cases of a raw data set."""
    from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import DatasetFingerprintExtractor
    from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

    found = [
        DatasetFingerprintExtractor.analyze_case(
            [str(folder / "imagesTr" / f"{case}_0000.nii.gz")],
            str(folder / "labelsTr" / f"{case}.nii.gz"),
            SimpleITKIO,
            20_000,
        )
        for case in cases
    ]
    values = np.concatenate([item[2][0] for item in found])
    low, median, high = np.percentile(values, (0.5, 50.0, 99.5))
    facts = {"mean": values.mean(), "median": median, "std": values.std(), "min": values.min(), "max": values.max()}
    facts |= {"percentile_99_5": high, "percentile_00_5": low}
    return {
        "spacings": [[float(value) for value in item[1]] for item in found],
        "shapes_after_crop": [[int(value) for value in item[0]] for item in found],
        "foreground_intensity_properties_per_channel": {"0": {key: float(value) for key, value in facts.items()}},
        "median_relative_size_after_cropping": float(np.median([item[4] for item in found])),
    }


def as_oracle(fingerprint: Fingerprint) -> dict[str, Any]:
    """A fingerprint of ours in nnU-Net's form."""
    return {
        "spacings": [list(value) for value in fingerprint.spacings],
        "shapes_after_crop": [list(value) for value in fingerprint.shapes],
        "foreground_intensity_properties_per_channel": {"0": dict(fingerprint.intensities)},
        "median_relative_size_after_cropping": float(np.median(fingerprint.relative_sizes)),
    }


def oracle_plan(home: Path, fingerprint: dict[str, Any], preset: str, memory_gb: float | None = None) -> dict[str, Any]:
    """The plan of nnU-Net's own planner for a fingerprint."""
    import importlib

    module, _, name = PLANNERS[preset].rpartition(".")
    planner_class = getattr(importlib.import_module(f"nnunetv2.experiment_planning.experiment_planners.{module}"), name)
    count = len(fingerprint["spacings"])
    for part in ("raw", "preprocessed"):
        (home / part / "Dataset077_Oracle").mkdir(parents=True, exist_ok=True)
    described = {
        "channel_names": {"0": "T2W"},
        "labels": {"background": 0, "liver": 1},
        "numTraining": count,
        "file_ending": ".nii.gz",
        "overwrite_image_reader_writer": "SimpleITKIO",
        "dataset": {f"case{n}": {"images": [f"{n}.nii.gz"], "label": f"{n}.nii.gz"} for n in range(count)},
    }
    (home / "raw/Dataset077_Oracle/dataset.json").write_text(json.dumps(described))
    (home / "preprocessed/Dataset077_Oracle/dataset_fingerprint.json").write_text(json.dumps(fingerprint))
    options = {} if memory_gb is None else {"gpu_memory_target_in_gb": memory_gb}
    # its networks are built to be counted, not used
    with torch.device("meta"):
        plan: dict[str, Any] = planner_class(77, **options).plan_experiment()
    return plan
