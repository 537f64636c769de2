"""Where the numbers come from: the provenance records of the runs, brought together."""

from __future__ import annotations

import datetime
import math
from pathlib import Path
from typing import Any

import pandas as pd

from datamodules.files import read_json
from experiments.compare_records import RUN

HOURS, ENERGY = "hours", "energy_kwh"
"""Wall clock from a run's start to its end in hours, pauses included; measured energy in kWh."""


def run_provenance(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """The ``provenance.json`` of each run directory that rows came from, with its arm and seed, hours and energy.

    Hours are the time from ``started`` to the last ``finished`` of ``done.json``; energy is the sum of ``energy_kwh``
    wherever the two files have it. Both are left out where they are not known.

    Raises:
        InputError: A record is not JSON.
    """
    if RUN not in frame:
        return []
    found = []
    columns = [RUN, "arm", "seed"]
    for run, arm, seed in frame[columns].dropna().drop_duplicates(RUN).sort_values(columns[1:]).itertuples(index=False):
        path = Path(str(run)) / "provenance.json"
        if path.is_file():
            record = _read(path, "a provenance record")
            done = path.with_name("done.json")
            ended = _read(done, "a run's done.json") if done.is_file() else {}
            found.append(
                {"run": Path(str(run)).name, "arm": str(arm), "seed": int(seed), **record, **_spent(record, ended)}
            )
    return found


def _read(path: Path, what: str) -> dict[str, Any]:
    content = read_json(path, what)
    return content if isinstance(content, dict) else {"content": content}


def _spent(record: dict[str, Any], done: dict[str, Any]) -> dict[str, float]:
    """Hours and energy of a run, as far as they are known."""
    parts = [record, *(value for value in done.values() if isinstance(value, dict))]
    spent = {}
    energy = [float(part[ENERGY]) for part in parts if isinstance(part.get(ENERGY), int | float)]
    if energy:
        spent[ENERGY] = sum(energy)
    start = _time(record.get("started"))
    ends = [end for part in parts[1:] if (end := _time(part.get("finished"))) is not None]
    if start is not None and ends and max(ends) >= start:
        spent[HOURS] = round((max(ends) - start).total_seconds() / 3600, 4)
    return spent


def _time(text: object) -> datetime.datetime | None:
    try:
        value = datetime.datetime.fromisoformat(str(text))
    except ValueError:
        return None
    return value if value.tzinfo is not None else value.replace(tzinfo=datetime.UTC)


def totals(provenance: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """Hours and energy over all runs, in words; empty where nothing is known."""
    rows = []
    for key, name, unit in ((HOURS, "Time, all runs", "h"), (ENERGY, "Energy, all runs", "kWh")):
        values = [float(record[key]) for record in provenance if isinstance(record.get(key), int | float)]
        if values:
            total = math.fsum(values)
            text = f"{total:.1f} {unit}" if total >= 1 else f"{total:.2g} {unit}"
            known = f" ({len(values)} of {len(provenance)} runs)" if len(values) < len(provenance) else ""
            pauses = ", from start to end, pauses included" if key == HOURS else ", measured"
            rows.append((name, f"{text}{known}{pauses}"))
    return rows
