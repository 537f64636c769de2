"""Find wrong keys, classes and values before anything heavy is imported: signatures are read from source files.

The parser finds them too, after seconds of imports. What cannot be judged from the source is left to it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from datamodules.errors import InputError
from experiments.cli_given import Given, flat, is_member, shown, unnumbered
from experiments.cli_hints import ADVICE, WITH_MODULE, did_you_mean, not_a_choice
from experiments.cli_source import (
    TRAINER,
    Argument,
    arguments_of,
    classes_of,
    exists,
    fields_of,
    is_written_in,
    kinds_of,
    known_arguments,
    signature_of,
    top_arguments,
    top_keys,
)
from experiments.cli_values import complaint

PACKAGES = {
    "optimizer": ("torch.optim", "timm.optim", "lightning_modules"),
    "callbacks": ("lightning.pytorch.callbacks", "lightning.pytorch.callbacks.progress", "callbacks"),
    "logger": ("lightning.pytorch.loggers", "callbacks"),
    "plugins": (
        *(f"lightning.pytorch.plugins{part}" for part in ("", ".environments", ".io", ".precision")),
        *(f"lightning.fabric.plugins.{part}" for part in ("environments", "io", "precision")),
    ),
}
"""Where classes lie that may be named without their module."""
CLASSES = ("model", "data", "trainer.callbacks", "trainer.logger", "trainer.plugins")
"""Keys whose value is a class, where it is a word."""


def precheck(given: Sequence[Given]) -> None:
    """Refuse unknown keys, classes that are not there, and values of another type than the source declares.

    Args:
        given: All that was given.

    Raises:
        InputError: A key, class or value is wrong: the first fault.
    """
    given = with_members(given)
    classes = classes_given(given)
    for item in given:
        parts = item.key.split(".")
        if parts[0] not in top_keys():
            raise _unknown(item, item.key, top_keys())
        if parts[0] == "trainer" and len(parts) > 1:
            _check(item, parts[1], [TRAINER], "trainer.")
        for count, part in enumerate(parts[:-1]):
            if part == "init_args":
                owners = [path for _, path in classes.get(".".join(parts[:count]), [(0, "")])]
                _check(item, parts[count + 1], owners)
    for owner, paths in classes.items():
        for place, path in paths:
            if "." in path and not exists(path):
                raise _no_class(given[place], owner, path)
        last, name = paths[-1]
        if re.fullmatch(r"\w+", name) and not _may_exist(name, owner):
            where = place_of(given[last])
            raise InputError(f"{where}: there is no class {name!r} for {unnumbered(owner)}; {WITH_MODULE}")
    for place, item in enumerate(given):
        if not _replaced(item, given[place + 1 :]):
            _check_value(place, item, classes)


def with_members(given: Sequence[Given]) -> list[Given]:
    """All that was given, and the members of lists of classes by their number: ``trainer.callbacks.0.class_path``.

    A list that is replaced by a later one is left as it is.

    Args:
        given: All that was given.
    """
    found: list[Given] = []
    for place, item in enumerate(given):
        found.append(item)
        if isinstance(item.value, list) and not _replaced(item, given[place + 1 :]):
            for number, member in enumerate(item.value):
                if isinstance(member, Mapping) and "class_path" in member:
                    found += flat(member, f"{item.key}.{number}", item.where)
    return found


def classes_given(given: Sequence[Given]) -> dict[str, list[tuple[int, str]]]:
    """Classes in the order in which they were given, with their places among all that was given, by owner.

    Args:
        given: All that was given.
    """
    classes: dict[str, list[tuple[int, str]]] = {}
    for place, item in enumerate(given):
        if not isinstance(item.value, str):
            continue
        if item.key in CLASSES or item.key.endswith(".class_path"):
            classes.setdefault(item.key.removesuffix(".class_path"), []).append((place, item.value))
    return classes


def place_of(item: Given) -> str:
    """Where a value was given: ``--trainer.max_epochs``, or ``own.yaml: trainer.max_epochs``.

    Args:
        item: The value.
    """
    return shown(item.key, item.where)


def _no_class(item: Given, owner: str, path: str) -> InputError:
    module, _, name = path.rpartition(".")
    hint = did_you_mean(name, classes_of(module)).strip() or f"{module} has none of that name"
    return InputError(f"{place_of(item)}: there is no class {path!r} for {unnumbered(owner)}; {hint}")


def _may_exist(name: str, owner: str) -> bool:
    """Whether there may be a class of that name: packages whose classes may be named without a module are known."""
    parts = [part for part in owner.split(".") if not is_member(part)]
    packages = PACKAGES.get(parts[-1])
    return packages is None or any(is_written_in(name, package) for package in packages)


def _check(item: Given, name: str, paths: Sequence[str], prefix: str = "") -> None:
    """Arguments of a class that a later file replaces are dropped by the parser, which is no fault."""
    known = [arguments_of(path) for path in paths]
    names = [f"{prefix}{argument}" for arguments in known for argument in arguments or ()]
    if all(arguments is not None for arguments in known) and f"{prefix}{name}" not in names:
        raise _unknown(item, f"{prefix}{name}", names)


def _unknown(item: Given, name: str, known: Sequence[str]) -> InputError:
    return InputError(f"{place_of(item)}: unknown key {name!r}; {did_you_mean(name, known)}{ADVICE}")


def _replaced(item: Given, later: Sequence[Given]) -> bool:
    """Whether a later value takes this one's place, or may do so."""
    return any(
        not other.appended and (item.key == other.key or item.key.startswith(f"{other.key}.")) for other in later
    )


