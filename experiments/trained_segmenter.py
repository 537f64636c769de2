"""A trained segmenter by itself: from a run directory to masks, with no training data at hand."""

from __future__ import annotations

import dataclasses
import importlib
import pickle
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LightningArgumentParser

from callbacks.run_directory import RunDirectory
from callbacks.segmentation_writer import liver_logit, native_log_odds
from datamodules.errors import InputError
from datamodules.files import sha256_of_file
from datamodules.images import Volume
from datamodules.preprocessing import Preprocessing, preprocess
from experiments.inference import Inference, mirror_axes_of
from experiments.memory import keep_memory
from experiments.precision import best_precision
from lightning_modules.networks.initial_weights import without_initial_weights
from lightning_modules.segmentation import SegmentationModule

PLAIN = Inference()
"""No mirroring, the precision of training, all parts kept."""


@dataclasses.dataclass(frozen=True, slots=True)
class Variant:
    """A small change of the preprocessed image that leaves the liver where it is.

    Attributes:
        pad: Voxels by which the image is continued at the lower end of each axis, which moves windows and strides.
        contrast: Factor of the normalised intensities.
        brightness: Added to them, in standard deviations of the body.
    """

    pad: tuple[int, int, int] = (0, 0, 0)
    contrast: float = 1.0
    brightness: float = 0.0

    def predict(self, module: SegmentationModule, image: torch.Tensor) -> torch.Tensor:
        """Logits (B, classes, I, J, K) of the changed image, brought back onto the image (B, 1, I, J, K)."""
        i, j, k = self.pad
        changed = image * self.contrast + self.brightness
        if any(self.pad):
            changed = torch.nn.functional.pad(changed, (k, 0, j, 0, i, 0), mode="replicate")
        logits: torch.Tensor = module(changed)
        return logits[..., i:, j:, k:]


class TrainedSegmenter:
    """A segmenter's weights, preprocessing and identity.

    Args:
        run: Its run directory.
        which: ``best``, ``last`` or a checkpoint's path.
        device: Where to compute; None takes an accelerator where there is one.

    Raises:
        InputError: The run is not a segmenter's, or has no such checkpoint.
    """

    def __init__(self, run: RunDirectory, which: str = "best", device: torch.device | None = None) -> None:
        self.run = run
        self.identity = run.identity()
        self.config = saved_config(run)
        path = run.checkpoint(which)
        self.checkpoint_sha256 = sha256_of_file(path)
        module = module_of(self.config)
        if not isinstance(module, SegmentationModule):
            raise InputError(
                f"{run.path}: is a run of {type(module).__name__}, not of a segmenter; give one that segments"
            )
        load_weights(module, path)
        self.device = device if device is not None else best_device()
        if self.device.type == "cpu":
            keep_memory()
        self.module = module.to(self.device).eval()
        self.preprocessing = preprocessing_of(self.config)

    @property
    def sequences(self) -> Sequence[str]:
        """Sequences that it was trained on."""
        given = self.config["data"]["init_args"]["sequence"]
        return [given] if isinstance(given, str) else [str(name) for name in given]

    def check(self, inference: Inference) -> None:
        """Refuse, before any work, what cannot be asked of this network.

        Raises:
            InputError: Mirroring is asked of a network that never saw it.
        """
        if inference.mirror:
            mirror_axes_of(self.config, str(self.run.path))

    def log_odds(self, image: Volume, inference: Inference = PLAIN) -> np.ndarray:
        """Log-odds of liver on the native grid, float32, shape of the image: resampled before any threshold.

        Args:
            image: A native volume.
            inference: How to ask.

        Raises:
            InputError: The image cannot be normalised, or mirroring is asked of a network that never saw it.
        """
        return self.variants(image, inference, [Variant()])[0]

    @torch.inference_mode()
    def variants(self, image: Volume, inference: Inference, variants: Sequence[Variant]) -> list[np.ndarray]:
        """Log-odds as :meth:`log_odds` gives them, of several variants of one image."""
        array, _, geometry = preprocess(image, None, self.preprocessing)
        tensor = torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))[None, None].to(self.device)
        own_axes = self.module.mirror_axes
        if inference.mirror:
            self.module.mirror_axes = mirror_axes_of(self.config, str(self.run.path))
        half = self.computes_in(inference) == "bf16"
        try:
            with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=half):
                logits = [variant.predict(self.module, tensor)[0] for variant in variants]
        finally:
            self.module.mirror_axes = own_axes
        return [native_log_odds(liver_logit(logit), geometry) for logit in logits]

    def computes_in(self, inference: Inference) -> str:
        """``32`` or ``bf16``: what is asked for, else that of training where the hardware is fast in it."""
        if inference.precision is not None:
            return inference.precision
        trained = str(self.config["trainer"].get("precision") or "32-true")
        return "bf16" if trained.startswith("bf16") and best_precision() == "bf16-mixed" else "32"


