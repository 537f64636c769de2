"""Run a study's cells one after the other: segmenters, out-of-fold masks, arms. Finished cells are skipped."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
import traceback
from collections.abc import Mapping
from pathlib import Path

from datamodules.cohort import Cohort
from datamodules.errors import InputError
from datamodules.splits import Splits
from experiments.study import Cell, Study, cells_of


@dataclasses.dataclass(frozen=True, slots=True)
class Places:
    """Where a study's cells find and leave everything, and what is set for all of them."""

    cohort: Path
    splits: Path
    runs: Path
    store: Path
    settings: dict[str, str]


def say(text: str) -> None:
    """A progress line on stderr."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def run_study(
    study: Study, cohort: Path, splits: Path, runs: Path, store: Path, settings: Mapping[str, str] | None = None
) -> list[str]:
    """Train and test every cell of a study.

    A cell that fails leaves the others to go on; arms that need masks are not started without them.

    Args:
        study: The study.
        cohort: Its cohort table.
        splits: Its split file.
        runs: Folder of all runs; the study's cells lie in ``runs/<study>/<arm>/<cell>``.
        store: Folder of preprocessed scans.
        settings: Single keys over all cells' configurations, such as ``trainer.precision``.

    Returns:
        One line for each failed cell; empty where all is done.

    Raises:
        InputError: Study, cohort or split do not fit together.
    """
    folds = len(Splits.load(splits, Cohort.load(cohort)).folds)
    places = Places(cohort, splits, runs, store, dict(settings or {}))
    segmenters, arms = cells_of(study, folds)
    masks = runs / study.name / "masks"
    needs_masks = any(cell.arm.masks == "out_of_fold" for cell in arms)
    total = (len(segmenters) if needs_masks else 0) + len(arms)
    failures: list[str] = []
    number = 0
    if needs_masks:
        for cell in segmenters:
            number += 1
            failures += _run_cell(cell, study, places, None, f"[{number}/{total}]")
        if failures:
            waiting = [cell.title for cell in arms if cell.arm.masks == "out_of_fold"]
            failures += [f"{title}: not started, because a segmenter failed" for title in waiting]
            arms = [cell for cell in arms if cell.arm.masks != "out_of_fold"]
        else:
            from experiments.masks import make_masks

            say("out-of-fold masks for the whole cohort")
            made = make_masks(runs / study.name / "segmenter", masks)
            scores = [record.dice for record in made.masks.values() if record.dice is not None]
            if scores:
                say(f"  {len(scores)} masks, mean Dice {sum(scores) / len(scores):.3f}, worst {min(scores):.3f}")
    for cell in arms:
        number += 1
        failures += _run_cell(cell, study, places, masks, f"[{number}/{total}]")
    return failures


def words_of(cell: Cell, study: Study, places: Places, masks: Path | None) -> list[str]:
    """The command line of a cell, as a person would type it after ``hepastage fit``.

    Args:
        cell: The cell.
        study: Its study.
        places: Where everything lies.
        masks: The study's out-of-fold masks, where they exist.
    """
    words = [word for config in cell.arm.configs for word in ("-c", config)]
    words += ["--study", study.name, "--arm", cell.arm.name, "--role", cell.arm.role, "--runs", str(places.runs)]
    words += ["--seed_everything", str(cell.seed), "--data.init_args.fold", str(cell.fold)]
    words += ["--data.init_args.cohort", str(places.cohort), "--data.init_args.splits", str(places.splits)]
    words += ["--data.init_args.store", str(places.store)]
    if cell.arm.masks == "out_of_fold":
        words += ["--data.init_args.mask_source", "out_of_fold", "--data.init_args.masks", str(masks)]
    elif masks is not None and (masks / "masks.json").is_file() and cell.arm.role in ("classifier", "probe"):
        # only the bands of segmentation quality, so that a direct arm can be shown by them as well
        words += ["--data.init_args.quality_from", str(masks)]
    for key, value in {**places.settings, **cell.arm.settings}.items():
        words += [f"--{key}", value if isinstance(value, str) else json.dumps(value)]
    return words


def _run_cell(cell: Cell, study: Study, places: Places, masks: Path | None, number: str) -> list[str]:
    """Fit and test one cell in this process, which saves the seconds of importing torch for each."""
    from experiments.lightning_cli import fit_and_test

    say(f"{number} {cell.title}")
    started = time.monotonic()
    try:
        done = fit_and_test(words_of(cell, study, places, masks))
    except InputError:
        raise
    except Exception as error:
        # the other cells must go on; the traceback is for whoever looks into this one
        say(traceback.format_exc())
        return [f"{cell.title}: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"]
    say(f"  {'already done' if done else f'done in {time.monotonic() - started:.0f} s'}")
    return []
