"""Names of timm's backbones, read from its source: importing timm takes seconds. No torch."""

from __future__ import annotations

import difflib
import importlib.metadata
import importlib.util
import re
from collections.abc import Sequence
from pathlib import Path


def unknown_backbone(backbone: str, names: Sequence[str], version: str) -> str:
    """What to say of a backbone that timm does not have.

    Args:
        backbone: As it was given.
        names: timm's.
        version: timm's.
    """
    near = difflib.get_close_matches(backbone.split(".")[0], names, n=5)
    return f"backbone {backbone!r} is not known to timm {version}; near names: {near}"


def backbone_fault(backbone: str) -> str | None:
    """A complaint of a backbone whose name occurs nowhere in timm's models; None where timm itself is to say.

    Args:
        backbone: As it was given.
    """
    name = backbone.split(".")[0]
    spec = importlib.util.find_spec("timm")
    if spec is None or not spec.submodule_search_locations or not re.fullmatch(r"[A-Za-z0-9_]+", name):
        return None
    files = sorted(Path(spec.submodule_search_locations[0], "models").glob("*.py"))
    text = "\n".join(path.read_text(encoding="utf-8") for path in files)
    if not text or re.search(rf"\b{name}\b", text):
        return None
    names = sorted(set(re.findall(r"^@register_model\s+def (\w+)", text, re.MULTILINE)))
    return unknown_backbone(backbone, names, importlib.metadata.version("timm"))
