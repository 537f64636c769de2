"""What classes take, read from their source files: nothing is imported, so an answer needs no torch."""

from __future__ import annotations

import ast
import dataclasses
import functools
import importlib.util
import re
from pathlib import Path
from typing import Any

TRAINER = "lightning.pytorch.trainer.trainer.Trainer"
OWN = ("datamodules", "lightning_modules", "callbacks")
READABLE = ("torch", "lightning", "monai", "timm")
"""Packages whose modules say in their source what they hold."""
DEPTH = 8
"""Aliases of aliases that are followed."""


@dataclasses.dataclass(frozen=True, slots=True)
class Argument:
    """An argument of a constructor, or a field of a dataclass.

    Attributes:
        name: Its name.
        annotation: Its type, as an expression; None where there is none.
        module: The module in which the expression is to be read.
        required: Whether it has no default.
        default: Its default where that is a plain value, else None.
        plain: Whether it has a default that is a plain value.
    """

    name: str
    annotation: ast.expr | None
    module: str
    required: bool
    default: Any = None
    plain: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class Kind:
    """One of the types that an annotation allows.

    Attributes:
        name: ``int``, ``float``, ``bool``, ``str``, ``none``, ``literal``, ``tuple``, ``dataclass``, or ``unknown``.
        choices: Of a literal, its values in their order.
        path: Of a dataclass, its name with its module.
        size: Of a tuple, how many values it has; 0 for any number.
    """

    name: str
    choices: tuple[Any, ...] = ()
    path: str = ""
    size: int = 0


UNKNOWN = Kind("unknown")


@functools.cache
def signature_of(path: str) -> dict[str, Argument] | None:
    """Arguments of a class's constructor as its source says; None where the source does not say all.

    Args:
        path: The class with its module.
    """
    found = known_arguments(path)
    return None if found is None or not found[1] else found[0]


@functools.cache
def known_arguments(path: str) -> tuple[dict[str, Argument], bool] | None:
    """Arguments of a class's constructor that its source names, and whether it takes no others.

    Args:
        path: The class with its module.
    """
    module, _, name = path.rpartition(".")
    found = definition_of(name, module)
    if found is None:
        return None
    written, home = found
    for node in written.body:
        if isinstance(node, ast.FunctionDef) and node.name == "__init__":
            return arguments_in(node.args, home), node.args.kwarg is None
    return None


def arguments_of(path: str) -> tuple[str, ...] | None:
    """Names of the arguments of a class's constructor; None where the source does not say all.

    Args:
        path: The class with its module.
    """
    found = signature_of(path)
    return None if found is None else tuple(found)


@functools.cache
def fields_of(path: str) -> dict[str, Argument] | None:
    """Fields of a dataclass without base classes; None where the source does not say all.

    Args:
        path: The class with its module.
    """
    module, _, name = path.rpartition(".")
    found = definition_of(name, module)
    if found is None:
        return None
    written, home = found
    if written.bases or not any("dataclass" in ast.unparse(node) for node in written.decorator_list):
        return None
    fields = [node for node in written.body if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)]
    return {
        node.target.id: Argument(node.target.id, node.annotation, home, node.value is None)
        for node in fields
        if isinstance(node.target, ast.Name)
    }


@functools.cache
def top_arguments() -> dict[str, Argument]:
    """The seed, and the keys that the command line adds to Lightning's."""
    module = "experiments.lightning_cli"
    seed = ast.parse("bool | int", mode="eval").body
    found = {"seed_everything": Argument("seed_everything", seed, module, False)}
    for node in ast.walk(tree_of(module) or ast.Module([], [])):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        if node.func.attr == "add_argument" and node.args and isinstance(node.args[0], ast.Constant):
            name = str(node.args[0].value).lstrip("-")
            types = [keyword.value for keyword in node.keywords if keyword.arg == "type"]
            found[name] = Argument(name, types[0] if types else None, module, False)
    return found


def top_keys() -> tuple[str, ...]:
    """First parts of all keys: Lightning's, and those that the command line adds."""
    return ("trainer", "model", "data", *top_arguments(), "config", "print_config")


def kinds_of(argument: Argument) -> tuple[Kind, ...]:
    """The types that an argument may have; ``unknown`` stands for all that is not understood.

    Args:
        argument: The argument.
    """
    return (UNKNOWN,) if argument.annotation is None else tuple(_kinds(argument.annotation, argument.module, DEPTH))


def exists(path: str) -> bool:
    """Whether a class may be there: False only where the module's own source shows that it is not.

    Args:
        path: The class with its module.
    """
    module, _, name = path.rpartition(".")
    package = module.split(".")[0]
    if package not in (*OWN, *READABLE):
        return True
    tree = tree_of(module)
    if tree is None:
        return package not in OWN or source_of(module) is not None
    names = _names_of(tree)
    # what a module does not say of itself: other modules' names, and those made as it runs
    return name in names or "*" in names or "__getattr__" in names


def is_written_in(word: str, package: str) -> bool:
    """Whether a word occurs in the source files of a package's folder, or there are none.

    Args:
        word: A name.
        package: Dotted name of the package.
    """
    init = source_of(package)
    files = [] if init is None else sorted(init.parent.glob("*.py"))
    pattern = re.compile(rf"\b{re.escape(word)}\b")
    return not files or any(pattern.search(path.read_text(encoding="utf-8", errors="replace")) for path in files)


def classes_of(module: str) -> list[str]:
    """Names of the classes of a module, or, of a package that only imports them, what it imports by such a name.

    Args:
        module: Its dotted name.
    """
    tree = tree_of(module)
    if tree is None:
        return []
    own = [node.name for node in tree.body if isinstance(node, ast.ClassDef)]
    return own or sorted(name for name in _names_of(tree) if name[:1].isupper())


