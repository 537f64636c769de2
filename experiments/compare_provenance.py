"""Where the numbers come from: the provenance records of the runs, brought together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from datamodules.files import read_json
from experiments.compare_records import RUN


def run_provenance(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """The ``provenance.json`` of each run directory that rows came from, with its arm and seed.

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
            content = read_json(path, "a provenance record")
            record = content if isinstance(content, dict) else {"content": content}
            found.append({"run": Path(str(run)).name, "arm": str(arm), "seed": int(seed), **record})
    return found
