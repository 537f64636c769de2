"""The run directory: where one cell keeps all that it was, did and found."""

from __future__ import annotations

import dataclasses
import datetime
import os
import re
from pathlib import Path
from typing import Any

from datamodules.errors import InputError
from datamodules.files import read_json, write_json

SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")


@dataclasses.dataclass(frozen=True, slots=True)
class Identity:
    """Which cell of which study a run is.

    Attributes:
        study: The study's name.
        arm: The configuration under test.
        role: ``segmenter``, ``classifier``, ``staging`` or ``probe``; W&B's job type.
        seed: Random seed of the cell.
        fold: Fold of the split file, counted from 0; None without a split.
        cell: The cell's id, 12 hexadecimal digits.
        split_sha256: Hash of the split file's content; empty without one.
        cohort_sha256: Hash of the cohort's content.
    """

    study: str
    arm: str
    role: str
    seed: int
    fold: int | None
    cell: str
    split_sha256: str
    cohort_sha256: str


class RunDirectory:
    """Paths inside ``runs/<study>/<arm>/<cell id>/``, and its two states: begun and done.

    Args:
        path: The directory; it need not exist yet.
    """

    def __init__(self, path: str | Path) -> None:
        # '..' is taken out: the study's and the arm's folders are the path's parents
        self.path = Path(os.path.abspath(path))  # noqa: PTH100 (resolve() would follow links)

    @classmethod
    def of_cell(cls, runs: str | Path, study: str, arm: str, cell: str) -> RunDirectory:
        """The directory of a cell.

        Raises:
            InputError: Study or arm would not be safe as a folder's name.
        """
        for what, name in (("study", study), ("arm", arm)):
            if not SAFE_NAME.fullmatch(name):
                raise InputError(f"--{what} {name!r}: cannot name a folder; use letters, digits, '.', '_', '+' and '-'")
        return cls(Path(runs) / study / arm / cell)

    @classmethod
    def existing(cls, path: str | Path) -> RunDirectory:
        """A directory that holds a run.

        Raises:
            InputError: There is none.
        """
        run = cls(path)
        if not run.config.is_file():
            raise InputError(f"{path}: not a run directory (no config.yaml in it); give runs/<study>/<arm>/<cell>")
        return run

    @property
    def config(self) -> Path:
        """The fully resolved configuration."""
        return self.path / "config.yaml"

    @property
    def provenance(self) -> Path:
        """Commit, versions, hashes, hardware and command of the run."""
        return self.path / "provenance.json"

    @property
    def metrics(self) -> Path:
        """One JSON object per logged step, flushed as it goes."""
        return self.path / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        """``best.ckpt`` and ``last.ckpt``."""
        return self.path / "checkpoints"

    @property
    def predictions(self) -> Path:
        """One row per tested patient or scan."""
        return self.path / "predictions.parquet"

    @property
    def validation(self) -> Path:
        """One row per validation patient, predicted by the weights that are tested."""
        return self.path / "validation.parquet"

    @property
    def overlays(self) -> Path:
        """Pictures of predicted masks, one per scan."""
        return self.path / "overlays"

    @property
    def done(self) -> Path:
        """What has been finished, and when; written last, by rename."""
        return self.path / "done.json"

    def checkpoint(self, which: str = "best") -> Path:
        """A checkpoint of the run: ``best``, ``last``, or a path.

        Raises:
            InputError: It does not exist.
        """
        path = self.checkpoints / f"{which}.ckpt" if which in ("best", "last") else Path(which)
        if not path.is_file():
            raise InputError(f"{path}: no such checkpoint; run 'hepastage fit' for {self.path} first")
        return path

    def identity(self) -> Identity:
        """Which cell this is, as its provenance says.

        Raises:
            InputError: The provenance is missing or torn.
        """
        record = read_json(self.provenance, "a run's provenance")
        try:
            return Identity(**record["identity"])
        except (KeyError, TypeError) as error:
            raise InputError(f"{self.provenance}: holds no run identity ({error}); run the cell again") from error

    def finished(self) -> dict[str, Any]:
        """The finished subcommands with their times; empty where nothing has been finished."""
        if not self.done.is_file():
            return {}
        record = read_json(self.done, "a run's done.json")
        return dict(record)

    def require_trained(self) -> None:
        """Refuse a run whose training has not ended.

        Raises:
            InputError: It has not.
        """
        if "fit" not in self.finished():
            raise InputError(f"{self.path}: the training of this cell has not ended; run 'hepastage fit' first")

    def mark_done(self, subcommand: str, **facts: Any) -> None:
        """Record that a subcommand has ended well, keeping what was recorded before.

        Args:
            subcommand: ``fit``, ``validate``, ``test`` or ``predict``.
            **facts: What was reached, as JSON values.
        """
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        write_json(self.done, {**self.finished(), subcommand: {"finished": now, **facts}})
