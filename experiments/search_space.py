"""The space of a search: parameters over configuration keys, asked for one by one. Light, torch-free."""

from __future__ import annotations

import dataclasses
import graphlib
import json
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import optuna

Scalar = str | int | float | bool | None


@dataclasses.dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter.

    Attributes:
        name: Its name.
        kind: ``float``, ``int`` or ``choice``.
        key: The configuration key that a value is for; None where choices say themselves what they set.
        low: Lowest value.
        high: Highest value.
        step: Distance between values, or None.
        log: Whether the logarithm is searched.
        choices: What each choice sets, by its name (for a list: by its value).
        when: For each other parameter, the choices under which this one is searched.
    """

    name: str
    kind: str
    key: str | None = None
    low: float = 0.0
    high: float = 0.0
    step: float | None = None
    log: bool = False
    choices: Mapping[Scalar, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    when: Mapping[str, tuple[Scalar, ...]] = dataclasses.field(default_factory=dict)

    def asked(self, trial: optuna.Trial) -> Any:
        """The value that the sampler gives."""
        if self.kind == "choice":
            return trial.suggest_categorical(self.name, list(self.choices))
        if self.kind == "int":
            step = 1 if self.step is None else int(self.step)
            return trial.suggest_int(self.name, int(self.low), int(self.high), step=step, log=self.log)
        return trial.suggest_float(self.name, self.low, self.high, step=self.step, log=self.log)

    def sets(self, value: Any) -> Mapping[str, Any]:
        """Configuration keys that a value sets."""
        if self.kind == "choice":
            return self.choices[value]
        assert self.key is not None
        return {self.key: value}


def ask(trial: optuna.Trial, space: Iterable[Parameter]) -> dict[str, Any]:
    """The values of a trial by parameter; those whose condition is not met are not asked for.

    Args:
        trial: Optuna's trial.
        space: Parameters, each after those that its condition names.
    """
    values: dict[str, Any] = {}
    for parameter in space:
        if all(name in values and values[name] in wanted for name, wanted in parameter.when.items()):
            values[parameter.name] = parameter.asked(trial)
    return values


def settings_of(values: Mapping[str, Any], space: Iterable[Parameter]) -> dict[str, Any]:
    """Configuration keys that a trial's values set, with dots; later parameters over earlier ones."""
    result: dict[str, Any] = {}
    for parameter in space:
        if parameter.name in values:
            result |= parameter.sets(values[parameter.name])
    return result


def nested(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Keys with dots as the mappings of a YAML overlay: ``{'trainer.max_epochs': 3}`` as ``{trainer: {...}}``."""
    result: dict[str, Any] = {}
    for key, value in settings.items():
        *parts, last = key.split(".")
        place = result
        for part in parts:
            if not isinstance(place.get(part), dict):
                place[part] = {}
            # a copy: what a choice sets must not be changed by a parameter below it
            place[part] = dict(place[part])
            place = place[part]
        place[last] = value
    return result


def plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings without those that add to a list (``trainer.callbacks+``), which no YAML overlay can hold."""
    return {key: value for key, value in settings.items() if not key.endswith("+")}


def parameters_of(space: Mapping[str, Mapping[str, Any]]) -> tuple[tuple[Parameter, ...], list[str]]:
    """The parameters of a search file's ``space``, each after those that it depends on, and what is wrong with them.

    Args:
        space: The key's content; its form is right.
    """
    found: dict[str, Parameter] = {}
    faults: list[str] = []
    for name, form in space.items():
        parameter, wrong = _parameter(name, form)
        faults += [f"space.{name}{fault}" for fault in wrong]
        if parameter is not None:
            found[name] = parameter
    if faults:
        return (), faults
    for name, parameter in found.items():
        for other, wanted in parameter.when.items():
            place = f"space.{name}.when.{other}"
            if other == name or other not in found:
                faults.append(f"{place}: there is no such other parameter; there are {', '.join(found)}")
            elif found[other].kind != "choice":
                faults.append(f"{place}: is a range, and a condition names choices; make it one of choices")
            else:
                known = found[other].choices
                shown = ", ".join(map(str, known))
                faults += [f"{place}: there is no choice {w!r}; there are {shown}" for w in wanted if w not in known]
    if faults:
        return (), faults
    try:
        order = list(graphlib.TopologicalSorter({name: found[name].when for name in found}).static_order())
    except graphlib.CycleError as error:
        return (), [f"space: the conditions of {', '.join(error.args[1])} go round in a circle; remove one"]
    return tuple(found[name] for name in order), []


def _parameter(name: str, form: Mapping[str, Any]) -> tuple[Parameter | None, list[str]]:
    """One parameter, and what is wrong with it."""
    key = form.get("key", name)
    when = {
        other: tuple(wanted) if isinstance(wanted, list) else (wanted,)
        for other, wanted in (form.get("when") or {}).items()
    }
    ranged = sorted({"low", "high", "step", "log", "type"} & set(form))
    if "choices" in form:
        if ranged:
            return None, [f".{ranged[0]}: is for a range, and this has choices; remove one of the two"]
        choices, faults = _choices(name, key, form)
        return (None, faults) if faults else (Parameter(name, "choice", key, choices=choices, when=when), [])
    missing = [bound for bound in ("low", "high") if bound not in form]
    if missing:
        return None, [f".{missing[0]}: is missing; give low and high, or choices"]
    faults = [
        f".{bound}: {form[bound]!r} is not a number; YAML wants a point in it, such as 1.0e-5 and not 1e-5"
        for bound in ("low", "high", "step")
        if isinstance(form.get(bound), str)
    ]
    if "." not in key and "key" not in form:
        faults.append(f".key: is missing; {name!r} has no dots, so it is a name alone")
    if faults:
        return None, faults
    low, high, step, log = form["low"], form["high"], form.get("step"), bool(form.get("log", False))
    whole = isinstance(low, int) and isinstance(high, int)
    kind = form.get("type", "int" if whole and isinstance(step, int | None) else "float")
    if kind == "int" and not (whole and isinstance(step, int | None)):
        faults.append(".type: is int, but a bound or the step is not whole")
    if not low < high:
        faults.append(f".high: {high} is not above low, {low}")
    if log and low <= 0:
        faults.append(f".low: {low} has no logarithm; give a low above 0, or remove log")
    if log and step is not None:
        faults.append(".step: a logarithmic range has no steps; remove one of the two")
    if step is not None and step <= 0:
        faults.append(f".step: {step} is not above 0")
    return (None, faults) if faults else (Parameter(name, kind, key, low, high, step, log, when=when), [])


def _choices(name: str, key: str, form: Mapping[str, Any]) -> tuple[dict[Scalar, Mapping[str, Any]], list[str]]:
    """What each choice sets, and what is wrong with them."""
    given = form["choices"]
    if isinstance(given, Mapping):
        if "key" in form:
            return {}, [".key: named choices say themselves which keys they set; remove it, or write choices as a list"]
        faults = [
            f".choices.{label}.{key}: is not a configuration key with dots"
            for label, settings in given.items()
            for key in settings or {}
            if "." not in str(key)
        ]
        return {str(label): dict(settings or {}) for label, settings in given.items()}, faults
    if "." not in key and "key" not in form:
        return {}, [f".key: is missing; {name!r} has no dots, so it is a name alone"]
    result: dict[Scalar, Mapping[str, Any]] = {}
    for value in given:
        # a list or mapping is named by its text
        label = value if value is None or isinstance(value, str | int | float | bool) else json.dumps(value)
        if label in result:
            return {}, [f".choices: {label!r} is there twice; remove one"]
        result[label] = {key: value}
    return result, []
