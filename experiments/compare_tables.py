"""The comparison as CSV, Markdown, LaTeX (booktabs) and a table in the terminal."""

from __future__ import annotations

import csv
import io
import math
from typing import TYPE_CHECKING

from experiments.compare_details import details, difference_of, extra_values
from experiments.compare_metrics import AT_SENSITIVITY, AT_SPECIFICITY, NAMES
from experiments.compare_results import ArmResult, Comparison, FamilyResult
from experiments.compare_words import digits_of, number, p_cell, with_interval

if TYPE_CHECKING:
    from rich.table import Table

_ELSEWHERE = frozenset({"balanced_accuracy", AT_SPECIFICITY, AT_SENSITIVITY})


def header(found: FamilyResult) -> list[str]:
    """Column names of a family's table."""
    names = []
    for name in shown_metrics(found):
        names += [NAMES[name], "Majority baseline"] if name == "accuracy" else [NAMES[name]]
    return ["Arm", "Seeds", *names, f"Difference in {NAMES[found.metric]}", "p", "p (Holm)"]


def metric_names(found: FamilyResult) -> list[str]:
    """Metrics that at least one arm has: the primary one first, then in their usual order."""
    order = list(NAMES)
    names = {name for arm in found.arms for name in arm.metrics}
    return sorted(names, key=lambda name: (name != found.metric, order.index(name)))


def shown_metrics(found: FamilyResult) -> list[str]:
    """The metrics of the main table for people; the others stand beside it or in the CSV."""
    return [name for name in metric_names(found) if name not in _ELSEWHERE or name == found.metric]


def row(found: FamilyResult, arm: ArmResult) -> list[str]:
    """One arm's cells, as people read them."""
    item = difference_of(found, arm)
    cells = []
    for name in shown_metrics(found):
        cells.append(with_interval(arm.metrics.get(name), digits_of(name)))
        # an accuracy means nothing without this
        cells += [number(math.nan if arm.note else found.majority)] if name == "accuracy" else []
    if item is None:
        last = ["reference" if arm.role == "reference" else arm.note or "probe", "", ""]
    else:
        last = [
            with_interval(item.interval, digits_of(item.metric), sign=True),
            p_cell(item.p_value),
            p_cell(item.p_holm),
        ]
    return [arm.arm, str(len(arm.seeds)), *cells, *last]


def as_markdown(comparison: Comparison) -> str:
    """All families as Markdown, summary sentences above each table."""
    parts = [f"# {comparison.title}\n"]
    for found in comparison.families:
        parts.append("\n".join(f"- {sentence}" for sentence in found.sentences) + "\n")
        parts.append(_markdown(header(found), [row(found, arm) for arm in found.arms]))
        for table in details(found):
            parts.append(f"## {table.heading}\n")
            parts.append(_markdown(table.header, table.rows))
            parts += [f"{table.note}\n"] if table.note else []
    if comparison.notes:
        parts.append("\n".join(f"- {note}" for note in comparison.notes) + "\n")
    return "\n".join(parts)


