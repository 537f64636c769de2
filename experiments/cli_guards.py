"""What constructors refuse, found before they can be imported: their own complaints, at the key that is to correct."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from datamodules.errors import InputError
from experiments.cli_follow import refusal
from experiments.cli_given import Given, unnumbered
from experiments.cli_hints import ADVICE
from experiments.cli_precheck import classes_given, place_of, with_members
from experiments.cli_source import TRAINER


def check_guards(given: Sequence[Given]) -> None:
    """Refuse arguments that the constructors of their classes would refuse.

    Args:
        given: All that was given, which ``precheck`` has found nothing wrong with.

    Raises:
        InputError: The first constructor's first complaint, in its own words.
    """
    if any(item.key == "print_config" for item in given):
        return
    given = with_members(given)
    _check({owner: paths[-1][1] for owner, paths in classes_given(given).items()}, given)


def check_trainer(given: Sequence[Given]) -> None:
    """Refuse arguments that Lightning's trainer would refuse; ``check_machine`` says many of them in better words.

    Args:
        given: All that was given, which ``check_machine`` has found nothing wrong with.

    Raises:
        InputError: The trainer's first complaint, in its own words.
    """
    _check({"trainer": TRAINER}, given)


def _check(owners: Mapping[str, str], given: Sequence[Given]) -> None:
    for owner, path in owners.items():
        values, unknown = plain_arguments(owner, given)
        message = refusal(path, values, unknown)
        if message is not None:
            # an argument without which there would be no complaint is the one to correct
            others = {name: {key: values[key] for key in values if key != name} for name in values}
            wrong = {name for name in values if refusal(path, others[name], {*unknown, name}) != message}
            wrong = {name for name in wrong if re.search(rf"\b{name}\b", message)} or wrong
            said = [item for item in given if item.key.removeprefix(_begin(owner)) in wrong]
            where = place_of(said[-1]) if said else unnumbered(owner)
            raise InputError(f"{where}: {message}" + ("" if ";" in message else f"; {ADVICE}"))


def _begin(owner: str) -> str:
    """How the keys of a class's arguments begin; those of the trainer have no class."""
    return "trainer." if owner == "trainer" else f"{owner}.init_args."


def plain_arguments(owner: str, given: Sequence[Given]) -> tuple[dict[str, Any], set[str]]:
    """What a class is given: plain values by name, and the names of arguments of which nothing is known.

    Args:
        owner: Key of the class, without ``class_path``.
        given: All that was given.
    """
    begin = _begin(owner)
    own = {item.key.removeprefix(begin): item.value for item in given if item.key.startswith(begin)}
    names = [name.split(".")[0] for name in own]
    # of an argument that has arguments itself, and of what is added to a list, nothing is known here
    unclear = {name for name in names if names.count(name) > 1 or name not in own}
    unclear |= {item.key.removeprefix(begin) for item in given if item.appended and item.key.startswith(begin)}
    return {name: value for name, value in own.items() if name not in unclear and name in names}, unclear
