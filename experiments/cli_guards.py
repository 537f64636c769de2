"""What constructors refuse, found before they can be imported: the checks at their beginning are read and evaluated.

``if set(mirror_axes) - {0, 1, 2}: raise ValueError(f"…")`` needs the argument and nothing else. A constructor's
statements are followed as far as they rest on plain values; what needs more (tensors, other objects, files) is
unknown, and left to the run.
"""

from __future__ import annotations

import ast
import builtins
import contextlib
import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any

from datamodules.errors import InputError
from experiments.cli_given import Given
from experiments.cli_hints import ADVICE
from experiments.cli_precheck import classes_given, place_of, with_members
from experiments.cli_source import OWN, Argument, arguments_in, definition_of, kinds_of, source_module, tree_of

PURE = (
    *(
        "abs",
        "all",
        "any",
        "bool",
        "dict",
        "enumerate",
        "float",
        "frozenset",
        "int",
        "isinstance",
        "len",
        "list",
        "max",
    ),
    *("min", "range", "repr", "reversed", "round", "set", "sorted", "str", "sum", "tuple", "type", "zip"),
)
"""Functions that change nothing."""
FOLLOWED = (*OWN, "torch")
"""Packages whose functions and parent classes are followed."""
MOST = 1000
"""Rounds of a loop that are followed."""
DEPTH = 6
"""Calls within calls that are followed."""


class Refused(Exception):  # noqa: N818 (it is an answer, not an error)
    """The constructor would raise; the message is its argument."""


class _Unknown(Exception):  # noqa: N818
    """Not to be said from plain values."""


class _Ended(Exception):  # noqa: N818
    """A function has returned its argument."""


class _Object:
    """An object of which only some attributes are known."""


def check_guards(given: Sequence[Given]) -> None:
    """Refuse arguments that the constructors of their classes would refuse.

    Args:
        given: All that was given, which ``precheck`` has found nothing wrong with.

    Raises:
        InputError: The first constructor's first complaint, in its own words.
    """
    if any(item.key == "print_config" for item in given):
        return
    given = with_members(given)
    for owner, paths in classes_given(given).items():
        values, unknown = plain_arguments(owner, given)
        message = refusal(paths[-1][1], values, unknown)
        if message is not None:
            # an argument without which there would be no complaint is the one to correct
            others = {name: {key: values[key] for key in values if key != name} for name in values}
            wrong = {name for name in values if refusal(paths[-1][1], others[name], {*unknown, name}) != message}
            said = [item for item in given if item.key.removeprefix(f"{owner}.init_args.") in wrong]
            where = place_of(said[-1]) if said else owner
            raise InputError(f"{where}: {message}" + ("" if ";" in message else f"; {ADVICE}"))


def plain_arguments(owner: str, given: Sequence[Given]) -> tuple[dict[str, Any], set[str]]:
    """What a class is given: plain values by name, and the names of arguments of which nothing is known.

    Args:
        owner: Key of the class, without ``class_path``.
        given: All that was given.
    """
    begin = f"{owner}.init_args."
    own = {item.key.removeprefix(begin): item.value for item in given if item.key.startswith(begin)}
    names = [name.split(".")[0] for name in own]
    # of an argument that has arguments itself, and of what is added to a list, nothing is known here
    unclear = {name for name in names if names.count(name) > 1 or name not in own}
    unclear |= {item.key.removeprefix(begin) for item in given if item.appended and item.key.startswith(begin)}
    return {name: value for name, value in own.items() if name not in unclear and name in names}, unclear


def attribute_of(path: str, given: Mapping[str, Any], unknown: set[str], name: str) -> Any:
    """An attribute of the object that a class makes; None where plain values do not say it.

    Args:
        path: The class with its module.
        given: Plain values by name.
        unknown: Arguments that were given, of which nothing is known.
        name: The attribute.
    """
    module, _, of = path.rpartition(".")
    found = definition_of(of, module)
    try:
        return None if found is None else getattr(_construct(*found, dict(given), set(unknown), DEPTH), name, None)
    except (Refused, RecursionError):
        return None


def refusal(path: str, given: Mapping[str, Any], unknown: Sequence[str] | set[str] = ()) -> str | None:
    """With what words a class refuses arguments; None where it surely does not, or where that is not to be said.

    Args:
        path: The class with its module.
        given: Plain values by name.
        unknown: Arguments that were given, of which nothing is known.
    """
    module, _, name = path.rpartition(".")
    found = definition_of(name, module)
    if found is None:
        return None
    try:
        _construct(*found, dict(given), set(unknown), DEPTH)
    except Refused as refused:
        return str(refused)
    except RecursionError:
        pass
    return None


