"""Send everything that lies offline, in the order of the stages, and declare who used what; only when asked."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from datamodules.errors import InputError
from datamodules.files import read_json, write_json
from experiments.wandb_lineage import recorded
from experiments.wandb_runs import FOLDER, is_sent

STAGES = ("segmenter", "masks", "classifier", "staging", "probe", "compare")
"""Job types in the order in which they are sent: what is used lies there before who uses it."""

DECLARED = "lineage-declared.json"
"""Beside ``lineage.json``: the uses that the server knows of."""


@dataclasses.dataclass(frozen=True, slots=True)
class Offline:
    """One offline folder, as W&B's client left it.

    Attributes:
        folder: The folder ``offline-run-…``.
        run_id: The run it belongs to; a run that was trained and tested has two.
        stage: Its job type; empty where nothing tells it.
        sent: Whether it has been sent.
        pictures: Pictures in it.
        size: Bytes in it.
        staged: Bytes of staged artifacts beside it.
    """

    folder: Path
    run_id: str
    stage: str
    sent: bool
    pictures: int
    size: int
    staged: int


def offline_runs(paths: Sequence[Path]) -> list[Offline]:
    """All offline folders at and below some paths, in the order in which they are sent.

    Raises:
        InputError: A path does not exist, or no offline run lies there.
    """
    missing = [path for path in paths if not path.is_dir()]
    if missing:
        raise InputError(
            *(f"{path}: no such folder; give a study's folder, a run directory or 'runs'" for path in missing)
        )
    found = [_offline(folder) for place in wandb_folders(paths) for folder in sorted(place.glob("offline-run-*"))]
    if not found:
        names = ", ".join(map(str, paths))
        raise InputError(f"{names}: no offline W&B run lies there; runs without a WandbLogger have none")
    return sorted(found, key=lambda item: (_rank(item.stage), item.folder.name))


def wandb_folders(paths: Sequence[Path]) -> list[Path]:
    """The folders named ``wandb`` at and below some paths."""

    def below(path: Path) -> Iterator[Path]:
        for folder, names, _ in os.walk(path):
            # neither the store's thousands of folders nor W&B's own hold others
            names[:] = sorted(name for name in names if name not in ("store", "checkpoints", "overlays"))
            if Path(folder).name == FOLDER:
                names.clear()
                yield Path(folder)

    return list(dict.fromkeys(folder.resolve() for path in paths for folder in below(path.resolve())))


def sync(paths: Sequence[Path], *, entity: str | None = None, project: str | None = None, dry_run: bool = False) -> int:
    """Send every offline run below some paths, then declare the use of artifacts.

    What is sent is skipped another time, so a broken transfer is gone on with by the same command.

    Args:
        paths: Folders of runs.
        entity: Owner to send to; else the one of the configuration, else the default one.
        project: Project to send to, instead of the configured one.
        dry_run: Only say what would be sent.

    Returns:
        0; 1 where something could not be sent.

    Raises:
        InputError: There is nothing to send at all.
    """
    runs = offline_runs(paths)
    _say(*_plan(runs, "would send" if dry_run else "sending"))
    if dry_run:
        _say(*(f"  would declare: {line}" for line in _uses_of(paths)))
        return 0
    for stage in dict.fromkeys(run.stage for run in runs):
        folders = [run.folder for run in runs if run.stage == stage and not run.sent]
        if folders:
            client_sync(folders, entity, project)
    unsent = [run.folder for run in offline_runs(paths) if not run.sent]
    for folder in unsent:
        sys.stderr.write(f"hepastage: {folder}: was not sent; the lines above say why, run the same command again\n")
    if unsent:
        return 1
    return 1 if declare_all(paths, entity, project) else 0


def client_sync(folders: Sequence[Path], entity: str | None, project: str | None) -> None:
    """Let W&B's own ``wandb sync`` send some folders; it marks each that arrived."""
    words = [sys.executable, "-m", "wandb", "sync"]
    words += ["--entity", entity] if entity else []
    words += ["--project", project] if project else []
    environment = {key: value for key, value in os.environ.items() if key not in ("WANDB_MODE", "WANDB_SILENT")}
    # the client leaves logs of its own where it works
    with tempfile.TemporaryDirectory(prefix="hepastage-sync-") as scratch:
        environment["WANDB_DIR"] = scratch
        subprocess.run([*words, *map(str, folders)], check=False, env=environment, stdin=subprocess.DEVNULL)


