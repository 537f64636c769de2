"""Small scans for the store's tests, and a command that fills a store, to be killed or run many times over."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas as pd

from datamodules.cohort import Cohort
from datamodules.images import write_nifti
from datamodules.preprocessing import Preprocessing
from datamodules.store import Store

PARAMS = Preprocessing(spacing=(1.5, 1.5, 3.0))


def make_cohort(folder: Path, count: int = 3, shape: tuple[int, int, int] = (24, 20, 10)) -> Cohort:
    """Write scans with a block as mask, and return their cohort."""
    affine = np.diag([-1.25, -1.25, 5.0, 1.0])
    rows = []
    for number in range(count):
        rng = np.random.default_rng(number)
        mask = np.zeros(shape, dtype=np.uint8)
        mask[4 : shape[0] // 2, 4:-4, 2:-2] = 1
        write_nifti(folder / f"image {number}.nii.gz", rng.gamma(2, 80, shape).astype(np.int16), affine)
        write_nifti(folder / f"mask_{number}.nii.gz", mask, affine)
        rows.append(
            {
                "scan_id": f"s{number}",
                "patient_id": f"p{number}",
                "sequence": "T2W",
                "source": "test",
                "image": f"image {number}.nii.gz",
                "mask": f"mask_{number}.nii.gz",
                "mask_labels": "1",
            }
        )
    cohort = Cohort(pd.DataFrame(rows), folder)
    cohort.save(folder / "cohort.csv")
    return cohort


if __name__ == "__main__":
    Store(sys.argv[2], PARAMS).fill(Cohort.load(sys.argv[1]), workers=int(sys.argv[3]), progress=False)
