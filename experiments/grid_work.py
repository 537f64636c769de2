"""What a job of a grid does, in a process of its own: a cell, a set of masks, the comparison, or the plan."""

from __future__ import annotations

import datetime
import json
import os
import pickle
import platform
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

from datamodules.errors import InputError
from datamodules.files import sha256_of_file, write_json
from experiments.grid_folder import COMPARE_KEY, RECORD, GridFolder, Plan, Planned, write_record
from experiments.grid_words import code_state
from experiments.study import masks_folder

PLAN_KEY = "plan"


def carry_out(study: Path, key: str) -> int:
    """Do a job; what goes wrong is left as its failure's record and printed.

    Args:
        study: The study's folder.
        key: A cell's key, ``masks.<segmenter>``, ``compare`` or ``plan``.

    Returns:
        0 where it ended well, 2 where the request was wrong, else 1.
    """
    folder = GridFolder(study)
    folder.failed(key).unlink(missing_ok=True)
    try:
        if key == PLAN_KEY:
            _plan(folder)
        else:
            plan = folder.plan()
            os.chdir(plan["cwd"])
            if key == COMPARE_KEY:
                _compare(folder, plan)
            elif key.startswith("masks.") and key.removeprefix("masks.") in plan["masks"]:
                _masks(folder, plan, key.removeprefix("masks."))
            else:
                _cell(folder, next(cell for cell in plan["cells"] if cell["key"] == key), plan)
    except InputError as error:
        for fault in error.faults:
            sys.stderr.write(f"hepastage: {fault}\n")
        fail(folder, key, "InputError", error.faults[0], faults=list(error.faults), wrong_request=True)
        return 2
    except Exception as error:
        # the other cells must go on; the traceback is for whoever looks into this one
        traceback.print_exc()
        lines = [line for line in str(error).splitlines() if line.strip()]
        fail(folder, key, type(error).__name__, lines[0] if lines else "", out_of_memory=_is_out_of_memory(error))
        return 1
    return 0


def fail(folder: GridFolder, key: str, error: str, line: str, **facts: Any) -> None:
    """Leave the record of a failure.

    Args:
        folder: The study's grid folder.
        key: The job.
        error: The error's class, or how the process ended.
        line: Its first line.
        **facts: ``out_of_memory``, ``wrong_request`` and ``faults``.
    """
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    shown = line if len(line) <= 500 else f"{line[:497]}..."
    write_json(folder.failed(key), {"error": error, "line": shown, "time": now, "out_of_memory": False, **facts})


def _is_out_of_memory(error: BaseException) -> bool:
    """CUDA's, the processor allocator's and Python's own."""
    names = {kind.__name__ for kind in type(error).__mro__}
    text = str(error).lower()
    return bool({"OutOfMemoryError", "MemoryError"} & names) or "out of memory" in text or "allocate memory" in text


def _cell(folder: GridFolder, cell: Planned, plan: Plan) -> None:
    """Fit and test a cell, unless that is done; a cell that was stopped goes on from its last checkpoint."""
    from experiments.lightning_cli import fit_and_test

    words = list(cell["words"])
    masks = None
    if cell["masks"] is not None:
        masks = folder.masks_sha256(cell["masks"])
        if masks is None:
            raise InputError(
                f"{cell['arm']}: the masks of {cell['masks']} are not made; 'hepastage grid run' makes them"
            )
    if folder.override(cell["key"]).is_file():
        words += json.loads(folder.override(cell["key"]).read_text(encoding="utf-8"))["words"]
    run = cell["run"]
    if run is None:
        from experiments.grid_resolve import run_of

        run = run_of(words)
    started = time.time()
    code = code_state(folder.path / "diffs")
    record = {
        "run": run, "arm": cell["arm"], "fold": cell["fold"], "seed": cell["seed"], "masks_sha256": masks,
        "code": code, "host": platform.node(), "pid": os.getpid(), "started": started, "seconds": None,
    }  # fmt: skip
    write_record(folder.record(cell["key"]), record)
    already = fit_and_test(words)
    if not already:
        write_record(folder.record(cell["key"]), {**record, "seconds": round(time.time() - started, 3)})
    _bands(folder, [cell])


