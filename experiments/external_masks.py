"""Masks that were made elsewhere, by TotalSegmentator, nnU-Net or a reader, brought in with a record of their maker."""

from __future__ import annotations

import dataclasses
import string
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import track

from datamodules.cohort import Cohort, Scan
from datamodules.errors import InputError
from datamodules.files import sha256_of_file, sha256_of_json
from datamodules.images import (
    MAX_CORNER_DRIFT,
    Volume,
    check_same_grid,
    corner_drift,
    read_header,
    read_image,
    read_mask,
    write_nifti,
)
from datamodules.masks import MaskRecord, MaskSet, Segmenter, quality_of
from experiments.trained_segmenter import check_no_overwriting
from lightning_modules.metrics.segmentation import dice

EXTERNAL = "external"
FIELDS = ("id", "patient", "sequence", "visit")


@dataclasses.dataclass(frozen=True, slots=True)
class ExternalMasks:
    """Where masks lie and who made them.

    Attributes:
        folder: The folder of the mask files.
        pattern: A file's name below it, with ``{id}`` for the scan's id, ``{patient}``, ``{sequence}`` or ``{visit}``.
        labels: Values in the files that are liver; empty: any value but zero.
        maker: What made them, in words: ``TotalSegmentator v2.4``, ``reader A``.
        trained_on: A text file with the patients that the maker trained on, one id a line (empty for a reader or a
            model that saw none of them); None where that is unknown.
        allow_missing: Whether scans without a mask are listed in the record instead of being an error.
    """

    folder: Path
    pattern: str
    labels: tuple[int, ...]
    maker: str
    trained_on: Path | None = None
    allow_missing: bool = False


def import_masks(source: ExternalMasks, cohort: Path, out: Path, sequences: Sequence[str] = ()) -> MaskSet:
    """Bring masks in: each is checked against its image's grid, reduced to the liver's labels and recorded.

    Args:
        source: Where they lie and who made them.
        cohort: The cohort table.
        out: Folder for ``<scan_id>.nii.gz``, 0 and 1 on the images' own grids, and ``masks.json``.
        sequences: The sequences to bring masks in for; all where empty.

    Returns:
        The masks. A mask may be empty; that no mask has a voxel of the labels is an error.

    Raises:
        InputError: A mask is missing, unreadable or on another grid: all faults together; then nothing is recorded.
    """
    check_pattern(source.pattern)
    if not source.maker.strip():
        raise InputError("--maker: is empty; say who made the masks, such as 'TotalSegmentator v2.4'")
    if not source.folder.is_dir():
        raise InputError(f"{source.folder}: no such folder; give the folder that holds the masks as --external")
    table = Cohort.load(cohort)
    scans = list((table.select(sequences=sequences) if sequences else table).scans)
    files = {scan.scan_id: file_of(source, scan) for scan in scans}
    missing = [scan.scan_id for scan in scans if not files[scan.scan_id].is_file()]
    there = [scan for scan in scans if scan.scan_id not in missing]
    if missing and not (source.allow_missing and there):
        raise InputError(
            *(f"{files[name]}: no such mask of scan {name!r}; correct --pattern, add the mask, or give --allow-missing"
              for name in missing)
        )  # fmt: skip
    shared = [name for name, file in files.items() if list(files.values()).count(file) > 1]
    if shared:
        raise InputError(
            f"--pattern {source.pattern!r}: gives one file to the scans {', '.join(shared)}; use {{id}}, or name one "
            "--sequence"
        )
    faults = [fault for scan in there for fault in grid_faults(scan, files[scan.scan_id])]
    if faults:
        raise InputError(*faults)
    originals = [file for scan in scans for file in (scan.image, scan.mask) if file is not None]
    check_no_overwriting(
        {scan.scan_id: out / f"{scan.scan_id}.nii.gz" for scan in there}, [*originals, *files.values()]
    )
    maker = maker_of(source, table)
    key = sha256_of_json({"maker": maker.maker, "trained_on": maker.trained_on, "labels": source.labels})
    masks: dict[str, MaskRecord] = {}
    empty = []
    for scan in track(there, description="external masks", console=Console(file=sys.stderr), transient=True):
        try:
            image, liver = read_image(scan.image), read_mask(files[scan.scan_id], source.labels)
            check_same_grid(image, liver, scan.image, files[scan.scan_id])
            masks[scan.scan_id] = written(scan, image, liver, key, out)
        except InputError as error:
            faults += error.faults
            continue
        if not liver.data.any():
            empty.append(scan.scan_id)
    if faults:
        raise InputError(*faults)
    if len(empty) == len(there):
        values = " or ".join(map(str, source.labels)) or "other than 0"
        raise InputError(
            f"{source.folder}: no voxel of {len(there)} masks has the value {values}; give the liver's as --label"
        )
    if empty:
        sys.stderr.write(f"hepastage: {len(empty)} empty masks: {', '.join(empty)}\n")
    made = MaskSet(out, {key: maker}, masks, tuple(missing))
    made.save()
    return made


