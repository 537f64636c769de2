"""Constructors, followed in their source as far as they rest on plain values: what they refuse, and what they set.

``if set(mirror_axes) - {0, 1, 2}: raise ValueError(f"…")`` needs the argument and nothing else. A constructor's
statements, those of its parents and of the methods that it calls are followed; what needs more (tensors, other
objects, files) is unknown, and left to the run.
"""

from __future__ import annotations

import ast
import builtins
import contextlib
import copy
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.cli_classes import FOLLOWED, constructor_of, member_of, parent_of
from experiments.cli_source import Argument, arguments_in, definition_of, kinds_of, source_module, tree_of

PURE = (
    "abs", "all", "any", "bool", "dict", "enumerate", "float", "frozenset", "int", "isinstance", "len", "list", "max",
    "min", "range", "repr", "reversed", "round", "set", "sorted", "str", "sum", "tuple", "type", "zip",
)  # fmt: skip
"""Functions that change nothing."""
MODULES = {"math": math, "re": re}
"""Modules whose functions change nothing."""
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
    """An object of which only some attributes are known, and the methods and values that its class is written with."""

    _written: tuple[ast.ClassDef, str, int] | None = None

    def __getattr__(self, name: str) -> Any:
        # asked for what no constructor has set
        if self._written is None or (name.startswith("__") and name.endswith("__")):
            raise AttributeError(name)
        written, module, depth = self._written
        found = member_of(written, module, name)
        if found is None or depth <= 0:
            raise AttributeError(name)
        node, owner, home = found
        if not isinstance(node, ast.FunctionDef):
            return _Follower(home, {}, None, depth - 1).value(node)
        kinds = {ast.unparse(mark) for mark in node.decorator_list} - {"override"}
        if kinds - {"property", "staticmethod"}:
            raise AttributeError(name)
        method = _callable(node, home, depth - 1, owner, None if "staticmethod" in kinds else self)
        return method() if "property" in kinds else method


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
    made = type(written.name, (_Object,), {"_written": (written, module, depth)})() if made is None else made
    if depth and (found := constructor_of(written, module)) is not None:
        init, owner, home = found
        values = {"self": made, **_bound(arguments_in(init.args, home), given, unknown)}
        with contextlib.suppress(_Ended, _Unknown):
            _Follower(home, values, owner, depth - 1).follow(init.body)
    return made


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
            elif isinstance(node, ast.Assert):
                if node.msg is not None and self._whether(node.test) is False:
                    raise Refused(" ".join(str(self.value(node.msg)).split()))
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
            code = compile(ast.fix_missing_locations(ast.Expression(node)), "<guard>", "eval")
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
        taken = self._whether(node.test)
        if taken is None:
            self._forget(node)
            return
        self.follow(node.body if taken else node.orelse)

    def _whether(self, node: ast.expr) -> bool | None:
        """Whether a condition holds; None where that is not known."""
        try:
            return bool(self.value(node))
        except _Unknown:
            return None

    def _loop(self, node: ast.For) -> None:
        try:
            items = self.value(ast.Call(ast.Name("list", ast.Load()), [node.iter], []))
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
            if not isinstance(parts, (list, tuple)) or len(parts) != len(names):
                raise _Unknown
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
        parent = None if self.written is None else parent_of(self.written, self.module)
        found = None if parent is None else constructor_of(*parent)
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
        _forget_attributes(node, self.values.get("self"))
        for inner in ast.walk(node):
            if isinstance(inner, ast.Return):
                raise _Unknown
            if isinstance(inner, ast.Name) and not isinstance(inner.ctx, ast.Load):
                self.values.pop(inner.id, None)


def _named(name: str, module: str, depth: int) -> Any:
    """What a module's source says of a name: a plain value, or one of its functions and classes."""
    tree = tree_of(module)
    if tree is None or depth == 0:
        raise _Unknown
    if name in MODULES:
        return MODULES[name]
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


def _callable(
    node: ast.FunctionDef | ast.ClassDef,
    module: str,
    depth: int,
    owner: ast.ClassDef | None = None,
    made: _Object | None = None,
) -> Any:
    """A function, class or method that is followed in place of being called; a method with its object."""

    def called(*args: Any, **kwargs: Any) -> Any:
        if isinstance(node, ast.ClassDef):
            init = constructor_of(node, module)
            names = [] if init is None else list(arguments_in(init[0].args, init[2]))
            return _construct(node, module, {**dict(zip(names, args, strict=False)), **kwargs}, set(), depth)
        arguments = arguments_in(node.args, module, bound=made is not None)
        given = {**dict(zip(arguments, args, strict=False)), **kwargs}
        try:
            values = {name: argument.default for name, argument in arguments.items() if argument.plain}
            me = {} if made is None else {"self": made}
            _Follower(module, {**values, **given, **me}, owner, depth).follow(node.body)
        except _Ended as ended:
            return ended.args[0]
        except _Unknown:
            _forget_attributes(node, made)
            raise
        return None

    return called


def _forget_attributes(node: ast.AST, made: _Object | None) -> None:
    """Attributes that these statements may have set are not known any more."""
    for inner in ast.walk(node):
        if made is not None and isinstance(inner, ast.Attribute) and not isinstance(inner.ctx, ast.Load):
            made.__dict__.pop(inner.attr, None)
