"""What an unfinished or changed study has left behind, and its removal. Light, torch-free."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

from experiments.grid_folder import GridFolder, Plan, read_maybe


@dataclasses.dataclass(frozen=True, slots=True)
class Remnant:
    """A run directory that may go.

    Attributes:
        path: The directory.
        why: ``unfinished`` (a planned cell that has begun), or ``orphaned`` (no cell of the plan).
        finished: Whether it holds a finished cell.
    """

    path: Path
    why: str
    finished: bool


def remnants(folder: GridFolder, plan: Plan) -> list[Remnant]:
    """Run directories of a study that are unfinished, or that no cell of its plan leads to; none that runs now.

    Args:
        folder: The study's grid folder.
        plan: Its plan.
    """
    states = folder.conditions(plan["cells"])
    planned = {}
    for cell in plan["cells"]:
        state = states[cell["key"]]
        run = state.record.get("run") or cell["run"]
        if run is not None:
            planned[Path(run).resolve()] = state.state
    found = []
    for config in sorted(folder.study.glob("*/*/config.yaml")):
        if config.parent.parent.name.startswith("."):
            continue
        run = config.parent
        finished = {"fit", "test"} <= read_maybe(run / "done.json").keys()
        state_now = planned.get(run.resolve())
        if state_now is None:
            found.append(Remnant(run, "orphaned", finished))
        elif state_now in ("unfinished", "failed", "waiting") and not finished:
            found.append(Remnant(run, "unfinished", False))
    return found


def remove(found: list[Remnant]) -> None:
    """Remove run directories with all that is in them."""
    for item in found:
        shutil.rmtree(item.path)
