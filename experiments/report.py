"""The report: one self-contained HTML file, and the tables beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from datamodules.files import write_json, write_text
from experiments.compare_results import Comparison, FamilyResult
from experiments.compare_tables import as_csv, as_latex, as_markdown, header, row


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
    sections = [_section(found) for found in comparison.families]
    return environment.get_template("report.html.j2").render(comparison=comparison, sections=sections)


def _section(found: FamilyResult) -> dict[str, Any]:
    return {"found": found, "header": header(found), "rows": [row(found, arm) for arm in found.arms]}
