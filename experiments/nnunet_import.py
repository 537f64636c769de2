"""A model that nnU-Net trained, as a hepastage checkpoint: weights, plans, and whom it was trained on."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

from callbacks.run_directory import Identity, RunDirectory
from datamodules.cohort import Cohort
from datamodules.errors import InputError
from datamodules.files import atomic_path, read_json, sha256_of_file, sha256_of_json, write_json, write_text
from experiments.nnunet_plans import NNUNetSettings, settings_of
from lightning_modules.networks.nnunet_network import network_of

FORMAT = 1
KIND = "nnunet"


@dataclasses.dataclass(frozen=True, slots=True)
class ImportedFold:
    """One trained network.

    Attributes:
        fold: Its fold as nnU-Net calls it: a number, or ``all``.
        sha256: Hash of nnU-Net's checkpoint file; the network's name in records of masks.
        cases: The cases it trained on; None where that is unknown.
        trained_on: Their patients; None where that is unknown.
        tested: Patients of the fold's test part, where the splits tell them apart from those of ``val``.
    """

    fold: str
    sha256: str
    cases: tuple[str, ...] | None
    trained_on: tuple[str, ...] | None
    tested: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True)
class ImportedModel:
    """What an imported checkpoint holds besides weights.

    Attributes:
        settings: Preprocessing, windows and network.
        trainer: nnU-Net's trainer.
        name: The results folder's name.
        mirror_axes: Axes of the patch that prediction may mirror over.
        sequence: What it segments.
        folds: The networks, which are averaged.
        split_sha256: Hash of ``splits_final.json``; empty where it is unknown.
    """

    settings: NNUNetSettings
    trainer: str
    name: str
    mirror_axes: tuple[int, ...]
    sequence: str
    folds: tuple[ImportedFold, ...]
    split_sha256: str

    @property
    def summary(self) -> str:
        """The model in a line."""
        known = all(fold.trained_on is not None for fold in self.folds)
        told = "patients trained on are known" if known else "patients trained on are unknown (see --cohort)"
        numbers = ", ".join(fold.fold for fold in self.folds)
        return f"{self.settings.dataset} {self.settings.configuration}, fold {numbers}; {told}"

    @property
    def identity(self) -> Identity:
        """Which cell a run directory of it is."""
        numbers = [int(fold.fold) for fold in self.folds if fold.fold.isdigit()]
        alone = numbers[0] if len(self.folds) == 1 and numbers else None
        cell = sha256_of_json([self.name, *(fold.sha256 for fold in self.folds)])[:12]
        return Identity(self.settings.dataset, self.name, "segmenter", 0, alone, cell, self.split_sha256, "")


def import_model(
    results: Path,
    out: Path,
    *,
    folds: Sequence[str] | None = None,
    checkpoint: str = "checkpoint_final.pth",
    liver: str | None = None,
    sequence: str | None = None,
    splits_final: Path | None = None,
    cohort: Path | None = None,
) -> ImportedModel:
    """Read a results folder of nnU-Net and write a checkpoint that predicts without nnU-Net.

    Args:
        results: ``nnUNetTrainer__nnUNetPlans__3d_fullres``: ``plans.json``, ``dataset.json`` and folders ``fold_K``.
        out: ``….ckpt`` for a file that holds all; any other name for a run directory with that file in it.
        folds: Which folds, such as ``("0", "all")``; None takes every numbered one, or ``all`` where it is alone.
        checkpoint: Name of the weights in each fold's folder.
        liver: The label that is liver; None takes ``liver``, or the only one.
        sequence: What the model segments; None takes the channel's name.
        splits_final: nnU-Net's splits; None looks where nnU-Net keeps them.
        cohort: A table whose scan ids are the cases. Without it, or without the splits, nobody can say which
            patients the model has seen.

    Returns:
        What was imported.

    Raises:
        InputError: A file is missing, broken or holds what hepastage does not follow.
    """
    plans = read_json(results / "plans.json", "the plans of a trained nnU-Net model")
    dataset = read_json(results / "dataset.json", "the dataset.json of a trained nnU-Net model")
    chosen = _folds(results, folds, checkpoint)
    loaded = [load_weights(results / f"fold_{fold}" / checkpoint) for fold in chosen]
    first = loaded[0]
    configuration = str(first["init_args"]["configuration"])
    settings = settings_of(plans, dataset, configuration, liver, str(results))
    weights = [_fitting(item, settings, results / f"fold_{fold}") for item, fold in zip(loaded, chosen, strict=True)]
    splits_path = splits_final or _splits_final(results, settings.dataset)
    splits = None if splits_path is None else read_json(splits_path, "nnU-Net's splits_final.json")
    patients = None if cohort is None else _patients(Cohort.load(cohort))
    model = ImportedModel(
        settings=settings,
        trainer=str(first["trainer_name"]),
        name=results.resolve().name,
        mirror_axes=tuple(int(axis) for axis in first.get("inference_allowed_mirroring_axes") or ()),
        sequence=sequence or settings.channel,
        folds=tuple(
            _fold(fold, sha256_of_file(results / f"fold_{fold}" / checkpoint), splits, patients, splits_path)
            for fold in chosen
        ),
        split_sha256="" if splits is None else sha256_of_json(splits),
    )
    _write(model, plans, dataset, liver, weights, out)
    return model


def load_model(path: Path) -> tuple[ImportedModel, list[dict[str, torch.Tensor]]]:
    """Read an imported checkpoint.

    Args:
        path: The file that :func:`import_model` wrote.

    Returns:
        The model and the weights of each fold.

    Raises:
        InputError: It is not such a file.
    """
    payload = _payload(path)
    if payload is None:
        raise InputError(f"{path}: is not a model imported from nnU-Net; make one with 'hepastage nnunet import'")
    if payload["format"] != FORMAT:
        raise InputError(f"{path}: format {payload['format']} is not {FORMAT}; import the model anew")
    about = json.loads(payload["about"])
    plans, dataset = json.loads(payload["plans"]), json.loads(payload["dataset"])
    settings = settings_of(plans, dataset, about["configuration"], about["liver"], str(path))
    folds = tuple(
        ImportedFold(
            item["fold"], item["sha256"], _tuple(item["cases"]), _tuple(item["trained_on"]), tuple(item["tested"])
        )
        for item in about["folds"]
    )
    model = ImportedModel(
        settings,
        about["trainer"],
        about["name"],
        tuple(about["mirror_axes"]),
        about["sequence"],
        folds,
        about["split_sha256"],
    )
    return model, list(payload["weights"])


def is_imported(path: Path) -> bool:
    """Whether a checkpoint was imported from nnU-Net; False for what is no checkpoint at all."""
    return path.is_file() and _payload(path) is not None


def load_weights(path: Path) -> dict[str, Any]:
    """Read nnU-Net's checkpoint: plain values and arrays only, for unpickling anything else could run code.

    Raises:
        InputError: It is missing, broken or holds other things.
    """
    import numpy as np

    if not path.is_file():
        raise InputError(f"{path}: no such checkpoint; choose another --fold or --checkpoint")
    kinds: list[Any] = [
        np.dtype,
        np.ndarray,
        *(type(np.dtype(name)) for name in ("f2", "f4", "f8", "i4", "i8", "bool")),
    ]
    core = np._core.multiarray  # type: ignore[attr-defined]  # what NumPy's own pickles name
    kinds += [(core.scalar, "numpy.core.multiarray.scalar"), core.scalar, core._reconstruct]
    try:
        with torch.serialization.safe_globals(kinds):
            found: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        if not {"network_weights", "trainer_name", "init_args"} <= set(found):
            raise InputError(f"{path}: holds no network_weights, trainer_name and init_args; is it nnU-Net v2's?")
    except (pickle.UnpicklingError, RuntimeError, EOFError, TypeError) as error:
        line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(f"{path}: cannot be read as a checkpoint of plain values ({line}); copy it again") from error
    return found


def _payload(path: Path) -> dict[str, Any] | None:
    try:
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError):
        return None
    return found if isinstance(found, dict) and found.get("kind") == KIND else None


def _folds(results: Path, wanted: Sequence[str] | None, checkpoint: str) -> list[str]:
    if wanted:
        return [str(fold).removeprefix("fold_") for fold in wanted]
    found = [path.parent.name.removeprefix("fold_") for path in sorted(results.glob(f"fold_*/{checkpoint}"))]
    numbered = sorted((fold for fold in found if fold.isdigit()), key=int)
    if not found:
        raise InputError(f"{results}: no fold_*/{checkpoint}; give nnU-Net's folder of a trained configuration")
    return numbered or found


def _fitting(loaded: Mapping[str, Any], settings: NNUNetSettings, folder: Path) -> dict[str, torch.Tensor]:
    """The weights, once they have been put into the plan's network."""
    configuration = str(loaded["init_args"]["configuration"])
    if configuration != settings.configuration:
        raise InputError(f"{folder}: is of {configuration}, another fold of {settings.configuration}; give one of them")
    weights = {str(key).removeprefix("module."): value for key, value in loaded["network_weights"].items()}
    try:
        network_of(settings.architecture, 1, settings.classes).load_state_dict(weights, strict=True)
    except (RuntimeError, ValueError) as error:
        line = " ".join(str(error).split())[:300]
        raise InputError(f"{folder}: the weights do not fit the network of plans.json ({line})") from error
    return weights


