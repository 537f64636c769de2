"""Plans on disk: an overlay for ``hepastage fit`` that says why each value was chosen, and the fingerprint as JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from datamodules.cohort import Cohort
from datamodules.errors import InputError
from datamodules.files import write_json, write_text
from datamodules.splits import Splits
from experiments.plan_fingerprint import fingerprint_of
from experiments.plan_rules import ANISOTROPY, PRESETS, Configuration, Plan, make_plan

CONFIGURATIONS = ("3d_fullres", "3d_lowres", "2d")
_RAS = ("I (left-right)", "J (posterior-anterior)", "K (inferior-superior)")
_SPACING_DIGITS = 7  # a header's float32 holds no more


def plan_experiment(
    cohort: Path,
    splits: Path,
    fold: int,
    out: Path,
    *,
    sequence: str | None = None,
    preset: str = "plain",
    memory_gb: float | None = None,
    configuration: str = "3d_fullres",
    progress: bool = False,
) -> dict[str, Path]:
    """Plan a segmenter for a fold by nnU-Net's rules, and write the overlay.

    Args:
        cohort: The table.
        splits: Its split file.
        fold: The fold whose training patients are looked at.
        out: The overlay, ``.yaml``. With ``configuration="all"`` each name is put before the suffix.
        sequence: Which sequence; None where the cohort has one.
        preset: Key of ``experiments.plan_rules.PRESETS``.
        memory_gb: GPU memory to fill; None takes the preset's.
        configuration: ``3d_fullres``, ``3d_lowres``, ``2d`` or ``all`` that there are.
        progress: Whether to show a progress bar on stderr.

    Returns:
        The overlays by configuration; beside them ``<stem>_fingerprint.json`` has been written.

    Raises:
        InputError: See ``fingerprint_of`` and ``make_plan``; or the rules ask for no such configuration.
    """
    if out.suffix not in (".yaml", ".yml"):
        raise InputError(f"--out {out}: a plan ends in .yaml; rename it")
    if configuration not in (*CONFIGURATIONS, "all"):
        raise InputError(f"--configuration {configuration}: choose one of {', '.join(CONFIGURATIONS)}, all")
    table = Cohort.load(cohort)
    fingerprint = fingerprint_of(table, Splits.load(splits, table), fold, sequence, progress)
    plan = make_plan(fingerprint, preset, memory_gb)
    if configuration == "all":
        names = [name for name in CONFIGURATIONS if name in plan.configurations]
    else:
        names = [configuration]
    missing = [name for name in names if name not in plan.configurations]
    if missing:
        raise InputError(f"--configuration {missing[0]}: the rules ask for none: {plan.lowres_reason}; choose another")
    written = {}
    for name in names:
        path = out if configuration != "all" else out.with_name(f"{out.stem}_{name}{out.suffix}")
        write_text(path, overlay_text(plan, name))
        written[name] = path
    write_json(out.with_name(f"{out.stem}_fingerprint.json"), {**fingerprint.as_json(), "plan": _plan_json(plan)})
    return written


def overlay_text(plan: Plan, name: str) -> str:
    """The overlay of a configuration as YAML, with its reasons in comments."""
    body = yaml.safe_dump(overlay(plan, name), sort_keys=False, default_flow_style=None, width=118)
    # shipped and written YAML is ASCII: every locale reads it
    comments = "\n".join(f"# {line}".rstrip() for line in _reasons(plan, plan.configurations[name]))
    return comments.encode("ascii", "replace").decode() + "\n" + body


def overlay(plan: Plan, name: str) -> dict[str, Any]:
    """The overlay of a configuration, all axes in RAS+ order (I, J, K).

    Slices of the 2-D configuration are patches of one voxel along the slice axis, and its kernels and strides are 1
    there: numerically the same network as one of two dimensions.
    """
    chosen = plan.configurations[name]
    flat = len(chosen.patch) == 2
    patch = to_ras(chosen.patch, plan, 1)
    spacing: list[float | None] = [
        None if value is None else round(float(value), _SPACING_DIGITS) for value in to_ras(chosen.spacing, plan, None)
    ]
    network = {
        "topology": PRESETS[plan.preset].topology,
        "features": list(chosen.features),
        "strides": [to_ras(entry, plan, 1) for entry in chosen.strides],
        "kernel_sizes": [to_ras(entry, plan, 1) for entry in chosen.kernel_sizes],
        "blocks": list(chosen.blocks),
        "decoder_blocks": list(chosen.decoder_blocks),
    }
    data: dict[str, Any] = {
        "sequence": plan.fingerprint.sequence,
        "preprocessing": {"spacing": spacing, "normalisation": "zscore"},
        "patch": patch,
        "batch_size": chosen.batch_size,
    }
    if flat:
        data["augmentation"] = _flat_augmentation(plan)
    return {
        "model": {
            "class_path": "lightning_modules.segmentation.SegmentationModule",
            "init_args": {
                "network": {"class_path": "lightning_modules.networks.unet.NNUNet", "init_args": network},
                "window": list(patch),
            },
        },
        "data": {"class_path": "datamodules.segmentation.SegmentationDataModule", "init_args": data},
    }


def to_ras(values: Sequence[Any], plan: Plan, missing: Any) -> list[Any]:
    """Bring one value an axis from nnU-Net's order to (I, J, K) of RAS+.

    Args:
        values: Three values, or the two of a slice.
        plan: Says which axis is which.
        missing: Stands for the slice axis where there are two.
    """
    whole = [missing, *values] if len(values) == 2 else list(values)
    out: list[Any] = [None] * 3
    for value, axis in zip(whole, plan.ras_axes, strict=True):
        out[axis] = value
    return out


def _flat_augmentation(plan: Plan) -> dict[str, Any]:
    """Augmentation that never leaves the slice; a shift or tilt across it would sample air."""
    degrees = [0.0, 0.0, 0.0]
    degrees[plan.ras_axes[0]] = 30.0
    # transforms work in mm, and the slices' spacing is not in the preprocessing; in a slice it changes nothing
    spacing = [0.0, 0.0, 0.0]
    for value, axis in zip(np.median(np.array(plan.fingerprint.spacings), axis=0), plan.fingerprint.axes, strict=True):
        spacing[axis] = round(float(value), _SPACING_DIGITS)
    package = "datamodules.augmentation"
    transforms = [
        ("RandomAffine", {"scales": [0.8, 1.25], "degrees": degrees, "translation": 0.0, "isotropic": True, "p": 0.7}),
        ("RandomIntensityRemap", {"num_points": 6, "max_shift": 0.3, "p": 0.3}),
        ("RandomNoise", {"std": [0.0, 0.2], "p": 0.15}),
        ("RandomContrast", {"factor": [0.75, 1.25], "p": 0.15}),
        ("RandomGamma", {"log_gamma": [-0.35, 0.4], "invert_probability": 0.25, "p": 0.3}),
    ]
    return {
        "class_path": f"{package}.BatchedAugmentation",
        "init_args": {
            "spacing": spacing,
            "transforms": [
                {"class_path": f"{package}.{name}", "init_args": arguments} for name, arguments in transforms
            ],
        },
    }


def _reasons(plan: Plan, chosen: Configuration) -> list[str]:
    print_ = plan.fingerprint
    rules = PRESETS[plan.preset]
    spacings, shapes = np.array(print_.spacings), np.array(print_.shapes)
    slices = plan.ras_axes[0]
    low, middle, high = (_numbers(np.percentile(spacings, part, axis=0), plan) for part in (0, 50, 100))
    rule = (
        f"median; along {_RAS[slices]} the 10th percentile, because they are over {ANISOTROPY:g} times as thick as wide"
        if plan.anisotropic
        else "median of each axis"
    )
    lines = [
        f"{chosen.name}, for the training patients of fold {print_.fold} by nnU-Net's rules ({rules.planner}).",
        f"Use: hepastage fit -c segmentation -c THIS_FILE --data.init_args.fold {print_.fold} ...",
        "",
        f"cohort {print_.cohort} ({print_.cohort_sha256[:12]}), split {print_.split_sha256[:12]}",
        f"preset {plan.preset}, {plan.memory_gb:g} GB; axes below are I, J, K of RAS+",
        "",
        "fingerprint",
        f"  scans              {len(print_.scans)} of {print_.sequence}",
        f"  spacing in mm      {middle} (median), {low} (least), {high} (largest)",
        f"  voxels             {_numbers(np.median(shapes, axis=0), plan)} (median, without empty borders)",
        f"  borders            a scan keeps {np.median(print_.relative_sizes):.0%} of its voxels (median)",
        f"  liver, raw units   mean {print_.intensities['mean']:.4g}, std {print_.intensities['std']:.4g}, 0.5 % "
        f"{print_.intensities['percentile_00_5']:.4g}, 99.5 % {print_.intensities['percentile_99_5']:.4g}",
    ]
    if print_.mixed:
        lines.append("  NOTE               files store their axes in different orders; nnU-Net itself would mix them")
    lines += [
        "",
        "why",
        f"  spacing            {rule}" if chosen.name != "3d_lowres" else f"  spacing            {plan.lowres_reason}",
        f"  patch              {_sizes(chosen.start_patch, plan)} would cover a scan"
        + (
            " and fits the memory"
            if chosen.start_patch == chosen.patch
            else f"; made smaller until it fitted the memory: {_sizes(chosen.patch, plan)}"
        ),
        f"  memory             {chosen.estimate / 1e6:.0f} million feature-map voxels a patch; "
        f"{plan.memory_gb:g} GB hold {chosen.reference / 1e6:.0f} million",
        f"  batch_size         {chosen.batch_size}: what the memory holds, at most {rules.covered:.0%} of all training "
        f"voxels ({chosen.batch_limit}), at least 2",
        f"  strides            {len(chosen.strides)} stages: an axis is halved while 4 voxels remain, thick ones later",
        "  kernel_sizes       1 along an axis until its voxels are within twice the smallest, then 3",
        "  normalisation      z-score; nnU-Net takes mean and spread of "
        + ("the voxels that are not 0" if plan.mask_for_normalisation else "all voxels")
        + ", hepastage of the body",
        f"  batch Dice         nnU-Net would {'' if chosen.batch_dice else 'not '}pool the Dice loss over a batch",
        f"  low resolution     {plan.lowres_reason}",
    ]
    if chosen.name == "2d":
        lines.append("  augmentation       in the slice only; patches are one voxel thick")
    return lines


def _numbers(values: Any, plan: Plan) -> str:
    """Array-order values as text in RAS+ order."""
    out = [0.0, 0.0, 0.0]
    for value, axis in zip(values, plan.fingerprint.axes, strict=True):
        out[axis] = float(value)
    return " x ".join(f"{value:.4g}" for value in out)


def _sizes(values: Sequence[int], plan: Plan) -> str:
    return " x ".join(str(value) for value in to_ras(values, plan, 1))


def _plan_json(plan: Plan) -> dict[str, Any]:
    """The plan in nnU-Net's own axis order, for those who compare the two."""
    return {
        "axis_order": "nnU-Net's: array order, transposed",
        "preset": plan.preset,
        "planner": PRESETS[plan.preset].planner,
        "memory_gb": plan.memory_gb,
        "transpose_forward": list(plan.transpose),
        "ras_axes": list(plan.ras_axes),
        "configurations": {name: dataclasses.asdict(value) for name, value in plan.configurations.items()},
    }
