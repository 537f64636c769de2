"""The form of a study file: one JSON schema that checks the file here and completes it in an editor."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from typing import Any

MASKS = ("none", "reference", "out_of_fold")
ROLES = ("segmenter", "classifier", "staging", "probe")
FRAGMENT_KEYS = ("config", "masks", "segmenter", "role", "set", "resources")

_CONFIG = {
    "type": ["string", "array"],
    "items": {"type": "string"},
    "minItems": 1,
    "description": "Shipped configurations by name, or files relative to the study; later ones over earlier ones.",
}
_SET = {
    "type": ["object", "null"],
    "description": "Single configuration keys, such as model.init_args.optimizer.init_args.lr: 0.001.",
}
_NUMBERS = {"type": ["array", "null"], "items": {"type": "integer", "minimum": 0}, "minItems": 1, "uniqueItems": True}
_NAMED = {"type": "object", "additionalProperties": {"type": ["string", "number", "boolean", "array"]}}
_RESOURCES = {
    "type": "object",
    "additionalProperties": False,
    "description": "What a cell may use.",
    "properties": {
        "cores": {"type": "integer", "minimum": 1, "description": "Cores, and threads; a fair share if unset."},
        "gpus": {"type": "integer", "minimum": 0, "description": "Whole GPUs of a cell; 1 where there are any."},
        "gpu": {"type": "number", "exclusiveMinimum": 0, "maximum": 1, "description": "Share of one GPU, such as 0.5."},
        "memory_gb": {"type": "number", "exclusiveMinimum": 0, "description": "Main memory in GB."},
        "hours": {"type": "number", "exclusiveMinimum": 0, "description": "Time limit in hours, on a cluster."},
        "nodes": {"type": "integer", "minimum": 1, "description": "Nodes of a cell, on a cluster."},
        "tasks": {"type": "integer", "minimum": 1, "description": "Processes of a cell over all nodes (DDP ranks)."},
    },
}  # fmt: skip
_FRAGMENT: dict[str, Any] = {
    "config": _CONFIG,
    "masks": {"enum": list(MASKS), "description": "Which liver masks the arm gets."},
    "segmenter": {"type": "string", "description": "Whose out-of-fold masks, where there are several segmenters."},
    "role": {"enum": list(ROLES), "description": "The cell's stage: W&B's job type."},
    "set": _SET,
    "resources": _RESOURCES,
}
_ARM = {"type": "object", "additionalProperties": False, "properties": _FRAGMENT}
_VALUE = {
    "type": ["object", "string", "number", "boolean", "array", "null"],
    "properties": _FRAGMENT,
    "patternProperties": {r"\.": {}},
    "additionalProperties": False,
    "description": "Configuration keys, an overlay's name, or (with 'key') the key's value.",
}
_AXIS = {
    "type": "object",
    "additionalProperties": False,
    "required": ["values"],
    "properties": {
        "key": {"type": "string", "description": "The configuration key that the values are for."},
        "values": {
            "type": ["array", "object"],
            "items": {"type": ["string", "number", "boolean", "array", "null"]},
            "minItems": 1,
            "minProperties": 1,
            "additionalProperties": _VALUE,
            "description": "A list, or a mapping from each value's name to what it sets.",
        },
        "when": {**_NAMED, "description": "The axis varies only where other axes have these values."},
    },
}

SCHEMA: dict[str, Any] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "title": "hepastage study",
    "description": "Arms, axes, folds and seeds over one cohort and one split; hepastage grid run STUDY.yaml.",
    "type": "object",
    "additionalProperties": False,
    "required": ["study"],
    "properties": {
        "study": {"type": ["string", "integer"], "description": "Name: a folder below the runs, W&B's group."},
        "cohort": {"type": ["string", "null"], "description": "Cohort table, relative to the study."},
        "splits": {"type": ["string", "null"], "description": "Split file, relative to the study."},
        "folds": {**_NUMBERS, "description": "Folds to run; all of the split if unset."},
        "seeds": {**_NUMBERS, "description": "Seeds of the arms; segmenters run with the first alone. [0] if unset."},
        "segmenter": {**_ARM, "type": ["object", "null"], "description": "First stage: its masks serve all arms."},
        "segmenters": {"type": "object", "additionalProperties": _ARM, "description": "Several first stages, by name."},
        "base": {**_ARM, "description": "What all arms begin with."},
        "arms": {"type": ["object", "null"], "additionalProperties": _ARM, "description": "Configurations, by name."},
        "axes": {"type": "object", "additionalProperties": _AXIS, "description": "What varies; crossed with the arms."},
        "rows": {
            "type": "array",
            "items": _NAMED,
            "minItems": 1,
            "description": "Combinations of some axes that are run, in place of all; 'arm' names an arm.",
        },
        "exclude": {"type": "array", "items": _NAMED, "description": "Combinations that are left out."},
        "set": {**_SET, "description": "Configuration keys of every cell, segmenters too."},
        "resources": _RESOURCES,
        "smoke": {
            "type": "object",
            "additionalProperties": False,
            "description": "What --smoke changes: the same arms, small enough to see in minutes that all runs through.",
            "properties": {
                "seeds": {**_NUMBERS, "description": "Seeds ([0])."},
                "folds": {**_NUMBERS, "description": "Folds (those of the study)."},
                "arms": {**_ARM, "description": "Over every arm, its axes included."},
                "segmenters": {**_ARM, "description": "Over every first stage."},
            },
        },
        "retries": {"type": "integer", "minimum": 0, "maximum": 10, "description": "Further tries (1)."},
        "compare": {
            "type": ["object", "null"],
            "additionalProperties": False,
            "properties": {
                "reference": {"type": "string", "description": "The arm that the others are compared with."},
                "metric": {"type": "string", "description": "Primary metric, such as auc."},
                "out": {"type": "string", "description": "Folder of the report, below the study's (comparison)."},
            },
        },
    },
}  # fmt: skip
"""The single source: 'hepastage grid schema' prints it, ``form_faults`` checks by it."""


def form_faults(value: dict[str, Any], schema: dict[str, Any] | None = None, kind: str = "study") -> list[str]:
    """Ways in which a file's content breaks the form, one line each, each naming its key.

    Args:
        value: The file's content.
        schema: The form; a study's if None.
        kind: What the file is: ``study`` or ``search``.
    """
    from jsonschema import Draft202012Validator

    faults: list[str] = []
    found = Draft202012Validator(schema or SCHEMA).iter_errors(value)
    for error in sorted(found, key=lambda item: list(map(str, item.path))):
        faults += _explained(error, kind)
    return faults


def _explained(error: Any, kind: str) -> Iterator[str]:
    parts = list(error.absolute_path)
    if parts and isinstance(parts[-1], int):
        # an item of a list is shown by its value
        parts.pop()
    place = ".".join(map(str, parts))
    prefix = f"{place}." if place else ""
    known = list(error.schema.get("properties", {}))
    if error.validator == "additionalProperties":
        patterned = bool(error.schema.get("patternProperties"))
        for key in error.instance:
            if key in known or (patterned and "." in str(key)):
                continue
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
            hint += " or a configuration key with dots" if patterned and not near else ""
            yield f"{prefix}{key}: unknown key; {hint}"
    elif error.validator == "required":
        for key in error.validator_value:
            if key not in error.instance:
                yield f"{prefix}{key}: is missing; {f'a {kind} needs it' if not prefix else 'add it'}"
    elif error.validator == "type":
        wanted = error.validator_value if isinstance(error.validator_value, list) else [error.validator_value]
        names = {
            "object": "a mapping; write its keys on indented lines",
            "array": "a list such as [0, 1, 2]",
            "string": "a text",
            "integer": "a whole number",
            "number": "a number",
            "boolean": "true or false",
        }
        yield f"{place}: {error.instance!r} is not {' or '.join(names[name] for name in wanted if name != 'null')}"
    elif error.validator == "enum":
        yield f"{place}: {error.instance!r} is not one of {', '.join(map(str, error.validator_value))}"
    else:
        yield f"{place}: {error.message}; see 'hepastage {'grid' if kind == 'study' else kind} schema'"
