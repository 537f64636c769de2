"""Resolve every cell of a study through the real command line's parser: the plan, or all that is wrong with it."""

from __future__ import annotations

import copy
import dataclasses
import gc
import itertools
import multiprocessing
import os
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentError
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from callbacks.run_directory import RunDirectory
from datamodules.errors import InputError
from datamodules.files import sha256_of_json
from experiments.cell import PATH_KEYS, identity_of
from experiments.cli_given import given_of
from experiments.cli_readable import explained
from experiments.cli_words import with_shipped
from experiments.grid_folder import GridFolder, Plan, Planned, write_record
from experiments.grid_words import Places, all_cells, bands_of, words_of
from experiments.lightning_cli import HepastageCLI, check_built, explaining
from experiments.study import Arm, Cell, Study

SHOWN_ELSEWHERE = {"runs", "study", "arm", "role", "config", *(f"data.init_args.{key}" for key in PATH_KEYS)}
"""Keys that differ between cells without being what is compared."""


LOADER: type[Any] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""The same values ten times faster, where PyYAML was built with libyaml."""


class _Parsing(HepastageCLI):
    """The command line without the building of anything: only words are resolved and checked."""

    def before_instantiate_classes(self) -> None:
        """No run directory is decided."""

    def instantiate_classes(self) -> None:
        """Nothing is built."""


class Resolver:
    """One parser for all cells: building it takes as long as parsing."""

    def __init__(self) -> None:
        self.cli: _Parsing | None = None

    def resolve(self, words: list[str]) -> dict[str, Any]:
        """The whole configuration that the words mean, as plain values.

        Raises:
            InputError: The words are wrong.
        """
        arguments = with_shipped(words)
        try:
            if self.cli is None:
                self.cli = _Parsing("fit", arguments)
            else:
                self.cli.parse_arguments(self.cli.parser, arguments)
        except InputError:
            raise
        except (ArgumentError, ValueError, MisconfigurationException) as error:
            raise explained(str(error), error) from error
        # not part of the configuration: how a batch is computed on this machine
        self.cli.config.pop("part_size", None)
        text = self.cli.parser.dump(self.cli.config, skip_none=False, format="yaml")
        return dict(yaml.load(text, Loader=LOADER))

    def build(self, words: list[str]) -> None:
        """Build trainer, model and data module as the run would: what they refuse is found before anything is computed.

        Args:
            words: Of a cell; others have been resolved before.

        Raises:
            InputError: Something is refused, or they do not fit together.
        """
        assert self.cli is not None
        words = with_shipped(words)
        given = given_of(words)
        with explaining(given):
            self.cli.parse_arguments(self.cli.parser, words)
            # Lightning keeps the hyper-parameters of what it has built first
            vars(self.cli).pop("config_dump", None)
            HepastageCLI.before_instantiate_classes(self.cli)
            HepastageCLI.instantiate_classes(self.cli)
        check_built(self.cli, given)


RESOLVER = Resolver()
"""Of this process."""

MOST_PROCESSES = 8
"""Each holds a parser and a model."""


def make_plan(study: Study, places: Places, folder: GridFolder, reason: str, code: Mapping[str, Any]) -> Plan:
    """Resolve all cells, check them against each other, and write the plan.

    Args:
        study: The study.
        places: Where everything lies.
        folder: The study's grid folder.
        reason: What the plan rests on.
        code: The code's version.

    Returns:
        The plan, as written.

    Raises:
        InputError: Every lie of the study: an unknown key, a missing file, a wrong type, two cells that are one.
    """
    cells = all_cells(study, places.splits)
    # parsing makes millions of small objects that are all needed: looking for cycles among them is time for nothing
    gc.disable()
    try:
        planned = _resolved_cells(study, places, cells)
    finally:
        gc.enable()
    keys = {name: [cell["key"] for cell in planned if cell["arm"] == name] for name in (s.name for s in study.needed)}
    for item in planned:
        if item["masks"] is not None:
            # other segmenters make other masks and so another cell, whose id is not known before they are made
            made_by = sha256_of_json([item["key"], keys[item["masks"]]])[:8]
            item["key"] = f"{item['key']}.{made_by}"
    plan = Plan(
        study=study.name,
        reason=reason,
        cwd=str(Path.cwd()),
        runs=str(places.runs),
        code=dict(code),
        cells=planned,
        masks=keys,
        compare=None if study.compare is None else {key: str(item) for key, item in study.compare.items()},
        retries=study.retries,
    )
    write_record(folder.plan_file, plan)
    return plan


Outcome = tuple[list[Planned], list[dict[str, Any]], list[str]]
"""Of an arm: its cells, their resolved configurations, and what is wrong with it."""


def _resolved_cells(study: Study, places: Places, cells: list[Cell]) -> list[Planned]:
    """Resolve every cell, arms side by side in forked processes, and compare the cells with each other.

    Raises:
        InputError: See ``make_plan``.
    """
    arms = [list(group) for _, group in itertools.groupby(cells, key=lambda cell: cell.arm.name)]
    outcomes = _side_by_side([(study, places, group) for group in arms])
    faults = dict.fromkeys(fault for _, _, found in outcomes for fault in found)
    if faults:
        raise InputError(*faults)
    planned = [item for items, _, _ in outcomes for item in items]
    _add_differences(planned, [value for _, values, _ in outcomes for value in values], study.reference)
    _refuse_doubles(planned)
    return planned


def _side_by_side(tasks: list[tuple[Study, Places, list[Cell]]]) -> list[Outcome]:
    """Resolve arms on all processors that this process may use: each fork begins with everything imported."""
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    width = min(available, len(tasks), MOST_PROCESSES)
    if width < 2 or not hasattr(os, "fork"):
        return [_resolved_arm(task) for task in tasks]
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(width, mp_context=context) as pool:
        return list(pool.map(_resolved_arm, tasks))


def _resolved_arm(task: tuple[Study, Places, list[Cell]]) -> Outcome:
    """Resolve the cells of an arm by the process's one parser, and build the first."""
    study, places, cells = task
    planned, values = [], []
    for cell in cells:
        words = words_of(cell, study, places)
        try:
            value = RESOLVER.resolve(words)
            planned.append(_planned(cell, study, words, value))
            values.append(value)
            if cell is cells[0]:
                RESOLVER.build(_buildable(cell.arm, words))
        except InputError as error:
            return [], [], [f"{cell.arm.name}: {fault}" for fault in error.faults]
    return planned, values, []


