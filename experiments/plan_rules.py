"""nnU-Net v2's published rules: from a fingerprint to spacing, patch, batch and topology.

All arrays of axes in this file are in nnU-Net's order: the array order of the fingerprint, transposed so that the axis
with the largest target spacing comes first. ``Plan.ras_axes`` leads from there to RAS+.

Source: Isensee et al. 2021, Nature Methods 18:203-211, supplement; Isensee et al. 2024, arXiv:2404.09556, for the
residual-encoder presets; both as nnU-Net 2.8 computes them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

from datamodules.errors import InputError
from experiments.plan_fingerprint import Fingerprint, Ints3

ANISOTROPY = 3.0
"""An axis is anisotropic where its spacing is this many times the next largest."""
LOWRES_SHARE = 0.25
"""A patch that holds less than this share of the median scan asks for a low-resolution configuration."""
_LOWRES_STEP = 1.03
_BASE_FEATURES = 32
_MAX_FEATURES = {2: 512, 3: 320}
_REFERENCE_BATCH = {2: 12, 3: 2}
_SMALLEST_BATCH = 2
_START_VOXELS = {2: 2048.0**2, 3: 256.0**3}
_MOST_STAGES = 99

Floats = npt.NDArray[np.float64]
Axes = tuple[int, ...]
Estimate = Callable[[Axes, Sequence[Axes], Sequence[int]], int]


@dataclasses.dataclass(frozen=True, slots=True)
class Preset:
    """One of nnU-Net's planners.

    Attributes:
        topology: ``plain`` or ``residual`` encoder.
        planner: nnU-Net's name of it.
        memory_gb: GPU memory that the reference values were measured with, and its default target.
        reference: Feature-map voxels that fill that memory, by number of dimensions.
        blocks: Convolutions or residual blocks of each encoder stage; the last number goes on.
        decoder_blocks: Convolutions of each decoder stage.
        covered: Share of the training voxels that a batch may hold.
        scales_with_batch: Whether the patch shrinks only once two of it (not the reference's batch) are too large.
    """

    topology: Literal["plain", "residual"]
    planner: str
    memory_gb: float
    reference: dict[int, float]
    blocks: tuple[int, ...]
    decoder_blocks: int
    covered: float
    scales_with_batch: bool


_RESIDUAL = (1, 3, 4, 6)
PRESETS = {
    "plain": Preset("plain", "ExperimentPlanner", 8, {2: 85e6, 3: 560e6}, (2,), 2, 0.05, True),
    "residual-m": Preset("residual", "nnUNetPlannerResEncM", 8, {2: 135e6, 3: 680e6}, _RESIDUAL, 1, 1.0, False),
    "residual-l": Preset("residual", "nnUNetPlannerResEncL", 24, {2: 380e6, 3: 2100e6}, _RESIDUAL, 1, 1.0, False),
    "residual-xl": Preset("residual", "nnUNetPlannerResEncXL", 40, {2: 560e6, 3: 3600e6}, _RESIDUAL, 1, 1.0, False),
}


@dataclasses.dataclass(frozen=True, slots=True)
class Configuration:
    """One network with its grid.

    Attributes:
        name: ``2d``, ``3d_fullres`` or ``3d_lowres``.
        spacing: Target voxel size in mm.
        median_shape: Median scan on that grid, in voxels.
        patch: Patch in voxels.
        batch_size: Patches in a batch.
        features: Channels of each stage.
        strides: Strides of each stage.
        kernel_sizes: Kernels of each stage.
        blocks: Convolutions or blocks of each encoder stage.
        decoder_blocks: The same of the decoder.
        start_patch: The patch before it was made to fit the memory.
        estimate: Feature-map voxels of one patch.
        reference: Feature-map voxels that the memory target allows.
        batch_limit: The largest batch that the cap on the share of training voxels allows.
        batch_dice: Whether nnU-Net pools the Dice loss over the batch.
    """

    name: str
    spacing: tuple[float, ...]
    median_shape: tuple[float, ...]
    patch: Axes
    batch_size: int
    features: Axes
    strides: tuple[Axes, ...]
    kernel_sizes: tuple[Axes, ...]
    blocks: Axes
    decoder_blocks: Axes
    start_patch: Axes
    estimate: int
    reference: float
    batch_limit: int
    batch_dice: bool


@dataclasses.dataclass(frozen=True, slots=True)
class Plan:
    """What the rules make of a fingerprint.

    Attributes:
        preset: Key of ``PRESETS``.
        memory_gb: Memory target.
        fingerprint: The facts.
        anisotropic: Whether the slice axis took the 10th percentile of the spacings.
        transpose: For each axis here, the array axis of the fingerprint.
        configurations: By name.
        lowres_reason: Why there is, or is not, a low-resolution configuration.
        mask_for_normalisation: Whether nnU-Net normalises by the voxels that are not 0 only.
    """

    preset: str
    memory_gb: float
    fingerprint: Fingerprint
    anisotropic: bool
    transpose: Ints3
    configurations: dict[str, Configuration]
    lowres_reason: str
    mask_for_normalisation: bool

    @property
    def ras_axes(self) -> Ints3:
        """For each axis here, the RAS+ axis that runs along it."""
        first, second, third = (self.fingerprint.axes[axis] for axis in self.transpose)
        return first, second, third


def make_plan(fingerprint: Fingerprint, preset: str = "plain", memory_gb: float | None = None) -> Plan:
    """Apply the rules.

    Args:
        fingerprint: Facts of the training scans.
        preset: Key of ``PRESETS``.
        memory_gb: GPU memory to fill; None takes the preset's.

    Returns:
        The plan, with ``2d`` always, ``3d_fullres`` unless scans are single slices, ``3d_lowres`` where asked for.

    Raises:
        InputError: An unknown preset, or a memory target that is not positive.
    """
    if preset not in PRESETS:
        raise InputError(f"--preset {preset}: choose one of {', '.join(PRESETS)}")
    rules = PRESETS[preset]
    memory_gb = rules.memory_gb if memory_gb is None else memory_gb
    if not memory_gb > 0:
        raise InputError(f"--memory {memory_gb}: give the GPU's memory in GB, such as {rules.memory_gb:g}")
    target, anisotropic = target_spacing(fingerprint)
    slices = int(np.argmax(target))
    order = (slices, *(axis for axis in range(3) if axis != slices))
    transpose = (order[0], order[1], order[2])
    spacing = target[list(transpose)]
    shapes = np.array(
        [
            [round(old / new * size) for old, new, size in zip(spacings, target, shape, strict=True)]
            for spacings, shape in zip(fingerprint.spacings, fingerprint.shapes, strict=True)
        ]
    )
    median = np.median(shapes, axis=0)[list(transpose)]
    planner = _Planner(rules, memory_gb, len(fingerprint.scans))
    voxels = float(np.prod(median)) * len(fingerprint.scans)
    found: dict[str, Configuration] = {}
    reason = "scans of a single slice have no 3-D configuration"
    if median[0] != 1:
        full = planner.configuration("3d_fullres", spacing, median, voxels)
        low, reason = planner.low_resolution(full, spacing, median)
        found["3d_fullres"] = dataclasses.replace(full, batch_dice=low is not None)
        if low is not None:
            found["3d_lowres"] = low
    found["2d"] = dataclasses.replace(planner.configuration("2d", spacing[1:], median[1:], voxels), batch_dice=True)
    cropped = float(np.median(fingerprint.relative_sizes)) < 0.75
    return Plan(preset, memory_gb, fingerprint, anisotropic, transpose, found, reason, cropped)


def target_spacing(fingerprint: Fingerprint) -> tuple[Floats, bool]:
    """Median spacing; for thick slices the 10th percentile along them.

    Returns:
        Spacing along the array axes in mm, and whether the rule for thick slices was used.
    """
    spacings = np.array(fingerprint.spacings)
    target = np.percentile(spacings, 50, axis=0)
    size = np.percentile(np.array(fingerprint.shapes), 50, axis=0)
    worst = int(np.argmax(target))
    others = [axis for axis in range(3) if axis != worst]
    largest = max(target[axis] for axis in others)
    thick = target[worst] > ANISOTROPY * largest
    few = size[worst] * ANISOTROPY < min(size[axis] for axis in others)
    if not (thick and few):
        return target, False
    fine = float(np.percentile(spacings[:, worst], 10))
    # never finer than the other axes
    target[worst] = max(largest, fine) + 1e-5 if fine < largest else fine
    return target, True


class _Planner:
    """The rules of one preset and memory target.

    Args:
        rules: The preset.
        memory_gb: Memory target.
        scans: Training scans.
    """

    def __init__(self, rules: Preset, memory_gb: float, scans: int) -> None:
        self.rules = rules
        self.memory_gb = memory_gb
        self.scans = scans
        self._estimates: dict[tuple[Axes, tuple[Axes, ...]], int] = {}

    def configuration(self, name: str, spacing: Floats, median: Floats, voxels: float) -> Configuration:
        """Patch, batch and topology for a grid.

        Args:
            name: The configuration's.
            spacing: Voxel size in mm, one number an axis (3, or 2 for slices).
            median: Median scan on the grid, in voxels.
            voxels: Voxels of all training scans on the grid.
        """
        dimensions = len(spacing)
        ratio = 1 / spacing
        cube = ratio * (_START_VOXELS[dimensions] / np.prod(ratio)) ** (1 / dimensions)
        start = [min(round(float(edge)), float(size)) for edge, size in zip(cube, median, strict=True)]
        patch, strides, kernels = _fitted(start, spacing)
        start_patch = patch
        reference = self.rules.reference[dimensions] * (self.memory_gb / self.rules.memory_gb)
        reference_batch = _REFERENCE_BATCH[dimensions]
        share = 2 / reference_batch if self.rules.scales_with_batch else 1.0
        estimate = self._estimate(patch, strides, kernels)
        while estimate * share > reference:
            # the axis that is largest relative to the scans gives way first; of equals the last
            axis = int(np.argsort([edge / size for edge, size in zip(patch, median, strict=True)])[-1])
            smaller = list(patch)
            smaller[axis] -= _divisor(strides)[axis]
            step = _divisor(_fitted(smaller, spacing)[1])[axis]
            # a smaller patch may be pooled less often and then has finer steps, which would else be skipped
            edges = list(patch)
            edges[axis] -= step
            if min(edges) < 1:
                raise InputError(
                    f"--memory {self.memory_gb:g}: too little for any patch of the {name} configuration; give more"
                )
            patch, strides, kernels = _fitted(edges, spacing)
            estimate = self._estimate(patch, strides, kernels)
        wanted = round((reference / estimate) * reference_batch)
        limit = round(voxels * self.rules.covered / float(np.prod(patch, dtype=np.float64)))
        stages = len(strides)
        return Configuration(
            name=name,
            spacing=tuple(float(value) for value in spacing),
            median_shape=tuple(float(value) for value in median),
            patch=patch,
            batch_size=max(min(wanted, limit), _SMALLEST_BATCH),
            features=self._features(stages, dimensions),
            strides=tuple(strides),
            kernel_sizes=tuple(kernels),
            blocks=self._blocks(stages),
            decoder_blocks=(self.rules.decoder_blocks,) * (stages - 1),
            start_patch=start_patch,
            estimate=estimate,
            reference=reference,
            batch_limit=limit,
            batch_dice=False,
        )

    def low_resolution(self, full: Configuration, spacing: Floats, median: Floats) -> tuple[Configuration | None, str]:
        """Coarsen the grid until a patch holds a quarter of the median scan.

        Returns:
            The configuration, or None where full resolution will do; and the reason in words.
        """
        share = float(np.prod(full.patch, dtype=np.float64) / np.prod(median))
        coarse = spacing.copy()
        low: Configuration | None = None
        voxels, held = float(np.prod(median)), float(np.prod(full.patch, dtype=np.float64))
        while held / voxels < LOWRES_SHARE:
            behind = coarse.max() / coarse > 2
            # thick slices wait until the other axes are within a factor of 2
            coarse = np.where(behind, coarse * _LOWRES_STEP, coarse) if behind.any() else coarse * _LOWRES_STEP
            scaled = spacing / coarse * median
            voxels = float(np.prod(scaled))
            rounded = np.array([round(float(size)) for size in scaled], dtype=np.float64)
            low = self.configuration("3d_lowres", coarse, rounded, voxels * self.scans)
            held = float(np.prod(low.patch, dtype=np.float64))
        if low is None:
            return None, f"a patch holds {share:.0%} of the median scan, and {LOWRES_SHARE:.0%} is enough"
        times = float(np.prod(median)) / voxels
        if times < 2:
            return (
                None,
                f"a patch holds {share:.0%} of the median scan, but coarsening would save only {times:.1f} times",
            )
        return low, f"a patch of full resolution holds {share:.0%} of the median scan, less than {LOWRES_SHARE:.0%}"

    def _features(self, stages: int, dimensions: int) -> Axes:
        return tuple(min(_MAX_FEATURES[dimensions], _BASE_FEATURES * 2**stage) for stage in range(stages))

    def _blocks(self, stages: int) -> Axes:
        blocks = self.rules.blocks
        return tuple(blocks[min(stage, len(blocks) - 1)] for stage in range(stages))

    def _estimate(self, patch: Axes, strides: list[Axes], kernels: list[Axes]) -> int:
        key = (patch, tuple(strides))
        if key not in self._estimates:
            stages = len(strides)
            self._estimates[key] = feature_map_size(
                patch,
                self.rules.topology,
                self._features(stages, len(patch)),
                strides,
                kernels,
                self._blocks(stages),
                (self.rules.decoder_blocks,) * (stages - 1),
            )
        return self._estimates[key]


def feature_map_size(
    patch: Axes,
    topology: Literal["plain", "residual"],
    features: Axes,
    strides: Sequence[Axes],
    kernels: Sequence[Axes],
    blocks: Axes,
    decoder_blocks: Axes,
) -> int:
    """Voxels of all feature maps of a network for one patch, which nnU-Net takes for the memory it needs."""
    import torch

    from lightning_modules.networks.unet import NNUNet

    dimensions: Literal[2, 3] = 2 if len(patch) == 2 else 3
    # only shapes are asked for: on this device nothing is allocated or drawn
    with torch.device("meta"):
        network = NNUNet(
            1, 2, topology, features, strides, kernels, blocks, decoder_blocks, False, "instance", dimensions
        )
    size: int = int(network.network.compute_conv_feature_map_size(patch))  # type: ignore[operator]  # the engine's own
    return size


def _fitted(edges: Sequence[float], spacing: Floats) -> tuple[Axes, list[Axes], list[Axes]]:
    """Topology for a patch, and the patch padded to what it must be divisible by."""
    from lightning_modules.networks.unet import topology_for

    strides, kernels = topology_for(edges, [float(value) for value in spacing], _MOST_STAGES)
    divisor = _divisor(strides)
    return tuple(int(-(-edge // part) * part) for edge, part in zip(edges, divisor, strict=True)), strides, kernels


def _divisor(strides: Sequence[Axes]) -> Axes:
    return tuple(int(factor) for factor in np.prod(np.array(strides), axis=0))
