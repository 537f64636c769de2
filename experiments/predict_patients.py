"""``hepastage predict --run`` for a classifier: probabilities for new patients, with no training data at hand."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from rich.console import Console
from rich.progress import track

from callbacks.prediction_writer import classification_rows
from callbacks.run_directory import RunDirectory
from datamodules.cohort import Cohort, Scan
from datamodules.covariates import covariate_table, examination_values
from datamodules.errors import InputError
from datamodules.examinations import Examination, examinations
from datamodules.files import atomic_path
from datamodules.images import check_same_grid, read_image, read_mask
from datamodules.preprocessing import Preprocessing, preprocess
from experiments.trained_segmenter import best_device, load_weights, module_of, preprocessing_of, saved_config
from lightning_modules.classification import PatientClassifier


def predict_patients(run: RunDirectory, which: str, data: Path, masks: Path | None, out: Path) -> int:
    """Write ``predictions.csv``: one row per patient (and visit), with probabilities, threshold and temperature.

    Args:
        run: A trained classifier's run directory.
        which: ``best``, ``last`` or a checkpoint's path.
        data: A cohort table; targets are not needed.
        masks: Folder of ``<scan_id>.nii.gz`` on the native grids, for an arm that sees a mask; None takes the
            cohort's own masks where the arm was trained on reference masks.
        out: Folder to write to.

    Returns:
        0.

    Raises:
        InputError: Not a classifier, not a cohort table, or a scan or mask that is missing or broken.
    """
    rows, faults = patient_rows(run, which, data, masks)
    if rows:
        with atomic_path(out / "predictions.csv") as temporary:
            pd.DataFrame(rows).to_csv(temporary, index=False)
        sys.stdout.write(f"{len(rows)} patients in {out / 'predictions.csv'}\n")
    if faults:
        raise InputError(*faults)
    return 0


def sequences_of(run: RunDirectory) -> list[str]:
    """The sequences that a run's arm sees, in the order of its batches."""
    settings = saved_config(run)["data"]["init_args"]
    return [str(name) for name in settings.get("sequences") or [settings["sequence"]]]


def patient_rows(
    run: RunDirectory, which: str, data: Path, masks: Path | None
) -> tuple[list[dict[str, Any]], list[str]]:
    """Predict the patients of a cohort table.

    Args:
        run: See ``predict_patients``.
        which: See ``predict_patients``.
        data: See ``predict_patients``.
        masks: See ``predict_patients``.

    Returns:
        One row per patient (and visit), and what was wrong with those that could not be predicted.

    Raises:
        InputError: Not a classifier, not a cohort table, or masks that are missing or must not be seen.
    """
    config = saved_config(run)
    module = module_of(config)
    if not isinstance(module, PatientClassifier):
        raise InputError(
            f"{run.path}: is a run of {type(module).__name__}, not of a classifier; give one that classifies"
        )
    if data.suffix not in (".parquet", ".csv"):
        raise InputError(
            f"{data}: a classifier predicts the patients of a cohort table; make one with 'hepastage cohort'"
        )
    load_weights(module, run.checkpoint(which))
    device = best_device()
    module = module.to(device).eval()
    settings = config["data"]["init_args"]
    sequences = sequences_of(run)
    cohort = Cohort.load(data).select(sequences=set(sequences) & set(Cohort.load(data).frame["sequence"]) or sequences)
    sources = _mask_files(cohort, settings["mask_source"], masks)
    parameters = preprocessing_of(config)
    rows: list[dict[str, Any]] = []
    faults: list[str] = []
    items = examinations(cohort.scans, sequences, cohort.name)
    names = tuple(settings.get("covariates") or ())
    known = covariate_table(cohort, names)
    for item in track(items, description="patients", console=Console(file=sys.stderr), transient=True):
        try:
            batch = _batch(item, sources, parameters, device)
            if names:
                ids = [scan.scan_id for scan in item.present_scans]
                values = examination_values(known, ids, names, cohort.name)
                batch["covariates"] = torch.tensor(values, dtype=torch.float32, device=device)[None]
        except InputError as error:
            faults += error.faults
            continue
        with torch.inference_mode():
            logits, empty = module.class_logits(batch)
        temperature = float(module.temperature)
        row = classification_rows(logits, [item.scan_id], float(module.threshold), temperature)[0]
        first = item.present_scans[0]
        facts = {"patient_id": item.patient_id, "scan_id": item.scan_id, "source": first.source, "visit": first.visit}
        rows.append({**facts, **row, "temperature": temperature, "empty_mask": bool(empty[0])})
    return rows, faults


def _mask_files(cohort: Cohort, mask_source: str, masks: Path | None) -> dict[str, tuple[Path, tuple[int, ...]]]:
    """Mask file and its liver labels by scan id; empty for an arm that sees none.

    Raises:
        InputError: Masks are needed and missing, or given to an arm that must not see them.
    """
    if mask_source == "none":
        if masks is not None:
            raise InputError(f"--masks {masks}: this run's arm sees no mask; leave it out")
        return {}
    found: dict[str, tuple[Path, tuple[int, ...]]] = {}
    faults = []
    for scan in cohort.scans:
        if masks is not None:
            found[scan.scan_id] = (masks / f"{scan.scan_id}.nii.gz", ())
            if not found[scan.scan_id][0].is_file():
                faults.append(
                    f"{found[scan.scan_id][0]}: no such mask; make it with 'hepastage predict' of a segmenter"
                )
        elif mask_source == "reference" and scan.mask is not None:
            found[scan.scan_id] = (scan.mask, scan.mask_labels)
        else:
            faults.append(f"scan {scan.scan_id!r}: this run's arm needs a liver mask; give a folder of them as --masks")
    if faults:
        raise InputError(*faults)
    return found


def _batch(
    item: Examination,
    masks: dict[str, tuple[Path, tuple[int, ...]]],
    parameters: Preprocessing,
    device: torch.device,
) -> Any:
    """One examination as a batch of size one, on the preprocessed grid."""
    shape = parameters.shape or ()
    image = np.zeros((1, len(item.scans), *shape), dtype=np.float32)
    mask = np.zeros_like(image)
    for channel, scan in enumerate(item.scans):
        if scan is None:
            continue
        image[0, channel], mask[0, channel] = _volume(scan, masks, parameters)
    batch: dict[str, Any] = {
        "image": torch.from_numpy(image).to(device),
        "present": torch.tensor([[scan is not None for scan in item.scans]], device=device),
        "patient_id": [item.patient_id],
        "scan_id": [item.scan_id],
    }
    if masks:
        batch["mask"] = torch.from_numpy(mask).to(device)
    return batch


def _volume(
    scan: Scan, masks: dict[str, tuple[Path, tuple[int, ...]]], parameters: Preprocessing
) -> tuple[np.ndarray, np.ndarray]:
    """Image and mask of a scan, preprocessed; a mask of zeros where the arm sees none."""
    volume = read_image(scan.image)
    if scan.scan_id not in masks:
        array, _, _ = preprocess(volume, None, parameters)
        return array, np.zeros_like(array)
    path, labels = masks[scan.scan_id]
    liver = read_mask(path, labels)
    check_same_grid(volume, liver, scan.image, path)
    array, mask, _ = preprocess(volume, liver, parameters)
    return array, np.zeros_like(array) if mask is None else mask
