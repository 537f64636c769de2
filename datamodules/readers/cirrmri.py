"""CirrMRI600+: cirrhosis T1 and T2 volumes, healthy subjects, and their metadata.

Source: OSF cuk24; arXiv 2410.16296; Scientific Data s41597-025-05201-7.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath

from datamodules.cohort import Cohort
from datamodules.errors import InputError
from datamodules.readers._cirrmri_metadata import Metadata, canonical_id, read_metadata
from datamodules.readers._common import (
    Notify,
    Row,
    cohort_of,
    existing_folder,
    files_below,
    listed,
    natural_key,
    nifti_stem,
    niftis_in,
    warn,
)
from datamodules.readers._folders import agreed_folder

_CIRRHOSIS = re.compile(r"Cirrhosis_T([12])_3D", re.IGNORECASE)
_PART = re.compile(r"(train|valid|test)_(images|masks)", re.IGNORECASE)
_HEALTHY = re.compile(r"T([12])_W_Healthy", re.IGNORECASE)
_HEALTHY_PART = re.compile(r"T([12])_(images|masks)", re.IGNORECASE)
_SLICE = re.compile(r"Cirrhosis_T2_2D/(?:.*/)?(train|valid|test)/([^/]+)/images/[^/]+\.png", re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class _Folder:
    """What one folder of volumes is: cirrhosis (with its official part) or healthy, T1 or T2, images or masks."""

    sequence: str
    part: str | None
    kind: str

    def __str__(self) -> str:
        return f"the {self.sequence} {self.part or 'healthy'} {self.kind}"


def read(root: Path, *, notify: Notify = warn) -> Cohort:
    """Read CirrMRI600+ in any nesting of its archives.

    The same id in T1 and T2 is the same patient. Healthy ids collide with patients' ids, so they get
    a prefix: ``H12``. ``official_split`` is the scan's own: the official T1 and T2 splits disagree for
    some patients, who are named in a notice (and whom ``hepastage split audit`` names again).

    Args:
        root: A folder that holds the unpacked archives, or one of them.
        notify: Called with each notice: patients whose official parts differ, scans without metadata
            or mask, metadata without a scan, metadata files that disagree, 2-D slices left out.

    Returns:
        One row a volume: ``47_T1W`` (source ``cirrmri``), ``H12_T2W`` (source ``cirrmri-healthy``).
        Where ``Cirrhosis_T2_2D`` is there, ``x_t2_2d_split`` is the part of the patient's 2-D slices.

    Raises:
        InputError: Nothing is found, two folders could be the same one and differ, a mask has no
            image, a scan is in two official parts, or the metadata cannot be read.
    """
    root = existing_folder(root, "the unpacked archives of CirrMRI600+")
    paths = files_below(root)
    folders = _folders(root, paths, notify)
    metadata = read_metadata([root / path for path in paths if path.lower().endswith(".csv")], root, notify)
    slices = _slice_parts(root, paths)
    rows = _rows(folders, metadata, slices, notify)
    metadata.report_missing(rows, root, notify)
    _report_conflicts(rows, root, notify)
    _report_slices(rows, slices, root, paths, notify)
    return cohort_of(rows, root, str(root))


def _folders(root: Path, paths: Iterable[str], notify: Notify) -> dict[_Folder, Path]:
    """Which folder of the tree is which part of the data set."""
    candidates: dict[_Folder, set[Path]] = {}
    faults: set[str] = set()
    strangers: list[str] = []
    for path in paths:
        file = root / path
        if nifti_stem(file.name) is None:
            continue
        # the root's own name counts: a user may point at one unpacked archive
        names = [root.name, *PurePosixPath(path).parts[:-1]]
        cirrhosis = {match[1] for match in map(_CIRRHOSIS.fullmatch, names) if match}
        healthy = {match[1] for match in map(_HEALTHY.fullmatch, names) if match}
        part, healthy_part = _PART.fullmatch(names[-1]), _HEALTHY_PART.fullmatch(names[-1])
        if part and not healthy and len(cirrhosis) == 1:
            folder = _Folder(f"T{cirrhosis.pop()}W", part[1].lower(), part[2].lower())
        elif healthy_part and not cirrhosis and healthy <= {healthy_part[1]}:
            folder = _Folder(f"T{healthy_part[1]}W", None, healthy_part[2].lower())
        elif part or healthy_part:
            faults.add(
                f"{file.parent}: cannot tell whether this is T1 or T2; "
                "keep the archives' folder names Cirrhosis_T1_3D, Cirrhosis_T2_3D, T1_W_Healthy, T2_W_Healthy"
            )
            continue
        else:
            strangers.append(path)
            continue
        candidates.setdefault(folder, set()).add(file.parent)
    found: dict[_Folder, Path] = {}
    for folder, places in candidates.items():
        try:
            found[folder] = agreed_folder(places, str(folder))
        except InputError as error:
            faults.update(error.faults)
    if faults:
        raise InputError(*sorted(faults))
    if not any(folder.kind == "images" for folder in found):
        there = listed(list(paths)[:5], 5) or "none"
        slices = " (the 2-D PNG slices hold no voxel spacing)" if _slice_parts(root, paths) else ""
        raise InputError(
            f"{root}: no CirrMRI600+ volumes, such as Cirrhosis_T1_3D/train_images/1.nii.gz{slices}; "
            f"the first files there are {there}; unpack Cirrhosis_T1_3D.zip or Cirrhosis_T2_3D.zip"
        )
    if strangers:
        notify(f"{root}: {len(strangers)} NIfTI files are no part of CirrMRI600+ and are left out: {listed(strangers)}")
    return found


def _rows(
    folders: Mapping[_Folder, Path], metadata: Metadata, slices: Mapping[str, set[str]], notify: Notify
) -> list[Row]:
    """One row a volume; faults of all folders together."""
    rows: dict[str, Row] = {}
    faults: list[str] = []
    for folder, place in sorted(folders.items(), key=lambda item: (item[0].part is None, str(item[0]))):
        if folder.kind == "masks":
            if dataclasses.replace(folder, kind="images") not in folders:
                faults.append(f"{place}: masks without their images; add the images' folder or remove the masks")
            continue
        mask_folder = folders.get(dataclasses.replace(folder, kind="masks"))
        masks = {} if mask_folder is None else niftis_in(mask_folder)
        images = niftis_in(place)
        faults += [
            f"{masks[stem]}: a mask without its image in {place}; add the image or remove the mask"
            for stem in masks
            if stem not in images
        ]
        bare = [stem for stem in images if stem not in masks]
        if bare:
            notify(f"{place}: {len(bare)} images have no mask: {listed(bare, len(bare))}")
        for stem, image in images.items():
            number = canonical_id(stem)
            patient = number if folder.part else f"H{number}"
            scan_id = f"{patient}_{folder.sequence}"
            if scan_id in rows:
                faults.append(f"{rows[scan_id]['image']} and {image} are the same scan twice; keep one of them")
                continue
            rows[scan_id] = {
                "scan_id": scan_id,
                "patient_id": patient,
                "sequence": folder.sequence,
                "image": str(image),
                "mask": str(masks[stem]) if stem in masks else None,
                "mask_labels": "1" if stem in masks else None,
                "source": "cirrmri" if folder.part else "cirrmri-healthy",
                "healthy": folder.part is None,
                "official_split": folder.part,
                **metadata.values(patient, folder.sequence),
            }
            if slices:
                in_2d = slices.get(patient, set())
                rows[scan_id]["x_t2_2d_split"] = next(iter(in_2d)) if len(in_2d) == 1 else None
    if faults:
        raise InputError(*faults)
    return list(rows.values())


def _slice_parts(root: Path, paths: Iterable[str]) -> dict[str, set[str]]:
    """The official parts of each patient's 2-D slices."""
    parts: dict[str, set[str]] = {}
    for path in paths:
        found = _SLICE.search(f"{root.name}/{path}")
        if found:
            parts.setdefault(canonical_id(found[2]), set()).add(found[1].lower())
    return parts


