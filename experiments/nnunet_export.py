"""A cohort as a raw data set of nnU-Net version 2, with folds that nnU-Net trains on as hepastage does.

Source of the layout: https://github.com/MIC-DKFZ/nnUNet, documentation/dataset_format.md and manual_data_splits.md.
"""

from __future__ import annotations

import dataclasses
import re
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import SimpleITK

from datamodules.cohort import Cohort, Scan
from datamodules.errors import InputError
from datamodules.files import atomic_path, write_json
from datamodules.images import check_same_grid, read_image, read_mask, write_nifti
from datamodules.splits import Splits
from experiments.plan_fingerprint import the_sequence

DATASET_NAME = re.compile(r"Dataset(\d{3})_([A-Za-z0-9_-]+)")
CASES = "cases.json"
"""Beside dataset.json: which patient and scan each case is, which nnU-Net itself does not keep."""
ENDING = ".nii.gz"


@dataclasses.dataclass(frozen=True, slots=True)
class Exported:
    """What was written.

    Attributes:
        folder: The data set's folder, ``DatasetXXX_Name``.
        training: Cases in ``imagesTr``.
        test: Cases in ``imagesTs``.
        folds: Entries of ``splits_final.json``.
    """

    folder: Path
    training: tuple[str, ...]
    test: tuple[str, ...]
    folds: int


def export(
    cohort: Cohort,
    splits: Splits,
    out: Path,
    sequence: str | None = None,
    number: int = 1,
    name: str = "Liver",
) -> Exported:
    """Write ``imagesTr``, ``labelsTr``, ``imagesTs``, ``labelsTs``, ``dataset.json`` and ``splits_final.json``.

    A patient is a training case where some fold trains or validates on it, and a test case where all folds agree
    that it is one (a fixed or official test part). In ``splits_final.json`` a fold's ``train`` is hepastage's; its
    ``val``, from which nnU-Net fits nothing but may choose ``checkpoint_best``, holds the fold's other training
    cases: valid, and under k folds the test part too. So both train on the same patients.

    Args:
        cohort: The table; paths are read from it.
        splits: Its folds.
        out: nnU-Net's raw folder, in which ``DatasetXXX_Name`` is made; or such a folder itself.
        sequence: Which sequence; None where the cohort has one.
        number: The data set's number, 1 to 999.
        name: Its name.

    Returns:
        What was written.

    Raises:
        InputError: Several sequences and none chosen, a training scan without a reference mask or with an empty
            label list, a folder that already holds another data set: all faults together.
    """
    chosen = cohort.select(sequences=[the_sequence(cohort, sequence)])
    folder = dataset_folder(out, number, name)
    if (folder / "dataset.json").exists() or (folder / "imagesTr").exists():
        raise InputError(f"{folder}: already holds a data set; remove it or choose another --id, --name or --out")
    trained, tested = parts(splits)
    training = [scan for scan in chosen.scans if scan.patient_id in trained]
    test = [scan for scan in chosen.scans if scan.patient_id in tested]
    faults = [
        f"{cohort.name}: scan {scan.scan_id!r} is a training case but has no reference mask; give it one or leave its "
        "patient out of the split"
        for scan in training
        if scan.mask is None
    ]
    if not training:
        faults.append(
            f"{cohort.name}: no scan of {chosen.scans[0].sequence} in train or valid; choose another sequence"
        )
    for scan in (*training, *test):
        faults += _faults(scan)
    if faults:
        raise InputError(*faults)
    for part, scans in (("Tr", training), ("Ts", test)):
        for scan in scans:
            _write_image(scan, folder / f"images{part}" / f"{scan.scan_id}_0000{ENDING}")
            if scan.mask is not None:
                _write_label(scan, folder / f"labels{part}" / f"{scan.scan_id}{ENDING}")
    folds = folds_json(splits, training)
    write_json(folder / "splits_final.json", folds)
    write_json(folder / CASES, _cases_json(cohort, splits, [*training, *test]))
    # last: without it nnU-Net does not take the folder for a data set, so a killed export is never half used
    write_json(folder / "dataset.json", _dataset_json(folder, training, chosen.scans[0].sequence))
    return Exported(folder, tuple(s.scan_id for s in training), tuple(s.scan_id for s in test), len(folds))


