"""nnU-Net v2 as the peer: its own raw folder, planner, preprocessing, trainer and predictor, on our patients.

Its plan is its planner's, with spacing, patch, batch and network replaced by ours, so that both do the same work.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.turns import Diary
from datamodules.cohort import Cohort
from datamodules.images import read_image, read_mask, write_nifti
from datamodules.splits import Fold

DATASET = "Dataset901_Liver"
NUMBER = 901
PLANS = "samePlans"
CONFIGURATION = "3d_fullres"


def set_folders(root: Path, device: str = "cpu") -> None:
    """Point nnU-Net at its three folders, before it is imported; it compiles on a GPU alone, as it comes."""
    for name in ("raw", "preprocessed", "results"):
        (root / name).mkdir(parents=True, exist_ok=True)
        os.environ[f"nnUNet_{name}"] = str(root / name)
    os.environ["nnUNet_compile"] = "t" if device == "cuda" else "f"  # noqa: SIM112 - its own spelling


def prepare(root: Path, cohort: Cohort, fold: Fold, spacing: tuple[float, ...], work: dict[str, Any]) -> None:
    """Write the raw folder, plan, and preprocess the training patients.

    Args:
        root: Work folder.
        cohort: Scans with reference masks.
        fold: Train patients are preprocessed and trained on.
        spacing: Target spacing in mm along our axes (I, J, K).
        work: ``patch``, ``batch_size``, ``features``, ``strides``, ``kernel_sizes`` along our axes.
    """
    set_folders(root)
    from nnunetv2.experiment_planning.plan_and_preprocess_api import extract_fingerprints, plan_experiments, preprocess

    raw = root / "raw" / DATASET
    shutil.rmtree(raw, ignore_errors=True)
    (raw / "imagesTr").mkdir(parents=True)
    (raw / "labelsTr").mkdir()
    scans = [scan for scan in cohort.scans if scan.patient_id in set(fold.train)]
    for scan in scans:
        assert scan.mask is not None
        image = read_image(scan.image)
        write_nifti(raw / "imagesTr" / f"{scan.scan_id}_0000.nii.gz", image.data.astype(np.float32), image.affine)
        mask = read_mask(scan.mask, scan.mask_labels)
        write_nifti(raw / "labelsTr" / f"{scan.scan_id}.nii.gz", mask.data.astype(np.uint8), image.affine)
    dataset = {
        "channel_names": {"0": "T2W"},
        "labels": {"background": 0, "liver": 1},
        "numTraining": len(scans),
        "file_ending": ".nii.gz",
    }
    (raw / "dataset.json").write_text(json.dumps(dataset), encoding="utf-8")
    extract_fingerprints([NUMBER], num_processes=1, check_dataset_integrity=False)
    plan_experiments([NUMBER])
    folder = root / "preprocessed" / DATASET
    plans = json.loads((folder / "nnUNetPlans.json").read_text(encoding="utf-8"))
    plans["plans_name"] = PLANS
    own = plans["configurations"][CONFIGURATION]
    old, new = np.array(own["spacing"]), np.array(spacing[::-1])
    own["data_identifier"] = f"{PLANS}_{CONFIGURATION}"
    own["median_image_size_in_voxels"] = (np.array(own["median_image_size_in_voxels"]) * old / new).round().tolist()
    own["spacing"] = new.tolist()
    own["patch_size"] = list(work["patch"][::-1])
    own["batch_size"] = work["batch_size"]
    stages = len(work["features"])
    own["architecture"]["arch_kwargs"] |= {
        "n_stages": stages,
        "features_per_stage": list(work["features"]),
        "strides": [list(item[::-1]) for item in work["strides"]],
        "kernel_sizes": [list(item[::-1]) for item in work["kernel_sizes"]],
        "n_conv_per_stage": [2] * stages,
        "n_conv_per_stage_decoder": [2] * (stages - 1),
    }
    plans["configurations"] = {CONFIGURATION: own}
    (folder / f"{PLANS}.json").write_text(json.dumps(plans), encoding="utf-8")
    preprocess([NUMBER], PLANS, [CONFIGURATION], [1])
    ids = sorted(scan.scan_id for scan in scans)
    # its validation only feeds a running figure; held-out patients are predicted by its predictor
    (folder / "splits_final.json").write_text(json.dumps([{"train": ids, "val": ids[:1]}]), encoding="utf-8")


def train(root: Path, seed: int, epochs: int, iterations: int, diary: Path, device: str = "cpu") -> None:
    """Train with nnU-Net's own trainer, as it comes but for the length.

    Args:
        root: Work folder that ``prepare`` has filled.
        seed: Seed of torch and numpy (its loader processes are not seeded by nnU-Net).
        epochs: Epochs.
        iterations: Iterations an epoch.
        diary: Where each iteration's times go.
        device: ``cpu`` or ``cuda``.
    """
    set_folders(root, device)
    os.environ["nnUNet_results"] = str(root / "results" / f"seed{seed}")  # noqa: SIM112 - its own spelling
    import torch
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    book = Diary(diary)

    class Trainer(nnUNetTrainer):  # type: ignore[misc]  # untyped
        def on_train_epoch_start(self) -> None:
            super().on_train_epoch_start()
            book.pause()

        def train_step(self, batch: dict[str, Any]) -> Any:
            outcome = super().train_step(batch)
            book.tick()
            return outcome

    Trainer.__name__ = "nnUNetTrainer"
    np.random.seed(seed)  # noqa: NPY002 - the peer draws from numpy's global state
    torch.manual_seed(seed)
    folder = root / "preprocessed" / DATASET
    plans = json.loads((folder / f"{PLANS}.json").read_text(encoding="utf-8"))
    plans["continue_training"] = False
    dataset = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
    trainer = Trainer(plans, CONFIGURATION, 0, dataset, device=torch.device(device))
    trainer.num_epochs, trainer.num_iterations_per_epoch, trainer.num_val_iterations_per_epoch = epochs, iterations, 1
    trainer.initialize()
    trainer.run_training()


def results(root: Path, seed: int) -> Path:
    """The folder of a trained model, as nnU-Net names it."""
    return root / "results" / f"seed{seed}" / DATASET / f"nnUNetTrainer__{PLANS}__{CONFIGURATION}"


def predictor(root: Path, seed: int, *, mirror: bool) -> Any:
    """nnU-Net's predictor with a trained model."""
    set_folders(root)
    import torch
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    made = nnUNetPredictor(use_mirroring=mirror, device=torch.device("cpu"), allow_tqdm=False)
    made.initialize_from_trained_model_folder(str(results(root, seed)), (0,), "checkpoint_final.pth")
    return made


def predict(made: Any, image: Path, out: Path) -> Path:
    """Segment one NIfTI file with nnU-Net's predictor.

    Args:
        made: From :func:`predictor`.
        image: The image.
        out: The mask's path without suffix.

    Returns:
        The mask's file.
    """
    from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

    out.parent.mkdir(parents=True, exist_ok=True)
    array, properties = SimpleITKIO().read_images([str(image)])
    made.predict_single_npy_array(array, properties, None, str(out))
    return out.with_name(out.name + ".nii.gz")
