"""How far a study is: counts by arm, failures with their last line, cells in a table, a live view. Torch-free."""

from __future__ import annotations

import csv
import datetime
import io
import json
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.grid_folder import STATES, Condition, GridFolder, Plan, Planned, held, masks_key, read_maybe
from experiments.grid_words import code_name

COLUMNS = ("arm", "fold", "seed", "state", "cell", "minutes", "validation", "code", "note")


def overview(folder: GridFolder, plan: Plan) -> dict[str, Any]:
    """Counts of states by arm, failed cells, and what else a reader must know.

    Args:
        folder: The study's grid folder.
        plan: Its plan.

    Returns:
        ``arms`` (by name: number of cells in each state), ``failures`` (each with cell, error, line and log),
        ``driver`` (whether one runs now), ``codes`` (finished cells by code version), ``hours_left``.
    """
    states = folder.conditions(plan["cells"])
    arms: dict[str, Counter[str]] = {}
    for cell in plan["cells"]:
        arms.setdefault(cell["arm"], Counter())[states[cell["key"]].state] += 1
    jobs = {cell["key"]: f"{cell['arm']}, fold {cell['fold']}, seed {cell['seed']}" for cell in plan["cells"]}
    failures = [
        {"cell": jobs[key], "key": key, **state.failure, "log": str(folder.log(key))}
        for key, state in states.items()
        if state.state == "failed"
    ]
    for name in plan["masks"]:
        failure = read_maybe(folder.failed(masks_key(name)))
        if failure:
            failures.append({"cell": f"masks of {name}", **failure, "log": str(folder.log(masks_key(name)))})
    codes = Counter(code_name(state.record.get("code")) for state in states.values() if state.state == "done")
    return {
        "study": plan["study"],
        "arms": {arm: {state: counts[state] for state in STATES} for arm, counts in arms.items()},
        "failures": failures,
        "driver": held(folder.path / "driver.lock"),
        "codes": dict(codes),
        "hours": estimate(plan, states),
    }


def estimate(plan: Plan, states: Mapping[str, Condition]) -> dict[str, float | None]:
    """Hours that the open cells will take, from the finished cells of the same arm, else of the same role.

    Returns:
        ``cells`` (sum over cells), ``gpu`` (times their GPUs); None where no cell has finished yet.
    """
    times: dict[tuple[str, str], list[float]] = {}
    for cell in plan["cells"]:
        seconds = states[cell["key"]].record.get("seconds") if states[cell["key"]].state == "done" else None
        if seconds:
            times.setdefault(("arm", cell["arm"]), []).append(seconds)
            times.setdefault(("role", cell["role"]), []).append(seconds)
    total = gpu = 0.0
    for cell in plan["cells"]:
        if states[cell["key"]].state == "done":
            continue
        known = times.get(("arm", cell["arm"])) or times.get(("role", cell["role"]))
        if known is None:
            return {"cells": None, "gpu": None}
        hours = sum(known) / len(known) / 3600
        total += hours
        gpu += hours * float(cell["resources"].get("gpus") or 0)
    return {"cells": round(total, 3), "gpu": round(gpu, 3)}


def status_text(view: Mapping[str, Any]) -> str:
    """The overview for a terminal: a line an arm, then each failure with its last line."""
    arms = view["arms"]
    width = max([len(arm) for arm in arms] or [0])
    lines = [f"{'':<{width}}  " + "  ".join(f"{state:>10}" for state in STATES)]
    for arm, counts in arms.items():
        lines.append(f"{arm:<{width}}  " + "  ".join(f"{counts[state] or '':>10}" for state in STATES))
    totals = Counter({state: sum(counts[state] for counts in arms.values()) for state in STATES})
    lines.append(f"{'all':<{width}}  " + "  ".join(f"{totals[state] or '':>10}" for state in STATES))
    for failure in view["failures"]:
        memory = "out of memory: " if failure.get("out_of_memory") else ""
        lines += [f"{failure['cell']}: {memory}{failure['error']}: {failure['line']}", f"  log: {failure['log']}"]
    left = view["hours"]["cells"]
    if left and sum(totals.values()) > totals["done"]:
        gpu = f", {view['hours']['gpu']:.1f} GPU hours" if view["hours"]["gpu"] else ""
        lines.append(f"left: about {left:.1f} hours of cells{gpu}, from the finished ones")
    lines += code_note(view["codes"])
    lines.append("a driver runs this study now" if view["driver"] else "no driver runs this study now")
    return "\n".join(lines) + "\n"


