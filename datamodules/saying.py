"""Lines for the user that training itself has to say."""

from __future__ import annotations

import sys

from lightning.pytorch.utilities import rank_zero_only


def say(text: str) -> None:
    """Write a line to stderr, from the first process alone.

    Lightning's own information goes through its logger, which the command line keeps quiet.
    """
    if getattr(rank_zero_only, "rank", 0) == 0:
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()