def _construct(
    written: ast.ClassDef, module: str, given: dict[str, Any], unknown: set[str], depth: int, made: Any = None
) -> Any:
    """Follow the constructor of a class, its own or the one that it has from a parent; the object, as far as known."""
    made = type(written.name, (_Object,), {})() if made is None else made
    if depth and (found := _constructor(written, module)) is not None:
        init, owner, home = found
        values = {"self": made, **_bound(arguments_in(init.args, home), given, unknown)}
        with contextlib.suppress(_Ended, _Unknown):
            _Follower(home, values, owner, depth - 1).follow(init.body)
    return made


def _constructor(written: ast.ClassDef, module: str) -> tuple[ast.FunctionDef, ast.ClassDef, str] | None:
    """A class's constructor, the class that it is written in, and where."""
    for node in written.body:
        if isinstance(node, ast.FunctionDef) and node.name == "__init__":
            return node, written, module
    parent = _parent_of(written, module)
    return None if parent is None else _constructor(*parent)


def _parent_of(written: ast.ClassDef, module: str) -> tuple[ast.ClassDef, str] | None:
    names = [base.id for base in written.bases if isinstance(base, ast.Name)]
    found = definition_of(names[0], module) if names else None
    return found if found is not None and found[1].split(".")[0] in FOLLOWED else None


def _bound(arguments: Mapping[str, Argument], given: Mapping[str, Any], unknown: set[str]) -> dict[str, Any]:
    """Values of arguments as the parser makes them; those of which nothing is known are left out."""
    values: dict[str, Any] = {}
    for name, argument in arguments.items():
        if name in unknown:
            continue
        if name in given:
            try:
                values[name] = _converted(argument, given[name])
            except _Unknown:
                continue
        elif argument.plain:
            values[name] = copy.deepcopy(argument.default)
    return values


def _converted(argument: Argument, value: Any) -> Any:
    kinds = {kind.name for kind in kinds_of(argument)} - {"none"}
    if isinstance(value, (bool, _Object)) or value is None:
        return value
    if isinstance(value, int) and kinds == {"float"}:
        return float(value)
    if isinstance(value, str) and not kinds & {"str", "literal"}:
        # the parser would make something else of it
        raise _Unknown
    if isinstance(value, Mapping):
        raise _Unknown
    if isinstance(value, (list, tuple)):
        if any(isinstance(item, Mapping) for item in value):
            raise _Unknown
        return tuple(value) if "tuple" in kinds else list(value)
    return value


