"""Bands of segmentation quality for arms that use no predicted masks: written into their records once masks are there.

A direct arm is shown by the same bands as the masked ones, but need not wait for the masks: segmenters and direct arms
train side by side. Whichever of cell and masks is finished last fills the bands in.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from datamodules.masks import MaskSet
from datamodules.records import read_records, validated, write_records

RECORDS = ("predictions.parquet", "validation.parquet")


def fill_bands(run: Path, masks: Path) -> bool:
    """Write ``quality`` and ``mask_dice`` of a set of masks into a finished cell's records.

    Rows of perturbed masks keep theirs, which are those of the mask in use; so do scans that the set does not hold.

    Args:
        run: The cell's run directory.
        masks: The folder of the masks.

    Returns:
        Whether a record was changed; filling in twice changes nothing.
    """
    known = MaskSet.load(masks).masks
    changed = False
    for path in (run / name for name in RECORDS):
        if not path.is_file():
            continue
        frame = read_records(path)
        if "scan_id" not in frame:
            continue
        rows = frame["scan_id"].isin(list(known))
        if "mask_source" in frame:
            rows &= (frame["mask_source"] != "perturbed").fillna(True).astype(bool)
        found = [known[str(scan)] for scan in frame["scan_id"][rows]]
        wanted: dict[str, list[Any]] = {
            "quality": [mask.quality for mask in found],
            "mask_dice": [mask.dice for mask in found],
        }
        filled = frame.copy()
        for column, values in wanted.items():
            old = filled[column].tolist() if column in filled else [None] * len(filled)
            places = iter(values)
            merged = [next(places) if here else value for here, value in zip(rows, old, strict=True)]
            filled[column] = merged
        filled = validated(filled, str(path))
        if not filled.equals(frame):
            write_records(filled, path)
            changed = True
    return changed
