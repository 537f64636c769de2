"""What the DICOM readers need of a header, one record a slice, and nothing that names a person.

pydicom reads the headers. They are read through a memory map, because a damaged header may declare
an element of four gigabytes in a file of one kilobyte, and a map never gives more than there is.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import mmap
import re
import struct
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

import pydicom
from pydicom.dataset import Dataset

from datamodules.errors import InputError

B_VALUE_TAGS: tuple[tuple[int, int], ...] = (
    (0x0018, 0x9087),  # the standard's DiffusionBValue
    (0x0019, 0x100C),  # Siemens MR HEADER
    (0x0043, 0x1039),  # GE: the first of several numbers, often with 1e9 added
    (0x2001, 0x1003),  # Philips
    (0x0065, 0x1009),  # United Imaging
)
HEADER_TAGS: list[Any] = [
    "SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "PatientID", "StudyDate",
    "StudyTime", "Modality", "SeriesNumber", "SeriesDescription", "ProtocolName", "SequenceName", "ImageType",
    "InstanceNumber", "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "Rows", "Columns",
    "SamplesPerPixel", "NumberOfFrames", "EchoTime", "TemporalPositionIdentifier", "AcquisitionNumber", "TriggerTime",
    "InversionTime", "DiffusionGradientOrientation", "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence", *B_VALUE_TAGS,
    # pydicom knows a private element only together with its creator
    (0x0019, 0x0010), (0x0043, 0x0010), (0x2001, 0x0010), (0x0065, 0x0010),
]  # fmt: skip
_SEQUENCE_NAME_B = re.compile(r"_b(\d+)(?:t|#\d+)?$")
Numbers = tuple[float, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Slice:
    """One image plane: a DICOM file, or one frame of a multi-frame file.

    Attributes:
        path: The file.
        frame: Index of the frame in an enhanced multi-frame file, None for a single-frame file.
        position: ImagePositionPatient in mm, LPS, or empty.
        orientation: ImageOrientationPatient, six cosines, LPS, or empty.
        pixel_spacing: Row spacing and column spacing in mm, or empty.
        b_value: Diffusion weighting in s/mm², None where the header names none.
        discriminators: What may tell two images at one position apart, by name.
    """

    path: Path
    frame: int | None
    sop_uid: str
    patient_id: str
    study_uid: str
    study_time: str
    series_uid: str
    series_number: int | None
    description: str
    modality: str
    image_type: tuple[str, ...]
    instance: int | None
    position: Numbers
    orientation: Numbers
    pixel_spacing: Numbers
    rows: int
    columns: int
    colours: int
    b_value: float | None
    discriminators: tuple[tuple[str, str], ...]

    @property
    def placed(self) -> bool:
        """Whether its header says where it lies and how large its pixels are."""
        return bool(self.position and self.orientation and self.pixel_spacing)


@contextmanager
def quiet_pydicom() -> Iterator[None]:
    """Silence pydicom's warnings and log: they quote values, and these may name a person."""
    logger = logging.getLogger("pydicom")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def is_dicom(path: Path) -> bool:
    """Whether a file has the DICOM preamble (128 bytes, then ``DICM``)."""
    try:
        if not path.is_file():
            return False  # opening a pipe would wait for ever
        with path.open("rb") as stream:
            return stream.read(132)[128:] == b"DICM"
    except OSError:
        return False


def read_dataset(path: Path, *, pixels: bool = False) -> Dataset:
    """Read a DICOM file, tolerating odd values but never allocating more than the file holds.

    Args:
        path: The file.
        pixels: Whether to read everything; otherwise only ``HEADER_TAGS``.

    Raises:
        InputError: It cannot be read as DICOM.
    """
    try:
        with (
            path.open("rb") as stream,
            mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as view,
            quiet_pydicom(),
        ):
            return pydicom.dcmread(
                cast(BinaryIO, view), stop_before_pixels=not pixels, specific_tags=None if pixels else HEADER_TAGS
            )
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error}); check the file") from error
    except Exception as error:  # pydicom raises whatever its parser stumbles over
        raise InputError(
            f"{path}: is not readable as DICOM ({type(error).__name__}); fetch the file again, or move it away"
        ) from error


