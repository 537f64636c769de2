"""Folder trees of tiny NIfTI files for the readers' tests."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np


@cache
def nifti_bytes(value: int, gzipped: bool) -> bytes:
    """A 4×3×2 volume of one value, 1.5×1.5×6 mm, stored LPS."""
    image: Any = nib.Nifti1Image(np.full((4, 3, 2), value, np.int16), np.diag([-1.5, -1.5, 6.0, 1.0]))
    data: bytes = image.to_bytes()
    if gzipped:
        import gzip

        data = gzip.compress(data, mtime=0)
    return data


def volumes(folder: Path, names: Iterable[object], value: int = 1, ending: str = ".nii.gz") -> None:
    """Write one volume a name."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / f"{name}{ending}").write_bytes(nifti_bytes(value, ending.endswith(".gz")))
