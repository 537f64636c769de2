"""A folder that ``nnUNetv2_predict`` wrote, as ``external`` masks with the record of the model that made them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from datamodules.cohort import Cohort
from datamodules.errors import InputError
from datamodules.files import read_json
from datamodules.masks import MaskSet
from experiments.external_masks import ExternalMasks, import_masks
from experiments.nnunet_plans import liver_output
from experiments.plan_fingerprint import the_sequence


def import_predictions(
    folder: Path,
    cohort: Path,
    out: Path,
    model: Path | None = None,
    sequence: str | None = None,
    liver: str | None = None,
    trained_on: Path | None = None,
    allow_missing: bool = False,
) -> MaskSet:
    """Bring nnU-Net's predictions in: each case is the scan of the same id.

    Args:
        folder: ``<case>.nii.gz``, and nnU-Net's copies of ``dataset.json`` and ``plans.json``.
        cohort: Table whose scan ids the cases are.
        out: Folder for the masks and ``masks.json``.
        model: The imported model that made them, whose folds and patients are recorded. Nobody can check from a mask
            that it did.
        sequence: Which sequence; None where the cohort has one.
        liver: The label that is liver, by its name in ``dataset.json`` or by its value.
        trained_on: A text file with the patients that the model trained on; None: as ``model`` says, else unknown.
        allow_missing: Whether scans without a prediction are listed instead of being an error.

    Returns:
        The masks. Without a model or list of patients, nobody knows whom it trained on: such masks are ``external``,
        and never ``out_of_fold``.

    Raises:
        InputError: See ``experiments.external_masks.import_masks``; or the liver's label is not known.
    """
    if model is not None and trained_on is not None:
        raise InputError("--trained-on: the --model says whom it trained on; leave one of the two out")
    name = the_sequence(Cohort.load(cohort), sequence)
    source = ExternalMasks(folder, "{id}.nii.gz", (_label(folder, liver),), _maker(folder), trained_on, allow_missing)
    masks = import_masks(source, cohort, out, [name])
    if model is None:
        return masks
    from experiments.nnunet_import import load_model
    from experiments.nnunet_segmenter import checkpoint_of, maker_of

    found, _ = load_model(checkpoint_of(model))
    makers = {fold.sha256: maker_of(fold, found) for fold in found.folds}
    names = tuple(sorted(makers))
    records = {key: dataclasses.replace(record, segmenters=names) for key, record in masks.masks.items()}
    named = dataclasses.replace(masks, segmenters=makers, masks=records)
    named.save()
    return named


def _label(folder: Path, liver: str | None) -> int:
    """The value that is liver in the predictions."""
    if liver is not None and liver.isdigit():
        return int(liver)
    described = folder / "dataset.json"
    if not described.is_file():
        raise InputError(f"{folder}: has no dataset.json that names the labels; give the liver's value as --liver")
    content: Any = read_json(described, "nnU-Net's dataset.json")
    labels = content.get("labels") if isinstance(content, dict) else None
    if not isinstance(labels, dict) or any(isinstance(value, list) for value in labels.values()):
        raise InputError(f"{described}: has no plain labels; give the liver's value as --liver")
    return liver_output({str(key): value for key, value in labels.items() if key != "ignore"}, liver, str(folder))


def _maker(folder: Path) -> str:
    """The model in words, as far as nnU-Net's copy of its plans tells."""
    plans: Any = read_json(folder / "plans.json", "nnU-Net's plans") if (folder / "plans.json").is_file() else {}
    named = [str(plans[key]) for key in ("dataset_name", "plans_name") if isinstance(plans, dict) and key in plans]
    return " ".join(["nnU-Net", *named])
