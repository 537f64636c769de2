"""Who made what from what: segmenter -> masks -> classifier -> comparison, as W&B artifacts and on disk.

W&B's client cannot declare the use of an artifact offline. So each run names what it uses in its configuration and in
``wandb/lineage.json``; ``hepastage wandb sync`` declares it once the artifacts are there.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from datamodules.errors import InputError
from datamodules.files import read_json, sha256_of_file, write_json
from experiments.wandb_runs import FOLDER

RECORD = "lineage.json"
LONGEST = 128
"""Most characters of an artifact's name that W&B takes."""


@dataclasses.dataclass(frozen=True, slots=True)
class Made:
    """Something that a run has made.

    Attributes:
        name: The artifact's name; its versions differ in content.
        kind: ``segmenter``, ``masks``, ``predictions`` or ``comparison``.
        sha256: Hash of what was made (checkpoint, record of masks, predictions), whether it is sent or not.
        facts: What is told of it without its content: no patient or scan ids, no paths.
        files: Files to send with it, by their name in the artifact.
    """

    name: str
    kind: str
    sha256: str
    facts: Mapping[str, Any]
    files: Mapping[str, Path] = dataclasses.field(default_factory=dict)

    @property
    def reference(self) -> str:
        """How a run that uses it names it: the name and the content's hash."""
        return f"{self.name}:{self.sha256[:12]}"


def artifact_name(study: str, arm: str, what: str) -> str:
    """Name of an artifact: letters, digits, ``-``, ``_`` and ``.``, at most 128 characters.

    Args:
        study: The study.
        arm: The arm.
        what: What it is, such as ``predictions``.
    """
    stem = re.sub(r"[^A-Za-z0-9._-]", "-", f"{study}-{arm}")
    return f"{stem[: LONGEST - len(what) - 1]}-{what}"


def checkpoint_reference(study: str, arm: str, sha256: str) -> str:
    """How a run names the segmenter that it uses."""
    return f"{artifact_name(study, arm, 'checkpoint')}:{sha256[:12]}"


def masks_name(folder: Path) -> str:
    """Name of the artifact of a folder of masks: after the segmenters that made them.

    Raises:
        InputError: There is no record of masks.
    """
    from datamodules.masks import MaskSet

    makers = sorted({(maker.study, maker.arm) for maker in MaskSet.load(folder).segmenters.values()})
    study, arm = makers[0] if makers else (folder.name, "unknown")
    return artifact_name(study, arm, "masks")


def masks_reference(folder: Path) -> str:
    """How a classifier names the masks that it uses.

    Raises:
        InputError: There is no record of masks.
    """
    from datamodules.masks import RECORD as MASKS

    return f"{masks_name(folder)}:{sha256_of_file(folder / MASKS)[:12]}"


def used_by_cell(data: Mapping[str, Any]) -> list[str]:
    """What a cell uses, from the data part of its configuration.

    Args:
        data: ``data.init_args``.
    """
    from datamodules.masks import RECORD as MASKS

    folders = [Path(data[key]) for key in ("masks", "quality_from") if data.get(key) is not None]
    return sorted({masks_reference(folder) for folder in folders if (folder / MASKS).is_file()})


def log_made(run: Any, folder: Path, made: Made, uses: Sequence[str], git: Mapping[str, Any] | None = None) -> None:
    """Log an artifact in a run, and note the lineage on disk; to be called within ``wandb_runs.artifacts_in``.

    The artifact always holds one small JSON file of facts, so that two contents are two versions.

    Args:
        run: The W&B run.
        folder: The folder that holds the run's ``wandb/``.
        made: What the run made.
        uses: What it used.
        git: Commit and dirty flag of the code.
    """
    import wandb

    facts = {"sha256": made.sha256, **made.facts, "uses": list(uses), "git": dict(git or {})}
    artifact = wandb.Artifact(made.name, made.kind, metadata=facts)
    with artifact.new_file("facts.json", encoding="utf-8") as stream:
        json.dump(facts, stream, indent=2)
    for name, path in made.files.items():
        # our own finished file: no second copy of it is made
        artifact.add_file(str(path.absolute()), name=name, policy="immutable", skip_cache=True)
    run.log_artifact(artifact, aliases=["latest", made.sha256[:12]])
    note(run, folder, uses, [made.reference])


def note(run: Any, folder: Path, uses: Sequence[str], makes: Sequence[str] = ()) -> None:
    """Tell in the run's configuration and in ``wandb/lineage.json`` what it uses and makes.

    Args:
        run: The W&B run.
        folder: The folder that holds the run's ``wandb/``.
        uses: Artifacts used, each ``name:hash``.
        makes: Artifacts made, each ``name:hash``; those noted before are kept.
    """
    known = recorded(folder / FOLDER)
    lineage = {
        "uses": sorted({*uses, *known.get("uses", [])}),
        "makes": sorted({*makes, *known.get("makes", [])}),
    }
    run.config.update({"lineage": lineage}, allow_val_change=True)
    facts = {"run": run.id, "project": run.project, "entity": run.entity or None, "job_type": run.job_type}
    write_json(folder / FOLDER / RECORD, {**facts, **lineage})


def recorded(folder: Path) -> dict[str, Any]:
    """The lineage noted in a ``wandb`` folder; empty where there is none.

    Raises:
        InputError: It is torn.
    """
    path = folder / RECORD
    if not path.is_file():
        return {}
    value = read_json(path, "the lineage of a W&B run")
    if not isinstance(value, dict):
        raise InputError(f"{path}: is not the lineage of a W&B run; remove it")
    return value
