"""What goes wrong before a run begins, in one line a fault: wrong keys, and a model that does not fit its data."""

from __future__ import annotations

import difflib
import importlib
import re
from collections.abc import Sequence

from jsonargparse import ArgumentError
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from datamodules.base import CohortDataModule
from datamodules.errors import InputError
from datamodules.patients import PatientDataModule
from datamodules.segmentation import SegmentationDataModule
from datamodules.slices import SliceDataModule
from datamodules.staging import StagingDataModule
from experiments.cli_hints import (
    ADVICE,
    CHOICES,
    MASKED_WITHOUT,
    TYPES,
    WITH_MODULE,
    did_you_mean,
    direct_with_masks,
    does_not_serve,
    not_a_choice,
    required,
    staging_masks,
    unfit_edges,
    wrong_choice,
    wrong_classes,
    wrong_type,
)
from lightning_modules.classification import PatientClassifier
from lightning_modules.direct_classification import DirectClassificationModule
from lightning_modules.masked_classification import MaskedClassificationModule
from lightning_modules.segmentation import SegmentationModule
from lightning_modules.slice_classification import SliceClassificationModule
from lightning_modules.staging import StagingModule

WHERE = {"cohort": "data.init_args.cohort"}
"""Whole keys of what is required."""


def explained(message: str, error: BaseException | None, known: Sequence[str] = ()) -> InputError:
    """What a person can act on of a parser's error.

    jsonargparse nests one cause in another and repeats the whole value; the innermost cause says what is wrong.

    Args:
        message: The whole message.
        error: The exception, whose chain of causes is followed.
        known: Keys that the parser knows, for the nearest right one.
    """
    text = " ".join(message.split())
    found = re.search(r'Parser key "([^"]+)"', text)
    innermost = text
    while error is not None:
        if isinstance(error, InputError):
            # a class's own parser does not know which part of the configuration it parsed
            where = f"{found.group(1)}: " if found and error.faults[0].startswith("unknown key") else ""
            return InputError(where + error.faults[0], *error.faults[1:])
        if isinstance(error, (ValueError, TypeError, ArgumentError, MisconfigurationException)):
            innermost = " ".join(str(error).split()) or innermost
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    key = found.group(1) if found else ""
    if key in CHOICES:
        value = re.search(r"Got value: (.+?)(?: Given value type: .*)?$", innermost)
        return InputError(f"{key}: {not_a_choice(key, value.group(1) if value else 'the value')}")
    return InputError(f"{key}: {readable(innermost, known)}" if key else readable(innermost, known))


def readable(message: str, known: Sequence[str] = ()) -> str:
    """A jsonargparse message in one short line that says what to do.

    Args:
        message: Its text.
        known: Keys that the parser knows.
    """
    text = re.sub(r'^Parser key "[^"]+": ', "", " ".join(message.split()))
    text = text.replace(f"; {ADVICE}", "")
    unknown = re.search(r"(?:Option|Key) '([^']+)' is not (?:accepted|expected)", text)
    unknown = unknown or re.search(r"[Uu]nrecognized arguments?: -*([^\s=]+)", text)
    if unknown:
        return f"unknown key {unknown.group(1)!r}; {did_you_mean(unknown.group(1), known)}{ADVICE}"
    absent = re.search(r"arguments are required: (.+?)(?:;|$)", text)
    if absent:
        return required([WHERE.get(name, name) for name in absent.group(1).split(", ")])
    missing = re.search(r"(?:class_path '|path string: |Got value: \[')([\w.]+)", text)
    if missing and re.search("class_path '|dot import path|valid subclass", text):
        return f"there is no class {missing.group(1)!r}; {near_class(missing.group(1))}"
    strategy = re.search(r"invalid strategy name: `strategy='(\w+)'`", text)
    if strategy:
        return f"trainer.strategy: {not_a_choice('trainer.strategy', strategy.group(1))}"
    missing = re.search(r"expects a function or a callable class: module '([\w.]+)' has no attribute '(\w+)'", text)
    if missing:
        path = ".".join(missing.groups())
        return f"there is no class {path!r}; {near_class(path)}"
    closed = re.search(r"Expected a typing\.Literal\[(.*?)\]\. Got value: (.*?)(?: Given value type: .*)?$", text)
    if closed:
        return wrong_choice(closed.group(2), [closed.group(1).replace("'", "")])
    wrong = re.search(r"Expected an? <class '(\w+)'>\. Got value: (.*?)(?: Given value type: .*)?$", text)
    if wrong and wrong.group(1) in TYPES:
        return wrong_type(wrong.group(2), wrong.group(1))
    text = re.split(r" Given value type: |\. Got value: <|\. Got value: Namespace|\. Got value: {", text)[0]
    if len(text) > 400:
        text = f"{text[:190]} … {text[-190:]}"
    return text if ";" in text else f"{text}; {ADVICE}"


