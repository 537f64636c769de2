"""What ``hepastage compare`` does with Weights & Biases: log the comparison, and write or send its report."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from datamodules.files import write_json
from experiments.wandb_report import FILE, report_spec
from experiments.wandb_report_send import check_available, send
from experiments.wandb_runs import Sharing, chosen_mode
from experiments.wandb_stages import log_comparison, settings_below

if TYPE_CHECKING:
    from experiments.compare_results import Comparison


def to_wandb(
    comparison: Comparison,
    out: Path,
    written: Sequence[Path],
    paths: Sequence[Path],
    log: bool,
    patients: bool,
    report: bool,
) -> list[str]:
    """Log a comparison as a run, and write its report; send the report only online.

    Args:
        comparison: The comparison.
        out: Its folder.
        written: Files that were written there.
        paths: The studies and files that were compared.
        log: Log it as a run of job type ``compare``.
        patients: With the files that name patients.
        report: Write ``wandb-report.json`` and, where W&B is online, make the Report and the saved view.

    Returns:
        Lines to print.

    Raises:
        InputError: W&B's client failed, or the package that makes reports is missing while online.
    """
    settings = next((found for path in paths if path.is_dir() and (found := settings_below(path))), None)
    known = settings or {"project": "hepastage", "entity": os.environ.get("WANDB_ENTITY"), "mode": "offline"}
    online = chosen_mode(known["mode"]) == "online"
    if report and online:
        # before the run is logged: a person who asked for both gets both or none
        check_available()
    lines = []
    run_id = None
    if log:
        run_id = log_comparison(comparison, out, written, paths, Sharing(patients=patients))
        how = "sent" if online else f"offline; send it with 'hepastage wandb sync {out}'"
        lines.append(f"W&B run: {run_id} ({how})")
    if report:
        spec = report_spec(comparison, project=known["project"], entity=known["entity"], run_id=run_id)
        write_json(out / FILE, spec)
        lines.append(f"W&B Report: {out / FILE}" + ("" if online else " (offline: nothing was sent)"))
        if online:
            lines += send(spec)
    return lines
