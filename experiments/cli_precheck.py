"""Find mistyped keys and classes before anything heavy is imported: signatures are read from source files.

The parser finds them too, after seconds of imports. What cannot be judged from the source is left to it.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
import re
from collections.abc import Sequence
from pathlib import Path

from datamodules.errors import InputError
from experiments.cli_given import COMMAND_LINE, Given
from experiments.cli_hints import ADVICE, did_you_mean

TRAINER = "lightning.pytorch.trainer.trainer.Trainer"


def precheck(given: Sequence[Given]) -> None:
    """Refuse unknown keys of the configuration, the trainer and classes, and classes that are not there.

    Args:
        given: All that was given.

    Raises:
        InputError: A key or class is unknown: the first fault.
    """
    classes: dict[str, list[str]] = {"trainer": [TRAINER]}
    for item in given:
        if item.key in ("model", "data") and isinstance(item.value, str):
            classes.setdefault(item.key, []).append(item.value)
        elif item.key.endswith(".class_path") and isinstance(item.value, str):
            classes.setdefault(item.key.removesuffix(".class_path"), []).append(item.value)
    for item in given:
        parts = item.key.split(".")
        if parts[0] not in top_keys():
            raise _unknown(item, item.key, top_keys())
        if parts[0] == "trainer" and len(parts) > 1:
            _check(item, parts[1], classes["trainer"], "trainer.")
        for count, part in enumerate(parts[:-1]):
            if part == "init_args":
                _check(item, parts[count + 1], classes.get(".".join(parts[:count]), [""]))
    for owner, paths in classes.items():
        for path in paths:
            if "." in path and not _exists(path):
                raise _no_class(next(item for item in reversed(given) if item.value == path), owner, path)


def _no_class(item: Given, owner: str, path: str) -> InputError:
    module, _, name = path.rpartition(".")
    hint = did_you_mean(name, _classes_of(module)).strip() or f"{module} has none of that name"
    return InputError(f"{_place(item)}: there is no class {path!r} for {owner}; {hint}")


def _check(item: Given, name: str, paths: Sequence[str], prefix: str = "") -> None:
    """Arguments of a class that a later file replaces are dropped by the parser, which is no fault."""
    known = [arguments_of(path) for path in paths]
    names = [f"{prefix}{argument}" for arguments in known for argument in arguments or ()]
    if all(arguments is not None for arguments in known) and f"{prefix}{name}" not in names:
        raise _unknown(item, f"{prefix}{name}", names)


def _unknown(item: Given, name: str, known: Sequence[str]) -> InputError:
    return InputError(f"{_place(item)}: unknown key {name!r}; {did_you_mean(name, known)}{ADVICE}")


def _place(item: Given) -> str:
    return f"--{item.key}" if item.where == COMMAND_LINE else f"{item.where}: {item.key}"


@functools.cache
def top_keys() -> tuple[str, ...]:
    """First parts of all keys: Lightning's, and those that the command line adds."""
    source = (Path(__file__).parent / "lightning_cli.py").read_text(encoding="utf-8")
    added = re.findall(r"add_argument\(\s*\"--(\w+)\"", source)
    return ("seed_everything", "trainer", "model", "data", *added, "config", "print_config")


@functools.cache
def arguments_of(path: str) -> tuple[str, ...] | None:
    """Arguments of a class's constructor as its source says; None where the source does not say all.

    Args:
        path: The class with its module.
    """
    module, _, name = path.rpartition(".")
    tree = _tree(module)
    found = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name] if tree else []
    if not found:
        return None
    for node in found[0].body:
        if isinstance(node, ast.FunctionDef) and node.name == "__init__":
            arguments = node.args
            if arguments.kwarg is not None:
                return None
            return tuple(argument.arg for argument in [*arguments.args[1:], *arguments.kwonlyargs])
    return None


def _exists(path: str) -> bool:
    """Whether a class may be there: False only where the module's own source shows that it is not."""
    module, _, name = path.rpartition(".")
    if module.split(".")[0] not in ("datamodules", "lightning_modules", "callbacks"):
        return True
    tree = _tree(module)
    if tree is None:
        return _source(module) is not None
    names = {node.name for node in ast.walk(tree) if isinstance(node, (ast.ClassDef, ast.FunctionDef))}
    imported = [alias for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names]
    return name in names | {alias.asname or alias.name for alias in imported}


def _classes_of(module: str) -> list[str]:
    tree = _tree(module)
    return [] if tree is None else [node.name for node in tree.body if isinstance(node, ast.ClassDef)]


@functools.cache
def _tree(module: str) -> ast.Module | None:
    source = _source(module)
    try:
        return None if source is None else ast.parse(source.read_text(encoding="utf-8"))
    except (OSError, SyntaxError, UnicodeDecodeError):
        return None


def _source(module: str) -> Path | None:
    """The file of a module, found without importing its packages."""
    first, *rest = module.split(".")
    spec = importlib.util.find_spec(first) if first else None
    if spec is None or not spec.submodule_search_locations:
        return Path(spec.origin) if spec is not None and spec.origin and not rest else None
    for folder in spec.submodule_search_locations:
        path = Path(folder, *rest)
        for candidate in (path.with_suffix(".py"), path / "__init__.py"):
            if candidate.is_file():
                return candidate
    return None