def _splits_final(results: Path, dataset: str) -> Path | None:
    """``splits_final.json`` where nnU-Net or a careful user keeps it."""
    places = [results, results.parent]
    for variable in ("nnUNet_preprocessed", "nnUNet_raw"):
        if os.environ.get(variable):
            places.append(Path(os.environ[variable]) / dataset)
    return next((place / "splits_final.json" for place in places if (place / "splits_final.json").is_file()), None)


def _patients(cohort: Cohort) -> dict[str, str]:
    return {scan.scan_id: scan.patient_id for scan in cohort.scans}


def _fold(
    fold: str, sha256: str, splits: Any, patients: Mapping[str, str] | None, splits_path: Path | None
) -> ImportedFold:
    if splits is None:
        return ImportedFold(fold, sha256, None, None)
    tested: set[str] = set()
    try:
        if fold == "all":
            cases = {case for entry in splits for part in ("train", "val") for case in entry[part]}
        else:
            cases = set(splits[int(fold)]["train"])
            tested = set(splits[int(fold)].get("test", ()))
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise InputError(
            f"{splits_path}: says nothing of fold {fold} ({error!r}); give the model's own as --splits-final"
        ) from error
    names = tuple(sorted(str(case) for case in cases))
    if patients is None:
        # a case is not a patient: to take it for one could hide a leak
        return ImportedFold(fold, sha256, names, None)
    unknown = [name for name in names if name not in patients]
    if unknown:
        raise InputError(
            f"--cohort: has no scan {', '.join(unknown[:8])}, which fold {fold} trained on; give the table that was "
            "exported, or leave --cohort out: the patients are then unknown"
        )
    return ImportedFold(
        fold,
        sha256,
        names,
        tuple(sorted({patients[name] for name in names})),
        tuple(sorted({patients[name] for name in tested if name in patients})),
    )


