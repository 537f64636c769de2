"""Check a cohort before the first epoch: its table, its files, and how the scans compare with each other."""

from __future__ import annotations

import dataclasses
import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from datamodules.cohort import Cohort, Scan
from datamodules.cohort_check_files import FileFacts, check_files
from datamodules.cohort_check_rules import (
    LEVELS,
    Finding,
    Pairs,
    duplicates,
    mixtures,
    of_one,
    of_patients,
    outliers,
    sequence_volumes,
)
from datamodules.errors import InputError

JSON_FORMAT = 1


@dataclasses.dataclass(frozen=True)
class CheckReport:
    """All findings and measurements.

    Attributes:
        cohort: The table's name.
        sha256: Its content's hash; empty where the table itself is broken.
        findings: Faults first, then warnings, then notes.
        scans: Rows with their measurements; empty where the table is broken.
        counts: One dictionary a source and sequence: scans, patients, masks and labels.
    """

    cohort: str
    sha256: str
    findings: tuple[Finding, ...]
    scans: tuple[tuple[Scan, FileFacts], ...] = ()
    counts: tuple[dict[str, Any], ...] = ()

    @property
    def has_faults(self) -> bool:
        """Whether something must be put right before training."""
        return any(finding.level == "fault" for finding in self.findings)

    def number(self, level: str) -> int:
        """How many findings have a level."""
        return sum(finding.level == level for finding in self.findings)

    def to_json(self) -> dict[str, Any]:
        """The report as JSON values; keys and codes are stable within ``format``."""
        return {
            "format": JSON_FORMAT,
            "cohort": self.cohort,
            "cohort_sha256": self.sha256,
            "summary": {"scans": len(self.scans), **{f"{level}s": self.number(level) for level in LEVELS}},
            "findings": [dataclasses.asdict(finding) for finding in self.findings],
            "counts": list(self.counts),
            "scans": [
                {"patient_id": scan.patient_id, "source": scan.source, "sequence": scan.sequence, **facts.measured()}
                for scan, facts in self.scans
            ],
        }


def check_table(path: str | Path, **options: Any) -> CheckReport:
    """Load a cohort table and check it; a table that breaks the schema makes a report of faults.

    Args:
        path: The table.
        options: As in :func:`check_cohort`.

    Raises:
        InputError: There is no such file, or it is no kind of table.
    """
    path = Path(path)
    if not path.is_file() or path.suffix not in (".parquet", ".csv"):
        Cohort.load(path)
    try:
        cohort = Cohort.load(path)
    except InputError as error:
        faults = [Finding("fault", "table", fault) for fault in error.faults]
        note = Finding("note", "files-not-checked", f"{path}: files were not checked; correct the table first")
        return CheckReport(str(path), "", (*faults, note))
    return check_cohort(cohort, **options)


def check_cohort(
    cohort: Cohort, workers: int | None = None, progress: bool = True, thumbnails: bool = False
) -> CheckReport:
    """Check every file of a cohort, and every scan against its like.

    Args:
        cohort: A validated table.
        workers: Processes; by default one a core that may be used.
        progress: Whether to show a progress bar (on stderr).
        thumbnails: Whether to draw a thumbnail of every scan.

    Returns:
        The report. Nothing that a file holds makes this raise.
    """
    facts = list(_measured(cohort.scans, workers, progress, thumbnails))
    pairs = tuple(zip(cohort.scans, facts, strict=True))
    findings = [finding for scan, fact in pairs for finding in of_one(scan, fact)]
    findings += [
        *duplicates(pairs),
        *outliers(pairs),
        *sequence_volumes(pairs),
        *of_patients(pairs),
        *mixtures(pairs),
    ]
    findings.sort(key=lambda finding: (LEVELS.index(finding.level), finding.code, finding.scans))
    return CheckReport(cohort.name, cohort.sha256, tuple(findings), pairs, tuple(_counts(pairs)))


def _measured(scans: Sequence[Scan], workers: int | None, progress: bool, thumbnails: bool) -> Iterator[FileFacts]:
    from rich.console import Console
    from rich.progress import track

    workers = workers or len(os.sched_getaffinity(0))
    options: dict[str, Any] = {
        "description": "checking scans", "total": len(scans), "console": Console(stderr=True), "disable": not progress,
        "transient": True,
    }  # fmt: skip
    if workers == 1 or len(scans) < 8:
        yield from track((check_files(scan, thumbnails) for scan in scans), **options)
        return
    import multiprocessing
    from concurrent.futures import Future, ProcessPoolExecutor
    from concurrent.futures.process import BrokenProcessPool

    # a fresh process: one forked from a program with threads may hang on a lock that nobody holds
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        futures: list[Future[FileFacts]] = [pool.submit(check_files, scan, thumbnails) for scan in scans]
        for scan, future in track(list(zip(scans, futures, strict=True)), **options):
            try:
                yield future.result()
            except BrokenProcessPool:
                message = (
                    f"{scan.image}: the process that read it was killed, perhaps for memory; check with fewer --workers"
                )
                yield FileFacts(scan.scan_id, [("image", message)])


def _counts(pairs: Pairs) -> Iterator[dict[str, Any]]:
    """Scans, patients, masks and labels of each source and sequence."""
    groups: dict[tuple[str, str], list[Scan]] = defaultdict(list)
    for scan, _ in pairs:
        groups[scan.source, scan.sequence].append(scan)
    for (source, sequence), scans in sorted(groups.items()):
        labels: dict[str, dict[str, int]] = {}
        for name in ("stage", "metavir", "healthy", "official_split", "sex"):
            counted = Counter(getattr(scan, name) for scan in scans)
            labels[name] = {str(value): counted[value] for value in sorted(counted, key=str) if value is not None}
        yield {
            "source": source,
            "sequence": sequence,
            "scans": len(scans),
            "patients": len({scan.patient_id for scan in scans}),
            "masks": sum(scan.mask is not None for scan in scans),
            "lsm_kpa": sum(scan.lsm_kpa is not None for scan in scans),
            **labels,
        }
