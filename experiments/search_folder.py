"""A search's ``.search`` folder: journal, locks, the trials' files, and cohorts without test patients. Light."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from datamodules.cohort import Cohort
from datamodules.errors import InputError
from datamodules.files import sha256_of_json, write_json
from datamodules.split_schemes import Fold
from datamodules.splits import Splits
from experiments.grid_folder import read_maybe


class SearchFolder:
    """Paths below ``runs/<search>/.search``.

    Args:
        search: The search's folder, ``runs/<search>``.
    """

    def __init__(self, search: Path) -> None:
        self.search = search.absolute()
        self.path = self.search / ".search"

    @property
    def journal(self) -> Path:
        """Optuna's journal; never rewritten, one operation a line."""
        return self.path / "journal.log"

    @property
    def asking(self) -> Path:
        """The file whose ``flock`` is held while trials are counted, lost ones found, and a new one is asked for."""
        return self.path / "asking.lock"

    def lock(self, number: int) -> Path:
        """The file whose ``flock`` a trial's worker holds while it runs."""
        return self.path / "locks" / f"trial-{number:04d}"

    def trial(self, arm: str) -> Path:
        """Overlay, reports and logs of a trial."""
        return self.path / "trials" / arm

    def sealed(self, fold: int) -> tuple[Path, Path]:
        """Cohort and split of a fold without its test patients."""
        folder = self.path / "sealed" / f"fold-{fold}"
        return folder / "cohort.parquet", folder / "splits.json"

    def make(self) -> None:
        """Make the folder.

        Raises:
            InputError: It cannot be made.
        """
        try:
            (self.path / "locks").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{self.path}: cannot be made ({error.strerror}); choose another --runs") from error


@dataclasses.dataclass(frozen=True, slots=True)
class Sealed:
    """What was sealed.

    Attributes:
        folds: The folds that are searched over.
        tuned_on: Patients that are tested in one of them and trained or validated on in another.
    """

    folds: tuple[int, ...]
    tuned_on: int


def seal(folder: SearchFolder, cohort: Path, splits: Path, folds: tuple[int, ...] | None) -> Sealed:
    """Write each fold's cohort and split without its test patients: what is not there cannot be read.

    Args:
        folder: The search's folder.
        cohort: The whole cohort table.
        splits: Its split file.
        folds: Folds to search over; all if None.

    Raises:
        InputError: Cohort and split do not fit together, or the split has no such fold.
    """
    table = Cohort.load(cohort)
    made = Splits.load(splits, table)
    wanted = tuple(range(len(made.folds))) if folds is None else folds
    for fold in wanted:
        if fold >= len(made.folds):
            raise InputError(f"folds: {fold} is not in {splits}, which has folds 0 to {len(made.folds) - 1}")
        target, target_splits = folder.sealed(fold)
        note = target.with_name("sealed_from.json")
        reason = {"cohort": table.sha256, "split": made.sha256, "root": str(table.root.absolute())}
        if target_splits.is_file() and read_maybe(note).get("reason") == sha256_of_json(reason):
            continue
        parts = made.folds[fold]
        target.parent.mkdir(parents=True, exist_ok=True)
        table.select(patients=[*parts.train, *parts.valid]).save(target)
        sealed = dataclasses.replace(
            made,
            scheme="sealed",
            repeats=1,
            excluded={},
            cohort_sha256=Cohort.load(target).sha256,
            # under the same number as in the whole split
            folds=(Fold(parts.train, parts.valid, (), parts.name or f"fold {fold} without its test"),) * (fold + 1),
        )
        sealed.save(target_splits)
        write_json(note, {"reason": sha256_of_json(reason)})
    tested = {patient for fold in wanted for patient in made.folds[fold].test}
    seen = {p for fold in wanted for p in (*made.folds[fold].train, *made.folds[fold].valid)}
    return Sealed(wanted, len(tested & seen))