def declare_all(paths: Sequence[Path], entity: str | None, project: str | None) -> list[str]:
    """Declare for each run which artifacts it used, where the server does not know yet.

    Returns:
        What could not be declared, one line each; they are also written to stderr.

    Raises:
        InputError: W&B's client failed.
    """
    waiting = [(place, record) for place in wandb_folders(paths) if (record := recorded(place)).get("uses")]
    waiting = [(place, record) for place, record in waiting if set(record["uses"]) - _declared(place)]
    if not waiting:
        return []
    import wandb

    from experiments.wandb_runs import explained_failures

    with explained_failures():
        api = wandb.Api()
    faults = []
    for place, record in waiting:
        owner = entity or record.get("entity") or api.default_entity
        target = f"{owner}/{project or record['project']}"
        known = _declared(place)
        for use in sorted(set(record["uses"]) - known):
            fault = declare(api, target, record["run"], use)
            if fault is None:
                known.add(use)
            else:
                faults.append(f"{record['run']} uses {use}: {fault}")
        write_json(place / DECLARED, {"run": record["run"], "uses": sorted(known)})
    for fault in faults:
        sys.stderr.write(f"hepastage: {fault}\n")
    return faults


def declare(api: Any, target: str, run_id: str, use: str) -> str | None:
    """Tell the server that a run used an artifact.

    Args:
        api: W&B's public API.
        target: ``entity/project``.
        run_id: The run that used it.
        use: The artifact, ``name:hash``.

    Returns:
        What went wrong, or None.
    """
    import wandb

    try:
        api.run(f"{target}/{run_id}").use_artifact(api.artifact(f"{target}/{use}"))
    except (wandb.errors.CommError, ValueError) as error:
        return f"{' '.join(str(error).split())}; send the run that made it as well, then run the same command again"
    return None


def _declared(place: Path) -> set[str]:
    path = place / DECLARED
    return set(read_json(path, "the declared lineage").get("uses", [])) if path.is_file() else set()


def _uses_of(paths: Sequence[Path]) -> list[str]:
    """``run uses artifact`` for every use that the server does not know of yet."""
    lines = []
    for place in wandb_folders(paths):
        record = recorded(place)
        lines += [f"{record['run']} uses {use}" for use in record.get("uses", []) if use not in _declared(place)]
    return lines


def _offline(folder: Path) -> Offline:
    files = [path for path in folder.rglob("*") if path.is_file()]
    names = [path.stem.removeprefix("run-") for path in files if path.suffix == ".wandb"]
    if not names:
        raise InputError(f"{folder}: holds no .wandb file; remove the folder, its run left nothing")
    place = folder.parent
    stage = recorded(place).get("job_type") or _role(place.parent)
    images = {".png", ".jpg", ".jpeg"}
    return Offline(
        folder=folder,
        run_id=names[0],
        stage=stage or "",
        sent=is_sent(folder),
        pictures=sum(path.suffix in images for path in files),
        size=sum(path.stat().st_size for path in files),
        staged=sum(path.stat().st_size for path in (place / "artifacts").rglob("*") if path.is_file()),
    )


def _role(run: Path) -> str:
    path = run / "provenance.json"
    record = read_json(path, "a run's provenance") if path.is_file() else {}
    return str((record.get("identity") or {}).get("role") or "")


def _rank(stage: str) -> int:
    return STAGES.index(stage) if stage in STAGES else len(STAGES)


def _plan(runs: Sequence[Offline], verb: str) -> list[str]:
    waiting = [run for run in runs if not run.sent]
    lines = [f"{verb} {len(waiting)} offline folders of {len({run.run_id for run in waiting})} runs; "
             f"{len(runs) - len(waiting)} folders are sent already"]  # fmt: skip
    for run in waiting:
        pictures = f", {run.pictures} pictures" if run.pictures else ""
        lines.append(f"  {run.stage or 'run':<10}  {run.run_id}  {run.size / 2**20:.1f} MiB{pictures}")
    staged = sum({run.folder.parent: run.staged for run in waiting}.values())
    return [*lines, f"  artifacts staged beside them: {staged / 2**20:.1f} MiB"] if staged else lines


def _say(*lines: str) -> None:
    for line in lines:
        sys.stdout.write(line + "\n")
    sys.stdout.flush()
