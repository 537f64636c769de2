"""How a run appears in Weights & Biases: offline unless configured otherwise, and without paths of this machine."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from callbacks.provenance import wandb_id
from callbacks.run_directory import Identity, RunDirectory
from datamodules.errors import InputError

FOLDER = "wandb"
"""Folder of W&B's files within a run directory, a folder of masks or of a report."""

SUPERSEDED = "superseded-"
"""Begins the name of a torn offline folder whose rows a later folder holds; no sync sends it."""


@dataclasses.dataclass
class Sharing:
    """What Weights & Biases gets beside configuration, metrics, ROC and confusion.

    Attributes:
        patients: Pictures of patients (overlays, attention), a table with a row a patient, and records with patient
            and scan ids as in the cohort.
        checkpoint: The segmenter's weights, within its artifact.
    """

    patients: bool = False
    checkpoint: bool = False


def is_wandb(class_path: str) -> bool:
    """Whether a logger's class is Lightning's W&B logger."""
    return class_path.rsplit(".", 1)[-1] == "WandbLogger"


def place_wandb(logger: Any, identity: Identity) -> None:
    """Give a W&B logger its run: group = study, job type = role, tag = arm, and an id that a restart keeps.

    Args:
        logger: The logger's parsed configuration; changed in place.
        identity: The cell.
    """
    import wandb

    # takes WANDB_SILENT in: Lightning sets an option that the client warns about at every start
    wandb.setup()
    logger.init_args.id = wandb_id(identity)
    logger.init_args.name = f"{identity.arm} fold {identity.fold} seed {identity.seed}"
    logger.dict_kwargs = {
        "group": identity.study,
        "job_type": identity.role,
        "tags": [identity.arm],
        "resume": "allow",
        "mode": chosen_mode("offline" if logger.init_args.offline else "online"),
        **dict(logger.get("dict_kwargs") or {}),
    }


def chosen_mode(default: str) -> str:
    """W&B's mode: the user's environment wins; 'dryrun' is what Lightning itself leaves there after an offline run."""
    chosen = os.environ.get("WANDB_MODE", "dryrun")
    return default if chosen == "dryrun" else chosen


def log_everywhere(loggers: list[Any], values: dict[str, Any]) -> None:
    """Give a run's configuration to all its loggers, before training starts.

    Args:
        loggers: The trainer's loggers.
        values: Configuration and identity as plain values.

    Raises:
        InputError: W&B is to be online, and nobody is logged in.
    """
    with explained_failures():
        for logger in loggers:
            logger.log_hyperparams(values)


@contextlib.contextmanager
def explained_failures() -> Iterator[None]:
    """Turn what W&B's client raises (nobody logged in, no network) into one line.

    Raises:
        InputError: The client failed.
    """
    try:
        yield
    except Exception as error:
        if type(error).__module__.startswith("wandb."):
            text = " ".join(str(error).split())
            raise InputError(f"W&B: {text} Or keep 'offline: true' for the WandbLogger") from error
        raise


def go_on(loggers: list[Any], directory: RunDirectory, *, fresh: bool) -> None:
    """Let a run's W&B history go on where ``metrics.jsonl`` stands, so that both tell one run.

    W&B's step is the line of ``metrics.jsonl``. An offline folder that a killed training left behind lacks its last
    seconds and may hold rows past the checkpoint; where it has not been sent yet it is set aside, and the rows of
    ``metrics.jsonl`` are logged anew. Does nothing without a W&B logger, and online, where the server knows the step.

    Args:
        loggers: The trainer's loggers.
        directory: The run directory; its ``metrics.jsonl`` ends where training goes on.
        fresh: Whether training is about to begin or to go on (earlier folders are torn), not a test of what ended.
    """
    for run in wandb_runs(loggers):
        if not run.offline:
            continue
        own = Path(run.dir).parent
        earlier = [folder for folder in offline_folders(directory.path) if folder != own]
        sent = any(is_sent(folder) for folder in earlier)
        for folder in earlier if fresh else []:
            if not is_sent(folder):
                folder.rename(folder.with_name(SUPERSEDED + folder.name))
        rows = rows_of(directory.metrics)
        if fresh and not sent:
            for number, row in enumerate(rows):
                run.log(row, step=number)
        step = max(len(rows), 0 if fresh else _next_step(directory))
        if step:
            # nothing is committed: only the step is set
            run.log({}, step=step, commit=False)


def wandb_runs(loggers: list[Any]) -> list[Any]:
    """The W&B runs of a trainer's loggers; none on ranks that do not log."""
    from lightning.pytorch.utilities import rank_zero_only

    if getattr(rank_zero_only, "rank", 0) != 0:
        return []
    return [logger.experiment for logger in loggers if is_wandb(type(logger).__name__)]


def rows_of(metrics: Path) -> list[dict[str, Any]]:
    """The lines of ``metrics.jsonl`` as W&B rows; a torn last line is left out."""
    rows = []
    for line in metrics.read_text(encoding="utf-8").splitlines() if metrics.is_file() else []:
        with contextlib.suppress(json.JSONDecodeError):
            values = json.loads(line)
            step, time = values.pop("step", None), values.pop("time", None)
            known = {"trainer/global_step": step, "_timestamp": time}
            rows.append({**values, **{key: value for key, value in known.items() if value is not None}})
    return rows


def offline_folders(path: Path) -> list[Path]:
    """W&B's offline folders of a run directory, oldest first."""
    return sorted((path / FOLDER).glob("offline-run-*"))


def is_sent(folder: Path) -> bool:
    """Whether ``wandb sync`` has sent an offline folder: its own mark lies beside the file."""
    return any(folder.glob("*.wandb.synced"))


def finish_wandb(loggers: list[Any], directory: RunDirectory | None = None) -> None:
    """End the W&B run, so that the next cell of this process gets one of its own.

    Args:
        loggers: The trainer's loggers.
        directory: The run directory, which keeps the step at which a later test goes on.
    """
    if any(is_wandb(type(logger).__name__) for logger in loggers):
        import wandb

        if wandb.run is not None and directory is not None:
            (directory.path / FOLDER / "next_step").write_text(f"{wandb.run.step}\n", encoding="utf-8")
        wandb.finish()


def settings_of(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """Project, entity and mode of the W&B logger in a run's saved configuration; None where it has none."""
    loggers = (config.get("trainer") or {}).get("logger")
    for logger in loggers if isinstance(loggers, list) else [loggers]:
        if isinstance(logger, dict) and is_wandb(str(logger.get("class_path", ""))):
            values = {**(logger.get("init_args") or {}), **(logger.get("dict_kwargs") or {})}
            mode = values.get("mode") or ("offline" if values.get("offline", True) else "online")
            return {"project": values.get("project") or "hepastage", "entity": values.get("entity"), "mode": mode}
    return None


@contextlib.contextmanager
def artifacts_in(folder: Path) -> Iterator[None]:
    """Stage artifacts in a run's own W&B folder, where sync finds them, and not in the user's home.

    Args:
        folder: The run directory, or the folder of masks or of a report.
    """
    before = os.environ.get("WANDB_DATA_DIR")
    os.environ["WANDB_DATA_DIR"] = str((folder / FOLDER).absolute())
    try:
        yield
    finally:
        if before is None:
            os.environ.pop("WANDB_DATA_DIR", None)
        else:
            os.environ["WANDB_DATA_DIR"] = before


def _next_step(directory: RunDirectory) -> int:
    path = directory.path / FOLDER / "next_step"
    text = path.read_text(encoding="utf-8").strip() if path.is_file() else ""
    return int(text) if text.isdigit() else 0
