"""The form of a search file: one JSON schema that checks the file here and completes it in an editor."""

from __future__ import annotations

from typing import Any

from experiments.study_schema import SCHEMA as STUDY

SAMPLERS = ("tpe", "random")
PRUNERS = ("median", "hyperband", "none")
MINUTES = "minutes"
"""The objective that is not a validation metric: minutes of training × processes, summed over folds."""

_STUDY: dict[str, Any] = STUDY["properties"]
_ARM: dict[str, Any] = _STUDY["base"]["properties"]
_BOUND = {"type": ["number", "string"]}
_PARAMETER: dict[str, Any] = {
    "type": "object",
    "additionalProperties": False,
    "properties": {
        "key": {"type": "string", "description": "The configuration key; the parameter's own name if unset."},
        "type": {"enum": ["float", "int"], "description": "int where both bounds are whole, if unset."},
        "low": {**_BOUND, "description": "Lowest value."},
        "high": {**_BOUND, "description": "Highest value, which may be chosen."},
        "step": {**_BOUND, "description": "Values are low, low + step, and so on."},
        "log": {"type": "boolean", "description": "Search on the logarithm's scale."},
        "choices": {
            "type": ["array", "object"],
            "minItems": 1,
            "minProperties": 1,
            "additionalProperties": {"type": ["object", "null"]},
            "description": "A list of values for the key, or a mapping from a choice's name to the keys that it sets.",
        },
        "when": {
            "type": "object",
            "additionalProperties": {"type": ["string", "number", "boolean", "array", "null"]},
            "minProperties": 1,
            "description": "Searched only where other parameters have been given these choices.",
        },
    },
}
_OBJECTIVE: dict[str, Any] = {
    "type": "object",
    "additionalProperties": False,
    "required": ["metric", "direction"],
    "properties": {
        "metric": {
            "type": "string",
            "description": f"A validation metric such as valid/auc, or {MINUTES} (of training × processes).",
        },
        "direction": {"enum": ["maximize", "minimize"]},
    },
}
SCHEMA: dict[str, Any] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "title": "hepastage search",
    "description": "A space of configurations over one cohort and one split; hepastage search run SEARCH.yaml.",
    "type": "object",
    "additionalProperties": False,
    "required": ["search", "config", "space", "trials"],
    "properties": {
        "search": {"type": "string", "description": "Name: a folder below the runs, W&B's group."},
        "cohort": {**_STUDY["cohort"], "description": "Cohort table, relative to the search."},
        "splits": {**_STUDY["splits"], "description": "Split file, relative to the search."},
        "folds": {**_STUDY["folds"], "description": "Folds whose mean is the objective; all if unset."},
        "seed": {"type": "integer", "minimum": 0, "description": "Of the trainings and of the sampler (0)."},
        "config": _ARM["config"],
        "masks": {
            "type": "string",
            "description": "none, reference, or a folder that 'hepastage masks' made (out of fold).",
        },
        "role": _ARM["role"],
        "set": _ARM["set"],
        "space": {
            "type": "object",
            "minProperties": 1,
            "additionalProperties": _PARAMETER,
            "description": "Parameters, by name or by configuration key.",
        },
        "objective": {
            "type": ["object", "array"],
            "minItems": 1,
            "items": _OBJECTIVE,
            **{key: item for key, item in _OBJECTIVE.items() if key != "type"},
            "description": "What is to be best: the mean over folds of the best checkpoint's value. Or a list.",
        },
        "sampler": {
            "type": ["string", "object"],
            "additionalProperties": False,
            "properties": {
                "name": {"enum": list(SAMPLERS)},
                "startup_trials": {"type": "integer", "minimum": 1, "description": "At random, at first (10)."},
            },
            "description": "tpe or random.",
        },
        "pruner": {
            "type": ["string", "object"],
            "additionalProperties": False,
            "properties": {
                "name": {"enum": list(PRUNERS)},
                "startup_trials": {"type": "integer", "minimum": 0, "description": "Median: none pruned before (5)."},
                "warmup_epochs": {"type": "integer", "minimum": 0, "description": "Median: none pruned before (0)."},
                "min_epochs": {"type": "integer", "minimum": 1, "description": "Hyperband: the first rung (1)."},
                "max_epochs": {"type": "integer", "minimum": 1, "description": "Hyperband: the last, over all folds."},
                "reduction_factor": {"type": "integer", "minimum": 2, "description": "Hyperband (3)."},
            },
            "description": "median, hyperband or none.",
        },
        "trials": {"type": "integer", "minimum": 1, "description": "Trials that end well or are pruned."},
        "max_failures": {"type": "integer", "minimum": 0, "description": "Failed trials that are put up with (5)."},
        "storage": {"type": "string", "description": "postgresql://… for many nodes; a journal file if unset."},
        "keep_checkpoints": {"enum": ["best", "all"], "description": "Whose checkpoints stay (best)."},
        "resources": {
            **_STUDY["resources"],
            "properties": {key: _STUDY["resources"]["properties"][key] for key in ("cores", "gpus", "gpu")},
            "description": "What a trial may use.",
        },
    },
}  # fmt: skip
"""The single source: 'hepastage search schema' prints it, ``Search.load`` checks by it."""
