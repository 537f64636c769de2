"""Cohorts for benchmarks: phantom patients, or patients derived from real scans, whose files are as large as theirs."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path


def write_cohort(out: Path, scans: Path | None, patients: int = 40, copies: int = 4) -> Path:
    """Write a cohort with LSM into ``out/cohort``.

    Args:
        out: Folder to work in.
        scans: Folder with ``image_N.nii.gz`` and ``label_N.nii.gz``, where 1 is liver; None makes phantoms.
        patients: Number of phantoms.
        copies: Patients that are derived from each scan.

    Returns:
        The cohort table.
    """
    out.mkdir(parents=True, exist_ok=True)
    table = out / "cohort" / "cohort.parquet"
    if scans is None:
        hepastage("cohort", "phantom", "--out", str(table.parent), "--patients", str(patients), "--seed", "0")
        return table
    words = ["--image", "image_{id}.nii.gz", "--mask", "label_{id}.nii.gz", "--mask-label", "1"]
    words += ["--sequence", "T2W", "--source", "scans", "--out", str(out / "real.parquet")]
    hepastage("cohort", "nifti", str(scans), *words)
    words = ["--out", str(table.parent), "--strength", "0.6", "--copies", str(copies), "--seed", "0"]
    hepastage("cohort", "semisynthetic", str(out / "real.parquet"), *words)
    return table


def hepastage(*words: str) -> None:
    """Run a command of ours that must end well, without its words."""
    from experiments.cli import main

    with contextlib.redirect_stdout(io.StringIO()):
        code = main(list(words))
    if code:
        raise RuntimeError(f"hepastage {' '.join(words)} ended with {code}")