def check_same_preprocessing(segmenters: Sequence[TrainedSegmenter]) -> None:
    """Refuse to average log-odds of different grids.

    Raises:
        InputError: Two segmenters differ in their preprocessing.
    """
    first = segmenters[0]
    for other in segmenters[1:]:
        if other.preprocessing != first.preprocessing:
            raise InputError(
                f"{other.run.path}: its data.init_args.preprocessing differs from that of {first.run.path}, so the two "
                "cannot be averaged; give segmenters of one configuration"
            )


def check_no_overwriting(targets: Mapping[str, Path], originals: Iterable[Path]) -> None:
    """Refuse to write a mask over a scan or a reference mask.

    Args:
        targets: Where each mask would go, by the scan's name.
        originals: Files to keep.

    Raises:
        InputError: A target is one of the originals.
    """
    kept = {file.resolve() for file in originals}
    faults = [
        f"{target}: the mask of {name!r} would be written over a file of the data; choose another --out"
        for name, target in targets.items()
        if target.resolve() in kept
    ]
    if faults:
        raise InputError(*faults)


def saved_config(run: RunDirectory) -> dict[str, Any]:
    """The fully resolved configuration that a run was trained with.

    Raises:
        InputError: It is missing or torn.
    """
    try:
        config = yaml.safe_load(run.config.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{run.config}: cannot be read ({reason}); train the run again") from error
    if not isinstance(config, dict) or "data" not in config:
        raise InputError(f"{run.config}: is not a run's whole configuration; train the run again")
    return config


def load_weights(module: LightningModule, path: Path) -> None:
    """Put a checkpoint's weights into a module, all of them.

    Raises:
        InputError: The file is torn, or holds another network's weights.
    """
    try:
        # our own file: weights and plain values only
        state = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
        module.load_state_dict(state, strict=True)
    except (RuntimeError, KeyError, TypeError, EOFError, pickle.UnpicklingError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"{path}: is no checkpoint of this run's network ({reason}); give another --ckpt, or train the run again"
        ) from error


def module_of(config: dict[str, Any]) -> LightningModule:
    """Build the learning module that a saved configuration describes, with random weights and without reading any."""
    parser = LightningArgumentParser(exit_on_error=False)
    parser.add_lightning_class_args(LightningModule, "model", subclass_mode=True)
    parsed = parser.parse_object({"model": config["model"]})
    with without_initial_weights():
        module = parser.instantiate_classes(parsed).model
    if not isinstance(module, LightningModule):
        raise InputError("model: is not a LightningModule; set model.class_path")
    return module


def preprocessing_of(config: dict[str, Any]) -> Preprocessing:
    """The preprocessing of a saved configuration; its data module's default where it names none."""
    values: dict[str, Any] | None = config["data"]["init_args"]["preprocessing"]
    if values is None:
        default = importlib.import_module(config["data"]["class_path"].rpartition(".")[0]).DEFAULT_GRID
        return Preprocessing(**dataclasses.asdict(default))
    return Preprocessing(**values)


def best_device() -> torch.device:
    """An accelerator where there is one, else the CPU."""
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return accelerator if accelerator is not None else torch.device("cpu")


def segmenter_runs(path: Path) -> list[RunDirectory]:
    """The trained segmenters in a run directory or a study's folder, by fold.

    Several seeds of one fold are all returned: their log-odds are averaged.

    Raises:
        InputError: There are none, or they are of several arms.
    """
    configs = [path / "config.yaml"] if (path / "config.yaml").is_file() else sorted(path.rglob("config.yaml"))
    runs = [RunDirectory(config.parent) for config in configs if (config.parent / "provenance.json").is_file()]
    segmenters = [run for run in runs if run.identity().role == "segmenter"]
    found = [run for run in segmenters if "fit" in run.finished()]
    unfinished = [str(run.path) for run in segmenters if run not in found]
    if not found and unfinished:
        raise InputError(
            *(f"{run}: this segmenter's training has not ended; run its 'hepastage fit' again" for run in unfinished)
        )
    if not found:
        raise InputError(
            f"{path}: no trained segmenter in it; run 'hepastage fit -c segmentation --role segmenter' first"
        )
    if unfinished:
        warnings.warn(
            f"{path}: left out, because their training has not ended: {', '.join(unfinished)}; run their "
            "'hepastage fit' again, or remove them",
            stacklevel=2,
        )
    arms = sorted({run.identity().arm for run in found})
    if len(arms) > 1:
        raise InputError(f"{path}: has {len(arms)} kinds of segmenter ({', '.join(arms)}); give the folder of one")
    return sorted(found, key=lambda run: (run.identity().fold or 0, run.identity().seed))
