"""What a class has from its parents, read from their source."""

from __future__ import annotations

import ast

from experiments.cli_source import OWN, definition_of

FOLLOWED = (*OWN, "torch", "lightning")
"""Packages whose functions and parent classes are followed."""


def constructor_of(written: ast.ClassDef, module: str) -> tuple[ast.FunctionDef, ast.ClassDef, str] | None:
    """A class's constructor, its own or a parent's, the class that it is written in, and where; None where none is.

    Args:
        written: The class.
        module: Where it stands.
    """
    for node in written.body:
        if isinstance(node, ast.FunctionDef) and node.name == "__init__":
            return node, written, module
    parent = parent_of(written, module)
    return None if parent is None else constructor_of(*parent)


def member_of(
    written: ast.ClassDef, module: str, name: str
) -> tuple[ast.FunctionDef | ast.expr, ast.ClassDef, str] | None:
    """A method or value of a class or of its parents, the class that it is written in, and where; None where none is.

    Args:
        written: The class.
        module: Where it stands.
        name: The member.
    """
    for node in written.body:
        if isinstance(node, ast.FunctionDef) and node.name == name:
            return node, written, module
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if any(isinstance(target, ast.Name) and target.id == name for target in targets):
            value = getattr(node, "value", None)
            return None if value is None else (value, written, module)
    parent = parent_of(written, module)
    return None if parent is None else member_of(*parent, name)


def parent_of(written: ast.ClassDef, module: str) -> tuple[ast.ClassDef, str] | None:
    """A class's first parent, and where it stands; None where it has none, or one of a package that is not followed.

    Args:
        written: The class.
        module: Where it stands.
    """
    names = [base.id for base in written.bases if isinstance(base, ast.Name)]
    found = definition_of(names[0], module) if names else None
    return found if found is not None and found[1].split(".")[0] in FOLLOWED else None