def _check_value(place: int, item: Given, classes: dict[str, list[tuple[int, str]]]) -> None:
    if item.key == "trainer.strategy":
        _check_strategy(item)
        return
    argument = _argument(place, item, classes)
    fault = None if argument is None else complaint(item.key, argument, item.value)
    if fault is not None:
        raise InputError(f"{place_of(item)}: {fault}")


def _check_strategy(item: Given) -> None:
    """Strategies are registered under names: one that stands nowhere in Lightning's source is none."""
    word = item.value
    # hpu: strategies of another package
    if not isinstance(word, str) or not re.fullmatch(r"[a-z0-9_]+", word) or "hpu" in word or word == "auto":
        return
    if not is_written_in(word, "lightning.pytorch.strategies"):
        raise InputError(f"{place_of(item)}: {not_a_choice(item.key, word)}")


def _argument(place: int, item: Given, classes: dict[str, list[tuple[int, str]]]) -> Argument | None:
    """What a value is given to; None where the source does not say, or where another class came after it."""
    parts = item.key.split(".")
    found: Argument | None = None
    if parts[0] == "trainer" and len(parts) > 1:
        found, count = (signature_of(TRAINER) or {}).get(parts[1]), 2
    elif parts[0] in ("model", "data"):
        count = 1
    else:
        found, count = top_arguments().get(parts[0]), 1
    while count < len(parts):
        if parts[count] == "init_args" and count + 1 < len(parts):
            # its own value of the same name is the parser's affair: it may be carried over, or dropped
            changed, path = classes.get(".".join(parts[:count]), [(len(parts), "")])[-1]
            known = known_arguments(path) if path and changed <= place else None
            found = None if known is None else known[0].get(parts[count + 1])
            count += 2
        elif is_member(parts[count]) and parts[count + 1 : count + 2] == ["init_args"]:
            # a member of a list of classes: its own class says what its arguments are
            count += 1
        else:
            found = None if found is None else _field(item, parts[count], found)
            count += 1
        if found is None:
            return None
    return found


def _field(item: Given, name: str, argument: Argument) -> Argument | None:
    """A field of an argument that is a dataclass."""
    kinds = [kind for kind in kinds_of(argument) if kind.name != "none"]
    fields = fields_of(kinds[0].path) if len(kinds) == 1 and kinds[0].name == "dataclass" else None
    if fields is None:
        return None
    if name not in fields:
        raise _unknown(item, name, tuple(fields))
    return fields[name]