def _bands(folder: GridFolder, cells: list[Planned]) -> None:
    """Fill in the bands of quality of cells that have finished, where the masks are there."""
    from experiments.grid_bands import fill_bands

    conditions = folder.conditions(cells)
    for cell in cells:
        if cell["bands"] is not None and folder.masks_sha256(cell["bands"]) is not None:
            run = conditions[cell["key"]].record.get("run")
            if run is not None and (Path(run) / "done.json").is_file():
                fill_bands(Path(run), masks_folder(folder.study, cell["bands"]))


def _masks(folder: GridFolder, plan: Plan, segmenter: str) -> None:
    """Out-of-fold masks by the planned segmenters alone, whatever other runs lie beside theirs."""
    from experiments.masks import make_masks
    from experiments.wandb_runs import Sharing
    from experiments.wandb_stages import log_masks

    cells = [cell for cell in plan["cells"] if cell["key"] in plan["masks"][segmenter]]
    started = time.time()
    out = masks_folder(folder.study, segmenter)
    # elsewhere: whoever looks for runs below the study's folder must not find them twice
    with tempfile.TemporaryDirectory(prefix="hepastage-") as links:
        for cell in cells:
            run = Path(folder.conditions([cell])[cell["key"]].record.get("run") or str(cell["run"]))
            if not (run / "done.json").is_file():
                raise InputError(f"{run}: this segmenter is not finished; 'hepastage grid run' trains it")
            target = Path(links) / run.name
            target.mkdir()
            for name in ("config.yaml", "provenance.json", "done.json", "checkpoints"):
                (target / name).symlink_to(run / name)
        made = make_masks(Path(links), out)
        # a W&B run of its own where the segmenters log to W&B: the classifiers' lineage goes through it
        log_masks(out, Path(links), Sharing())
    scores = [record.dice for record in made.masks.values() if record.dice is not None]
    write_record(
        folder.record(f"masks.{segmenter}"),
        {
            "folder": str(out),
            "masks_sha256": sha256_of_file(out / RECORD),
            "segmenters": plan["masks"][segmenter],
            "masks": len(made.masks),
            "mean_dice": round(sum(scores) / len(scores), 4) if scores else None,
            "worst_dice": round(min(scores), 4) if scores else None,
            "started": started,
            "seconds": round(time.time() - started, 3),
        },
    )
    _bands(folder, [cell for cell in plan["cells"] if cell["bands"] == segmenter])


def _compare(folder: GridFolder, plan: Plan) -> None:
    """The comparison that the study asks for, over the planned cells alone."""
    from experiments.commands.compare import compare_and_print

    wish = plan["compare"] or {}
    # a job that was killed between its end and this may have left some out
    _bands(folder, plan["cells"])
    conditions = folder.conditions(plan["cells"])
    runs = [Path(conditions[cell["key"]].record["run"]) for cell in plan["cells"]]
    planned = {run.resolve() for run in runs}
    found = {path.parent.resolve() for path in folder.study.rglob("predictions.parquet")}
    # the folder itself where nothing else lies in it: the report then names it, not each cell
    paths = [folder.study] if found <= planned else [run for run in runs if (run / "predictions.parquet").is_file()]
    options: dict[str, Any] = {key: wish[key] for key in ("reference", "metric") if key in wish}
    # what is printed from here on is shown by the driver
    start = folder.log(COMPARE_KEY).stat().st_size if folder.log(COMPARE_KEY).is_file() else 0
    compare_and_print(paths, folder.study / wish.get("out", "comparison"), **options)
    write_record(folder.record(COMPARE_KEY), {"cells": sorted(conditions), "log_start": start})


def _plan(folder: GridFolder) -> None:
    """Make the plan that the driver has asked for, in a file of its own making."""
    from experiments.grid_resolve import make_plan

    request = pickle.loads((folder.path / "request.pickle").read_bytes())
    make_plan(request["study"], request["places"], folder, request["reason"], request["code"])


if __name__ == "__main__":
    from experiments.quiet import quieten

    quieten()
    sys.exit(carry_out(Path(sys.argv[1]), sys.argv[2]))
