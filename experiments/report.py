"""The report: one self-contained HTML file, and the tables beside it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from markupsafe import Markup, escape

from datamodules.files import write_json, write_text
from experiments.compare_details import details
from experiments.compare_metrics import NAMES
from experiments.compare_results import Comparison, FamilyResult
from experiments.compare_tables import as_csv, as_latex, as_markdown, header, metric_names, row
from experiments.compare_words import digits_of, number, with_interval
from experiments.figures import figures_of, inline_svg
from experiments.figures_style import SHOWN
from experiments.report_checklist import checklist
from experiments.report_parts import confusions, disagreements, methods, provenance_rows, strata_tables
from experiments.report_pictures import montages, patient_pictures


def write_outputs(comparison: Comparison, folder: Path) -> list[Path]:
    """Write report.html, table.csv, table.md, table.tex and comparison.json.

    Args:
        comparison: What was found.
        folder: Made where it does not exist.

    Returns:
        The files written, the report first.

    Raises:
        InputError: The folder cannot be written to.
    """
    texts = {
        "report.html": as_html(comparison),
        "table.csv": as_csv(comparison),
        "table.md": as_markdown(comparison),
        "table.tex": as_latex(comparison),
    }
    for name, text in texts.items():
        write_text(folder / name, text)
    write_json(folder / "comparison.json", comparison.as_json())
    return [folder / name for name in (*texts, "comparison.json")]


def as_html(comparison: Comparison) -> str:
    """The whole page; it needs nothing from the network."""
    from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

    environment = Environment(
        loader=PackageLoader("experiments", "."),
        autoescape=select_autoescape(default=True, default_for_string=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["breakable"] = _breakable
    pictures = patient_pictures(comparison)
    sections = [_section(found, place, pictures) for place, found in enumerate(comparison.families)]
    return environment.get_template("report.html.j2").render(
        comparison=comparison,
        sections=sections,
        provenance=provenance_rows(comparison),
        methods=methods(comparison),
        checklist=checklist(comparison),
        verdict=comparison.verdict,
        lead=[sentence for found in comparison.families for sentence in found.sentences],
    )


def _breakable(text: str) -> Markup:
    """Let a long name break after an underscore, a slash or a dash."""
    return Markup(re.sub(r"([_/-])", r"\1<wbr>", str(escape(text))))


def _section(found: FamilyResult, place: int, pictures: dict[str, Path]) -> dict[str, Any]:
    patients = len(found.family.patients)
    headings = {
        "binary": "Classification, two classes",
        "multiclass": f"Classification, {found.family.classes} classes",
        "segmentation": "Segmentation",
    }
    return {
        "found": found,
        "heading": headings[found.family.kind],
        "size": f"{patients} patients"
        + (
            f", {' / '.join(map(str, found.counts))} by class; majority baseline {number(found.majority)}"
            if found.counts
            else ""
        ),
        "header": header(found),
        "rows": [{"arm": arm, "cells": row(found, arm)} for arm in found.arms],
        "seeds": _seed_table(found),
        "details": details(found),
        "holding": _holding_table(found),
        "figures": [
            {
                "name": name,
                "heading": heading,
                "sentence": sentence + _left_out(found, name),
                "svg": inline_svg(figure, f"{place}-{name}", heading),
            }
            for name, heading, sentence, figure in figures_of(found)
        ],
        "strata": strata_tables(found),
        "confusions": confusions(found),
        "disagreements": disagreements(found, pictures),
        "montages": montages(found),
    }


def _left_out(found: FamilyResult, name: str) -> str:
    """What a curve leaves out, so that nobody takes it for all."""
    usual = [arm.arm for arm in found.arms if arm.role != "probe"]
    if name.endswith(("_arms", "_differences")) or len(usual) <= SHOWN:
        return ""
    return f" The first {SHOWN} of {len(usual)} arms are drawn."


def _seed_table(found: FamilyResult) -> dict[str, Any] | None:
    """Every seed of every arm; none where there is one seed each."""
    if all(len(arm.seeds) == 1 for arm in found.arms):
        return None
    names = metric_names(found)
    rows = [
        [arm.arm, str(seed), *(with_interval(values.get(name), digits_of(name)) for name in names)]
        for arm in found.arms
        for seed, values in zip(arm.seeds, arm.per_seed, strict=True)
    ]
    return {"header": ["Arm", "Seed", *(NAMES[name] for name in names)], "rows": rows}


def _holding_table(found: FamilyResult) -> dict[str, Any] | None:
    """AUC on validation and on test patients, by arm; None where validation was not recorded."""
    if not found.holding:
        return None
    rows = [
        [item.arm, with_interval(item.validation), with_interval(item.test), with_interval(item.fall, sign=True)]
        for item in found.holding
    ]
    return {"header": ["Arm", "Validation AUC", "Test AUC", "Fall"], "rows": rows}