def check_pattern(pattern: str) -> None:
    """Refuse a pattern that does not tell scans apart.

    Raises:
        InputError: A field is unknown, or there is none.
    """
    try:
        fields = [name for _, name, _, _ in string.Formatter().parse(pattern) if name is not None]
    except ValueError as error:
        raise InputError(f"--pattern {pattern!r}: cannot be read ({error}); write '{{id}}.nii.gz'") from error
    if not fields or set(fields) - set(FIELDS):
        raise InputError(
            f"--pattern {pattern!r}: needs {{id}} (the scan's), {{patient}}, {{sequence}} or {{visit}}, nothing else"
        )


def file_of(source: ExternalMasks, scan: Scan) -> Path:
    """The file of a scan's mask."""
    name = source.pattern.format(id=scan.scan_id, patient=scan.patient_id, sequence=scan.sequence, visit=scan.visit)
    return source.folder / name


def grid_faults(scan: Scan, file: Path) -> list[str]:
    """What is wrong with a mask's grid, from the two headers alone: cheap, so that all are found before any work."""
    try:
        shape, affine, _ = read_header(scan.image)
        mask_shape, mask_affine, _ = read_header(file)
    except InputError as error:
        return list(error.faults)
    if mask_shape != shape or corner_drift(affine, mask_affine, shape) > MAX_CORNER_DRIFT:
        return [
            f"{file}: does not lie on the grid of {scan.image} ({mask_shape} and {shape} voxels, or other affines); "
            "export it on the image's own grid"
        ]
    return []


def maker_of(source: ExternalMasks, table: Cohort) -> Segmenter:
    """The record of the masks' maker.

    Raises:
        InputError: The list of training patients cannot be read.
    """
    if source.trained_on is None:
        return Segmenter(EXTERNAL, "", None, "", None, source.maker)
    try:
        lines = source.trained_on.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"{source.trained_on}: cannot be read ({error}); give a text file with one patient id a line"
        ) from error
    patients = tuple(sorted({line.strip() for line in lines} - {""}))
    if patients and not set(patients) & set(table.patients):
        sys.stderr.write(
            f"hepastage: {source.trained_on}: none of its {len(patients)} patients is in {table.name}; "
            "if they should be, check that the ids are written alike\n"
        )
    return Segmenter(EXTERNAL, "", None, "", patients, source.maker)


def written(scan: Scan, image: Volume, liver: Volume, key: str, out: Path) -> MaskRecord:
    """Write one mask on its image's grid and judge it against the reference, where there is one."""
    target = out / f"{scan.scan_id}.nii.gz"
    write_nifti(target, liver.data, image.affine, like=scan.image)
    score = None
    if scan.mask is not None:
        score = dice(liver.data, read_mask(scan.mask, scan.mask_labels).data)
    band, origin = quality_of(score, scan.quality, None)
    return MaskRecord(target.name, sha256_of_file(target), (key,), score, band, origin)