def _report_conflicts(rows: Iterable[Row], root: Path, notify: Notify) -> None:
    """Name the patients whose scans are in different official parts."""
    parts: dict[str, dict[str, str]] = {}
    for row in rows:
        if row["official_split"]:
            parts.setdefault(row["patient_id"], {})[row["sequence"]] = row["official_split"]
    conflicts = [
        f"{patient} ({', '.join(f'{sequence} {part}' for sequence, part in sorted(by.items()))})"
        for patient, by in sorted(parts.items(), key=lambda item: natural_key(item[0]))
        if len(set(by.values())) > 1
    ]
    if conflicts:
        notify(
            f"{root}: the official T1 and T2 splits disagree for {len(conflicts)} patients, who would leak where both "
            f"sequences are used: {listed(conflicts, len(conflicts))}"
        )


def _report_slices(
    rows: Iterable[Row], slices: Mapping[str, set[str]], root: Path, paths: Iterable[str], notify: Notify
) -> None:
    """Say what became of ``Cirrhosis_T2_2D``, and where its split differs."""
    if not slices:
        return
    count = sum(1 for path in paths if _SLICE.search(f"{root.name}/{path}"))
    notify(
        f"{root}: {count} PNG slices of {len(slices)} patients in Cirrhosis_T2_2D hold no voxel spacing and are "
        "not listed as scans (use the T2 volumes); their official parts are in the column x_t2_2d_split"
    )
    doubled = [patient for patient in sorted(slices, key=natural_key) if len(slices[patient]) > 1]
    if doubled:
        notify(f"{root}: patients with 2-D slices in more than one official part: {listed(doubled, len(doubled))}")
    official: dict[str, set[str]] = {}
    for row in rows:
        if row["official_split"]:
            official.setdefault(row["patient_id"], set()).add(f"{row['sequence']} {row['official_split']}")
    differing = [
        f"{patient} (2-D {part}, {said})"
        for patient in sorted(slices, key=natural_key)
        for part in sorted(slices[patient])
        for said in sorted(official.get(patient, ()))
        if not said.endswith(f" {part}")
    ]
    if differing:
        notify(
            f"{root}: the official split of the 2-D slices disagrees with that of the volumes: "
            f"{listed(differing, len(differing))}"
        )
