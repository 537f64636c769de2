"""Whether a value suits the type that the source declares: what is not fully understood is left to the parser."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import yaml

from experiments.cli_hints import CHOICES, TYPES, not_a_choice, wrong_choice, wrong_count, wrong_type
from experiments.cli_source import Argument, Kind, kinds_of


def complaint(key: str, argument: Argument, value: Any) -> str | None:
    """What is wrong with a value, in the words of the parser's own complaint; None where nothing surely is.

    Args:
        key: The whole key.
        argument: What it is given to.
        value: As YAML reads it.
    """
    kinds = kinds_of(argument)
    size = kinds[0].size
    if isinstance(value, list) and size and size != len(value) and {kind.name for kind in kinds[1:]} <= {"none"}:
        return wrong_count(value, size)
    if any(_fits(kind, value) is not False for kind in kinds):
        return None
    if key in CHOICES:
        return not_a_choice(key, value)
    kinds = tuple(kind for kind in kinds if kind.name != "none")
    names = {kind.name for kind in kinds}
    if names == {"literal"}:
        return wrong_choice(value, [str(choice) for kind in kinds for choice in kind.choices])
    if names == {"literal", "bool"}:
        return wrong_choice(value, [*(str(choice) for kind in kinds for choice in kind.choices), "true", "false"])
    if names in ({"int", "float"}, {"int", "bool"}):
        return wrong_type(value, "float" if "float" in names else "int")
    return wrong_type(value, kinds[0].name) if len(names) == 1 and kinds[0].name in TYPES else None


def _fits(kind: Kind, value: Any) -> bool | None:
    """True, False, or None where the parser is to say."""
    if kind.name == "none":
        return value is None or str(value).lower() in ("null", "none", "~", "")
    # an argument whose default is None may be None, whatever its type says
    if value is None or not isinstance(value, (str, int, float)):
        return None
    if kind.name == "literal":
        return value in kind.choices or str(value) in [str(choice) for choice in kind.choices]
    if kind.name not in ("int", "float", "bool", "tuple"):
        return None
    if not isinstance(value, str):
        return _number_fits(kind.name, value)
    # the parser reads words as YAML, some of them also as the file that holds the value
    meant = _meant(value)
    if not isinstance(meant, str):
        return None
    return None if any(sign in value for sign in "[](){},$:") or Path(value).exists() else False


def _number_fits(name: str, value: float) -> bool | None:
    if name == "tuple":
        return False if not isinstance(value, bool) else None
    if name == "bool" or isinstance(value, bool):
        return True if name == "bool" and isinstance(value, bool) else None
    if name == "int" and isinstance(value, float) and not value.is_integer():
        return False
    return True if name == "float" or isinstance(value, int) else None


def _meant(text: str) -> Any:
    with contextlib.suppress(ValueError):
        return float(text)
    with contextlib.suppress(yaml.YAMLError):
        return yaml.safe_load(text)
    return text