def near_class(path: str) -> str:
    """What to write for a class path that leads nowhere."""
    folder, _, name = path.rpartition(".")
    if not folder:
        return WITH_MODULE
    try:
        module = importlib.import_module(folder)
    except ImportError:
        return f"no module {folder!r} can be imported; correct it, or install its package"
    near = difflib.get_close_matches(name, [key for key, value in vars(module).items() if isinstance(value, type)], n=1)
    return f"did you mean '{folder}.{near[0]}'?" if near else f"{folder} has none of that name"


def misfits(model: LightningModule, datamodule: CohortDataModule) -> list[str]:
    """Ways in which a model and its data contradict each other, one line each; found before anything is computed.

    Args:
        model: The learning module.
        datamodule: The data module.
    """
    mask_source = getattr(datamodule, "mask_source", None)
    if isinstance(model, DirectClassificationModule) and mask_source not in (None, "none"):
        return [direct_with_masks(mask_source)]
    if isinstance(model, MaskedClassificationModule) and mask_source == "none":
        return [MASKED_WITHOUT]
    if isinstance(model, SegmentationModule) != isinstance(datamodule, SegmentationDataModule):
        return [does_not_serve(type(datamodule).__name__, type(model).__name__)]
    if isinstance(model, SegmentationModule) and isinstance(datamodule, SegmentationDataModule):
        # whole volumes are padded for prediction, patches for training are not
        name, size = "data.init_args.patch", datamodule.patch
        if size is None:
            name, size = "data.init_args.preprocessing.shape", datamodule.store.preprocessing.shape
        divisor = model.divisible_by
        return [
            unfit_edges(key, edges, divisor)
            for key, edges in ((name, size), ("model.init_args.window", model.window))
            if edges is not None and any(edge % factor for edge, factor in zip(edges, divisor, strict=True))
        ]
    if isinstance(model, StagingModule) != isinstance(datamodule, StagingDataModule):
        return [does_not_serve(type(datamodule).__name__, type(model).__name__)]
    if isinstance(model, SliceClassificationModule) != isinstance(datamodule, SliceDataModule):
        return [does_not_serve(type(datamodule).__name__, type(model).__name__)]
    order = getattr(getattr(model, "network", None), "sequences", datamodule.sequences)
    if isinstance(model, StagingModule) and tuple(order) != datamodule.sequences:
        return [
            f"model.init_args.network.init_args.sequences: {list(order)} are not data.init_args.sequences, "
            f"{list(datamodule.sequences)}; give both the same order"
        ]
    if isinstance(model, StagingModule) and isinstance(datamodule, StagingDataModule):
        if model.network.covariates != datamodule.covariates:
            return [
                f"model.init_args.network.init_args.covariates: {list(model.network.covariates)} are not "
                f"data.init_args.covariates, {list(datamodule.covariates)}; give both the same order"
            ]
        if model.network.uses_mask != (datamodule.mask_source != "none"):
            return [staging_masks(datamodule.mask_source)]
    if (
        isinstance(model, PatientClassifier)
        and isinstance(datamodule, PatientDataModule)
        and model.classes != len(datamodule.class_names)
    ):
        by_source = datamodule.target_kind == "source"
        what = "the cohort's sources are" if by_source else f"the rule {datamodule.rule} has"
        return [wrong_classes(model.classes, what, len(datamodule.class_names))]
    return []