def dataset_folder(out: Path, number: int, name: str) -> Path:
    """``out/DatasetXXX_Name``, or ``out`` itself where it is called so.

    Raises:
        InputError: Number or name would not be understood by nnU-Net.
    """
    if DATASET_NAME.fullmatch(out.name):
        return out
    if not 1 <= number <= 999:
        raise InputError(f"--id {number}: nnU-Net numbers its data sets from 1 to 999")
    folder = f"Dataset{number:03d}_{name}"
    if not DATASET_NAME.fullmatch(folder):
        raise InputError(f"--name {name!r}: a data set's name has letters, digits, '_' and '-' only")
    return out / folder


def parts(splits: Splits) -> tuple[set[str], set[str]]:
    """Patients of ``imagesTr`` and of ``imagesTs``."""
    trained = {patient for fold in splits.folds for patient in (*fold.train, *fold.valid)}
    return trained, {patient for fold in splits.folds for patient in fold.test} - trained


def folds_json(splits: Splits, training: Sequence[Scan]) -> list[dict[str, list[str]]]:
    """``splits_final.json``: case names by fold; a patient's scans stay together.

    ``test``, which nnU-Net does not read, is the tested part of ``val``: an import of the trained model needs it.
    """
    folds = []
    for fold in splits.folds:
        held_out = {*fold.valid, *fold.test}
        folds.append(
            {
                "train": [scan.scan_id for scan in training if scan.patient_id in set(fold.train)],
                "val": [scan.scan_id for scan in training if scan.patient_id in held_out],
                "test": [scan.scan_id for scan in training if scan.patient_id in set(fold.test)],
            }
        )
    return folds


def _dataset_json(folder: Path, training: Sequence[Scan], sequence: str) -> dict[str, Any]:
    value: dict[str, Any] = {
        "channel_names": {"0": sequence},
        "labels": {"background": 0, "liver": 1},
        "numTraining": len(training),
        "file_ending": ENDING,
        "name": folder.name,
    }
    images = [folder / part / name.name for part in ("imagesTr", "imagesTs") for name in _listed(folder / part)]
    if not all(_itk_reads(path) for path in images):
        # nnU-Net tries one file only before it settles on ITK, which refuses axes that are not quite at right angles
        value["overwrite_image_reader_writer"] = "NibabelIO"
    return value


def _cases_json(cohort: Cohort, splits: Splits, scans: Iterable[Scan]) -> dict[str, Any]:
    return {
        "cohort_sha256": cohort.sha256,
        "split_sha256": splits.sha256,
        "cases": {scan.scan_id: {"patient_id": scan.patient_id, "scan_id": scan.scan_id} for scan in scans},
    }


def _faults(scan: Scan) -> list[str]:
    if not scan.image.is_file():
        return [f"{scan.image}: no such file; correct the path in the cohort table"]
    if scan.mask is not None and not scan.mask.is_file():
        return [f"{scan.mask}: no such file; correct the path in the cohort table"]
    return []


def _write_image(scan: Scan, target: Path) -> None:
    """The file itself where nnU-Net can read it, else the same voxels written anew; either way it is checked."""
    volume = read_image(scan.image)
    if scan.image.name.endswith(ENDING) and _dimensions(scan.image) == 3:
        with atomic_path(target) as temporary:
            shutil.copyfile(scan.image, temporary)
    else:
        write_nifti(target, volume.data, volume.affine, like=scan.image)


def _write_label(scan: Scan, target: Path) -> None:
    """All of the cohort's liver labels as 1, on the image's own grid and header."""
    if scan.mask is None:
        raise ValueError(f"scan {scan.scan_id} has no mask")
    image, mask = read_image(scan.image), read_mask(scan.mask, scan.mask_labels)
    check_same_grid(image, mask, scan.image, scan.mask)
    write_nifti(target, mask.data, image.affine, like=scan.image)


def _dimensions(path: Path) -> int:
    import nibabel as nib

    return len(nib.load(path).shape)


def _listed(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"*{ENDING}")) if folder.is_dir() else []


def _itk_reads(path: Path) -> bool:
    reader = SimpleITK.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError:
        return False
    return True
