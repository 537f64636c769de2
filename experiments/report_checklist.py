"""What a report answers of the checklists that journals ask for, by item number, in our own words."""

from __future__ import annotations

from dataclasses import dataclass

from experiments.compare_records import UNKNOWN_SPLIT
from experiments.compare_results import Comparison


@dataclass(frozen=True, slots=True)
class Item:
    """One line of the checklist.

    Attributes:
        claim: Item numbers of CLAIM, 2024 update (Tejani et al. 2024); empty where it asks for nothing like it.
        tripod: Item numbers of TRIPOD+AI (Collins et al. 2024).
        asked: What is asked, in our words.
        answer: Where this report answers it, or that it does not.
        answered: Whether it does.
    """

    claim: str
    tripod: str
    asked: str
    answer: str
    answered: bool


def checklist(comparison: Comparison) -> list[Item]:
    """Items that a run can answer, and at the end those that only the authors can."""
    families = comparison.families
    classes = [found for found in families if found.counts]
    hashes = sorted({str(value) for found in families for value in found.family.frame["split_sha256"]})
    known = [value[:12] for value in hashes if value != UNKNOWN_SPLIT]
    several = any(len(arm.seeds) > 1 for found in families for arm in found.arms)
    strata = sorted({item.variable for found in families for item in found.strata})
    sources = "source" in strata
    probes = sum(arm.role == "probe" for found in families for arm in found.arms)
    calibrated = any(arm.calibration is not None for found in families for arm in found.arms)
    bands = any(found.mask_points for found in families) or "quality" in strata
    operating = any("sensitivity" in arm.metrics for found in families for arm in found.arms)
    detectable = any(found.detectable == found.detectable for found in families)  # NaN where it was not asked
    versions = any("versions" in record for record in comparison.provenance)
    machine = any("hardware" in record for record in comparison.provenance)
    code = any(isinstance(record.get("git"), dict) or "git_sha" in record for record in comparison.provenance)

    def item(claim: str, tripod: str, asked: str, yes: bool, where: str, otherwise: str) -> Item:
        return Item(claim, tripod, asked, where if yes else otherwise, yes)

    return [
        item(
            "19, 20", "12a", "How patients were shared out, and that no patient is in two parts",
            bool(known), f"one split by patient for all arms, hash {', '.join(known)}", "no split hash was recorded",
        ),
        item(
            "21", "10", "Whether the test set is large enough",
            detectable, "smallest detectable difference, in the summary", "not answered: no two classes",
        ),
        item(
            "23", "12c", "Software and versions", versions, "provenance, below", "not recorded",
        ),
        item("", "18f", "State of the code", code, "commit and command, in the provenance", "not recorded"),
        item("25", "12c", "Machine on which it was trained", machine, "provenance, below", "not recorded"),
        item(
            "26, 27", "12c", "Choice of the model, and whether several are combined",
            several, "all seeds shown, none chosen; folds as in the methods", "one seed only",
        ),
        item(
            "28", "12e", "Measures of performance, and why", True, "methods, below",
            "",
        ),
        item("", "13", "How rare classes were met", bool(classes), "class counts and majority baseline", "no classes"),
        item("29, 37", "23a", "Uncertainty of every number", True, "intervals in every table", ""),
        item(
            "30", "14, 23a", "Results in subgroups", bool(strata), "by " + ", ".join(strata), "no subgroup recorded",
        ),
        item("", "12d, 23b", "Results by centre", sources, "by source", "a single source: not answered"),
        item(
            "30", "12e", "Robustness: shortcuts, and the quality of the masks",
            bool(probes) or bands,
            " and ".join([f"{probes} probe arms"] * bool(probes) + ["by mask quality"] * bands),
            "no probe arm and no mask quality: not answered",
        ),
        item("", "12e", "Calibration", calibrated, "curve, slope and intercept", "not answered"),
        item("", "12e", "Worth of a decision", calibrated, "decision curve", "not answered"),
        item(
            "38", "15, 23a", "Operating point", operating,
            "thresholds of validation patients, and fixed specificity", "no threshold was recorded",
        ),
        item("39", "", "Failures looked at one by one", True, "patients on whom arms disagree, worst pictures", ""),
        item("32, 33", "16", "Inside or outside data", sources, "by source", "one source: no outside data shown"),
        Item("7-18, 35, 36", "5-9, 20", "Patients, eligibility, images, reference standard, annotators",
             "not in the runs: to be written by the authors", False),
        Item("40-44", "3, 4, 17, 18, 25-27", "Aims, ethics, registration, limits, use in practice, funding, sharing",
             "not in the runs: to be written by the authors", False),
    ]  # fmt: skip
