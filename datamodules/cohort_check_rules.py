"""The rules of the cohort check: what measurements of scans say about a scan, a patient, or a source."""

from __future__ import annotations

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

import numpy as np

from datamodules.cohort import Scan
from datamodules.cohort_check_files import FileFacts

Pairs = Sequence[tuple[Scan, FileFacts]]
LEVELS = ("fault", "warning", "note")
LIVER_ML = (500.0, 4000.0)
"""Plausible volumes of an adult liver, atrophic and enlarged ones included."""
PAIR_DISAGREEMENT = 0.25
"""Volumes of one liver in two sequences may differ by this share of their mean."""
OUTLIER_Z = 5.0
"""Robust z (0.6745 · deviation / MAD; Iglewicz and Hoaglin 1993 use 3.5, which flags too many of a few)."""
OUTLIER_GROUP = 6
"""Fewer scans of one source and sequence make no distribution."""
SPACING_MM = (0.2, 15.0)
OBLIQUE_DEGREES = (1.0, 30.0)


@dataclasses.dataclass(frozen=True)
class Finding:
    """One thing that was found.

    Attributes:
        level: ``fault`` (do not train on this), ``warning`` (look at it) or ``note`` (know it).
        code: A stable short name, such as ``duplicate-image``.
        message: What, and what to do.
        scans: Scan ids that it concerns.
    """

    level: str
    code: str
    message: str
    scans: tuple[str, ...] = ()


def of_one(scan: Scan, facts: FileFacts) -> Iterator[Finding]:
    """Findings that need no other scan."""
    about = (scan.scan_id,)
    codes = {"image": "unreadable-image", "mask": "unreadable-mask", "grid": "mask-off-grid"}
    for part, message in facts.errors:
        yield Finding("fault", codes[part], message, about)
    if facts.constant:
        yield Finding("fault", "constant-image", f"{scan.image}: all voxels are equal; leave the scan out", about)
    if facts.spacing_mm is not None and facts.oblique_degrees is not None:
        told = " × ".join(f"{value:g}" for value in facts.spacing_mm)
        if min(facts.spacing_mm) < SPACING_MM[0] or max(facts.spacing_mm) > SPACING_MM[1]:
            yield Finding(
                "warning", "odd-spacing", f"{scan.image}: voxels of {told} mm; check the header's units", about
            )
        elif set(facts.spacing_mm) == {1.0}:
            message = (
                f"{scan.image}: voxels of 1 × 1 × 1 mm, which is also what a lost header says; compare with the source"
            )
            yield Finding("warning", "unit-spacing", message, about)
        if facts.oblique_degrees > OBLIQUE_DEGREES[1]:
            message = (
                f"{scan.image}: tilted by {facts.oblique_degrees:.1f} degrees against the patient; check the affine"
            )
            yield Finding("warning", "very-oblique", message, about)
    if facts.mask_ml is None:
        return
    if facts.mask_ml == 0:
        labels = ",".join(map(str, scan.mask_labels))
        held = ", ".join(map(str, facts.mask_values))
        message = f"{scan.mask}: no voxel has the label {labels}, it holds {held}; correct mask_labels or the mask"
        yield Finding("fault", "empty-mask", message, about)
        return
    if not LIVER_ML[0] <= facts.mask_ml <= LIVER_ML[1]:
        usual = f"{LIVER_ML[0]:.0f} to {LIVER_ML[1]:.0f} ml"
        message = f"{scan.mask}: {facts.mask_ml:.0f} ml, an adult's liver has {usual}; look at it"
        yield Finding("warning", "implausible-volume", message, about)
    if (facts.mask_parts or 0) > 1:
        share = 100 * (facts.mask_largest_share or 0)
        message = (
            f"{scan.mask}: {facts.mask_parts} separate parts, the largest has {share:.1f} % of the volume; look at it"
        )
        yield Finding("warning", "disconnected-mask", message, about)
    if facts.mask_specks:
        yield Finding(
            "note", "mask-specks", f"{scan.mask}: {facts.mask_specks} specks under 0.5 ml beside the liver", about
        )
    if facts.mask_at_edge:
        yield Finding(
            "note", "mask-at-edge", f"{scan.mask}: touches the image's border: the liver may be cut off", about
        )


def duplicates(pairs: Pairs) -> Iterator[Finding]:
    """One image under two names: a leak where the names are two patients'."""
    by_content: dict[str, list[Scan]] = defaultdict(list)
    for scan, facts in pairs:
        if facts.content_sha256 is not None and not facts.constant:
            by_content[facts.content_sha256].append(scan)
    for scans in by_content.values():
        if len(scans) < 2:
            continue
        ids = tuple(scan.scan_id for scan in scans)
        patients = sorted({scan.patient_id for scan in scans})
        if len(patients) > 1:
            message = (
                f"the scans {', '.join(ids)} hold the same image under the patients {', '.join(patients)}; keep one"
            )
            yield Finding("fault", "duplicate-image", message, ids)
        else:
            message = f"the scans {', '.join(ids)} of patient {patients[0]} hold the same image; keep one"
            yield Finding("warning", "duplicate-scan", message, ids)


