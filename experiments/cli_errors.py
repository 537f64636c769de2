"""What goes wrong before a run begins, in one line a fault: wrong keys, and a model that does not fit its data."""

from __future__ import annotations

import re

from jsonargparse import ArgumentError
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from datamodules.base import CohortDataModule
from datamodules.errors import InputError
from datamodules.patients import PatientDataModule
from datamodules.segmentation import SegmentationDataModule
from datamodules.staging import StagingDataModule
from lightning_modules.classification import PatientClassifier
from lightning_modules.direct_classification import DirectClassificationModule
from lightning_modules.masked_classification import MaskedClassificationModule
from lightning_modules.segmentation import SegmentationModule
from lightning_modules.staging import StagingModule


def explained(message: str, error: BaseException | None) -> InputError:
    """What a person can act on of a parser's error.

    jsonargparse nests one cause in another and repeats the whole value; the innermost cause says what is wrong.

    Args:
        message: The whole message.
        error: The exception, whose chain of causes is followed.
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
    return InputError(f"{found.group(1)}: {readable(innermost)}" if found else readable(innermost))


def readable(message: str) -> str:
    """A jsonargparse message in one short line that says where the keys are listed."""
    text = re.sub(r'^Parser key "[^"]+": ', "", " ".join(message.split()))
    advice = "'hepastage fit --print_config -c CONFIG.yaml' lists the keys"
    text = text.replace(f"; {advice}", "")
    unknown = re.search(r"(?:Option|Key) '([^']+)' is not (?:accepted|expected)", text)
    unknown = unknown or re.search(r"[Uu]nrecognized arguments?: -*(\S+)", text)
    if unknown:
        return f"unknown key {unknown.group(1)!r}; {advice}"
    text = re.split(r" Given value type: |\. Got value: <|\. Got value: Namespace|\. Got value: {", text)[0]
    if len(text) > 400:
        text = f"{text[:190]} … {text[-190:]}"
    return text if ";" in text else f"{text}; {advice}"


def misfits(model: LightningModule, datamodule: CohortDataModule) -> list[str]:
    """Ways in which a model and its data contradict each other, one line each; found before anything is computed.

    Args:
        model: The learning module.
        datamodule: The data module.
    """
    mask_source = getattr(datamodule, "mask_source", None)
    if isinstance(model, DirectClassificationModule) and mask_source not in (None, "none"):
        return [f"data.init_args.mask_source: is {mask_source}, but a direct arm sees no mask; set it to none"]
    if isinstance(model, MaskedClassificationModule) and mask_source == "none":
        return ["data.init_args.mask_source: is none, but a masked arm needs masks; set it to out_of_fold"]
    if isinstance(model, SegmentationModule) != isinstance(datamodule, SegmentationDataModule):
        return [f"data.class_path: {type(datamodule).__name__} does not serve {type(model).__name__}; change one"]
    if isinstance(model, SegmentationModule) and isinstance(datamodule, SegmentationDataModule):
        # whole volumes are padded for prediction, patches for training are not
        name, size = "data.init_args.patch", datamodule.patch
        if size is None:
            name, size = "data.init_args.preprocessing.shape", datamodule.store.preprocessing.shape
        divisor = getattr(model.network, "divisible_by", (1, 1, 1))
        return [
            f"{key}: {list(edges)} does not suit the network's strides; give multiples of {list(divisor)}"
            for key, edges in ((name, size), ("model.init_args.window", model.window))
            if edges is not None and any(edge % factor for edge, factor in zip(edges, divisor, strict=True))
        ]
    if isinstance(model, StagingModule) != isinstance(datamodule, StagingDataModule):
        return [f"data.class_path: {type(datamodule).__name__} does not serve {type(model).__name__}; change one"]
    order = getattr(getattr(model, "network", None), "sequences", datamodule.sequences)
    if isinstance(model, StagingModule) and tuple(order) != datamodule.sequences:
        return [
            f"model.init_args.network.init_args.sequences: {list(order)} are not data.init_args.sequences, "
            f"{list(datamodule.sequences)}; give both the same order"
        ]
    if (
        isinstance(model, PatientClassifier)
        and isinstance(datamodule, PatientDataModule)
        and model.classes != len(datamodule.rule.class_names)
    ):
        return [
            f"model.init_args.classes: is {model.classes}, but the rule {datamodule.rule} has "
            f"{len(datamodule.rule.class_names)} classes; set it to that"
        ]
    return []