def code_note(codes: Mapping[str, int]) -> list[str]:
    """A warning where finished cells are of more than one code version."""
    if len(codes) < 2:
        return []
    listed = ", ".join(f"{name} ({number} cells)" for name, number in sorted(codes.items()))
    return [f"note: the finished cells are of {len(codes)} code versions: {listed}"]


def rows_of(folder: GridFolder, plan: Plan) -> list[dict[str, Any]]:
    """A row for each cell: what it is, where it stands, what it reached on its validation patients, and its code.

    Test results are not here: they are for ``hepastage compare``, which shows them with their intervals.
    """
    states = folder.conditions(plan["cells"])
    return [_row(cell, states[cell["key"]]) for cell in plan["cells"]]


def _row(cell: Planned, state: Condition) -> dict[str, Any]:
    run = state.record.get("run") or cell["run"]
    seconds = state.record.get("seconds")
    metrics: dict[str, float] = {}
    if run is not None and state.state == "done":
        metrics = (read_maybe(Path(run) / "done.json").get("fit") or {}).get("metrics") or {}
    valid = {key: value for key, value in metrics.items() if key.startswith("valid/")}
    first = next((key for key in ("valid/auc", "valid/dice", "valid/kappa") if key in valid), None)
    note = ""
    if state.failure:
        note = f"{'out of memory: ' if state.failure.get('out_of_memory') else ''}{state.failure['line']}"
    return {
        "arm": cell["arm"],
        **{f"axis {axis}": value for axis, value in cell["axes"].items()},
        "fold": cell["fold"],
        "seed": cell["seed"],
        "state": state.state,
        "cell": "" if run is None else Path(run).name,
        "minutes": None if seconds is None else round(seconds / 60, 2),
        "validation": "" if first is None else f"{first.removeprefix('valid/')} {valid[first]:.3f}",
        "code": code_name(state.record.get("code")) if state.state == "done" else "",
        "note": note,
    }


def table_text(rows: list[dict[str, Any]]) -> str:
    """The rows in columns."""
    texts = [COLUMNS, *(tuple("" if row[name] is None else str(row[name]) for name in COLUMNS) for row in rows)]
    widths = [max(len(line[place]) for line in texts) for place in range(len(COLUMNS))]
    lines = ["  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip() for line in texts]
    lines += code_note(Counter(row["code"] for row in rows if row["code"]))
    return "\n".join(lines) + "\n"


def table_csv(rows: list[dict[str, Any]]) -> str:
    """The rows as CSV, with a column an axis."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    stream = io.StringIO()
    writer = csv.DictWriter(stream, names, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()


def watch(folder: GridFolder, every: float = 2.0) -> None:
    """Show the overview until the keyboard stops it or all cells are done."""
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    with Live(console=Console(), auto_refresh=False) as live:
        while True:
            plan = folder.plan()
            view = overview(folder, plan)
            now = datetime.datetime.now().astimezone().strftime("%H:%M:%S")
            live.update(Text(f"{view['study']}  {now}\n{status_text(view)}"), refresh=True)
            if all(counts["done"] == sum(counts.values()) for counts in view["arms"].values()):
                return
            time.sleep(every)


def plan_text(plan: Plan, view: Mapping[str, Any], every_cell: bool = False) -> str:
    """The plan for a terminal: cells and what differs in each arm from the base, keys by name.

    Args:
        plan: The plan.
        view: Its overview.
        every_cell: Show each cell, not each arm.
    """
    lines = []
    seen = set()
    for cell in plan["cells"]:
        name = cell["key"] if every_cell else cell["arm"]
        if name in seen:
            continue
        seen.add(name)
        number = sum(other["arm"] == cell["arm"] for other in plan["cells"])
        lines.append(name if every_cell else f"{name}: {number} cells")
        hidden = () if every_cell else ("seed_everything", "data.init_args.fold")
        for key, (value, base) in cell["differs"].items():
            if key not in hidden:
                lines.append(f"  {key}: {_short(value)} (base: {_short(base)})")
        if cell["masks"]:
            lines.append(f"  after: out-of-fold masks of {cell['masks']}")
    done = sum(counts["done"] for counts in view["arms"].values())
    total = len(plan["cells"])
    lines.append(f"{total} cells: {done} done, {total - done} to run; code {code_name(plan['code'])}")
    hours = view["hours"]["cells"]
    if done < total:
        known = f"about {hours:.2f} hours of cells, {view['hours']['gpu'] or 0:.2f} GPU hours" if hours else None
        lines.append(f"estimate: {known or 'none yet; it is made from finished cells'}")
    return "\n".join(lines) + "\n"


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:77]}..."