def _write(
    model: ImportedModel, plans: Any, dataset: Any, liver: str | None, weights: list[dict[str, torch.Tensor]], out: Path
) -> None:
    about = {
        "configuration": model.settings.configuration,
        "trainer": model.trainer,
        "name": model.name,
        "mirror_axes": list(model.mirror_axes),
        "sequence": model.sequence,
        "liver": liver,
        "split_sha256": model.split_sha256,
        "folds": [dataclasses.asdict(fold) for fold in model.folds],
    }
    payload = {
        "kind": KIND,
        "format": FORMAT,
        "about": json.dumps(about),
        "plans": json.dumps(plans),
        "dataset": json.dumps(dataset),
        "weights": weights,
    }
    if out.suffix == ".ckpt":
        with atomic_path(out) as temporary:
            torch.save(payload, temporary)
        return
    run = RunDirectory(out)
    if run.config.exists() or (out.exists() and not out.is_dir()):
        raise InputError(f"{out}: is already a run directory or a file; choose another --out")
    with atomic_path(run.checkpoints / "best.ckpt") as temporary:
        torch.save(payload, temporary)
    identity = dataclasses.asdict(model.identity)
    write_json(run.provenance, {"identity": identity, "imported_from": "nnU-Net v2", **about})
    config = {"role": "segmenter", "imported": KIND, "data": {"init_args": {"sequence": model.sequence}}}
    write_text(run.config, yaml.safe_dump(config, sort_keys=False))
    run.mark_done("fit", imported_from="nnU-Net v2")


def _tuple(values: Sequence[str] | None) -> tuple[str, ...] | None:
    return None if values is None else tuple(values)
