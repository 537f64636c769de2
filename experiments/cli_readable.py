"""What the parser and constructors say, in one short line that tells what to do. Without Lightning."""

from __future__ import annotations

import difflib
import importlib
import re
from collections.abc import Sequence

from jsonargparse import ArgumentError

from datamodules.errors import InputError
from experiments.cli_hints import (
    ADVICE,
    CHOICES,
    TYPES,
    WITH_MODULE,
    did_you_mean,
    not_a_choice,
    required,
    wrong_choice,
    wrong_type,
)

WHERE = {"cohort": "data.init_args.cohort"}
"""Whole keys of what is required."""


def explained(message: str, error: BaseException | None, known: Sequence[str] = ()) -> InputError:
    """What a person can act on of a parser's error.

    jsonargparse nests one cause in another and repeats the whole value; the innermost cause says what is wrong.

    Args:
        message: The whole message.
        error: The exception, whose chain of causes is followed.
        known: Keys that the parser knows, for the nearest right one.
    """
    text = " ".join(message.split())
    found = re.search(r'Parser key "([^"]+)"', text)
    innermost = text
    while error is not None:
        if isinstance(error, InputError):
            # a class's own parser does not know which part of the configuration it parsed
            where = f"{found.group(1)}: " if found and error.faults[0].startswith("unknown key") else ""
            return InputError(where + error.faults[0], *error.faults[1:])
        # by its name: Lightning takes seconds to import
        refused = type(error).__name__ == "MisconfigurationException"
        if refused or isinstance(error, (ValueError, TypeError, ArgumentError)):
            innermost = " ".join(str(error).split()) or innermost
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    key = found.group(1) if found else ""
    if key in CHOICES:
        value = re.search(r"Got value: (.+?)(?: Given value type: .*)?$", innermost)
        return InputError(f"{key}: {not_a_choice(key, value.group(1) if value else 'the value')}")
    return InputError(f"{key}: {readable(innermost, known)}" if key else readable(innermost, known))


def readable(message: str, known: Sequence[str] = ()) -> str:
    """A jsonargparse message in one short line that says what to do.

    Args:
        message: Its text.
        known: Keys that the parser knows.
    """
    text = re.sub(r'^Parser key "[^"]+": ', "", " ".join(message.split()))
    text = text.replace(f"; {ADVICE}", "")
    unknown = re.search(r"(?:Option|Key) '([^']+)' is not (?:accepted|expected)", text)
    unknown = unknown or re.search(r"[Uu]nrecognized arguments?: -*([^\s=]+)", text)
    if unknown:
        return f"unknown key {unknown.group(1)!r}; {did_you_mean(unknown.group(1), known)}{ADVICE}"
    absent = re.search(r"arguments are required: (.+?)(?:;|$)", text)
    if absent:
        return required([WHERE.get(name, name) for name in absent.group(1).split(", ")])
    missing = re.search(r"(?:class_path '|path string: |Got value: \[')([\w.]+)", text)
    if missing and re.search("class_path '|dot import path|valid subclass", text):
        return f"there is no class {missing.group(1)!r}; {near_class(missing.group(1))}"
    strategy = re.search(r"invalid strategy name: `strategy='(\w+)'`", text)
    if strategy:
        return f"trainer.strategy: {not_a_choice('trainer.strategy', strategy.group(1))}"
    missing = re.search(r"expects a function or a callable class: module '([\w.]+)' has no attribute '(\w+)'", text)
    if missing:
        path = ".".join(missing.groups())
        return f"there is no class {path!r}; {near_class(path)}"
    closed = re.search(r"Expected a typing\.Literal\[(.*?)\]\. Got value: (.*?)(?: Given value type: .*)?$", text)
    if closed:
        return wrong_choice(closed.group(2), [closed.group(1).replace("'", "")])
    wrong = re.search(r"Expected an? <class '(\w+)'>\. Got value: (.*?)(?: Given value type: .*)?$", text)
    if wrong and wrong.group(1) in TYPES:
        return wrong_type(wrong.group(2), wrong.group(1))
    text = re.split(r" Given value type: |\. Got value: <|\. Got value: Namespace|\. Got value: {", text)[0]
    if len(text) > 400:
        text = f"{text[:190]} … {text[-190:]}"
    return text if ";" in text else f"{text}; {ADVICE}"


def near_class(path: str) -> str:
    """What to write for a class path that leads nowhere."""
    folder, _, name = path.rpartition(".")
    if not folder:
        return WITH_MODULE
    try:
        module = importlib.import_module(folder)
    except ImportError:
        return f"no module {folder!r} can be imported; correct it, or install its package"
    near = difflib.get_close_matches(name, [key for key, value in vars(module).items() if isinstance(value, type)], n=1)
    return f"did you mean '{folder}.{near[0]}'?" if near else f"{folder} has none of that name"
