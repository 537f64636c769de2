"""Out-of-fold masks for a whole cohort, with the record of who made each; resumable."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import track

from datamodules.cohort import Cohort, Scan
from datamodules.errors import InputError
from datamodules.files import sha256_of_file
from datamodules.images import read_image, read_mask, write_nifti
from datamodules.masks import MaskRecord, MaskSet, Segmenter, quality_band
from datamodules.splits import Splits
from experiments.trained_segmenter import (
    TrainedSegmenter,
    check_no_overwriting,
    check_same_preprocessing,
    segment,
    segmenter_runs,
)
from lightning_modules.metrics.segmentation import dice


def make_masks(path: Path, out: Path, cohort: Path | None = None) -> MaskSet:
    """Predict a mask for every scan by segmenters that did not train on its patient.

    A patient in the test part of some folds gets the mean of those folds' segmenters; else, of the folds
    that hold the patient for validation; a patient outside the split, of all. A killed run goes on where
    it stopped: finished masks are recognised by their segmenters and their content.

    Args:
        path: A segmenter's run directory, or a folder of several (a study).
        out: Folder for ``<scan_id>.nii.gz`` and ``masks.json``.
        cohort: Another cohort table than the one trained on; its patients count as outside the split
            unless they have the same ids.

    Returns:
        The masks.

    Raises:
        InputError: No segmenter, segmenters of different splits, or a patient whom all trained on.
    """
    segmenters = [TrainedSegmenter(run) for run in segmenter_runs(path)]
    hashes = {segmenter.identity.split_sha256 for segmenter in segmenters}
    if len(hashes) > 1:
        raise InputError(f"{path}: segmenters of {len(hashes)} different splits; give those of one study")
    check_same_preprocessing(segmenters)
    table, splits = _cohort_and_splits(segmenters[0], cohort)
    scans = list(table.select(sequences=segmenters[0].sequences).scans)
    chosen = {scan.scan_id: eligible(scan.patient_id, segmenters, splits) for scan in scans}
    stuck = sorted({scan.patient_id for scan in scans if not chosen[scan.scan_id]})
    if stuck:
        folds = ", ".join(str(segmenter.identity.fold) for segmenter in segmenters)
        raise InputError(
            *(f"patient {patient!r}: every segmenter given (fold {folds}) trained on it; train the other folds too"
              for patient in stuck)
        )  # fmt: skip
    originals = [file for scan in scans for file in (scan.image, scan.mask) if file is not None]
    check_no_overwriting({scan.scan_id: out / f"{scan.scan_id}.nii.gz" for scan in scans}, originals)
    makers = {segmenter.checkpoint_sha256: _maker(segmenter, splits) for segmenter in segmenters}
    masks = _finished(out)
    console = Console(file=sys.stderr)
    for scan in track(scans, description="out-of-fold masks", console=console, transient=True):
        names = tuple(sorted(segmenter.checkpoint_sha256 for segmenter in chosen[scan.scan_id]))
        if scan.scan_id in masks and masks[scan.scan_id].segmenters == names:
            continue
        masks[scan.scan_id] = _predict(scan, chosen[scan.scan_id], names, out)
        MaskSet(
            out, makers, {key: value for key, value in masks.items() if set(value.segmenters) <= set(makers)}
        ).save()
    return MaskSet.load(out)


def eligible(patient: str, segmenters: Sequence[TrainedSegmenter], splits: Splits) -> list[TrainedSegmenter]:
    """The segmenters that may make a patient's mask.

    Args:
        patient: Patient id.
        segmenters: All trained segmenters of the split.
        splits: The split.

    Returns:
        Those that hold the patient for testing, else for validation, else (a patient outside the split)
        all; empty where all trained on the patient.
    """
    for part in ("test", "valid"):
        found = [item for item in segmenters if patient in getattr(splits.folds[item.identity.fold or 0], part)]
        if found:
            return found
    inside = any(patient in fold.train for fold in splits.folds)
    return [] if inside else list(segmenters)


def _cohort_and_splits(segmenter: TrainedSegmenter, cohort: Path | None) -> tuple[Cohort, Splits]:
    settings = segmenter.config["data"]["init_args"]
    own = Cohort.load(settings["cohort"])
    splits = Splits.load(Path(settings["splits"]), own)
    return (own if cohort is None else Cohort.load(cohort)), splits


def _maker(segmenter: TrainedSegmenter, splits: Splits) -> Segmenter:
    identity = segmenter.identity
    trained_on = tuple(sorted(splits.folds[identity.fold or 0].train))
    return Segmenter(identity.study, identity.arm, identity.fold, identity.split_sha256, trained_on)


def _finished(out: Path) -> dict[str, MaskRecord]:
    """The masks that an earlier run has left whole."""
    if not (out / "masks.json").is_file():
        return {}
    earlier = MaskSet.load(out).masks
    return {
        key: record
        for key, record in earlier.items()
        if (out / record.file).is_file() and sha256_of_file(out / record.file) == record.sha256
    }


def _predict(scan: Scan, segmenters: Sequence[TrainedSegmenter], names: tuple[str, ...], out: Path) -> MaskRecord:
    image = read_image(scan.image)
    mask = segment(image, segmenters)
    target = out / f"{scan.scan_id}.nii.gz"
    write_nifti(target, mask, image.affine, like=scan.image)
    score = None if scan.mask is None else dice(mask, read_mask(scan.mask, scan.mask_labels).data)
    return MaskRecord(target.name, sha256_of_file(target), names, score, quality_band(score))
