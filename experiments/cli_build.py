"""Build the plain torch parts of a run before Lightning is imported, to hear what their constructors refuse.

Networks, losses, optimisers and augmentation need torch, which a run needs anyway, and nothing else that takes seconds
(timm's backbones are left out). What they refuse is said as the run would say it. A part that was given no value of its
own is not built.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
from collections.abc import Sequence
from typing import Any

from datamodules.errors import InputError
from experiments.cli_given import Given, is_member, located
from experiments.cli_precheck import classes_given, with_members
from experiments.cli_words import shipped_names

PLAIN = ("lightning_modules.networks.", "lightning_modules.losses.", "datamodules.augmentation.", "torch.")
"""Packages whose classes need no Lightning."""


def check_buildable(given: Sequence[Given], built: Sequence[str] = ()) -> None:
    """Refuse what constructors of a run's plain parts refuse.

    Args:
        given: All that was given, which the other checks have found nothing wrong with.
        built: Names of files whose values have been built before, as those of a run's saved configuration.

    Raises:
        InputError: The first constructor's complaint, or a value of a wrong type.
    """
    given = with_members(given)
    right = {name.rsplit("/", 1)[-1] for name in shipped_names()} | set(built)
    classes = classes_given(given)
    for owner, paths in classes.items():
        path = paths[-1][1]
        inside = any(owner.startswith(f"{other}.init_args.") and _plain(classes[other][-1][1]) for other in classes)
        begin = f"{owner}.init_args."
        own = [(place, item) for place, item in enumerate(given) if item.key.startswith(begin)]
        # what was changed within is put together by the parser's own rules
        changed = any(other.startswith(begin) and len({path for _, path in classes[other]}) > 1 for other in classes)
        # shipped and saved configurations are known to be right
        if _plain(path) and not inside and not changed and any(item.where not in right for _, item in own):
            _build(owner, path, _kept(own, begin, paths), given)


def _plain(path: str) -> bool:
    return path.startswith(PLAIN)


def _kept(own: Sequence[tuple[int, Given]], begin: str, paths: Sequence[tuple[int, str]]) -> list[Given]:
    """Of a class that replaced another one the parser keeps the arguments of the same name and drops the others."""
    last, path = paths[-1]
    earlier = any(place < last and other != path for place, other in paths)
    names = inspect.signature(_made(path)).parameters if earlier and _made(path) is not None else {}
    return [
        item
        for place, item in own
        if not earlier or place > last or item.key.removeprefix(begin).split(".")[0] in names
    ]


def _made(path: str) -> Any:
    """The class or function of a path; None where it is neither."""
    module, _, name = path.rpartition(".")
    made = getattr(importlib.import_module(module), name, None)
    return made if inspect.isclass(made) or inspect.isfunction(made) else None


def _build(owner: str, path: str, own: Sequence[Given], given: Sequence[Given]) -> None:
    """Parse the arguments as the run does, and construct."""
    from jsonargparse import ArgumentError, ArgumentParser

    from experiments.cli_readable import explained
    from lightning_modules.networks.initial_weights import sketched

    made = _made(path)
    if made is None:
        return
    is_optimizer = owner.endswith(".optimizer")
    parser = ArgumentParser(exit_on_error=False)
    try:
        skipped: set[str | int] = {"params"} if is_optimizer else set()
        if inspect.isclass(made):
            parser.add_class_arguments(made, fail_untyped=False, skip=skipped, sub_configs=False)
        else:
            parser.add_function_arguments(made, fail_untyped=False, skip=skipped)
    except Exception:  # a signature that is not to be read here is the run's affair
        return
    try:
        with sketched():
            values = parser.instantiate(parser.parse_object(_nested(own, f"{owner}.init_args.")))
            made(*([_parameter()] if is_optimizer else []), **vars(values))
    except InputError as error:
        raise InputError(located(error.faults[0], given), *error.faults[1:]) from error
    except (ValueError, ArgumentError) as error:
        fault = explained(str(error), error).faults[0]
        raise InputError(located(fault, given)) from error
    except Exception:  # what is no refusal is for the run to meet
        return


def _parameter() -> Any:
    import torch

    return [torch.nn.Parameter(torch.zeros(1))]


def _nested(own: Sequence[Given], begin: str) -> dict[str, Any]:
    """Dotted keys as nested mappings; later values win, and what is added to a list is left out."""
    values: dict[str, Any] = {}
    for item in own:
        parts = item.key.removeprefix(begin).split(".")
        if item.appended or any(is_member(part) for part in parts):
            continue
        place = values
        with contextlib.suppress(TypeError):
            for part in parts[:-1]:
                if not isinstance(place.get(part), dict):
                    place[part] = {} if place.get(part) is None else {"class_path": place[part]}
                place = place[part]
            place[parts[-1]] = item.value
    return values
