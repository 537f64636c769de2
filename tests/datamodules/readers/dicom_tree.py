"""Small DICOM trees for tests, written with pydicom."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid

AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
NAME = "Doe^Jane"
BIRTH = "19610203"
INSTITUTION = "St Elsewhere"


def write_slice(path: Path, pixels: NDArray[np.generic], position: tuple[float, ...], **values: Any) -> None:
    """One MR image with identifying tags, at ``position`` (LPS, mm); ``values`` set or override elements."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = MRImageStorage
    uid = generate_uid(entropy_srcs=[str(path)])
    dataset.file_meta.MediaStorageSOPInstanceUID = uid
    defaults: dict[str, Any] = {
        "SOPClassUID": MRImageStorage,
        "SOPInstanceUID": uid,
        "PatientName": NAME,
        "PatientID": "P1",
        "PatientBirthDate": BIRTH,
        "InstitutionName": INSTITUTION,
        "StudyInstanceUID": "1.2.3",
        "SeriesInstanceUID": "1.2.3.4",
        "StudyDate": "20200101",
        "SeriesNumber": 5,
        "SeriesDescription": "t2_tse_tra",
        "Modality": "MR",
        "ImageType": ["ORIGINAL", "PRIMARY", "M"],
        "ImagePositionPatient": list(position),
        "ImageOrientationPatient": list(AXIAL),
        "PixelSpacing": [1.5, 1.25],
        "SliceThickness": 2.0,  # thinner than the distance of slices: there are gaps
        "Rows": pixels.shape[0],
        "Columns": pixels.shape[1],
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "BitsAllocated": 16,
        "BitsStored": 16,
        "HighBit": 15,
        "PixelRepresentation": int(pixels.dtype == np.int16),
    }
    for keyword, value in (defaults | values).items():
        if value is not None:
            setattr(dataset, keyword, value)
    dataset.PixelData = np.ascontiguousarray(pixels).tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path, enforce_file_format=True)


def write_series(
    folder: Path,
    volume: NDArray[np.generic],
    *,
    start: float = 0.0,
    step: float = 4.0,
    pattern: str = "{:04d}.dcm",
    **values: Any,
) -> list[Path]:
    """An axial series of a volume of shape (slices, rows, columns), slices ``step`` mm apart."""
    paths = []
    for number, plane in enumerate(volume, start=1):
        path = folder / pattern.format(number)
        write_slice(path, plane, (-10.0, -20.0, start + (number - 1) * step), **({"InstanceNumber": number} | values))
        paths.append(path)
    return paths


def ramp(slices: int = 6, rows: int = 8, columns: int = 10, dtype: Any = np.int16) -> NDArray[Any]:
    """A volume in which every voxel has its own value."""
    return np.arange(slices * rows * columns).reshape(slices, rows, columns).astype(dtype)
