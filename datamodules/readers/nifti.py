"""Any folder of NIfTI images and masks, described by file-name patterns."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from datamodules.cohort import COLUMNS, EXTRA_PREFIX, Cohort
from datamodules.errors import InputError
from datamodules.readers._common import (
    Notify,
    Row,
    cohort_of,
    existing_folder,
    files_below,
    listed,
    pattern_or_same,
    read_rows,
    warn,
)
from datamodules.readers._patterns import Pattern, patient_pattern

LABEL_COLUMNS = tuple(
    name
    for name in COLUMNS
    if name not in ("scan_id", "patient_id", "sequence", "image", "mask", "mask_labels", "source")
)
Found = dict[tuple[str, ...], tuple[str, dict[str, str]]]


def read(
    root: Path,
    image: str,
    *,
    source: str,
    mask: str | None = None,
    mask_labels: Sequence[int] = (1,),
    sequence: str = "{sequence}",
    patient: str | None = None,
    labels: Path | None = None,
    notify: Notify = warn,
) -> Cohort:
    """Read a folder of NIfTI files by patterns.

    Patterns are relative to ``root`` and may include sub-folders (see
    :class:`datamodules.readers._patterns.Pattern`). The scan id is the image's ``{id}``, then
    ``{visit}`` and ``{sequence}`` where the pattern has these fields.

    Args:
        root: The folder.
        image: Pattern of the images, with ``{id}`` (or ``{patient}``).
        source: Cohort, site or vendor; ``{source}`` takes it from the pattern.
        mask: Pattern of the reference masks, with fields of the image's pattern only.
        mask_labels: Values in the masks that count as liver.
        sequence: The sequence of every image, or ``{sequence}`` to take it from the pattern.
        patient: Pattern that finds ``{patient}`` (and perhaps ``{visit}``) in the ``{id}``, such as
            ``{patient}-*``; by default ``{patient}`` of the image's pattern, else the id itself.
        labels: CSV of measured targets, one row a ``patient_id`` (or a ``scan_id``).
        notify: Called with each notice: images without a mask, patients without a row in ``labels``.

    Returns:
        The cohort, in natural order of scan ids.

    Raises:
        InputError: No file matches; an image matches twice; a mask has no image; patterns or labels
            do not fit: all faults found together.
    """
    root = existing_folder(root, "the images")
    image_pattern = Pattern(image, "--image")
    mask_pattern = None if mask is None else Pattern(mask, "--mask")
    id_pattern = None if patient is None else patient_pattern(patient, "--patient")
    _check_patterns(image_pattern, mask_pattern, id_pattern, sequence, source)
    if mask_pattern and (not mask_labels or any(label < 1 for label in mask_labels)):
        raise InputError(f"--mask-label {listed(mask_labels)}: name the mask's positive values that are liver")

    keys = () if mask_pattern is None else tuple(name for name in image_pattern.fields if name in mask_pattern.fields)
    images = _matches(root, image_pattern, image_pattern.fields, mask_pattern)
    masks = {} if mask_pattern is None else _matches(root, mask_pattern, keys, image_pattern)
    _check_pairs(root, images, image_pattern, masks, keys)

    rows: list[Row] = []
    faults: list[str] = []
    without_mask: list[str] = []
    for path, values in images.values():
        fields = dict(values)
        try:
            fields |= {} if id_pattern is None else pattern_or_same(fields["id"], id_pattern, root / path)
        except InputError as error:
            faults += error.faults
            continue
        base = fields.get("id") or fields["patient"]
        # a patient's folder may hold files that are named alike for every patient
        parts = [fields["patient"]] if "patient" in image_pattern.fields and "id" in image_pattern.fields else []
        parts += [base, *(values[name] for name in ("visit", "sequence") if name in values)]
        row: Row = {
            "scan_id": "_".join(parts),
            "patient_id": fields.get("patient", base),
            "sequence": fields["sequence"] if sequence == "{sequence}" else sequence,
            "image": path,
            "source": fields["source"] if source == "{source}" else source,
            "visit": fields.get("visit"),
        }
        if mask_pattern is not None:
            partner = masks.get(tuple(values[name] for name in keys))
            if partner is None:
                without_mask.append(path)
            else:
                row |= {"mask": partner[0], "mask_labels": ",".join(str(label) for label in sorted(set(mask_labels)))}
        rows.append(row)
    if faults:
        raise InputError(*faults)
    if without_mask:
        notify(f"{root}: {len(without_mask)} images have no mask: {listed(without_mask, len(without_mask))}")
    if labels is not None:
        join_labels(rows, labels, notify)
    return cohort_of(rows, root, str(root))


def join_labels(rows: list[Row], path: Path, notify: Notify = warn) -> None:
    """Add measured targets from a CSV to the rows of a cohort, in place.

    Args:
        rows: The cohort's rows.
        path: CSV with ``scan_id`` or ``patient_id``, and target columns of the cohort table (or
            the user's own, which begin with ``x_``).
        notify: Called with the patients that have no row, and the rows that have no patient.

    Raises:
        InputError: A column is unknown, or an id occurs twice.
    """
    table = read_rows(path, ())
    columns = list(table[0]) if table else []
    key = "scan_id" if "scan_id" in columns else "patient_id"
    if key not in columns:
        raise InputError(f"{path}: has neither a patient_id nor a scan_id column; name the column of the ids so")
    values = [name for name in columns if name not in ("scan_id", "patient_id")]
    faults = [
        f"{path}: unknown column {name!r}; use {', '.join(LABEL_COLUMNS)}, or begin your own with {EXTRA_PREFIX!r}"
        for name in values
        if name not in LABEL_COLUMNS and not name.startswith(EXTRA_PREFIX)
    ]
    by_id: dict[str, dict[str, str]] = {}
    for number, entry in enumerate(table, start=1):
        if entry[key] in by_id:
            faults.append(f"{path}: row {number}: {key} {entry[key]!r} occurs twice; keep one row for each")
        by_id[entry[key]] = entry
    if faults:
        raise InputError(*faults)
    ids = {str(row[key]) for row in rows}
    if not ids & set(by_id):
        raise InputError(
            f"{path}: none of its ids ({listed(by_id, 4)}) is a {key} of the cohort ({listed(sorted(ids), 4)}); "
            "write the ids alike"
        )
    for row in rows:
        for name, value in by_id.get(str(row[key]), {}).items():
            if name in values and value:
                row[name] = value
    missing = sorted(ids - set(by_id))
    if missing:
        notify(f"{path}: no row for {len(missing)} {key}s of the cohort: {listed(missing, len(missing))}")
    unused = sorted(set(by_id) - ids)
    if unused:
        notify(f"{path}: {len(unused)} rows belong to no image: {listed(unused, len(unused))}")


def _check_patterns(image: Pattern, mask: Pattern | None, patient: Pattern | None, sequence: str, source: str) -> None:
    """Raise InputError where the patterns and options contradict each other."""
    faults = []
    if not {"id", "patient"} & set(image.fields):
        faults.append(f"--image {image.text!r}: has neither {{id}} nor {{patient}}; say where the scan's id stands")
    for name, value in (("sequence", sequence), ("source", source)):
        if value == f"{{{name}}}" and name not in image.fields:
            faults.append(f"--{name}: --image {image.text!r} has no {{{name}}}; give --{name} NAME")
        if value != f"{{{name}}}" and name in image.fields:
            faults.append(f"--{name} {value!r}: --image holds {{{name}}} too; leave one of them out")
    if mask is not None:
        extra = [f"{{{name}}}" for name in mask.fields if name not in image.fields]
        if extra:
            faults.append(f"--mask {mask.text!r}: {', '.join(extra)} is not in --image; use '*' for what differs")
        if not {"id", "patient"} & set(mask.fields):
            faults.append(f"--mask {mask.text!r}: has neither {{id}} nor {{patient}}; say whose mask it is")
    if patient is not None and ("patient" in image.fields or "id" not in image.fields):
        faults.append("--patient: splits the {id} of --image, which must hold {id} and not {patient}")
    if patient is not None and "visit" in patient.fields and "visit" in image.fields:
        faults.append("--patient: --image holds {visit} too; leave one of them out")
    if faults:
        raise InputError(*faults)


def _matches(root: Path, pattern: Pattern, keys: tuple[str, ...], other: Pattern | None) -> Found:
    """The files that match a pattern, by the values of ``keys``: (path, all fields).

    A file that matches the ``other`` pattern too belongs to the one with more literal text:
    ``1_mask.nii.gz`` to ``{id}_mask.nii.gz`` and not to ``{id}.nii.gz``.
    """
    paths = files_below(root, pattern.depth)
    found: Found = {}
    faults: list[str] = []
    for path in paths:
        try:
            values = pattern.match(path)
        except InputError as error:
            faults += error.faults
            continue
        if values is None:
            continue
        if other is not None and other.literal_length >= pattern.literal_length and other.match(path) is not None:
            if other.literal_length > pattern.literal_length:
                continue
            faults.append(f"{root / path}: matches --image and --mask; make one of the patterns stricter")
            continue
        key = tuple(values[name] for name in keys)
        if key in found:
            said = " ".join(f"{name}={value!r}" for name, value in zip(keys, key, strict=True))
            faults.append(
                f"{root / found[key][0]} and {root / path} both match {pattern.option} for {said}; "
                "make the pattern stricter"
            )
            continue
        found[key] = (path, values)
    if faults:
        raise InputError(*faults)
    if not found:
        there = files_below(root)
        first = f"the first files there are {listed(there[:5], 5)}" if there else "the folder holds no files"
        raise InputError(f"{root}: no file matches {pattern.option} {pattern.text!r}; {first}")
    return found


def _check_pairs(root: Path, images: Found, pattern: Pattern, masks: Found, keys: tuple[str, ...]) -> None:
    """Raise InputError for masks without their image."""
    wanted = {tuple(values[name] for name in keys) for _, values in images.values()}
    faults = []
    for key, (path, values) in masks.items():
        if key not in wanted:
            expected = pattern.filled(values)
            faults.append(
                f"{root / path}: a mask without its image, {root / expected} is missing; add the image or move the mask"
            )
    if faults:
        raise InputError(*faults)
