"""Make one phantom patient's files; what a worker process runs, so it imports little."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from datamodules.phantom_acquisition import acquire, draw_grid, scanner_of, write_scan
from datamodules.phantom_anatomy import draw_patient
from datamodules.phantom_plan import PatientPlan, stream
from datamodules.phantom_severity import PhantomStrength


def make_patient(plan: PatientPlan, out: Path, seed: int, detail: float, strength: PhantomStrength) -> dict[str, float]:
    """Make and write all scans of one patient.

    Args:
        plan: The patient.
        out: The cohort's folder.
        seed: The cohort's seed.
        detail: In-plane resolution relative to the quick default.
        strength: How strongly severity shows.

    Returns:
        The reference mask's volume in ml by scan id.
    """
    patient = draw_patient(
        plan.findings, strength, detail, stream(seed, plan.number, "body"), stream(seed, plan.number, "tissue")
    )
    scanner = scanner_of(plan.source_index)
    volumes = {}
    for sequence in plan.sequences:
        grid = draw_grid(
            patient,
            scanner,
            sequence,
            detail,
            stream(seed, plan.number, "position"),
            stream(seed, plan.number, f"{sequence} grid"),
        )
        image, mask = acquire(patient, scanner, sequence, grid, plan.marker, stream(seed, plan.number, sequence))
        scan_id = f"{plan.patient_id}_{sequence}"
        write_scan(out / "images" / f"{scan_id}.nii.gz", image, grid.affine)
        write_scan(out / "masks" / f"{scan_id}.nii.gz", mask, grid.affine)
        volumes[scan_id] = float(mask.sum()) * abs(float(np.linalg.det(grid.affine[:3, :3]))) / 1000.0
    return volumes
