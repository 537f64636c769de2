"""The answer in plain words, with its uncertainty, and what this test set can show at all."""

from __future__ import annotations

import math

from experiments.compare_metrics import LOWER_IS_BETTER, NAMES
from experiments.compare_results import ArmResult, Difference, FamilyResult
from experiments.statistics_proportions import Interval

SMALL = 50
"""Below this many patients a set is called small."""


def number(value: float, digits: int = 2, sign: bool = False) -> str:
    """A number for people: a real minus, fixed digits, no negative zero; a dash where there is none."""
    if math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    rounded = round(value, digits) + 0.0
    text = f"{abs(rounded):.{digits}f}"
    if rounded < 0:
        return f"−{text}"
    return f"+{text}" if sign and rounded > 0 else text


def with_interval(value: Interval | None, digits: int = 2, sign: bool = False) -> str:
    """``0.81 (0.70–0.90)``; ``+0.07 (−0.02 to +0.16)`` for a signed difference; words where not estimable."""
    if value is None or math.isnan(value.estimate):
        return "not estimable"
    if math.isnan(value.low):
        return f"{number(value.estimate, digits, sign)} (no interval)"
    between = " to " if sign or value.low < 0 else "–"
    ends = between.join(number(end, digits, sign) for end in (value.low, value.high))
    return f"{number(value.estimate, digits, sign)} ({ends})"


def p_words(p: float) -> str:
    """``p = 0.12``, ``p = 0.003``, ``p < 0.001``."""
    if math.isnan(p):
        return "p not estimable"
    if p < 0.001:
        return "p < 0.001"
    return f"p = {p:.3f}" if p < 0.1 else f"p = {p:.2f}"


def p_cell(p: float) -> str:
    """A p-value without its letter."""
    return "–" if math.isnan(p) else "<0.001" if p < 0.001 else f"{p:.3f}"


def digits_of(metric: str) -> int:
    """Decimals to show: distances and volumes need one, the rest two."""
    return 1 if metric.endswith(("_mm", "_ml")) else 3 if metric in ("dice", "iou", "nsd", "brier") else 2


def add_sentences(found: FamilyResult, level: float) -> None:
    """Fill the summary of a family's result."""
    digits, name = digits_of(found.metric), NAMES[found.metric]
    base = found.result(found.reference).metrics.get(found.metric)
    patients = len(found.family.patients)
    lines = []
    if base is None:
        lines.append(
            f"On these {patients} patients {name} is not estimable: "
            + ("only one class occurs." if sum(count > 0 for count in found.counts) < 2 else "no threshold is known.")
        )
    else:
        lines += [_difference(found, item, digits, level) for item in found.differences]
        if not found.differences:
            lines.append(f"{found.reference} reached {name} {with_interval(base, digits)} on {patients} patients.")
    for held in found.holding:
        if held.fall.low > 0:
            lines.append(
                f"{held.arm} does not hold: its AUC falls from {with_interval(held.validation)} on validation patients "
                f"to {with_interval(held.test)} on test patients. Look for a shortcut: something that goes with the "
                "label in training and not in the test set."
            )
    # what an arm reaches that leaks on purpose says nothing of a shortcut
    lines += [_probe(arm) for arm in found.arms if arm.role == "probe" and arm.arm not in found.family.leaks]
    if found.family.kind == "binary" and min(found.counts) > 0:
        lines.append(_can_show(found, level))
    elif patients < SMALL:
        lines.append(f"{patients} patients are few: expect wide intervals, and do not read their overlap as equality.")
    found.sentences = lines


def _probe(arm: ArmResult) -> str:
    area = arm.metrics.get("auc") or arm.metrics.get("auc_ovr")
    on_test = area is not None and area.low > 0.5
    if arm.light != "red":
        verdict = "no shortcut is shown by it"
    elif arm.note:
        # it predicts something else than the label: the source, say
        verdict = (
            "it succeeds, so the images give away what it predicts; where that goes with the label, it is a shortcut"
        )
    elif on_test:
        verdict = "it succeeds, so something other than the liver's disease gives the label away"
    else:
        verdict = (
            "it succeeds on validation patients, so something other than the liver's disease gives the label away "
            "where the training patients come from, and the test patients do not carry it"
        )
    held = "" if arm.validation is None else f", on validation patients {number(arm.validation.estimate)}"
    return f"Probe {arm.arm}: AUC {with_interval(area)}{held}; {verdict}."


def _difference(found: FamilyResult, item: Difference, digits: int, level: float) -> str:
    ours, base = found.result(item.arm).metrics[item.metric], found.result(item.reference).metrics[item.metric]
    same = f"on the same {len(found.family.patients)} patients"
    family = f" ({p_words(item.p_holm)} after Holm)" if len(found.differences) > 1 else ""
    settled = item.p_holm < 1 - level and not item.interval.low <= 0 <= item.interval.high
    if settled:
        better = (item.interval.estimate > 0) != (item.metric in LOWER_IS_BETTER)
        verdict = f"{item.arm if better else item.reference} did better here"
    else:
        verdict = "this does not settle which is better"
    return (
        f"{item.arm} reached {NAMES[item.metric]} {with_interval(ours, digits)} against {with_interval(base, digits)} "
        f"of {item.reference} {same}; difference {with_interval(item.interval, digits, sign=True)}, "
        f"{p_words(item.p_value)}{family}: {verdict}.{_margin(item)}"
    )


def _margin(item: Difference) -> str:
    judged = item.non_inferiority
    if judged is None:
        return ""
    verdict = "is shown" if judged.shown else "is not shown"
    return f" Non-inferiority: that it is worse by less than {judged.margin:g} {verdict}."


def _can_show(found: FamilyResult, level: float) -> str:
    negatives, positives = found.counts
    patients = positives + negatives
    size = f"{patients} patients ({positives} positive, {negatives} negative)"
    small = f"This is a small test set: {size}. " if patients < SMALL else f"The test set has {size}. "
    if math.isnan(found.detectable):
        return small.strip()
    if math.isinf(found.detectable):
        return (
            small + "Even a perfect arm could not be told from the reference with 80 % power: a difference that is not "
            "seen here may well exist."
        )
    return (
        small + f"It finds a true AUC difference of {number(found.detectable)} or more in four studies of five "
        f"(80 % power, {level * 100:g} % confidence); smaller ones will mostly go unseen."
    )
