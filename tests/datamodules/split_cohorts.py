"""Small cohort tables for tests of splits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from datamodules.cohort import Cohort


def cohort_of(patients: list[dict[str, Any]], sequences: tuple[str, ...] = ("T1W", "T2W")) -> Cohort:
    """A cohort with one scan a patient and sequence; a dict of a column gives a value a sequence."""
    rows = []
    for patient in patients:
        for sequence in sequences:
            values = {k: v.get(sequence) if isinstance(v, dict) else v for k, v in patient.items()}
            scan = f"{patient['patient_id']}_{sequence}"
            rows.append({"source": "a", **values, "scan_id": scan, "sequence": sequence, "image": f"{scan}.nii.gz"})
    return Cohort(pd.DataFrame(rows), Path("/nowhere"), "table.csv")


def hospital(low: int, high: int, source: str = "a", prefix: str = "") -> list[dict[str, Any]]:
    """Patients with low and with high liver stiffness."""
    return [
        {"patient_id": f"{prefix}{'high' if i < high else 'low'}{i}", "lsm_kpa": 20.0 if i < high else 6.0}
        | {"source": source}
        for i in range(low + high)
    ]
