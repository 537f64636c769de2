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
