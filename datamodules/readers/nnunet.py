"""A raw data set of nnU-Net version 2: ``imagesTr``, ``labelsTr``, ``imagesTs`` and ``dataset.json``.

Source: https://github.com/MIC-DKFZ/nnUNet, documentation/dataset_format.md.
"""

from __future__ import annotations

import dataclasses
import re
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from datamodules.cohort import Cohort
from datamodules.errors import InputError
from datamodules.files import read_json
from datamodules.readers._common import (
    NIFTI_ENDINGS,
    Notify,
    Row,
    cohort_of,
    existing_folder,
    files_below,
    listed,
    pattern_or_same,
    warn,
)
from datamodules.readers._folders import image_label_folders
from datamodules.readers._patterns import patient_pattern

_PARTS = {"Tr": "train", "Ts": "test"}


@dataclasses.dataclass(frozen=True)
class _DataSet:
    """What ``dataset.json`` says, with the caller's options applied."""

    sequences: Mapping[int, str]
    liver: str
    ending: str
    source: str
    training_cases: int | None


def read(
    root: Path,
    *,
    mask_labels: Sequence[int] | None = None,
    sequences: Sequence[str] | None = None,
    source: str | None = None,
    patient: str | None = None,
    notify: Notify = warn,
) -> Cohort:
    """Read a raw nnU-Net data set: one row a channel of each case.

    Args:
        root: The folder of ``dataset.json``, or one above it that holds a single data set.
        mask_labels: Values that are liver; by default the label named ``liver``.
        sequences: Sequences of the channels, ``T2W`` for the only one or ``0=T1W``; by default the
            names in ``channel_names``.
        source: By default the data set's folder name.
        patient: Pattern that finds ``{patient}`` (and perhaps ``{visit}``) in the case's name; by
            default each case is a patient of its own.
        notify: Called with each notice: images without a mask, fewer cases than announced.

    Returns:
        The cohort; a scan id is the case's name, with the sequence where there are several channels.
        Cases of ``imagesTs`` have the official split ``test``, the others ``train``.

    Raises:
        InputError: ``dataset.json`` is missing or not understood, there is no label named liver, a
            channel is missing, or a mask has no image: all faults together.
    """
    root = _data_set_folder(existing_folder(root, "an nnU-Net data set"))
    told = _described(root, mask_labels, sequences, source)
    pattern = None if patient is None else patient_pattern(patient, "--patient-pattern")
    rows: list[Row] = []
    faults: list[str] = []
    bare: list[str] = []
    counts: dict[str, int] = {}
    parts_of: dict[str, Path] = {}
    for split, images_folder, labels_folder in image_label_folders(root, _PARTS):
        cases, bad = _cases(images_folder, told)
        faults += bad
        counts[split] = len(cases)
        labels = {} if labels_folder is None else _labels(labels_folder, told.ending)
        faults += [
            f"{labels[case]}: a mask without its image in {images_folder}; add the image or remove the mask"
            for case in labels
            if case not in cases
        ]
        bare += [case for case in cases if case not in labels]
        for case, channels in cases.items():
            if parts_of.setdefault(case, images_folder) != images_folder:
                faults.append(f"{parts_of[case]} and {images_folder} both hold case {case!r}; rename one of them")
            try:
                person = pattern_or_same(case, pattern, images_folder)
            except InputError as error:
                faults += error.faults
                continue
            rows += [
                {
                    "scan_id": case if len(told.sequences) == 1 else f"{case}_{told.sequences[channel]}",
                    "patient_id": person["patient"],
                    "visit": person.get("visit"),
                    "sequence": told.sequences[channel],
                    "image": str(path),
                    "mask": str(labels[case]) if case in labels else None,
                    "mask_labels": told.liver if case in labels else None,
                    "source": told.source,
                    "official_split": split,
                }
                for channel, path in channels.items()
            ]
    if faults:
        raise InputError(*faults)
    if told.training_cases is not None and counts.get("train", 0) != told.training_cases:
        notify(
            f"{root / 'dataset.json'}: announces {told.training_cases} training cases, "
            f"there are {counts.get('train', 0)}"
        )
    if bare:
        notify(f"{root}: {len(bare)} cases have no mask: {listed(bare, len(bare))}")
    return cohort_of(rows, root, str(root))


def _data_set_folder(root: Path) -> Path:
    """The folder of ``dataset.json``: the root, or the only such folder below it."""
    if (root / "dataset.json").is_file():
        return root
    found = [(root / path).parent for path in files_below(root) if Path(path).name == "dataset.json"]
    if len(found) == 1:
        return found[0]
    if found:
        raise InputError(f"{root}: holds several data sets; name one of {listed(found)}")
    raise InputError(f"{root}: no dataset.json; name the folder Dataset…, or use 'hepastage cohort nifti'")


