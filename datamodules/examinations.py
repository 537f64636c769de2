"""A patient's visit as one item: at most one scan of each sequence, any of which may be missing. No torch."""

from __future__ import annotations

from collections.abc import Sequence

from datamodules.cohort import Cohort, Scan
from datamodules.errors import InputError


class Examination:
    """One patient's visit: at most one scan of each sequence.

    Args:
        patient_id: The patient.
        scans: Scan by sequence.
        sequences: Order of the sequences in the batch.
    """

    def __init__(self, patient_id: str, scans: dict[str, Scan], sequences: Sequence[str]) -> None:
        self.patient_id = patient_id
        self.scans = [scans.get(sequence) for sequence in sequences]

    @property
    def present_scans(self) -> list[Scan]:
        """The scans that exist, in the order of the sequences."""
        return [scan for scan in self.scans if scan is not None]

    @property
    def scan_id(self) -> str:
        """The ids of the scans, joined by ``+``."""
        return "+".join(scan.scan_id for scan in self.present_scans)


def examinations(scans: Sequence[Scan], sequences: Sequence[str], name: str) -> list[Examination]:
    """Group scans by patient and visit.

    Args:
        scans: Scans of the wanted sequences.
        sequences: Order of the sequences.
        name: What errors call the cohort.

    Raises:
        InputError: Two scans of one sequence in one visit.
    """
    grouped: dict[tuple[str, str], dict[str, Scan]] = {}
    faults = []
    for scan in scans:
        visit = grouped.setdefault((scan.patient_id, scan.visit), {})
        if scan.sequence in visit:
            faults.append(
                f"{name}: patient {scan.patient_id!r} has two {scan.sequence} scans in one visit "
                f"({visit[scan.sequence].scan_id!r} and {scan.scan_id!r}); set 'visit', or leave one out"
            )
        visit[scan.sequence] = scan
    if faults:
        raise InputError(*faults)
    return [Examination(patient, by_sequence, sequences) for (patient, _), by_sequence in grouped.items()]


def examinations_having(sequences: Sequence[str], cohort: Cohort) -> set[tuple[str, str]]:
    """Patient and visit of the examinations that have every one of these sequences.

    Raises:
        InputError: The cohort has no such sequence.
    """
    found: dict[tuple[str, str], set[str]] = {}
    for scan in cohort.select(sequences=sequences).scans:
        found.setdefault((scan.patient_id, scan.visit), set()).add(scan.sequence)
    return {key for key, there in found.items() if there == set(sequences)}
