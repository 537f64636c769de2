"""Quality of masks without truth: how far several predictions of one liver agree, and how well that stands for Dice."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage, stats
from sklearn.metrics import cohen_kappa_score

from datamodules.masks import MaskRecord, quality_band
from experiments.inference import mean_of, probability_of
from experiments.statistics_proportions import Interval
from experiments.trained_segmenter import Variant
from lightning_modules.metrics.segmentation import dice

LogOdds = npt.NDArray[np.float32]
VARIANTS = (
    Variant(),
    Variant(pad=(3, 3, 1)),
    Variant(contrast=0.75),
    Variant(contrast=1.3),
    Variant(brightness=-0.25),
    Variant(brightness=0.25),
)
"""Test-time variations of one segmenter: moved against its windows and strides, and with other grey values."""
_RESAMPLES = 2000
_FEWEST = 4  # patients: a rank correlation of fewer says nothing


@dataclasses.dataclass(frozen=True, slots=True)
class Agreement:
    """How far several predictions of one scan agree.

    Attributes:
        dice: Mean Dice of all pairs of their masks on the native grid, in [0, 1]; 0 where the averaged mask is empty,
            since every scan of a liver study holds a liver.
        border_entropy: Mean binary entropy in bits of the averaged probability over the voxels on either side of the
            averaged mask's border, in [0, 1]; None where that mask is empty.
    """

    dice: float
    border_entropy: float | None


def agreement_of(log_odds: Sequence[LogOdds]) -> Agreement:
    """Agreement of several predictions of one scan.

    Args:
        log_odds: Log-odds of liver of each prediction on the native grid, shape (I, J, K); at least two.

    Raises:
        ValueError: There is only one.

    Source: mean pairwise Dice of samples as in Roy et al. 2019, NeuroImage 195 (structure-wise uncertainty).
    """
    if len(log_odds) < 2:
        raise ValueError(f"{len(log_odds)} prediction: agreement needs at least two")
    masks = [values > 0 for values in log_odds]
    mean_mask = mean_of(log_odds) > 0
    if not mean_mask.any():
        return Agreement(0.0, None)
    pairs = [dice(first, second) for first, second in itertools.combinations(masks, 2)]
    return Agreement(float(np.mean(pairs)), border_entropy(probability_of(log_odds), mean_mask))


def border_entropy(probability: npt.NDArray[np.float32], mask: npt.NDArray[np.bool_]) -> float:
    """Mean binary entropy in bits along a mask's border.

    Args:
        probability: Of liver, in [0, 1], shape (I, J, K).
        mask: The mask, not empty, same shape.

    Returns:
        Mean over the mask's outermost voxels and their face neighbours outside it: 0 sure, 1 a coin's toss.
    """
    border = ndimage.binary_dilation(mask) & ~ndimage.binary_erosion(mask)
    p = probability[border].astype(np.float64)
    return float(np.mean(stats.entropy(np.stack([p, 1 - p]), base=2, axis=0)))


def agreement_report(masks: Mapping[str, MaskRecord], patients: Mapping[str, str], seed: int = 0) -> dict[str, Any]:
    """How well agreement stands for the Dice against the reference, over the masks that have both.

    Args:
        masks: By scan id.
        patients: Patient of each scan id: a patient's scans are drawn together.
        seed: Of the bootstrap.

    Returns:
        For ``segmenters`` and ``variations``, whichever occur: ``scans``, ``patients``; ``spearman`` of agreement and
        Dice, with ``low`` and ``high`` of its 95 % interval; ``spearman_entropy`` of border entropy and Dice, which
        should be negative; ``mean_absolute_error`` of agreement read as Dice; ``kappa``, quadratically weighted, of
        the two quality bands. A value that does not exist (fewer than four patients, no spread) is None.
    """
    report: dict[str, Any] = {}
    for kind in ("segmenters", "variations"):
        chosen = {
            scan_id: record
            for scan_id, record in masks.items()
            if record.agreement_of == kind and record.agreement is not None and record.dice is not None
        }
        if not chosen:
            continue
        agreement = np.array([record.agreement for record in chosen.values()], dtype=float)
        truth = np.array([record.dice for record in chosen.values()], dtype=float)
        entropy = np.array([np.nan if r.border_entropy is None else r.border_entropy for r in chosen.values()])
        sure = np.isfinite(entropy)
        who = [patients[scan_id] for scan_id in chosen]
        correlation = spearman_interval(agreement, truth, who, seed)
        report[kind] = {
            "scans": len(chosen),
            "patients": len(set(who)),
            "spearman": None if correlation is None else round(correlation.estimate, 4),
            "low": None if correlation is None else round(correlation.low, 4),
            "high": None if correlation is None else round(correlation.high, 4),
            "spearman_entropy": _rounded(_spearman(entropy[sure], truth[sure])) if sure.sum() >= _FEWEST else None,
            "mean_absolute_error": _rounded(float(np.abs(agreement - truth).mean())),
            "kappa": _kappa(agreement, truth),
        }
    return report


def spearman_interval(
    first: npt.NDArray[np.float64], second: npt.NDArray[np.float64], patients: Sequence[str], seed: int = 0
) -> Interval | None:
    """Rank correlation with a 95 % percentile interval by the bootstrap over patients.

    Args:
        first: Shape (n,).
        second: Shape (n,).
        patients: Patient of each entry, drawn together.
        seed: Of the random generator.

    Returns:
        None where there are fewer than four patients, or one side has no spread.
    """
    names = np.asarray(patients)
    members = [np.flatnonzero(names == name) for name in np.unique(names)]
    value = _spearman(first, second)
    if len(members) < _FEWEST or value is None:
        return None
    rng = np.random.default_rng(seed)
    resampled = []
    for _ in range(_RESAMPLES):
        rows = np.concatenate([members[index] for index in rng.integers(len(members), size=len(members))])
        drawn = _spearman(first[rows], second[rows])
        if drawn is not None:
            resampled.append(drawn)
    low, high = np.percentile(resampled, (2.5, 97.5))
    return Interval(value, float(low), float(high), 0.95, "percentile")


def report_lines(report: Mapping[str, Any]) -> list[str]:
    """The report in words, one line a kind of agreement."""
    lines = []
    for kind, found in report.items():
        who = "segmenters" if kind == "segmenters" else "variations of one segmenter's prediction"
        if found["spearman"] is None:
            lines.append(
                f"agreement of {who} against Dice, {found['patients']} patients: too few, or too much alike, to say"
            )
            continue
        kappa = "not defined" if found["kappa"] is None else f"{found['kappa']:.2f}"
        lines.append(
            f"agreement of {who} against Dice, {found['patients']} patients: rank correlation {found['spearman']:.2f} "
            f"[{found['low']:.2f}, {found['high']:.2f}], mean absolute error {found['mean_absolute_error']:.3f}, "
            f"weighted kappa of the bands {kappa}"
        )
    return lines


def _spearman(first: npt.NDArray[np.float64], second: npt.NDArray[np.float64]) -> float | None:
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return None
    return float(np.corrcoef(stats.rankdata(first), stats.rankdata(second))[0, 1])


def _kappa(agreement: Iterable[float], truth: Iterable[float]) -> float | None:
    said, true = [quality_band(value) for value in agreement], [quality_band(value) for value in truth]
    if len(set(said) | set(true)) < 2:
        return None
    return _rounded(float(cohen_kappa_score(said, true, labels=[1, 2, 3], weights="quadratic")))


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