def _described(
    root: Path, mask_labels: Sequence[int] | None, sequences: Sequence[str] | None, source: str | None
) -> _DataSet:
    """Read and check ``dataset.json``."""
    path = root / "dataset.json"
    told = read_json(path, "an nnU-Net dataset.json")
    if not isinstance(told, dict):
        raise InputError(f"{path}: is not a JSON object; see nnU-Net's dataset_format.md")
    if "modality" in told and "channel_names" not in told:
        raise InputError(f"{path}: is of nnU-Net version 1; convert it with nnUNetv2_convert_old_nnUNet_dataset")
    faults = [
        f"{path}: {key} is missing or of the wrong kind; see nnU-Net's dataset_format.md"
        for key, kind in (("channel_names", dict), ("labels", dict), ("file_ending", str))
        if not isinstance(told.get(key), kind)
    ]
    if "dataset" in told:
        faults.append(f"{path}: lists its files under 'dataset', which is not supported; place them in imagesTr")
    if not faults and told["file_ending"] not in NIFTI_ENDINGS:
        faults.append(f"{path}: file_ending {told['file_ending']!r} is not NIfTI; convert the files to .nii.gz")
    if not faults and not (told["channel_names"] and all(str(key).isdecimal() for key in told["channel_names"])):
        faults.append(f"{path}: channel_names must be numbered '0', '1', …; correct it")
    if faults:
        raise InputError(*faults)
    count = told.get("numTraining")
    return _DataSet(
        sequences=_sequences(path, told["channel_names"], sequences),
        liver=",".join(str(label) for label in mask_labels) if mask_labels else _liver(path, told["labels"]),
        ending=told["file_ending"],
        source=source or root.name,
        training_cases=count if isinstance(count, int) else None,
    )


def _sequences(path: Path, names: Mapping[str, Any], options: Sequence[str] | None) -> dict[int, str]:
    """The sequence of each channel."""
    found = {int(key): str(name) for key, name in names.items()}
    for option in options or ():
        channel, equals, name = option.rpartition("=")
        if not equals and len(found) > 1:
            raise InputError(f"--sequence {option}: there are {len(found)} channels; write 0={option}")
        number = next(iter(found)) if not equals else int(channel) if channel.isdecimal() else -1
        if number not in found or not name:
            raise InputError(f"--sequence {option}: no such channel in {path}; it has {listed(sorted(found))}")
        found[number] = name
    if len(set(found.values())) < len(found):
        raise InputError(
            f"{path}: two channels are named alike; tell them apart with --sequence 0=T1W --sequence 1=T2W"
        )
    return found


def _liver(path: Path, labels: Mapping[str, Any]) -> str:
    """The values of the label named liver, as the cohort table writes them."""
    named = [value for name, value in labels.items() if name.strip().casefold() == "liver"]
    values = named[0] if named and isinstance(named[0], list) else named
    if len(named) != 1 or not values or not all(isinstance(value, int) and value > 0 for value in values):
        raise InputError(f"{path}: no label is named 'liver' ({listed(labels)}); say which it is with --mask-label")
    return ",".join(str(value) for value in sorted(values))


def _cases(folder: Path, told: _DataSet) -> tuple[dict[str, dict[int, Path]], list[str]]:
    """The channels of each case in an images folder, and the faults."""
    cases: dict[str, dict[int, Path]] = {}
    faults: list[str] = []
    for name in files_below(folder, depth=1):
        found = re.fullmatch(rf"(.+)_(\d{{4}}){re.escape(told.ending)}", unicodedata.normalize("NFC", name))
        if found is None:
            faults.append(f"{folder / name}: is not named CASE_0000{told.ending}; rename or remove it")
        elif int(found[2]) not in told.sequences:
            faults.append(f"{folder / name}: channel {found[2]} is not in dataset.json; add it or remove the file")
        else:
            cases.setdefault(found[1], {})[int(found[2])] = folder / name
    faults += [
        f"{folder / case}_{channel:04d}{told.ending}: is missing; a case has every channel of dataset.json"
        for case, channels in cases.items()
        for channel in told.sequences
        if channel not in channels
    ]
    return cases, faults


def _labels(folder: Path, ending: str) -> dict[str, Path]:
    """The masks of a labels folder by case."""
    return {
        unicodedata.normalize("NFC", name).removesuffix(ending): folder / name
        for name in files_below(folder, depth=1)
        if name.endswith(ending)
    }
