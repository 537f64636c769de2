"""The command line of each cell, and what a plan rests on. Light, torch-free."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.resources
import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from callbacks.provenance import git_state
from datamodules.errors import InputError
from datamodules.files import read_json, sha256_of_file, sha256_of_json, write_text
from experiments.study import Cell, Study, cells_of, masks_folder

ROOT = Path(__file__).resolve().parent.parent


@dataclasses.dataclass(frozen=True, slots=True)
class Places:
    """Where a study's cells find and leave everything, and what is set for all of them.

    Attributes:
        cohort: The cohort table.
        splits: The split file.
        runs: Folder of all runs.
        store: Folder of preprocessed scans.
        settings: Single keys over all cells' configurations, under those of study and arms.
    """

    cohort: Path
    splits: Path
    runs: Path
    store: Path
    settings: Mapping[str, Any]

    @classmethod
    def of(
        cls, cohort: Path, splits: Path, runs: Path, store: Path | None, settings: Mapping[str, Any] | None = None
    ) -> Places:
        """Places that mean the same from any working directory; the store lies in the runs unless said otherwise."""
        folder = runs / "store" if store is None else store
        return cls(cohort.absolute(), splits.absolute(), runs.absolute(), folder.absolute(), dict(settings or {}))


def words_of(cell: Cell, study: Study, places: Places) -> list[str]:
    """The command line of a cell, as a person would type it after ``hepastage fit``.

    Args:
        cell: The cell.
        study: Its study.
        places: Where everything lies.
    """
    arm = cell.arm
    words = [word for config in arm.configs for word in ("-c", config)]
    words += ["--study", study.name, "--arm", arm.name, "--role", arm.role, "--runs", str(places.runs)]
    words += ["--seed_everything", str(cell.seed), "--data.init_args.fold", str(cell.fold)]
    words += ["--data.init_args.cohort", str(places.cohort), "--data.init_args.splits", str(places.splits)]
    words += ["--data.init_args.store", str(places.store)]
    if arm.masks == "reference":
        words += ["--data.init_args.mask_source", "reference"]
    elif arm.masks == "out_of_fold" and arm.segmenter is not None:
        folder = masks_folder(places.runs / study.name, arm.segmenter)
        words += ["--data.init_args.mask_source", "out_of_fold", "--data.init_args.masks", str(folder)]
    for key, value in {**places.settings, **arm.settings}.items():
        words += [f"--{key}", value if isinstance(value, str) else json.dumps(value)]
    return words


def bands_of(cell: Cell, study: Study) -> str | None:
    """Whose masks give a cell without masks of its own its bands of quality, so that all arms are shown by them."""
    if cell.arm.masks == "out_of_fold" or cell.arm.role not in ("classifier", "probe") or not study.needed:
        return None
    return study.needed[0].name


def all_cells(study: Study, splits: Path) -> list[Cell]:
    """The cells that are run, segmenters first.

    Raises:
        InputError: The split file is missing or has no such fold.
    """
    record = read_json(splits, "a split file")
    folds = record.get("folds") if isinstance(record, dict) else None
    if not isinstance(folds, list) or not folds:
        raise InputError(f"{splits}: has no folds; make it with 'hepastage split make'")
    first, arms = cells_of(study, len(folds))
    return [*first, *arms]


def reason_of(study: Study, places: Places, code: Mapping[str, Any]) -> str:
    """What a plan rests on, as a hash: while it is the same, the plan holds.

    Raises:
        InputError: Cohort, split or a configuration cannot be read.
    """
    configs = sorted({config for arm in (*study.segmenters, *study.arms) for config in arm.configs})
    shipped = importlib.resources.files("experiments.configs")
    contents = {}
    for config in configs:
        name = config if config.endswith(".yaml") else f"{config}.yaml"
        file = Path(config) if Path(config).is_file() else Path(str(shipped.joinpath(name)))
        contents[config] = sha256_of_file(file) if file.is_file() else ""
    return sha256_of_json(
        {
            "study": json.loads(json.dumps(dataclasses.asdict(study), default=str)),
            "places": json.loads(json.dumps(dataclasses.asdict(places), default=str)),
            "configs": contents,
            "cohort": sha256_of_file(places.cohort),
            "splits": sha256_of_file(places.splits),
            "code": [code.get("sha"), code.get("diff")],
        }
    )


def code_state(folder: Path | None = None) -> dict[str, Any]:
    """Commit of the code, whether it was changed since, and the change's hash.

    Args:
        folder: Where to keep the change as ``<hash>.diff``; None keeps none.

    Returns:
        ``sha``, ``dirty`` and ``diff`` (12 digits, or None where nothing was changed).
    """
    state: dict[str, Any] = {**git_state(ROOT), "diff": None}
    if state.get("dirty"):
        try:
            diff = subprocess.run(
                ["git", "-C", str(ROOT), "diff", "HEAD"], capture_output=True, timeout=60, check=True
            ).stdout
        except (OSError, subprocess.SubprocessError):
            # the dirty flag stands; what was changed could not be read
            return {**state, "diff": "unknown"}
        state["diff"] = hashlib.sha256(diff).hexdigest()[:12]
        if folder is not None:
            write_text(folder / f"{state['diff']}.diff", diff.decode("utf-8", "replace"))
    return state


def code_name(code: Mapping[str, Any] | None) -> str:
    """A code version in a word: ``1a2b3c4d``, ``1a2b3c4d+5e6f7a8b`` where it was changed, ``unknown``."""
    if not code or not code.get("sha"):
        return "unknown"
    return str(code["sha"])[:8] + (f"+{str(code['diff'])[:8]}" if code.get("diff") else "")