class _Follower:
    """Follows statements with the values that are known.

    Args:
        module: Where they stand.
        values: Known values by name; changed as statements are followed.
        written: The class whose constructor they are; None for a function's.
        depth: Calls that may still be followed.
    """

    def __init__(self, module: str, values: dict[str, Any], written: ast.ClassDef | None, depth: int) -> None:
        self.module, self.values, self.written, self.depth = module, values, written, depth

    def follow(self, body: Sequence[ast.stmt]) -> None:
        """Follow statements in their order."""
        for node in body:
            if isinstance(node, ast.Assign) and len(node.targets) == 1:
                self._assign(node.targets[0], node.value)
            elif isinstance(node, ast.AnnAssign) and node.value is not None:
                self._assign(node.target, node.value)
            elif isinstance(node, ast.If):
                self._branch(node)
            elif isinstance(node, ast.For):
                self._loop(node)
            elif isinstance(node, ast.Raise):
                raise self._refused(node)
            elif isinstance(node, ast.Return):
                raise _Ended(None if node.value is None else self.value(node.value))
            elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
                self._call(node.value)
            elif not isinstance(node, (ast.Expr, ast.Pass, ast.Import, ast.ImportFrom)):
                self._forget(node)

    def value(self, node: ast.expr) -> Any:
        """What an expression gives.

        Raises:
            _Unknown: It rests on something that is not known.
            Refused: A constructor or function in it refuses its arguments.
        """
        scope: dict[str, Any] = {"__builtins__": {name: getattr(builtins, name) for name in PURE}}
        bound = {n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
        for name in {n.id for n in ast.walk(node) if isinstance(n, ast.Name)} - bound - set(PURE):
            scope[name] = self.values[name] if name in self.values else _named(name, self.module, self.depth)
        try:
            code = compile(ast.Expression(node), "<guard>", "eval")
            # the source of installed packages, with functions that change nothing
            return eval(code, scope)
        except (Refused, _Unknown):
            raise
        except Exception as error:
            raise _Unknown from error

    def _assign(self, target: ast.expr, node: ast.expr) -> None:
        try:
            value = self.value(node)
        except _Unknown:
            self._forget(target)
            return
        if isinstance(target, ast.Name):
            self.values[target.id] = value
        elif isinstance(target, ast.Attribute) and isinstance(target.value, ast.Name) and target.value.id == "self":
            setattr(self.values["self"], target.attr, value)
        else:
            self._forget(target)

    def _branch(self, node: ast.If) -> None:
        try:
            taken = bool(self.value(node.test))
        except _Unknown:
            self._forget(node)
            return
        self.follow(node.body if taken else node.orelse)

    def _loop(self, node: ast.For) -> None:
        try:
            items = list(self.value(node.iter))
        except _Unknown:
            self._forget(node)
            return
        names = node.target.elts if isinstance(node.target, ast.Tuple) else [node.target]
        jumps = any(isinstance(inner, (ast.Break, ast.Continue)) for inner in ast.walk(node))
        if len(items) > MOST or jumps or not all(isinstance(name, ast.Name) for name in names):
            self._forget(node)
            return
        for item in items:
            parts = item if isinstance(node.target, ast.Tuple) else (item,)
            self.values |= {
                name.id: part for name, part in zip(names, parts, strict=True) if isinstance(name, ast.Name)
            }
            self.follow(node.body)

    def _call(self, node: ast.Call) -> None:
        if ast.unparse(node.func) == "super().__init__":
            self._parent(node)
            return
        try:
            self.value(node)
        except _Unknown:
            self._forget(node)

    def _parent(self, node: ast.Call) -> None:
        """Follow the parent's constructor with what is handed to it."""
        parent = None if self.written is None else _parent_of(self.written, self.module)
        found = None if parent is None else _constructor(*parent)
        if parent is None or found is None:
            return
        names = list(arguments_in(found[0].args, found[2]))
        pairs = list(zip(names, node.args, strict=False))
        pairs += [(keyword.arg, keyword.value) for keyword in node.keywords if keyword.arg is not None]
        given: dict[str, Any] = {}
        unknown = set(names) if any(keyword.arg is None for keyword in node.keywords) else set()
        for name, value in pairs:
            try:
                given[name] = self.value(value)
            except _Unknown:
                unknown.add(name)
        _construct(*parent, given, unknown - given.keys(), self.depth, self.values["self"])

    def _refused(self, node: ast.Raise) -> Exception:
        if not isinstance(node.exc, ast.Call) or not node.exc.args:
            return _Unknown()
        return Refused(" ".join(str(self.value(node.exc.args[0])).split()))

    def _forget(self, node: ast.AST) -> None:
        """What these statements would have set is not known any more; nor what follows, where they may end it all."""
        for inner in ast.walk(node):
            if isinstance(inner, ast.Return):
                raise _Unknown
            if isinstance(inner, ast.Name) and not isinstance(inner.ctx, ast.Load):
                self.values.pop(inner.id, None)
            elif isinstance(inner, ast.Attribute) and not isinstance(inner.ctx, ast.Load):
                self.values.get("self", _Object()).__dict__.pop(inner.attr, None)


def _named(name: str, module: str, depth: int) -> Any:
    """What a module's source says of a name: a plain value, or one of its functions and classes."""
    tree = tree_of(module)
    if tree is None or depth == 0:
        raise _Unknown
    if name == "math":
        return math
    for node in tree.body:
        value = node.value if isinstance(node, (ast.Assign, ast.AnnAssign)) else None
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if value is not None and any(isinstance(target, ast.Name) and target.id == name for target in targets):
            return _Follower(module, {}, None, depth - 1).value(value)
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name == name and module.split(".")[0] in FOLLOWED:
            return _callable(node, module, depth - 1)
        if isinstance(node, ast.ImportFrom):
            source = source_module(node, module)
            for alias in node.names:
                if (alias.asname or alias.name) == name and source.split(".")[0] in FOLLOWED:
                    return _named(alias.name, source, depth - 1)
    raise _Unknown


def _callable(node: ast.FunctionDef | ast.ClassDef, module: str, depth: int) -> Any:
    """A function or class that is followed in place of being called."""

    def called(*args: Any, **kwargs: Any) -> Any:
        if isinstance(node, ast.ClassDef):
            init = _constructor(node, module)
            names = [] if init is None else list(arguments_in(init[0].args, init[2]))
            return _construct(node, module, {**dict(zip(names, args, strict=False)), **kwargs}, set(), depth)
        arguments = arguments_in(node.args, module, bound=False)
        given = {**dict(zip(arguments, args, strict=False)), **kwargs}
        try:
            values = {name: argument.default for name, argument in arguments.items() if argument.plain}
            _Follower(module, {**values, **given}, None, depth).follow(node.body)
        except _Ended as ended:
            return ended.args[0]
        return None

    return called