def read_slices(path: Path) -> list[Slice]:
    """The image planes of one DICOM file: one, or one a frame; none where it holds no image.

    Raises:
        InputError: It cannot be read as DICOM, or a value in its header makes no sense.
    """
    dataset = read_dataset(path)
    if "SOPClassUID" not in dataset and "MediaStorageSOPClassUID" not in dataset.file_meta:
        raise InputError(f"{path}: its DICOM header is torn off; fetch the file again, or move it away")
    try:
        with quiet_pydicom():
            frames = int(_value(dataset, "NumberOfFrames") or 1)
            per_frame = _value(dataset, "PerFrameFunctionalGroupsSequence")
            if not _value(dataset, "Rows") or not _value(dataset, "Columns"):
                return []
            if per_frame is None:
                return [_slice(path, None if frames == 1 else 0, [dataset], dataset)]
            shared = _value(dataset, "SharedFunctionalGroupsSequence") or []
            return [
                _slice(path, number, [*_groups([frame]), *_groups(shared), dataset], dataset)
                for number, frame in enumerate(per_frame)
            ]
    except Exception as error:  # values are converted on access, each with exceptions of its own
        raise InputError(
            f"{path}: its DICOM header holds a value that makes no sense ({type(error).__name__}); "
            "fetch the file again, or move it away"
        ) from error


def _groups(items: Iterable[Dataset]) -> list[Dataset]:
    """The datasets inside the functional groups, one level and two levels down."""
    found = []
    for item in items:
        for element in item:
            if element.VR == "SQ" and element.value:
                found.append(element.value[0])
                found += [inner.value[0] for inner in element.value[0] if inner.VR == "SQ" and inner.value]
    return found


def _value(dataset: Dataset, keyword: str) -> Any:
    return dataset.get(keyword)


def _first(places: list[Dataset], keyword: str) -> Any:
    for place in places:
        value = place.get(keyword)
        if value is not None and value != "":
            return value
    return None


def _slice(path: Path, frame: int | None, places: list[Dataset], dataset: Dataset) -> Slice:
    number = _value(dataset, "SeriesNumber")
    image_type = _first(places, "FrameType") or _value(dataset, "ImageType") or []
    instance = _value(dataset, "InstanceNumber")
    description = _value(dataset, "SeriesDescription") or _value(dataset, "ProtocolName") or ""
    told = ("EchoTime", "EffectiveEchoTime", "TemporalPositionIdentifier", "TemporalPositionIndex", "InversionTime",
            "DiffusionGradientOrientation", "SequenceName", "AcquisitionNumber", "TriggerTime")  # fmt: skip
    return Slice(
        path=path,
        frame=frame,
        sop_uid=str(_value(dataset, "SOPInstanceUID") or ""),
        patient_id=" ".join(str(_value(dataset, "PatientID") or "").split()),
        study_uid=str(_value(dataset, "StudyInstanceUID") or ""),
        study_time=f"{_value(dataset, 'StudyDate') or ''} {_value(dataset, 'StudyTime') or ''}",
        series_uid=str(_value(dataset, "SeriesInstanceUID") or ""),
        series_number=None if number in (None, "") else int(number),
        description=" ".join(str(description).split()),
        modality=str(_value(dataset, "Modality") or ""),
        image_type=(image_type,) if isinstance(image_type, str) else tuple(str(part).upper() for part in image_type),
        instance=None if instance in (None, "") else int(instance),
        position=_numbers(_first(places, "ImagePositionPatient"), 3),
        orientation=_numbers(_first(places, "ImageOrientationPatient"), 6),
        pixel_spacing=_numbers(_first(places, "PixelSpacing"), 2),
        rows=int(_value(dataset, "Rows")),
        columns=int(_value(dataset, "Columns")),
        colours=int(_value(dataset, "SamplesPerPixel") or 1),
        b_value=_b_value(places),
        discriminators=tuple((name, str(_first(places, name))) for name in told),
    )


def _numbers(value: Any, count: int) -> Numbers:
    """So many finite numbers, or nothing where the element is missing."""
    if value is None or value == "":
        return ()
    numbers = tuple(float(part) for part in value)
    if len(numbers) != count or not all(map(math.isfinite, numbers)):
        raise ValueError(f"{count} finite numbers expected")
    return numbers


def _b_value(places: list[Dataset]) -> float | None:
    """The b-value in s/mm²: the standard tag, then the vendors' private ones, then the sequence's name."""
    for place in places:
        for tag in B_VALUE_TAGS:
            if tag not in place:
                continue
            number = _decoded(place[tag].value)
            if number is not None:
                return number % 1e9 if tag == (0x0043, 0x1039) else number
    name = _SEQUENCE_NAME_B.search(str(_first(places, "SequenceName") or "").strip())
    # '*ep_b50_800' names a range of b-values, which no single image has
    return float(name[1]) if name else None


def _decoded(value: Any) -> float | None:
    """The first number of an element that pydicom may not know the type of."""
    if isinstance(value, bytes):
        text = value.decode("latin-1").strip("\0 ").split("\\")[0]
        try:
            return float(text)
        except ValueError:
            pass
        if len(value) in (4, 8):  # a private float, read with an implicit transfer syntax
            return float(struct.unpack("<f" if len(value) == 4 else "<d", value)[0])
        return None
    if isinstance(value, str):
        value = value.split("\\")[0]
    elif isinstance(value, Iterable):
        value = next(iter(value), None)
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) and number >= 0 else None
