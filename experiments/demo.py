"""The demo: a phantom cohort, both stages, the direct arm, and the report, in minutes on a laptop."""

from __future__ import annotations

import importlib.resources
import json
import sys
import time
from pathlib import Path

from datamodules.cohort import Cohort
from datamodules.errors import InputError
from datamodules.files import write_text
from datamodules.phantom import make_phantom
from datamodules.splits import make_splits
from experiments.grid import run_study, say
from experiments.precision import best_precision
from experiments.study import Study

RULE = "lsm>12"


def run_demo(out: Path, patients: int, seed: int, *, shortcut: bool) -> int:
    """Make a phantom cohort and compare segmentation-first with direct classification on it.

    Finished parts are kept, so a second call goes on where the first stopped.

    Args:
        out: The demo's folder: ``cohort/``, ``splits.json``, ``study.yaml``, a folder an arm, ``report.html``.
        patients: Phantom patients; 40 % of them are test patients.
        seed: Seed of cohort, split and training.
        shortcut: Plant a mark outside the liver that goes with the label in training but not in the test set.

    Returns:
        0; 1 where a cell failed.

    Raises:
        InputError: The folder holds another demo, or too few patients were asked for.
    """
    if patients < 20:
        raise InputError(f"--patients {patients}: each part needs patients of both classes; give at least 20")
    started = time.monotonic()
    say(f"phantom cohort of {patients} patients{' with a planted shortcut' if shortcut else ''}")
    table = out / "cohort" / "cohort.parquet"
    make_phantom(out / "cohort", patients, seed, shortcut=shortcut, sequences=("T2W",))
    cohort = Cohort.load(table)
    study_file = out / "study.yaml"
    shipped = importlib.resources.files("experiments.studies").joinpath("demo.yaml").read_text(encoding="utf-8")
    named = shipped.replace("study: demo", f"study: {json.dumps(out.name)}").replace("seeds: [0]", f"seeds: [{seed}]")
    # complete by itself: 'hepastage grid' can go on with it
    named += f"cohort: cohort/cohort.parquet\nsplits: splits.json\nset: {{trainer.precision: {best_precision()}}}\n"
    write_text(study_file, named)
    study = Study.load(study_file)
    splits = out / "splits.json"
    make_splits(cohort, RULE, folds=2, seed=seed, official=True).save(splits)
    failures = run_study(study, table, splits, out.parent, out / "store")
    if failures:
        for failure in failures:
            sys.stderr.write(f"hepastage: {failure}\n")
        return 1
    say(f"{out / 'report.html'}: open it in a browser ({time.monotonic() - started:.0f} s in all)")
    return 0
