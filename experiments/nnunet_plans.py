"""Read what nnU-Net leaves beside its weights: ``plans.json`` and ``dataset.json``."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, get_args

from datamodules.errors import InputError
from datamodules.nnunet_preprocessing import SCHEMES, NNUNetGrid, Order, Resampling

_PLAIN_READERS = ("SimpleITKIO", "NibabelIO")
_TURNING_READERS = ("SimpleITKIOWithReorient", "NibabelIOWithReorient")
_RESAMPLER = "resample_data_or_seg_to_shape"
_UNET = "dynamic_network_architectures.architectures.unet."


@dataclasses.dataclass(frozen=True, slots=True)
class NNUNetSettings:
    """All that prediction needs to know.

    Attributes:
        configuration: ``3d_fullres``, ``3d_lowres``, ``2d`` or a user's own.
        grid: Preprocessing.
        patch: Window in voxels, transposed axes; two numbers go slice by slice.
        architecture: The network's class path and arguments, as in ``plans.json``.
        classes: Outputs of the network.
        liver: Outputs that are liver.
        channel: The image channel's name.
        dataset: The data set's name.
    """

    configuration: str
    grid: NNUNetGrid
    patch: tuple[int, ...]
    architecture: Mapping[str, Any]
    classes: int
    liver: tuple[int, ...]
    channel: str
    dataset: str


def settings_of(
    plans: Mapping[str, Any], dataset: Mapping[str, Any], configuration: str, liver: str | None, where: str
) -> NNUNetSettings:
    """Bring nnU-Net's two files to what prediction needs.

    Args:
        plans: Content of ``plans.json``.
        dataset: Content of ``dataset.json``.
        configuration: Which one.
        liver: The label that is liver; None takes ``liver``, or the only one there is.
        where: What errors call the folder.

    Raises:
        InputError: Something that hepastage does not follow, such as two channels, regions, a cascade, another
            preprocessor: all faults together.
    """
    try:
        return _settings(plans, dataset, configuration, liver, where)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"{where}: plans.json or dataset.json is not as nnU-Net v2 writes it ({error!r}); copy the folder again"
        ) from error


def _settings(
    plans: Mapping[str, Any], dataset: Mapping[str, Any], configuration: str, liver: str | None, where: str
) -> NNUNetSettings:
    chosen = configuration_of(plans, configuration, where)
    reader = str(plans.get("image_reader_writer", "SimpleITKIO"))
    channels = dict(dataset.get("channel_names") or dataset["modality"])
    labels = {str(name): value for name, value in dataset["labels"].items() if name != "ignore"}
    schemes = list(chosen["normalization_schemes"])
    faults = []
    if reader not in (*_PLAIN_READERS, *_TURNING_READERS):
        faults.append(f"plans.json: image_reader_writer {reader} is not followed; a reader of NIfTI is needed")
    if len(channels) != 1:
        faults.append(
            f"dataset.json: {len(channels)} channels ({', '.join(map(str, channels.values()))}); give a model of one"
        )
    if any(isinstance(value, list) for value in labels.values()):
        faults.append(
            "dataset.json: trained on regions (lists of labels), which are not followed; give a model of labels"
        )
    if schemes[0] not in SCHEMES:
        faults.append(f"plans.json: normalization_schemes {schemes[0]} is not followed; known: {', '.join(SCHEMES)}")
    if chosen.get("preprocessor_name", "DefaultPreprocessor") != "DefaultPreprocessor":
        faults.append(
            f"plans.json: preprocessor {chosen['preprocessor_name']} is not followed, only DefaultPreprocessor"
        )
    if chosen.get("previous_stage"):
        faults.append(f"plans.json: {configuration} is the second stage of a cascade; give 3d_fullres, 3d_lowres or 2d")
    for key in ("resampling_fn_data", "resampling_fn_probabilities"):
        if chosen.get(key, _RESAMPLER) != _RESAMPLER:
            faults.append(f"plans.json: {key} {chosen[key]} is not followed, only {_RESAMPLER}")
    if faults:
        raise InputError(*(f"{where}: {fault}" for fault in faults))
    values = sorted({int(value) for value in labels.values()})
    transpose = tuple(int(axis) for axis in plans["transpose_forward"])
    if sorted(transpose) != [0, 1, 2] or values != list(range(len(values))):
        raise InputError(f"{where}: transpose_forward or labels are not 0, 1, 2, …; copy the folder again")
    facts = plans.get("foreground_intensity_properties_per_channel") or {}
    return NNUNetSettings(
        configuration=configuration,
        grid=NNUNetGrid(
            spacing=tuple(float(value) for value in chosen["spacing"]),
            transpose=(transpose[0], transpose[1], transpose[2]),
            scheme=schemes[0],
            nonzero_only=bool(chosen["use_mask_for_norm"][0]),
            intensities={str(key): float(value) for key, value in facts.get("0", {}).items()},
            image=_resampling(chosen.get("resampling_fn_data_kwargs", {}), 3),
            logits=_resampling(chosen.get("resampling_fn_probabilities_kwargs", {}), 1),
            reoriented=reader in _TURNING_READERS,
        ),
        patch=tuple(int(edge) for edge in chosen["patch_size"]),
        architecture=architecture_of(chosen, where),
        classes=len(values),
        liver=(liver_output(labels, liver, where),),
        channel=str(next(iter(channels.values()))),
        dataset=str(plans.get("dataset_name", "nnUNet")),
    )


def configuration_of(plans: Mapping[str, Any], name: str, where: str) -> dict[str, Any]:
    """A configuration with what it inherits.

    Raises:
        InputError: There is none of that name, or it inherits from itself.
    """
    known: Mapping[str, Any] = plans["configurations"]
    chain: list[str] = []
    following: str | None = name
    while following is not None:
        if following not in known or following in chain:
            raise InputError(f"{where}: plans.json: no configuration {following!r}; it has {', '.join(known)}")
        chain.append(following)
        following = known[following].get("inherits_from")
    merged: dict[str, Any] = {}
    for part in reversed(chain):
        merged.update(known[part])
    return merged


def architecture_of(chosen: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The network's description, also from plans of nnU-Net before 2.4.

    Returns:
        ``network_class_name``, ``arch_kwargs`` and ``_kw_requires_import``.

    Raises:
        InputError: The network is not of dynamic-network-architectures.
    """
    if "architecture" in chosen:
        found: dict[str, Any] = dict(chosen["architecture"])
        if not str(found["network_class_name"]).startswith("dynamic_network_architectures."):
            raise InputError(
                f"{where}: plans.json: the network {found['network_class_name']} is not of "
                "dynamic-network-architectures and is not followed"
            )
        return found
    name = str(chosen["UNet_class_name"])
    if name not in ("PlainConvUNet", "ResidualEncoderUNet"):
        raise InputError(f"{where}: plans.json: the network {name} is not followed")
    blocks = list(chosen["n_conv_per_stage_encoder"])
    dimensions = len(chosen["patch_size"])
    base, most = int(chosen["UNet_base_num_features"]), int(chosen["unet_max_num_features"])
    arguments = {
        "n_stages": len(blocks),
        "features_per_stage": [min(base * 2**stage, most) for stage in range(len(blocks))],
        "conv_op": f"torch.nn.modules.conv.Conv{dimensions}d",
        "kernel_sizes": chosen["conv_kernel_sizes"],
        "strides": chosen["pool_op_kernel_sizes"],
        "n_conv_per_stage" if name == "PlainConvUNet" else "n_blocks_per_stage": blocks,
        "n_conv_per_stage_decoder": list(chosen["n_conv_per_stage_decoder"]),
        "conv_bias": True,
        "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{dimensions}d",
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }
    return {
        "network_class_name": _UNET + name,
        "arch_kwargs": arguments,
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }


def liver_output(labels: Mapping[str, Any], wanted: str | None, where: str) -> int:
    """The network's output that is liver.

    Args:
        labels: Value by name.
        wanted: The label's name; None takes ``liver`` in any case of letters, or the only foreground label.
        where: What errors call the folder.

    Raises:
        InputError: There is no such label, or several could be it.
    """
    foreground = {name: int(value) for name, value in labels.items() if int(value) != 0}
    matches: Sequence[str] = [name for name in foreground if name.casefold() == (wanted or "liver").casefold()]
    if not matches and wanted is None and len(foreground) == 1:
        matches = list(foreground)
    if len(matches) != 1:
        raise InputError(
            f"{where}: dataset.json: no label {wanted or 'liver'!r}; it has {', '.join(foreground)}: use --liver"
        )
    return foreground[matches[0]]


def _resampling(arguments: Mapping[str, Any], order: int) -> Resampling:
    separate = arguments.get("force_separate_z")
    return Resampling(
        _order(arguments.get("order", order)),
        _order(arguments.get("order_z", 0)),
        None if separate is None else bool(separate),
    )


def _order(value: Any) -> Order:
    """The order of a spline, 0 to 5."""
    known: tuple[Order, ...] = get_args(Order)
    return known[known.index(int(value))]