def _names_of(tree: ast.Module) -> set[str]:
    """Names that a module's source gives: classes, functions, what is assigned and imported."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
            names.add(node.name)
        elif isinstance(node, (ast.ImportFrom, ast.Import)):
            names |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
    return names


@functools.cache
def tree_of(module: str) -> ast.Module | None:
    """A module's source as a tree; None where there is none to read.

    Args:
        module: Its dotted name.
    """
    source = source_of(module)
    try:
        return None if source is None else ast.parse(source.read_text(encoding="utf-8"))
    except (OSError, SyntaxError, UnicodeDecodeError):
        return None


def source_of(module: str) -> Path | None:
    """The file of a module, found without importing its packages.

    Args:
        module: Its dotted name.
    """
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


def definition_of(name: str, module: str, depth: int = 4) -> tuple[ast.ClassDef, str] | None:
    """A class and the module it is written in, found through modules that import it from others.

    Args:
        name: The class.
        module: A module that has it.
        depth: Modules that are followed.
    """
    tree = tree_of(module)
    for node in tree.body if tree and depth else ():
        if isinstance(node, ast.ClassDef) and node.name == name:
            return node, module
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    return definition_of(alias.name, source_module(node, module), depth - 1)
    return None


def home_of(path: str) -> str:
    """The class with the module it is written in; empty where the source does not say.

    Args:
        path: The class with a module that has it.
    """
    module, _, name = path.rpartition(".")
    found = definition_of(name, module)
    return "" if found is None else f"{found[1]}.{found[0].name}"


def source_module(node: ast.ImportFrom, module: str) -> str:
    """The module from which a statement imports, with its whole name.

    Args:
        node: ``from .adam import Adam``.
        module: Where it stands.
    """
    if node.level == 0:
        return node.module or ""
    source = source_of(module)
    # of a package's own file one dot is the package itself
    up = node.level - (1 if source is not None and source.name == "__init__.py" else 0)
    parts = module.split(".")
    return ".".join([*parts[: len(parts) - up], *([node.module] if node.module else [])])


def arguments_in(arguments: ast.arguments, module: str, bound: bool = True) -> dict[str, Argument]:
    """Arguments of a function by name.

    Args:
        arguments: As they are written.
        module: Where.
        bound: Whether the first one is the object.
    """
    plain = arguments.args[1:] if bound else arguments.args
    defaults = [None] * len(arguments.args) + list(arguments.defaults)
    pairs = [*zip(plain, defaults[len(defaults) - len(plain) :] if plain else [], strict=True)]
    pairs += zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    return {
        argument.arg: Argument(
            argument.arg, argument.annotation, module, default is None, _plain(default), _is_plain(default)
        )
        for argument, default in pairs
    }


def _plain(node: ast.expr | None) -> Any:
    try:
        return None if node is None else ast.literal_eval(node)
    except ValueError:
        return None


def _is_plain(node: ast.expr | None) -> bool:
    return node is not None and (_plain(node) is not None or ast.unparse(node) == "None")


def _kinds(node: ast.expr, module: str, depth: int) -> list[Kind]:
    if depth == 0:
        return [UNKNOWN]
    if isinstance(node, ast.Constant):
        if node.value is None:
            return [Kind("none")]
        return _kinds(_parsed(node.value), module, depth - 1) if isinstance(node.value, str) else [UNKNOWN]
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        return _kinds(node.left, module, depth) + _kinds(node.right, module, depth)
    if isinstance(node, ast.Name):
        return _named(node.id, module, depth - 1)
    if isinstance(node, ast.Subscript):
        return _generic(node, module, depth - 1)
    return [UNKNOWN]


def _parsed(text: str) -> ast.expr:
    try:
        return ast.parse(text, mode="eval").body
    except SyntaxError:
        return ast.Tuple([], ast.Load())


def _generic(node: ast.Subscript, module: str, depth: int) -> list[Kind]:
    name = node.value.attr if isinstance(node.value, ast.Attribute) else getattr(node.value, "id", "")
    parts = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
    if name == "Optional":
        return [*_kinds(node.slice, module, depth), Kind("none")]
    if name == "Union":
        return [kind for part in parts for kind in _kinds(part, module, depth)]
    if name == "Literal":
        if all(isinstance(part, ast.Constant) for part in parts):
            return [Kind("literal", tuple(part.value for part in parts if isinstance(part, ast.Constant)))]
        return [UNKNOWN]
    if name in ("tuple", "Tuple"):
        # of others than numbers, a word may be one that is appended
        inner = [kind.name for part in parts if not _dots(part) for kind in _kinds(part, module, depth)]
        size = 0 if any(_dots(part) for part in parts) else len(parts)
        return [Kind("tuple", size=size)] if set(inner) <= {"int", "float", "none"} else [UNKNOWN]
    return [UNKNOWN]


def _dots(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is Ellipsis


def _named(name: str, module: str, depth: int) -> list[Kind]:
    if name in ("int", "float", "bool", "str"):
        return [Kind(name)]
    tree = tree_of(module)
    if tree is None or depth <= 0:
        return [UNKNOWN]
    for node in tree.body:
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == name for t in node.targets):
            return _kinds(node.value, module, depth)
        if isinstance(node, ast.ClassDef) and node.name == name:
            path = f"{module}.{name}"
            return [UNKNOWN if fields_of(path) is None else Kind("dataclass", path=path)]
    for other in ast.walk(tree):
        if isinstance(other, ast.ImportFrom) and other.level == 0 and other.module:
            for alias in other.names:
                if (alias.asname or alias.name) == name:
                    return _named(alias.name, other.module, depth)
    return [UNKNOWN]
