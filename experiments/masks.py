"""Out-of-fold masks for a whole cohort, with the record of who made each; resumable."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track

from datamodules.cohort import Cohort, Scan
from datamodules.errors import InputError
from datamodules.files import sha256_of_file, write_json
from datamodules.images import read_image, read_mask, write_nifti
from datamodules.masks import RECORD, MaskRecord, MaskSet, Segmenter, quality_of
from datamodules.splits import Splits
from experiments.inference import Inference, mask_of
from experiments.nnunet_segmenter import ImportedSegmenter, imported, maker_of
from experiments.quality import VARIANTS, agreement_of, agreement_report
from experiments.trained_segmenter import (
    PLAIN,
    TrainedSegmenter,
    check_no_overwriting,
    check_same_preprocessing,
    segmenter_runs,
)
from lightning_modules.metrics.segmentation import dice

REPORT = "quality.json"
"""How well agreement stands for Dice, see ``experiments.quality.agreement_report``."""


@dataclasses.dataclass(frozen=True, slots=True)
class Crew:
    """Who predicts whom.

    Attributes:
        table: The cohort.
        scans: Its scans of the segmenters' sequence.
        segmenters: All of them.
        makers: Their records, by checkpoint hash.
        chosen: By scan id, the segmenters that may predict it; empty where all trained on its patient.
    """

    table: Cohort
    scans: Sequence[Scan]
    segmenters: Sequence[TrainedSegmenter]
    makers: Mapping[str, Segmenter]
    chosen: Mapping[str, Sequence[TrainedSegmenter]]


def make_masks(
    path: Path,
    out: Path,
    cohort: Path | None = None,
    inference: Inference = PLAIN,
    variations: bool = False,
) -> MaskSet:
    """Predict a mask for every scan by segmenters that did not train on its patient.

    A patient in the test part of some folds gets the mean of those folds' segmenters; else, of the folds
    that hold the patient for validation; a patient outside the split, of all. A killed run goes on where
    it stopped: finished masks are recognised by their segmenters and their content.

    Args:
        path: A segmenter's run directory, a folder of several (a study), or a model imported from nnU-Net.
        out: Folder for ``<scan_id>.nii.gz`` and ``masks.json``.
        cohort: Another cohort table than the one trained on; its patients count as outside the split
            unless they have the same ids.
        inference: How the segmenters are asked.
        variations: Where one segmenter alone may predict a patient, whether to compare its predictions of test-time
            variations of the scan, so that its agreement is known as well. Six predictions instead of one.

    Returns:
        The masks. ``quality.json`` beside the record says how well agreement stands for Dice, where both are known.

    Raises:
        InputError: No segmenter, segmenters of different splits, a patient whom all trained on, or a folder that
            holds masks made with other options.
    """
    crew = imported_crew(path, cohort) if imported(path) else _crew(path, cohort)
    scans, chosen = crew.scans, crew.chosen
    for segmenter in crew.segmenters:
        segmenter.check(inference)
    stuck = sorted({scan.patient_id for scan in scans if not chosen[scan.scan_id]})
    if stuck:
        folds = ", ".join(str(segmenter.identity.fold) for segmenter in crew.segmenters)
        raise InputError(
            *(f"patient {patient!r}: every segmenter given (fold {folds}) trained on it; train the other folds too"
              for patient in stuck)
        )  # fmt: skip
    originals = [file for scan in scans for file in (scan.image, scan.mask) if file is not None]
    check_no_overwriting({scan.scan_id: out / f"{scan.scan_id}.nii.gz" for scan in scans}, originals)
    asked = dataclasses.asdict(inference)
    masks = _finished(out, asked)
    console = Console(file=sys.stderr)
    for scan in track(scans, description="out-of-fold masks", console=console, transient=True):
        names = tuple(sorted(segmenter.checkpoint_sha256 for segmenter in chosen[scan.scan_id]))
        done = masks.get(scan.scan_id)
        if done is not None and done.segmenters == names and (done.agreement is not None or not variations):
            continue
        masks[scan.scan_id] = _predict(scan, chosen[scan.scan_id], names, out, inference, variations)
        kept = {key: value for key, value in masks.items() if set(value.segmenters) <= set(crew.makers)}
        MaskSet(out, crew.makers, kept, inference=asked).save()
    made = MaskSet.load(out)
    write_json(out / REPORT, agreement_report(made.masks, {scan.scan_id: scan.patient_id for scan in crew.table.scans}))
    return made


def _crew(path: Path, cohort: Path | None) -> Crew:
    """The trained segmenters of a run or study."""
    segmenters = [TrainedSegmenter(run) for run in segmenter_runs(path)]
    hashes = {segmenter.identity.split_sha256 for segmenter in segmenters}
    if len(hashes) > 1:
        raise InputError(f"{path}: segmenters of {len(hashes)} different splits; give those of one study")
    check_same_preprocessing(segmenters)
    table, splits = _cohort_and_splits(segmenters[0], cohort)
    scans = list(table.select(sequences=segmenters[0].sequences).scans)
    chosen = {scan.scan_id: eligible(scan.patient_id, segmenters, splits) for scan in scans}
    makers = {segmenter.checkpoint_sha256: _maker(segmenter, splits) for segmenter in segmenters}
    return Crew(table, scans, segmenters, makers, chosen)


def imported_crew(path: Path, cohort: Path | None) -> Crew:
    """The folds of a model imported from nnU-Net: a patient's mask comes from those that did not train on the patient.

    Where a fold holds the patient for testing, it alone makes the mask, as with hepastage's own segmenters: a fold that
    holds the patient for validation has trained on others of the same test part.

    Where it is not known whom a fold trained on, all folds make all masks; their record says that it is unknown, and
    a classifier refuses them as out of fold.

    Raises:
        InputError: No cohort is given: the model knows of none.
    """
    if cohort is None:
        raise InputError(f"{path}: was imported from nnU-Net and knows no cohort; give one as --cohort")
    segmenters = ImportedSegmenter(path).alone()
    table = Cohort.load(cohort)
    scans = list(table.select(sequences=segmenters[0].sequences).scans)
    chosen = {}
    for scan in scans:
        able = [item for item in segmenters if scan.patient_id not in (item.folds[0].trained_on or ())]
        chosen[scan.scan_id] = [item for item in able if scan.patient_id in item.folds[0].tested] or able
    makers = {item.checkpoint_sha256: maker_of(item.folds[0], item.model) for item in segmenters}
    return Crew(table, scans, segmenters, makers, chosen)


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


def _finished(out: Path, asked: dict[str, Any]) -> dict[str, MaskRecord]:
    """The masks that an earlier run has left whole.

    Raises:
        InputError: They were made with other options.
    """
    if not (out / RECORD).is_file():
        return {}
    earlier = MaskSet.load(out)
    if earlier.masks and (earlier.inference or dataclasses.asdict(PLAIN)) != asked:
        told = ", ".join(f"{key} {value}" for key, value in (earlier.inference or dataclasses.asdict(PLAIN)).items())
        raise InputError(f"{out}: holds masks made with other options ({told}); give the same ones, or another --out")
    return {
        key: record
        for key, record in earlier.masks.items()
        if (out / record.file).is_file() and sha256_of_file(out / record.file) == record.sha256
    }


def _predict(
    scan: Scan,
    segmenters: Sequence[TrainedSegmenter],
    names: tuple[str, ...],
    out: Path,
    inference: Inference,
    variations: bool,
) -> MaskRecord:
    """Predict, write and judge one mask.

    Agreement is that of the segmenters that may predict the patient, never of those that trained on the patient: they
    know the answer, and would agree on it however badly a new scan fared.
    """
    image = read_image(scan.image)
    agreement, kind = None, None
    if len(segmenters) > 1:
        log_odds = [segmenter.log_odds(image, inference) for segmenter in segmenters]
        agreement, kind = agreement_of(log_odds), "segmenters"
    elif variations:
        varied = segmenters[0].variants(image, inference, VARIANTS)
        agreement, kind = agreement_of(varied), "variations"
        log_odds = varied[:1]  # the first is the scan as it is
    else:
        log_odds = [segmenters[0].log_odds(image, inference)]
    mask = mask_of(log_odds, inference)
    target = out / f"{scan.scan_id}.nii.gz"
    write_nifti(target, mask, image.affine, like=scan.image)
    score = None if scan.mask is None else dice(mask, read_mask(scan.mask, scan.mask_labels).data)
    agreed, entropy = (None, None) if agreement is None else (agreement.dice, agreement.border_entropy)
    # variations of one segmenter's prediction rank scans well but agree far better than they are right: no band
    band, source = quality_of(score, scan.quality, agreed if kind == "segmenters" else None)
    return MaskRecord(target.name, sha256_of_file(target), names, score, band, source, agreed, kind, entropy)