def outliers(pairs: Pairs) -> Iterator[Finding]:
    """Intensities far from those of the same source and sequence."""
    groups: dict[tuple[str, str], list[tuple[Scan, FileFacts]]] = defaultdict(list)
    for scan, facts in pairs:
        groups[scan.source, scan.sequence].append((scan, facts))
    for (source, sequence), members in groups.items():
        for name, told in (
            ("median", "tissue's median"), ("p99", "99th percentile"), ("liver_ratio", "liver-to-tissue ratio"),
        ):  # fmt: skip
            known = [(scan, float(value)) for scan, facts in members if (value := getattr(facts, name)) is not None]
            if len(known) < OUTLIER_GROUP:
                continue
            values = np.array([value for _, value in known])
            # scanners' gains multiply: distances are measured on a log scale where that is possible
            scaled = np.log(values) if values.min() > 0 else values
            centre = np.median(scaled)
            spread = max(
                float(np.median(np.abs(scaled - centre))), 0.01 * (1 if values.min() > 0 else abs(centre)), 1e-12
            )
            for (scan, value), z in zip(known, 0.6745 * (scaled - centre) / spread, strict=True):
                if abs(z) > OUTLIER_Z:
                    message = (
                        f"{scan.image}: the {told} is {value:.4g}, that of {source} {sequence} {np.median(values):.4g} "
                        f"(robust z {z:+.1f}); look at the scan"
                    )
                    yield Finding("warning", f"intensity-outlier-{name.replace('_', '-')}", message, (scan.scan_id,))


def sequence_volumes(pairs: Pairs) -> Iterator[Finding]:
    """Two sequences of one visit show one liver."""
    visits: dict[tuple[str, str], list[tuple[Scan, float]]] = defaultdict(list)
    for scan, facts in pairs:
        if facts.mask_ml:
            visits[scan.patient_id, scan.visit].append((scan, facts.mask_ml))
    for (patient, _), members in visits.items():
        small, large = min(members, key=lambda item: item[1]), max(members, key=lambda item: item[1])
        if small[0].sequence == large[0].sequence:
            continue
        share = (large[1] - small[1]) / ((large[1] + small[1]) / 2)
        if share > PAIR_DISAGREEMENT:
            message = (
                f"patient {patient}: the liver has {small[1]:.0f} ml in {small[0].sequence} and {large[1]:.0f} ml in "
                f"{large[0].sequence} ({100 * share:.0f} % apart); one mask is wrong, or they are two people"
            )
            yield Finding("warning", "volumes-disagree", message, (small[0].scan_id, large[0].scan_id))


def of_patients(pairs: Pairs) -> Iterator[Finding]:
    """What cannot differ between scans of one person, or of one visit."""
    by_patient: dict[str, list[Scan]] = defaultdict(list)
    for scan, _ in pairs:
        by_patient[scan.patient_id].append(scan)
    for patient, scans in by_patient.items():
        ids = tuple(scan.scan_id for scan in scans)
        if len(sexes := {scan.sex for scan in scans if scan.sex}) > 1:
            message = f"patient {patient}: sex is {' and '.join(sorted(sexes))}; perhaps two people share the id"
            yield Finding("fault", "contradicting-sex", message, ids)
        for name in ("stage", "lsm_kpa", "metavir", "healthy"):
            by_visit: dict[str, set[object]] = defaultdict(set)
            for scan in scans:
                if getattr(scan, name) is not None:
                    by_visit[scan.visit].add(getattr(scan, name))
            for values in by_visit.values():
                if len(values) > 1:
                    told = " and ".join(sorted(map(str, values)))
                    message = f"patient {patient}: {name} is {told} at one visit; correct the table"
                    yield Finding("fault", "contradicting-label", message, ids)


def mixtures(pairs: Pairs) -> Iterator[Finding]:
    """What is not uniform within a source and sequence."""
    groups: dict[tuple[str, str], list[FileFacts]] = defaultdict(list)
    for scan, facts in pairs:
        if facts.dtype is not None:
            groups[scan.source, scan.sequence].append(facts)
    for (source, sequence), members in sorted(groups.items()):
        for what, name in (("voxel types", "dtype"), ("orientations", "orientation")):
            counted = Counter(getattr(facts, name) for facts in members)
            if len(counted) > 1:
                told = ", ".join(f"{value} {number}" for value, number in counted.most_common())
                yield Finding("note", f"mixed-{name}", f"{source} {sequence}: several {what}: {told}")
        tilted = {facts.scan_id: facts.oblique_degrees or 0.0 for facts in members}
        tilted = {scan_id: angle for scan_id, angle in tilted.items() if angle > OBLIQUE_DEGREES[0]}
        if tilted:
            told = f"{len(tilted)} of {len(members)} scans are oblique, by up to {max(tilted.values()):.1f} degrees"
            yield Finding("note", "oblique", f"{source} {sequence}: {told}", tuple(tilted))
