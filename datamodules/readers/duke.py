"""Duke Liver Dataset (DLDS): DICOM images with DICOM masks, and key tables.

::

    Segmentation/{id}/{series}/images/*.dicom
    Segmentation/{id}/{series}/masks/*.dicom
    *Key*.csv            which sequence a series is

A mask slice belongs to the image at its ImagePositionPatient; where the masks bear no positions, to the
image of the same name, else to the image at the same place in the order of file names, and only if that
order is the order of positions. Any value but zero is liver.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from datamodules.cohort import Cohort
from datamodules.errors import InputError
from datamodules.readers._common import (
    Notify,
    Row,
    cohort_of,
    existing_folder,
    files_below,
    listed,
    natural_key,
    read_rows,
    warn,
)
from datamodules.readers._dicom_convert import Volume, convert_all
from datamodules.readers._dicom_header import Slice, quiet_pydicom, read_dataset
from datamodules.readers._dicom_masks import one_stack, paired, write_mask
from datamodules.readers._dicom_sequence import sequence_of
from datamodules.readers.dicom import read_folder, slug

SOURCE = "DukeDLDS"
PATIENT_NAMES = ("dlds", "patient", "patientid", "patient id", "subject", "case", "id")
SERIES_NAMES = ("series", "seriesid", "series id", "series number")
LABEL_NAMES = ("label", "series label", "class", "sequence", "series type", "type", "description")


def read(root: Path, nifti_dir: Path, *, sequence: str | None = None, notify: Notify = warn) -> Cohort:
    """Read the segmentation part of the Duke Liver Dataset.

    Args:
        root: The folder with ``Segmentation``, that folder itself, or any folder above.
        nifti_dir: Folder for the converted images and masks.
        sequence: Sequence of every series. By default a key table's text for the series, by the same
            rules as DICOM descriptions, else the DICOM header's description.
        notify: Called with notices: series without masks, texts that no rule knows.

    Returns:
        The cohort: scans ``DukeDLDS-{id}_{series}``, patients ``DukeDLDS-{id}``.

    Raises:
        InputError: No such tree, unreadable files, mask and image that do not fit, or a sequence that
            neither a table nor a header tells: all faults found together.
    """
    root = existing_folder(root, "the Duke Liver Dataset")
    nifti_dir = Path(nifti_dir).absolute()
    keys = _keys(root, notify)
    rows: list[Row] = []
    jobs: list[tuple[str, Volume]] = []
    faults: list[str] = []
    places = sorted(
        (path.parent for path in root.rglob("images") if path.is_dir()), key=lambda path: natural_key(str(path))
    )
    if not places:
        raise InputError(
            f"{root}: no folder {{id}}/{{series}}/images below it; name the folder that holds Segmentation"
        )
    seen: dict[str, Path] = {}
    for place in places:
        patient, series = place.parent.name, place.name
        scan_id = f"{SOURCE}-{slug(patient)}_{slug(series)}"
        if scan_id in seen:
            faults.append(f"{seen[scan_id]} and {place}: two folders for one series; remove one of them")
            continue
        seen[scan_id] = place
        try:
            slices, grid = one_stack(place / "images", notify)
            name = sequence or _sequence(slices[0], keys.get((_id(patient), _id(series))), place)
            row: Row = {
                "scan_id": scan_id,
                "patient_id": f"{SOURCE}-{patient}",
                "sequence": name,
                "image": str(nifti_dir / f"{scan_id}.nii.gz"),
                "source": SOURCE,
            }
            if (place / "masks").is_dir():
                mask = nifti_dir / f"{scan_id}_mask.nii.gz"
                write_mask(mask, slices, grid, _planes(slices, place / "masks", notify), str(place / "masks"))
                row |= {"mask": str(mask), "mask_labels": "1"}
            else:
                notify(f"{place}: no folder masks; the scan has no reference mask")
        except InputError as error:
            faults += error.faults
            continue
        rows.append(row)
        jobs.append((scan_id, Volume(slices, grid, str(place), name, 1)))
    if faults:
        raise InputError(*faults)
    convert_all(jobs, root, nifti_dir)
    return cohort_of(rows, root, str(root))


def _planes(slices: Sequence[Slice], folder: Path, notify: Notify) -> dict[Path, NDArray[np.bool_]]:
    """The mask of each image file, shape (rows, columns)."""
    faults: list[str] = []
    masks = read_folder(folder, notify, faults)
    if faults:
        raise InputError(*faults)
    if all(item.position and item.orientation for item in masks) and len(masks) == len(slices):
        pairs = {}
        for image in slices:
            distances = [float(np.linalg.norm(np.subtract(image.position, mask.position))) for mask in masks]
            nearest = int(np.argmin(distances))
            if distances[nearest] > 0.1:
                raise InputError(
                    f"{folder}: no mask lies at the position of {image.path} (the nearest is "
                    f"{distances[nearest]:.2f} mm away); copy the data set again"
                )
            pairs[image.path] = masks[nearest].path
        turned = [item.path for item in masks if not np.allclose(item.orientation, slices[0].orientation, atol=1e-3)]
        if turned:
            raise InputError(f"{turned[0]}: the mask is turned against its image; copy the data set again")
        if len(set(pairs.values())) != len(slices):
            raise InputError(f"{folder}: two masks share one position; copy the data set again")
    else:
        pairs = paired(slices, [item.path for item in masks], folder)
    return {image: _mask_pixels(mask) for image, mask in pairs.items()}


def _mask_pixels(path: Path) -> NDArray[np.bool_]:
    dataset = read_dataset(path, pixels=True)
    try:
        with quiet_pydicom():
            return np.asarray(dataset.pixel_array != 0)
    except (ValueError, AttributeError, RuntimeError, NotImplementedError) as error:
        raise InputError(f"{path}: its pixels cannot be read ({type(error).__name__}); copy it again") from error


def _sequence(first: Slice, key: str | None, place: Path) -> str:
    import dataclasses

    name = None
    if key is not None:
        name = sequence_of([dataclasses.replace(first, description=key, image_type=(), b_value=first.b_value)])
    name = name or sequence_of([first])
    if name is None:
        raise InputError(
            f"{place}: its sequence is not known (key table: {key!r}, header: {first.description!r}); "
            "give --sequence NAME"
        )
    return name


def _keys(root: Path, notify: Notify) -> dict[tuple[str, str], str]:
    """The text that key tables give for (patient, series)."""
    found: dict[tuple[str, str], str] = {}
    unknown = []
    for name in files_below(root):
        if not name.lower().endswith(".csv"):
            continue
        rows = read_rows(root / name, [])
        header = {column.lower().replace("_", " "): column for column in (rows[0] if rows else {})}
        columns = [next((header[known] for known in names if known in header), None)
                   for names in (PATIENT_NAMES, SERIES_NAMES, LABEL_NAMES)]  # fmt: skip
        patient, series, label = columns
        if patient is None or series is None or label is None:
            unknown.append(name)
            continue
        for row in rows:
            key = (_id(row[patient]), _id(row[series]))
            if found.setdefault(key, row[label]) != row[label]:
                raise InputError(
                    f"{root / name}: patient {row[patient]}, series {row[series]} is {row[label]!r} here and "
                    f"{found[key]!r} elsewhere; correct one of them"
                )
    if unknown:
        notify(f"{root}: no patient, series and label columns in {listed(unknown)}; not used")
    return found


def _id(text: str) -> str:
    """An id without leading zeros: tables drop them, folders keep them."""
    return text.strip().lstrip("0") or "0"
