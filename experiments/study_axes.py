"""From a study's base, arms and axes to the arms that are run: products, conditions, paired rows, exclusions."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from typing import Any

from experiments.study_schema import FRAGMENT_KEYS

ARM_AXIS = "arm"


def expanded(value: Mapping[str, Any]) -> tuple[dict[str, tuple[dict[str, Any], dict[str, str]]], list[str]]:
    """All arms of a study, by name.

    Args:
        value: The study file's content; its form is right.

    Returns:
        By the arm's name: its fragment (``config`` as a list, ``set`` complete) and the value's name on each axis.
        And the faults, each naming its key.
    """
    base = value.get("base") or {}
    axes = {name: _values(name, axis) for name, axis in (value.get("axes") or {}).items()}
    faults = [f"axes.{name}: {fault}" for name, (_, found) in axes.items() for fault in found]
    if ARM_AXIS in axes:
        faults.append(f"axes.{ARM_AXIS}: is the name of the arms themselves; choose another")
    if faults:
        return {}, faults
    choices = {name: values for name, (values, _) in axes.items()}
    if value.get("arms"):
        choices = {ARM_AXIS: {name: (name, None, arm) for name, arm in value["arms"].items()}, **choices}
    if not choices:
        return ({"base": (merged([base]), {})} if base else {}), []
    conditions = {name: axis.get("when") or {} for name, axis in (value.get("axes") or {}).items()}
    for place, items in [
        *((f"axes.{name}.when", condition) for name, condition in conditions.items()),
        *((f"rows.{number}", row) for number, row in enumerate(value.get("rows") or [])),
        *((f"exclude.{number}", row) for number, row in enumerate(value.get("exclude") or [])),
    ]:
        faults += _strangers(place, items, choices)
    if faults:
        return {}, faults
    combinations, faults = _combinations(choices, value.get("rows") or [])
    arms: dict[str, tuple[dict[str, Any], dict[str, str]]] = {}
    useless = set(range(len(value.get("exclude") or [])))
    for combination in combinations:
        kept = {
            axis: name for axis, name in combination.items() if _matches(conditions.get(axis, {}), combination, choices)
        }
        excluded = [
            number for number, row in enumerate(value.get("exclude") or []) if _matches(row, kept, choices, every=True)
        ]
        useless -= set(excluded)
        if excluded:
            continue
        title = "+".join(choices[axis][name][0] for axis, name in kept.items()) or "base"
        if title in arms and arms[title][1] != kept:
            faults.append(f"axes: two combinations are called {title!r}; give their values other names")
        fragments = [base, *(choices[axis][name][2] for axis, name in kept.items())]
        arms[title] = (merged(fragments), kept)
    faults += [f"exclude.{number}: matches no combination; correct or remove it" for number in sorted(useless)]
    return arms, faults


def merged(fragments: list[Mapping[str, Any]]) -> dict[str, Any]:
    """One fragment of several: configurations in order, later settings over earlier ones."""
    result: dict[str, Any] = {"config": [], "set": {}, "resources": {}}
    for fragment in fragments:
        config = fragment.get("config") or []
        result["config"] += config if isinstance(config, list) else [config]
        result["set"] |= dict(fragment.get("set") or {})
        result["set"] |= {key: item for key, item in fragment.items() if key not in FRAGMENT_KEYS}
        result["resources"] |= dict(fragment.get("resources") or {})
        result |= {key: fragment[key] for key in ("masks", "segmenter", "role") if fragment.get(key) is not None}
    return result


Choice = tuple[str, Any, Mapping[str, Any]]
"""The part of the arm's name, the plain value (None where it has none), and the fragment."""


