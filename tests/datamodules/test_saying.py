"""What training has to say is heard although Lightning's own talk is kept quiet, and said once."""

from __future__ import annotations

import logging

import pytest
from lightning.pytorch.utilities import rank_zero_only

from datamodules.saying import say
from experiments.quiet import quieten_lightning


def test_heard_once_although_lightning_is_quiet(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    levels = {name: logging.getLogger(name).level for name in ("lightning.pytorch", "lightning.fabric")}
    try:
        quieten_lightning()
        say("loading is the bottleneck")
        monkeypatch.setattr(rank_zero_only, "rank", 1)
        say("from another process")
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
    assert capsys.readouterr().err == "loading is the bottleneck\n"
