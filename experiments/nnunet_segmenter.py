"""A model imported from nnU-Net, asked as any trained segmenter is: log-odds of liver on the native grid."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from callbacks.run_directory import RunDirectory
from datamodules.errors import InputError
from datamodules.images import Volume
from datamodules.masks import Segmenter
from datamodules.nnunet_preprocessing import NNUNetCase, preprocess_as_nnunet, to_native_as_nnunet
from experiments.inference import Inference, mirror_axes_of
from experiments.memory import keep_memory
from experiments.nnunet_import import KIND, ImportedFold, ImportedModel, is_imported, load_model
from experiments.trained_segmenter import PLAIN, TrainedSegmenter, Variant, best_device
from lightning_modules.networks.nnunet_network import network_of, sliding_logits


class ImportedSegmenter(TrainedSegmenter):
    """The networks of an imported checkpoint, averaged as nnU-Net does: logits on the plan's grid.

    Args:
        path: The checkpoint, or the run directory that holds it.
        folds: Only these of its folds; None takes all.
        device: Where to compute; None takes an accelerator where there is one.

    Raises:
        InputError: It is no imported checkpoint, or has no such fold.
    """

    def __init__(self, path: Path, folds: Sequence[str] | None = None, device: torch.device | None = None) -> None:
        # no call of the base: a run directory's network and preprocessing are described in other words
        file = checkpoint_of(path)
        self.run = RunDirectory(path)
        self.model, weights = load_model(file)
        known = [fold.fold for fold in self.model.folds]
        wanted = list(known if folds is None else folds)
        if not wanted or not set(wanted) <= set(known):
            raise InputError(f"{path}: has the folds {', '.join(known)}, not {', '.join(wanted) or 'none'}")
        self.folds: tuple[ImportedFold, ...] = tuple(fold for fold in self.model.folds if fold.fold in wanted)
        self.identity = self.model.identity
        # as much of a configuration as prediction asks for
        self.config = {
            "model": {"init_args": {"mirror_axes": list(self.model.mirror_axes)}},
            "data": {"init_args": {"sequence": self.model.sequence}},
        }
        self.device = device if device is not None else best_device()
        if self.device.type == "cpu":
            keep_memory()
        settings = self.model.settings
        # not hepastage's: compared only, to refuse an average over two grids
        self.preprocessing: Any = settings.grid
        self._networks = []
        for fold, values in zip(self.model.folds, weights, strict=True):
            if fold.fold in wanted:
                network = network_of(settings.architecture, 1, settings.classes)
                network.load_state_dict(values, strict=True)
                self._networks.append(network.to(self.device).eval())
        # one network is called by its own hash, so that a fold alone and in the ensemble have one name in records
        self.checkpoint_sha256 = self.folds[0].sha256 if len(self.folds) == 1 else _joined(self.folds)

    @torch.inference_mode()
    def variants(
        self, image: Volume, inference: Inference = PLAIN, variants: Sequence[Variant] = ()
    ) -> list[np.ndarray]:
        """Log-odds of liver on the native grid, of several variants of one image; see the base class.

        With more than two labels, those of the best liver label against the best other, so that the mask is the
        arg-max of the resampled logits.
        """
        settings = self.model.settings
        case = preprocess_as_nnunet(image, settings.grid)
        tensor = torch.from_numpy(case.data).to(self.device)
        axes: Sequence[int] = ()
        if inference.mirror:
            axes = mirror_axes_of(self.config, str(self.run.path))
        half = self.computes_in(inference) == "bf16"
        out = []
        for variant in variants or (Variant(),):
            with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=half):
                logits = self._logits(tensor, variant, axes)
            out.append(self._native(logits, case))
        return out

    def computes_in(self, inference: Inference) -> str:
        """``32`` unless ``bf16`` is asked for."""
        return inference.precision or "32"

    def alone(self) -> list[ImportedSegmenter]:
        """Each fold as a segmenter of its own, for masks by models that did not train on a patient."""
        return [ImportedSegmenter(self.run.path, [fold.fold], self.device) for fold in self.folds]

    def _logits(self, image: torch.Tensor, variant: Variant, axes: Sequence[int]) -> torch.Tensor:
        changed = image * variant.contrast + variant.brightness
        low = tuple(variant.pad)
        if any(low):
            padding = (low[2], 0, low[1], 0, low[0], 0)
            changed = torch.nn.functional.pad(changed[None, None], padding, mode="replicate")[0, 0]
        patch = self.model.settings.patch
        total = sliding_logits(self._networks[0], changed, patch, mirror_axes=axes)
        for network in self._networks[1:]:
            total = total + sliding_logits(network, changed, patch, mirror_axes=axes)
        return (total / len(self._networks))[:, low[0] :, low[1] :, low[2] :]

    def _native(self, logits: torch.Tensor, case: NNUNetCase) -> np.ndarray:
        grid, liver = self.model.settings.grid, set(self.model.settings.liver)
        arrays = logits.float().cpu().numpy()
        others = [index for index in range(len(arrays)) if index not in liver]
        if len(arrays) == 2:
            # linear interpolation commutes with the difference: one array to resample and not two
            (own,) = liver
            return to_native_as_nnunet(arrays[own] - arrays[others[0]], case, grid)
        native = {index: to_native_as_nnunet(arrays[index], case, grid, 0.0) for index in range(len(arrays))}
        inside = np.maximum.reduce([native[index] for index in sorted(liver)])
        return np.asarray(inside - np.maximum.reduce([native[index] for index in others]), dtype=np.float32)


def checkpoint_of(path: Path) -> Path:
    """The checkpoint that a user means: the file itself, or the one in a run directory."""
    return RunDirectory(path).checkpoints / "best.ckpt" if path.is_dir() else path


def imported(path: Path) -> bool:
    """Whether a path is an imported checkpoint, or a run directory that holds one."""
    if path.is_dir():
        config = path / "config.yaml"
        return config.is_file() and f"imported: {KIND}" in config.read_text(encoding="utf-8").splitlines()
    return path.suffix == ".ckpt" and is_imported(path)


def open_segmenter(run: str, which: str = "best") -> TrainedSegmenter:
    """A segmenter that hepastage trained, or one imported from nnU-Net.

    Args:
        run: A run directory, or an imported checkpoint.
        which: ``best``, ``last`` or a checkpoint's path; an imported model has one.

    Raises:
        InputError: It is neither.
    """
    if not imported(Path(run)):
        return TrainedSegmenter(RunDirectory.existing(run), which)
    if which != "best":
        raise InputError(f"--ckpt {which}: {run} was imported from nnU-Net and has one checkpoint; leave --ckpt out")
    return ImportedSegmenter(Path(run))


def maker_of(fold: ImportedFold, model: ImportedModel) -> Segmenter:
    """What the record of a folder of masks says about a fold."""
    number = int(fold.fold) if fold.fold.isdigit() else None
    study = model.settings.dataset
    words = f"nnU-Net {study} {model.name} fold {fold.fold}"
    return Segmenter(study, model.name, number, model.split_sha256, fold.trained_on, words)


def _joined(folds: Sequence[ImportedFold]) -> str:
    from datamodules.files import sha256_of_json

    return sha256_of_json([fold.sha256 for fold in folds])
