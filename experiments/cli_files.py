"""Open cohort and split before anything heavy is imported, and hold what was given against them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from callbacks.run_directory import RunDirectory
from datamodules.errors import InputError
from experiments.cli_follow import attribute_of
from experiments.cli_given import Given
from experiments.cli_guards import plain_arguments
from experiments.cli_hints import (
    MASKED_WITHOUT,
    SEED,
    direct_with_masks,
    does_not_serve,
    required,
    unfit_edges,
    wrong_classes,
)
from experiments.cli_precheck import classes_given
from experiments.cli_source import signature_of

if TYPE_CHECKING:
    from datamodules.labels import LabelRule
    from datamodules.splits import Splits

DIRECT = "lightning_modules.direct_classification.DirectClassificationModule"
MASKED = "lightning_modules.masked_classification.MaskedClassificationModule"

STAGING = "lightning_modules.staging.StagingModule"
SEGMENTER = "lightning_modules.segmentation.SegmentationModule"
CLASSIFIERS = (DIRECT, MASKED, STAGING)

SERVED = {
    SEGMENTER: "datamodules.segmentation.SegmentationDataModule",
    STAGING: "datamodules.staging.StagingDataModule",
    "lightning_modules.slice_classification.SliceClassificationModule": "datamodules.slices.SliceDataModule",
}
"""Models, and the data that serve them and no other."""
SHIPPED = {DIRECT, MASKED, *SERVED, *SERVED.values(), "datamodules.classification.ClassificationDataModule"}


def check_files(given: Sequence[Given]) -> None:
    """Refuse names, files and data arguments that the run would refuse once torch is there, in the same words.

    What is not fully understood is left to the run. Nothing is checked where only the configuration is printed.

    Args:
        given: All that was given, which ``precheck`` has found nothing wrong with.

    Raises:
        InputError: Something is wrong: the first fault.
    """
    if any(item.key == "print_config" for item in given):
        return
    last = {item.key: item.value for item in given}
    classes = {owner: paths[-1][1] for owner, paths in classes_given(given).items()}
    # an empty word is read as null
    names = {key: "" if last.get(key, "name") is None else last.get(key, "name") for key in ("study", "arm")}
    if all(isinstance(name, str) for name in names.values()):
        RunDirectory.of_cell("runs", names["study"], names["arm"], "cell")
    arguments = _data_arguments(last, classes.get("data", ""))
    if arguments is None or "model" not in classes:
        return
    if arguments["cohort"] is None:
        raise InputError(required(["data.init_args.cohort"]))
    splits, rule = _open(arguments)
    _check_grid(last)
    if last.get("seed_everything") is False:
        raise InputError(SEED)
    if fault := misfit(classes["model"], classes["data"]):
        raise InputError(fault)
    _check_masks(arguments, classes["model"])
    _check_patch(given, arguments, classes)
    classes_of_model = last.get("model.init_args.classes", _default(classes["model"], "classes"))
    by_rule = rule is not None and arguments.get("target", "label") in ("label", "permuted")
    if rule is not None and by_rule and classes["model"] in CLASSIFIERS and type(classes_of_model) is int:
        wanted = len(rule.class_names)
        if classes_of_model != wanted:
            raise InputError(wrong_classes(classes_of_model, f"the rule {rule} has", wanted))
    _check_ranks(last, arguments, splits)
    _check_backbones(last, classes)


def misfit(model: str, data: str) -> str | None:
    """What is wrong with a model and data that serve another one, of the shipped classes; else None.

    Args:
        model: The learning module's class path.
        data: The data module's class path.
    """
    for module, datamodule in SERVED.items():
        if (model == module) != (data == datamodule) and {model, data} <= SHIPPED:
            return does_not_serve(data.rsplit(".", 1)[-1], model.rsplit(".", 1)[-1])
    return None


def _data_arguments(last: Mapping[str, Any], path: str) -> dict[str, Any] | None:
    """Arguments of the data module with its defaults; None where the words do not say them for certain."""
    signature = signature_of(path) if path.startswith("datamodules.") else None
    if signature is None or "cohort" not in signature:
        return None
    begins = ("data.init_args.", "data.class_path")
    if any(key.startswith("data.") and not key.startswith(begins) for key in last):
        return None
    arguments = {name: last.get(f"data.init_args.{name}", argument.default) for name, argument in signature.items()}
    for name, value in arguments.items():
        argument = signature[name]
        if f"data.init_args.{name}" not in last and argument.required and name != "cohort":
            return None
        kinds: tuple[type, ...] = (int,) if name in ("fold", "batch_size") else (str, type(None))
        kinds = (int, str) if name == "workers" else kinds
        checked = ("cohort", "splits", "fold", "sequence", "rule", "test_rule", "mask_source", "masks")
        if name in (*checked, "batch_size", "workers") and (not isinstance(value, kinds) or isinstance(value, bool)):
            return None
    return arguments


def _default(path: str, name: str) -> Any:
    argument = (signature_of(path) or {}).get(name)
    return None if argument is None else argument.default


def _open(arguments: Mapping[str, Any]) -> tuple[Splits | None, LabelRule | None]:
    # pandas takes half a second: not before it is needed
    from datamodules.opening import check_loading, label_rules, opened

    sequences = arguments.get("sequences") if "sequences" in arguments else [arguments.get("sequence")]
    if not isinstance(sequences, (list, tuple)) or not all(isinstance(name, str) for name in sequences):
        return None, None
    check_loading(arguments.get("batch_size", 1), arguments.get("workers", 0))
    _, splits = opened(arguments["cohort"], arguments.get("splits"), arguments.get("fold", 0), sequences)
    rule = label_rules(splits, arguments["rule"], arguments.get("test_rule"))[0] if "rule" in arguments else None
    return splits, rule


def _check_grid(last: Mapping[str, Any]) -> None:
    """Each value of the preprocessing by itself; whether they go together is seen when it is built."""
    begin = "data.init_args.preprocessing."
    values = {key.removeprefix(begin): value for key, value in last.items() if key.startswith(begin)}
    numbers = [values.get("spacing"), values.get("shape")]
    if not all(value is None or isinstance(value, list) for value in numbers) or begin[:-1] in last:
        return
    if not all(item is None or isinstance(item, (int, float)) for value in numbers for item in value or ()):
        return
    from datamodules.preprocessing import Preprocessing

    for name in ("spacing", "shape", "normalisation", "mask_interpolation"):
        if values.get(name) not in (None, "nyul") and None not in (values[name] if name == "shape" else ()):
            Preprocessing(**{name: values[name]})


def _check_masks(arguments: Mapping[str, Any], model: str) -> None:
    from datamodules.opening import check_masks

    source = arguments.get("mask_source")
    if source is None:
        return
    check_masks(source, arguments.get("masks"))
    if model == DIRECT and source != "none":
        raise InputError(direct_with_masks(source))
    if model == MASKED and source == "none":
        raise InputError(MASKED_WITHOUT)


def _check_patch(given: Sequence[Given], arguments: Mapping[str, Any], classes: Mapping[str, str]) -> None:
    """Patches and windows against what the network halves them to; whole volumes are padded."""
    network = classes.get("model.init_args.network", "")
    if classes["model"] != SEGMENTER or not network.startswith("lightning_modules."):
        return
    values, unknown = plain_arguments("model.init_args.network", given)
    strides = attribute_of(network, values, unknown, "strides")
    model, _ = plain_arguments("model", given)
    if strides is None or model.get("divisible_by") is not None:
        return
    divisor = [math.prod(factors) for factors in zip(*strides, strict=True)]
    keys = {"data.init_args.patch": arguments.get("patch"), "model.init_args.window": model.get("window")}
    faults = [
        unfit_edges(key, edges, divisor)
        for key, edges in keys.items()
        if isinstance(edges, list) and len(edges) == len(divisor) and all(type(edge) is int for edge in edges)
        and any(edge % factor for edge, factor in zip(edges, divisor, strict=True))
    ]  # fmt: skip
    if faults:
        raise InputError(*faults)


def _check_ranks(last: Mapping[str, Any], arguments: Mapping[str, Any], splits: Splits | None) -> None:
    from experiments.cli_machine import processes_of, rank_faults

    trainer = {name: last.get(f"trainer.{name}", 1) for name in ("devices", "num_nodes", "accumulate_grad_batches")}
    ranks, accumulated = processes_of(trainer), trainer["accumulate_grad_batches"]
    if splits is None or ranks is None or ranks < 2 or type(accumulated) is not int or accumulated < 1:
        return
    size = None if arguments.get("patch") is not None else arguments.get("batch_size")
    if faults := rank_faults(ranks, splits, arguments.get("fold", 0), size, accumulated):
        raise InputError(*faults)


def _check_backbones(last: Mapping[str, Any], classes: Mapping[str, str]) -> None:
    from lightning_modules.networks.backbones import backbone_fault

    for key, value in last.items():
        owner = key.removesuffix(".init_args.backbone")
        if owner == key or not isinstance(value, str):
            continue
        if "backbone" in (signature_of(classes.get(owner, "")) or {}) and classes[owner].startswith("lightning_mod"):
            fault = backbone_fault(value)
            if fault is not None:
                raise InputError(fault)