def _buildable(arm: Arm, words: list[str]) -> list[str]:
    """The words of a cell whose masks are not made yet, without its logger."""
    # the logger is no part of the question, and W&B takes seconds to start
    words = [*words, "--trainer.logger", "false"]
    if arm.masks == "out_of_fold":
        words += ["--data.init_args.mask_source", "reference", "--data.init_args.masks", "null"]
        if any(key.startswith("data.init_args.perturbation") for key in arm.settings):
            words += ["--data.init_args.perturbation", "null"]
    return words


def _planned(cell: Cell, study: Study, words: list[str], resolved: dict[str, Any]) -> Planned:
    unmasked = resolved
    if cell.arm.masks == "out_of_fold":
        unmasked = copy.deepcopy(resolved)
        # whether masks lie there from an earlier run must not change the key
        unmasked["data"]["init_args"]["masks"] = None
    identity = identity_of(unmasked)
    run = RunDirectory.of_cell(resolved["runs"], identity.study, identity.arm, identity.cell)
    masks = cell.arm.segmenter if cell.arm.masks == "out_of_fold" else None
    return Planned(
        key=f"{cell.arm.name}.f{cell.fold}.s{cell.seed}.{identity.cell}",
        arm=cell.arm.name,
        axes=dict(cell.arm.axes),
        fold=cell.fold,
        seed=cell.seed,
        role=cell.arm.role,
        run=None if masks is not None else str(run.path),
        words=words,
        masks=masks,
        bands=bands_of(cell, study),
        differs={},
        resources=dataclasses.asdict(cell.arm.resources),
    )


def _add_differences(planned: list[Planned], resolved: list[dict[str, Any]], reference: str | None) -> None:
    """Say of each cell what differs from the base: the reference arm's first cell, or the first of its role."""
    flat = [flattened(value) for value in resolved]
    bases: dict[bool, dict[str, Any]] = {}
    for wanted in (reference, None):
        for item, value in zip(planned, flat, strict=True):
            if item["arm"] == wanted or wanted is None:
                bases.setdefault(item["role"] == "segmenter", value)
    for item, value in zip(planned, flat, strict=True):
        base = bases[item["role"] == "segmenter"]
        item["differs"] = {
            key: [value.get(key), base.get(key)]
            for key in sorted(value.keys() | base.keys())
            if key not in SHOWN_ELSEWHERE and value.get(key) != base.get(key)
        }


def flattened(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, keys joined by dots."""
    if not isinstance(value, dict):
        return {prefix: value}
    return {
        key: item
        for name, part in value.items()
        for key, item in flattened(part, f"{prefix}.{name}" if prefix else str(name)).items()
    }


def _refuse_doubles(planned: list[Planned]) -> None:
    """Two cells of one id would be the same training under two names.

    Raises:
        InputError: There are such cells.
    """
    seen: dict[tuple[str, str | None], Planned] = {}
    faults = []
    for item in planned:
        identity = (item["key"].rsplit(".", 1)[-1], item["masks"])
        first = seen.setdefault(identity, item)
        if first is not item and item["role"] != "segmenter":
            faults.append(
                f"{item['arm']}, fold {item['fold']}, seed {item['seed']}: is the same cell as {first['arm']}, fold "
                f"{first['fold']}, seed {first['seed']} (id {identity[0]}); remove one, or let them differ"
            )
    if faults:
        raise InputError(*faults)


def run_of(words: list[str]) -> str:
    """The run directory that the words of a cell lead to.

    Raises:
        InputError: The words are wrong.
    """
    resolved = Resolver().resolve(words)
    identity = identity_of(resolved)
    return str(RunDirectory.of_cell(resolved["runs"], identity.study, identity.arm, identity.cell).path)
