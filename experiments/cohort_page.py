"""The cohort check as one self-contained HTML page: a thumbnail a scan, sortable and filterable by finding."""

from __future__ import annotations

import base64
from collections import defaultdict
from pathlib import Path
from typing import Any

import jinja2

from datamodules.cohort import Scan
from datamodules.cohort_check import CheckReport
from datamodules.cohort_check_files import FileFacts
from datamodules.cohort_check_rules import LEVELS, Finding
from datamodules.files import write_text

TEMPLATE = Path(__file__).with_name("cohort_page.html.j2")


def write_cohort_page(report: CheckReport, path: Path) -> None:
    """Write the page, atomically. It loads nothing from anywhere else.

    Args:
        report: Made with ``thumbnails=True`` if pictures are wanted.
        path: The ``.html`` file.

    Raises:
        InputError: The file cannot be written.
    """
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    by_scan: dict[str, list[Finding]] = defaultdict(list)
    for finding in report.findings:
        for scan_id in finding.scans:
            by_scan[scan_id].append(finding)
    codes: dict[str, dict[str, Any]] = {}
    for finding in report.findings:
        entry = codes.setdefault(finding.code, {"code": finding.code, "level": finding.level, "count": 0})
        entry["count"] += 1
    write_text(
        path,
        template.render(
            report=report,
            levels=[(level, report.number(level)) for level in LEVELS],
            codes=list(codes.values()),
            cards=[_card(scan, facts, by_scan[scan.scan_id], at) for at, (scan, facts) in enumerate(report.scans)],
            patients=len({scan.patient_id for scan, _ in report.scans}),
        ),
    )


def _card(scan: Scan, facts: FileFacts, findings: list[Finding], place: int) -> dict[str, Any]:
    """What the template shows of one scan."""
    worst = min((LEVELS.index(finding.level) for finding in findings), default=len(LEVELS))
    labels = []
    for name, value, unit in (
        ("stage", scan.stage, ""), ("LSM", scan.lsm_kpa, " kPa"), ("METAVIR", scan.metavir, ""),
        ("healthy", scan.healthy, ""), ("age", scan.age, ""), ("sex", scan.sex, ""), ("split", scan.official_split, ""),
    ):  # fmt: skip
        if value is not None:
            told = f"{value:g}" if isinstance(value, float) else str(value)
            labels.append(f"{name} {told.lower() if isinstance(value, bool) else told}{unit}")
    geometry = ""
    if facts.shape and facts.spacing_mm:
        geometry = (
            f"{' × '.join(map(str, facts.shape))} · {' × '.join(f'{value:.4g}' for value in facts.spacing_mm)} mm"
        )
        geometry += f" · {facts.orientation} · {facts.dtype}"
        if facts.oblique_degrees:
            geometry += f" · oblique {facts.oblique_degrees:.1f}°"
    return {
        "scan": scan,
        "place": place,
        "worst": worst,
        "level": LEVELS[worst] if worst < len(LEVELS) else "clear",
        "findings": findings,
        "codes": " ".join(sorted({finding.code for finding in findings})),
        "labels": " · ".join(labels),
        "geometry": geometry,
        "volume": "" if facts.mask_ml is None else f"{facts.mask_ml:.0f} ml",
        "volume_ml": -1 if facts.mask_ml is None else facts.mask_ml,
        "signal": -1 if facts.median is None else facts.median,
        "thumbnail": "" if facts.thumbnail is None else base64.b64encode(facts.thumbnail).decode(),
    }
