"""What an offline W&B run holds, read back from disk by W&B's own reader."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import wandb

from tests.tiny import ONE_LOGGER


def without_one_logger(words: list[str]) -> list[str]:
    """Words with the shipped loggers, W&B among them."""
    place = words.index(ONE_LOGGER[0])
    return [*words[:place], *words[place + 2 :]]


@contextmanager
def offline() -> Iterator[None]:
    """The environment that the front door makes, with W&B offline."""
    with pytest.MonkeyPatch.context() as patch:
        for key, value in {
            "WANDB_MODE": "offline", "WANDB_SILENT": "true", "WANDB_CONSOLE": "off", "WANDB_X_DISABLE_META": "true",
            "WANDB_HOST": "not-recorded", "WANDB_X_SAVE_REQUIREMENTS": "false", "WANDB_ERROR_REPORTING": "false",
        }.items():  # fmt: skip
            patch.setenv(key, value)
        # what an earlier test of this process has set up would keep that test's environment
        wandb.teardown()
        yield


@dataclasses.dataclass
class OnDisk:
    """One offline folder.

    Attributes:
        folder: The folder ``offline-run-...``.
        records: All records of its ``.wandb`` file.
    """

    folder: Path
    records: list[dict[str, Any]]

    @property
    def run(self) -> dict[str, Any]:
        """The record that names the run."""
        return next(dict(record["run"]) for record in self.records if "run" in record)

    @property
    def config(self) -> dict[str, Any]:
        """The configuration as it stood at the end."""
        config: dict[str, Any] = {}
        for record in self.records:
            config.update(record.get("config", {}).get("update", {}))
            config.update(record.get("run", {}).get("config", {}).get("update", {}) if "run" in record else {})
        return config

    @property
    def history(self) -> list[dict[str, Any]]:
        """The logged rows."""
        return [dict(record["history"]["item"]) for record in self.records if "history" in record]

    @property
    def summary(self) -> dict[str, Any]:
        """The last value of each key."""
        summary: dict[str, Any] = {}
        for record in self.records:
            summary.update(record.get("summary", {}).get("update", {}))
        return summary

    @property
    def artifacts(self) -> list[dict[str, Any]]:
        """The artifacts that the run made; tables are left out."""
        found = [dict(record["artifact"]) for record in self.records if "artifact" in record]
        return [item for item in found if item["type"] != "run_table"]


def read_back(folder: Path) -> OnDisk:
    """Read an offline folder."""
    (log,) = folder.glob("*.wandb")
    words = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(log)]
    environment = {**os.environ, "WANDB_ERROR_REPORTING": "false", "WANDB_MODE": "offline"}
    done = subprocess.run(words, capture_output=True, text=True, check=True, timeout=120, env=environment)
    return OnDisk(folder, [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")])


def folders(place: Path) -> list[Path]:
    """The offline folders below a run directory, oldest first."""
    return sorted((place / "wandb").glob("offline-run-*"))
