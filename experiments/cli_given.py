"""What was given for each key, where, and in which order: configuration files and words, before they are parsed."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml


@dataclasses.dataclass(frozen=True, slots=True)
class Given:
    """One value that was given.

    Attributes:
        key: Dotted, from the top: ``model.init_args.network.class_path``. Of a class that is added to a list, with its
            number among those that are added: ``trainer.callbacks.+0.class_path``.
        value: As it stands there; of a mapping each key is listed by itself.
        where: The configuration file, or ``the command line``.
        appended: Whether it is added to a list that was there: ``--data.init_args.sequences+ T1W``.
    """

    key: str
    value: Any
    where: str
    appended: bool = False


COMMAND_LINE = "the command line"


def given_of(words: Sequence[str]) -> list[Given]:
    """All values of configuration files and words, in the order in which later ones win.

    Args:
        words: Words after the command; configurations are files by now.
    """
    found: list[Given] = []
    queue = list(words)
    while queue:
        name, sign, value = queue.pop(0).partition("=")
        if not name.startswith("-") or name in ("-h", "--help"):
            continue
        if not sign and queue and not queue[0].startswith("--"):
            value = queue.pop(0)
        if name in ("-c", "--config"):
            found += flat(_loaded(Path(value)), "", Path(value).name)
        elif name.endswith("+"):
            found.append(Given(name.lstrip("-").rstrip("+"), _parsed(value), COMMAND_LINE, appended=True))
        else:
            found += flat(_parsed(value), name.lstrip("-"), COMMAND_LINE)
    return _with_added_classes(found)


def _with_added_classes(given: Sequence[Given]) -> list[Given]:
    """Classes that are added to a list, each under a number; what is said of the list later is the last one's."""
    found: list[Given] = []
    added: dict[str, int] = {}
    for item in given:
        if not item.appended:
            lists = [key for key in added if item.key.startswith(f"{key}.init_args.")]
            key = f"{lists[0]}.+{added[lists[0]]}{item.key.removeprefix(lists[0])}" if lists else item.key
            found.append(dataclasses.replace(item, key=key))
            continue
        for member in item.value if isinstance(item.value, list) else [item.value]:
            if isinstance(member, Mapping) and "class_path" in member:
                added[item.key] = added.get(item.key, -1) + 1
                found += flat(member, f"{item.key}.+{added[item.key]}", item.where)
            else:
                found.append(dataclasses.replace(item, value=member))
    return found


def is_member(part: str) -> bool:
    """Whether a part of a key is the number of a list's member.

    Args:
        part: ``0``, or ``+0`` of one that is added.
    """
    return part.removeprefix("+").isdigit()


def shown(key: str, where: str) -> str:
    """A key as its giver knows it: ``--trainer.max_epochs``, or ``own.yaml: trainer.max_epochs``.

    Args:
        key: Its dotted name.
        where: Where it was given.
    """
    return f"--{unnumbered(key)}" if where == COMMAND_LINE else f"{where}: {unnumbered(key)}"


def unnumbered(key: str) -> str:
    """A key without the numbers of what is added to lists.

    Args:
        key: Its dotted name.
    """
    return re.sub(r"\.\+\d+(?=\.|$)", "", key)


def places_of(key: str, given: Sequence[Given]) -> list[str]:
    """Where a key stands that has no meaning: ``overlay.yaml: data.init_args.spacng``.

    Args:
        key: Its name, or the end of its dotted name.
        given: All that was given.
    """
    places = []
    for item in given:
        parts = item.key.split(".")
        for count in range(len(parts), 0, -1):
            full = ".".join(parts[:count])
            if full == key or full.endswith(f".{key}"):
                places.append(shown(full, item.where))
                break
    return list(dict.fromkeys(places))


def located(fault: str, given: Sequence[Given]) -> str:
    """A parser's complaint with the file and the whole key, where it names only the key's end.

    Args:
        fault: ``spacng: unknown key ...`` or ``batch_size: 'x' is not a whole number; ...``.
        given: All that was given.
    """
    unknown = re.search(r"unknown key '([^']+)'", fault)
    if unknown:
        places = places_of(unknown.group(1), given)
        return f"{', '.join(places)}: {fault[unknown.start() :]}" if places else fault
    wrong = re.match(r"([\w.]+): (.* is not .*)", fault)
    places = places_of(wrong.group(1), given) if wrong else []
    # of several, the last one wins
    return f"{places[-1]}: {wrong.group(2)}" if wrong and places else fault


def class_changes(given: Sequence[Given], resolved: Mapping[str, Any]) -> list[str]:
    """A line for each class that replaced another one: arguments that were carried over, and those dropped.

    The parser keeps arguments of the old class that the new one has too, and drops the others without a word.

    Args:
        given: All that was given.
        resolved: The resolved configuration as plain values.
    """
    lines: list[str] = []
    classes: dict[str, str] = {}
    for place, item in enumerate(given):
        owner = item.key.removesuffix(".class_path")
        if owner == item.key and not (item.key in ("model", "data") and isinstance(item.value, str)):
            continue
        before, after = classes.get(owner), str(item.value)
        classes[owner] = after
        if before is None or before.rsplit(".", 1)[-1] == after.rsplit(".", 1)[-1]:
            continue
        prefix = f"{owner}.init_args."
        earlier = _names(given[:place], prefix)
        later = _names(given[place + 1 :], prefix)
        accepted = _at(resolved, f"{owner}.init_args") or {}
        carried = [name for name in earlier if name in accepted and name not in later]
        dropped = [name for name in earlier if name not in accepted]
        line = f"{owner}: {item.where} puts {after.rsplit('.', 1)[-1]} for {before.rsplit('.', 1)[-1]}"
        lines.append(f"{line}; carried over: {_listed(carried)}; dropped: {_listed(dropped)}")
    return lines


def _names(given: Sequence[Given], prefix: str) -> list[str]:
    """First parts of the keys below a prefix, each once."""
    return list(dict.fromkeys(item.key[len(prefix) :].split(".")[0] for item in given if item.key.startswith(prefix)))


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) if names else "nothing"


def _at(value: Any, key: str) -> Any:
    for part in key.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return None
        value = value[part]
    return value


def flat(value: Any, key: str, where: str) -> Iterator[Given]:
    """The values of a mapping, however deep, with their dotted keys.

    Args:
        value: A mapping, or a value of its own.
        key: Its dotted key; empty at the top.
        where: Where it was given.
    """
    if isinstance(value, Mapping) and value:
        for name, item in value.items():
            full = f"{key}.{name}" if key else str(name)
            if full.endswith("+"):
                yield Given(full.rstrip("+"), item, where, appended=True)
            else:
                yield from flat(item, full, where)
    else:
        yield Given(key, value, where)


def _loaded(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        # the parser's own complaint is the better one
        return None


def _parsed(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text