def _markdown(names: list[str], rows: list[list[str]]) -> str:
    lines = [names, ["---"] * len(names), *rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


def as_latex(comparison: Comparison) -> str:
    r"""All families as booktabs tables, ready for ``\input``; needs ``\usepackage{booktabs}``."""
    parts = []
    for found in comparison.families:
        parts.append(_tabular(header(found), [row(found, arm) for arm in found.arms]))
        parts += [f"% {table.heading}\n{_tabular(table.header, table.rows)}" for table in details(found)]
    return "% needs \\usepackage{booktabs}\n" + "\n\n".join(parts) + "\n"


def _tabular(names: list[str], rows: list[list[str]]) -> str:
    return "\n".join(
        [
            r"\begin{tabular}{l" + "r" * (len(names) - 1) + "}",
            r"\toprule",
            " & ".join(_tex(name) for name in names) + r" \\",
            r"\midrule",
            *(" & ".join(_tex(cell) for cell in cells) + r" \\" for cells in rows),
            r"\bottomrule",
            r"\end{tabular}",
        ]
    )


def _tex(text: str) -> str:
    signs = {
        "\\": r"\textbackslash{}",
        "−": "$-$",
        "–": "--",
        "<": "$<$",
        ">": "$>$",
        "∞": r"$\infty$",
        "≥": r"$\geq$",
        "…": r"\ldots{}",
    }
    signs |= {sign: "\\" + sign for sign in "&%$#_{}"} | {"~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    return "".join(signs.get(sign, sign) for sign in text)


def as_csv(comparison: Comparison) -> str:
    """Long form: one line per arm, seed (``mean`` for all) and metric, numbers at full precision."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(
        [
            "kind", "arm", "role", "seed", "patients", "metric", "estimate", "low", "high", "level", "method",
            "majority_baseline", "reference", "difference", "difference_low", "difference_high", "p_value", "p_holm",
            "test",
        ]
    )  # fmt: skip
    for found in comparison.families:
        for arm in found.arms:
            item = difference_of(found, arm)
            for seed, values in [("mean", arm.metrics), *zip(arm.seeds, arm.per_seed, strict=True)]:
                for name, value in values.items():
                    ends: list[object] = ["", "", "", "", "not estimable"]
                    if value is not None:
                        ends = [_full(value.estimate), _full(value.low), _full(value.high), value.level, value.method]
                    last = [""] * 6
                    if item is not None and name == item.metric and seed == "mean":
                        inside = item.interval
                        last = [item.reference, _full(inside.estimate), _full(inside.low), _full(inside.high)]
                        last += [_full(item.p_value), _full(item.p_holm)]
                    test = item.test if item is not None and last[0] else ""
                    base = _full(found.majority) if name == "accuracy" else ""
                    first = [found.family.kind, arm.arm, arm.role, seed, len(found.family.patients), name]
                    writer.writerow([*first, *ends, base, *last, test])
            for name, value in extra_values(arm):
                first = [found.family.kind, arm.arm, arm.role, "mean", len(found.family.patients), name]
                ends = [_full(value.estimate), _full(value.low), _full(value.high), _full(value.level), value.method]
                writer.writerow([*first, *ends, *[""] * 8])
    return stream.getvalue()


def _full(value: float) -> str:
    return "" if math.isnan(value) else repr(float(value))


def as_rich(found: FamilyResult, width: int = 80) -> Table:
    """A family's table for the terminal: the essential columns, the rest is in the report.

    Args:
        found: The family.
        width: Of the terminal in characters; below 100 only two metrics are shown.
    """
    from rich.table import Table

    chosen = {
        "binary": ("auc", "accuracy", "sensitivity", "specificity"),
        "multiclass": ("kappa", "accuracy", "macro_f1", "mae_stages"),
        "segmentation": ("dice", "hd95_mm", "assd_mm", "volume_error_ml"),
    }[found.family.kind]
    names = [name for name in chosen if name in metric_names(found)][: 4 if width >= 100 else 2]
    title = f"{found.family.kind}, {len(found.family.patients)} patients"
    if found.counts:
        title += f" ({' / '.join(map(str, found.counts))} by class), majority baseline {number(found.majority)}"
    table = Table(title=title, title_justify="left", show_lines=True)
    table.add_column("Arm", overflow="fold")
    for name in [*(NAMES[name] for name in names), "Difference"]:
        table.add_column(name, justify="right", min_width=min(len(name), 11))
    table.add_column("p", justify="right", no_wrap=True)
    for arm in found.arms:
        item = difference_of(found, arm)
        # the interval goes below its number: a terminal is 80 columns wide
        values = [_two_lines(with_interval(arm.metrics.get(name), digits_of(name))) for name in names]
        label = arm.arm + (f"\n{len(arm.seeds)} seeds" if len(arm.seeds) > 1 else "")
        label += f"\n{arm.light} light" if arm.light else ""
        p_text = (
            ""
            if item is None
            else p_cell(item.p_value) + (f"\nHolm {p_cell(item.p_holm)}" if len(found.differences) > 1 else "")
        )
        table.add_row(label, *values, _two_lines(row(found, arm)[-3]), p_text)
    return table


def _two_lines(cell: str) -> str:
    return cell.replace(" (", "\n", 1).removesuffix(")") if "\n" not in cell and " (" in cell else cell
