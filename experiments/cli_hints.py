"""What a mistyped key may have meant. Light: nothing heavy is imported."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

ADVICE = "'hepastage fit --print_config -c CONFIG.yaml' lists the keys"
"""Where all keys can be seen."""

FOREIGN = {
    "ckpt_path": "'hepastage test --run DIR --ckpt best|last|FILE' names a checkpoint",
    "seed": "did you mean 'seed_everything'?",
    "epochs": "did you mean 'trainer.max_epochs'?",
    "resume": "'hepastage fit' goes on by itself, '--restart' begins anew",
}
"""Words of other command lines, and what they are here."""

TYPES = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "text",
    "tuple": "a list of values such as [2.0, 2.0, 6.0]",
    "list": "a list",
    "dict": "a mapping of keys to values",
}
"""What a person calls Python's types."""

CHOICES = {
    "trainer.precision": "choose one of 32-true, bf16-mixed, 16-mixed, bf16-true, 16-true, 64-true",
    "trainer.accelerator": "choose one of auto, cpu, gpu, cuda, mps, tpu",
    "trainer.strategy": "choose one of auto, ddp, fsdp or a class_path",
}
"""Keys whose types Lightning declares so widely that the parser's complaint misleads."""

SEED = "seed_everything: is false; a cell is named by its seed, give a whole number"
"""What a run without a seed is told."""


def wrong_type(value: object, name: str) -> str:
    """A value of another type.

    Args:
        value: As it was given.
        name: Key of ``TYPES``.
    """
    return f"{str(value)[:80]!r} is not {TYPES[name]}; correct it"


def wrong_count(value: Sequence[object], wanted: int) -> str:
    """A list of another number of values.

    Args:
        value: As it was given.
        wanted: The number.
    """
    return f"{str(list(value))[:80]} has {len(value)} values; give {wanted}"


def wrong_choice(value: object, choices: Sequence[str]) -> str:
    """A value that is none of a closed set.

    Args:
        value: As it was given.
        choices: The set, in the order to show.
    """
    return f"{str(value)[:80]!r} is not one of them; choose one of {', '.join(choices)}"


def not_a_choice(key: str, value: object) -> str:
    """A value of a key of ``CHOICES``.

    Args:
        key: The key.
        value: As it was given.
    """
    return f"{value} is not one; {CHOICES[key]}"


def required(names: Sequence[str]) -> str:
    """Keys that must be given.

    Args:
        names: The whole keys.
    """
    return f"{', '.join(names)}: is required and not given; set it in a file or with --{names[0]}; {ADVICE}"


WITH_MODULE = "write it with its module, such as torch.optim.AdamW"
"""What a class by its bare name lacks."""


def direct_with_masks(mask_source: object) -> str:
    """A direct arm whose data hand out masks."""
    return f"data.init_args.mask_source: is {mask_source}, but a direct arm sees no mask; set it to none"


def does_not_serve(datamodule: str, model: str) -> str:
    """Data of another task than the model's."""
    return f"data.class_path: {datamodule} does not serve {model}; change one"


def wrong_classes(classes: int, what: str, wanted: int) -> str:
    """A classifier of another number of classes than its target's."""
    return f"model.init_args.classes: is {classes}, but {what} {wanted} classes; set it to that"


def unfit_edges(key: str, edges: Sequence[int], divisor: Sequence[int]) -> str:
    """A patch or window that a network cannot halve often enough."""
    return f"{key}: {list(edges)} does not suit the network's strides; give multiples of {list(divisor)}"


MASKED_WITHOUT = "data.init_args.mask_source: is none, but a masked arm needs masks; set it to out_of_fold"
"""A masked arm whose data hand out none."""


def staging_masks(mask_source: str) -> str:
    """A staging network and its data that do not agree on whether there are masks."""
    if mask_source == "none":
        return f"{MASKED_WITHOUT}, or take model.init_args.network.init_args.mask_injection out"
    return (
        f"data.init_args.mask_source: is {mask_source}, but the network takes no mask in; set it to none, or name a "
        "way in model.init_args.network.init_args.mask_injection, such as [multiply]"
    )


def did_you_mean(key: str, known: Sequence[str]) -> str:
    """``did you mean 'backbone'? `` where a known key is near, else nothing.

    Args:
        key: What was written.
        known: What could be written there.
    """
    if key in FOREIGN:
        return FOREIGN[key] + (" " if FOREIGN[key].endswith("?") else "; ")
    beginning = [name for name in known if name.startswith(key)]
    near = difflib.get_close_matches(key, known, n=1) or beginning[:1]
    return f"did you mean {near[0]!r}? " if near else ""


def too_few(ranks: int, part: str, fold: int, patients: int) -> str:
    """A part with fewer patients than processes."""
    return (
        f"trainer.devices: {ranks} processes, but the {part} part of fold {fold} has only {patients} patients; use at "
        f"most {patients}, or fewer folds"
    )


def step_too_large(ranks: int, step: int, patients: int, most: int) -> str:
    """A step of all processes that is larger than the training part."""
    return (
        f"data.init_args.batch_size: counts for each process; {ranks} processes take {step} items a step, more than "
        f"the {patients} training patients; set it to at most {most}"
    )


def no_processes(devices: object) -> str:
    """No process at all."""
    return f"trainer.devices: is {devices}; give a number of processes from 1 on, or auto"