def _values(axis: str, form: Mapping[str, Any]) -> tuple[dict[str, Choice], list[str]]:
    """The choices on an axis by name, and what is wrong with them."""
    key, values = form.get("key"), form["values"]
    result: dict[str, Choice] = {}
    faults: list[str] = []
    listed = isinstance(values, list)
    items = [(_name(item), item) for item in values] if listed else [(str(name), item) for name, item in values.items()]
    for name, item in items:
        if name in result:
            faults.append(f"values: {name!r} is there twice; remove one")
        if isinstance(item, Mapping):
            fragment: Mapping[str, Any] = item
        elif key is not None:
            fragment = {"set": {key: item}}
        elif item is None:
            # a value that changes nothing: the base itself
            fragment = {}
        elif isinstance(item, str):
            fragment = {"config": [item]}
        else:
            faults.append(f"values: {item!r} is no mapping and no overlay's name; add 'key', what the values are for")
            continue
        if not re.fullmatch(r"[A-Za-z0-9._+-]+", name):
            faults.append(f"values: {name!r} cannot be part of an arm's name; use letters, digits, '.', '_' and '-'")
        # a number alone would not say what it is of
        title = f"{axis}-{name}" if key is not None and (listed or not name[:1].isalpha()) else name
        result[name] = (title, None if isinstance(item, Mapping) else item, fragment)
    return result, faults


def _name(item: Any) -> str:
    """How a listed value is called: ``0.001``, ``true``, ``resnet18``, ``2-2-1``."""
    if isinstance(item, bool) or item is None:
        return {True: "true", False: "false", None: "none"}[item]
    if isinstance(item, list):
        return "-".join(_name(part) for part in item)
    text = str(item).removesuffix(".yaml")
    return re.sub(r"[^A-Za-z0-9._+-]+", "-", text.rsplit("/", 1)[-1]).strip("-") or "value"


def _combinations(
    choices: Mapping[str, Mapping[str, Choice]], rows: list[Mapping[str, Any]]
) -> tuple[list[dict[str, str]], list[str]]:
    """The product of all axes; where rows are given, their axes vary by row."""
    paired = [axis for axis in choices if any(axis in row for row in rows)]
    faults = [
        f"rows.{number}: names no value of {axis}; every row names the same axes"
        for number, row in enumerate(rows)
        for axis in paired
        if axis not in row
    ]
    if faults:
        return [], faults
    together: list[dict[str, str]] = [{}]
    if rows:
        together = [{axis: _found(row[axis], choices[axis]) or "" for axis in paired} for row in rows]
    others = [axis for axis in choices if axis not in paired]
    result = []
    for row in together:
        for names in itertools.product(*(choices[axis] for axis in others)):
            chosen = {**row, **dict(zip(others, names, strict=True))}
            result.append({axis: chosen[axis] for axis in choices})
    return result, []


def _found(wanted: Any, values: Mapping[str, Choice]) -> str | None:
    """The name of a value that is given by its name or as itself."""
    return next(
        (name for name, (_, plain, _) in values.items() if name in (wanted, _name(wanted)) or plain == wanted), None
    )


def _matches(
    items: Mapping[str, Any],
    combination: Mapping[str, str],
    choices: Mapping[str, Mapping[str, Choice]],
    every: bool = False,
) -> bool:
    """Whether a combination has one of the values wanted on each axis; ``every`` refuses an empty wish."""
    for axis, wanted in items.items():
        options = wanted if isinstance(wanted, list) else [wanted]
        if combination.get(axis) not in {_found(option, choices[axis]) for option in options}:
            return False
    return bool(items) or not every


def _strangers(place: str, items: Mapping[str, Any], choices: Mapping[str, Mapping[str, Choice]]) -> list[str]:
    """Axes and values that a condition names and the study does not have."""
    faults = []
    for axis, wanted in items.items():
        if axis not in choices:
            faults.append(f"{place}.{axis}: there is no such axis; axes are {', '.join(choices)}")
            continue
        # the value of an axis may itself be a list
        options = wanted if isinstance(wanted, list) and _found(wanted, choices[axis]) is None else [wanted]
        for option in options:
            if _found(option, choices[axis]) is None:
                faults.append(f"{place}.{axis}: there is no value {option!r}; values are {', '.join(choices[axis])}")
    return faults
