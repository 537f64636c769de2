"""Which cells a run or retry is for, and what a retry may change without making another cell of it. Light."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from datamodules.errors import InputError
from experiments.grid_folder import GridFolder, Planned, write_record

BATCH = "data.init_args.batch_size"

FREE = ("data.init_args.workers", "trainer.accelerator", "trainer.enable_progress_bar")
"""Keys that say how a cell is computed on a machine; its id does not depend on them."""


def selected(folder: GridFolder, only: Sequence[str], *, failed_only: bool) -> Callable[[Planned], bool] | None:
    """A test of whether a cell is wanted; None where all are.

    Args:
        folder: The study's grid folder.
        only: ``KEY=VALUE`` of ``--only``; the same key twice means either, different keys mean both.
        failed_only: Only cells that have failed.

    Raises:
        InputError: A wish has no ``=``, or fits no cell of the plan.
    """
    wishes: dict[str, set[str]] = {}
    for text in only:
        key, sign, value = text.partition("=")
        if not sign or not key or not value:
            raise InputError(f"--only {text}: no KEY=VALUE; write for example arm=direct or fold=0")
        wishes.setdefault(key, set()).add(value)
    plan = folder.plan() if folder.plan_file.is_file() else None
    failed: set[str] | None = None
    if failed_only:
        if plan is None:
            raise InputError(f"{folder.study}: nothing has been run yet; 'hepastage grid run' does it")
        states = folder.conditions(plan["cells"])
        failed = {key for key, state in states.items() if state.state == "failed"}

    def fits(cell: Planned) -> bool:
        facts = {**cell["axes"], "arm": cell["arm"], "fold": str(cell["fold"]), "seed": str(cell["seed"])}
        named = {"arm": {cell["arm"], cell["axes"].get("arm", cell["arm"])}}
        return all(bool(named.get(key, {facts.get(key)}) & values) for key, values in wishes.items())

    def wanted(cell: Planned) -> bool:
        if failed is not None and cell["key"] not in failed and not (cell["masks"] and not wishes):
            return False
        return fits(cell)

    if plan is not None and wishes and not any(fits(cell) for cell in plan["cells"]):
        raise InputError(f"--only {' '.join(only)}: fits no cell; 'hepastage grid table' lists them")
    return wanted if wishes or failed_only else None


def set_for_retry(folder: GridFolder, settings: Sequence[str], wanted: Callable[[Planned], bool] | None) -> None:
    """Remember what failed cells are computed with from now on; without settings, what was set before stays.

    Args:
        folder: The study's grid folder.
        settings: ``KEY=VALUE`` of ``--set``.
        wanted: The cells it is for.

    Raises:
        InputError: A key that makes another cell, or a batch size that does not divide the configured one.
    """
    if not settings:
        return
    words: list[str] = []
    for text in settings:
        key, sign, value = text.partition("=")
        if not sign:
            raise InputError(f"--set {text}: no KEY=VALUE; write for example {BATCH}=4")
        if key == BATCH:
            if not value.isdigit() or int(value) < 1:
                raise InputError(f"--set {text}: a batch size is a whole number from 1 on")
            words += ["--part_size", value]
        elif key in FREE:
            words += [f"--{key}", value]
        else:
            raise InputError(
                f"--set {key}: would make another cell of it; change the study file, or set one of {BATCH}, "
                f"{', '.join(FREE)}"
            )
    for cell in folder.plan()["cells"]:
        if wanted is None or wanted(cell):
            write_record(folder.override(cell["key"]), {"settings": list(settings), "words": words})
