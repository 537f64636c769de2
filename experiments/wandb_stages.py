"""The stages that are no training as W&B runs: making masks, and comparing."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from datamodules.errors import InputError
from datamodules.files import sha256_of_file
from experiments.wandb_lineage import Made, artifact_name, checkpoint_reference, log_made, masks_name, note
from experiments.wandb_runs import FOLDER, Sharing, artifacts_in, chosen_mode, explained_failures, settings_of

if TYPE_CHECKING:
    from experiments.compare_results import Comparison

ID_LENGTH = 96


def settings_below(path: Path) -> dict[str, Any] | None:
    """W&B's project, entity and mode of the first run at or below a folder; None where no run logs to W&B.

    Args:
        path: A run directory, or a folder of runs.
    """
    configs = [path / "config.yaml"] if (path / "config.yaml").is_file() else sorted(path.glob("**/config.yaml"))
    for config in configs:
        # W&B's own files of a run are called so too
        if FOLDER in config.relative_to(path).parts or not (config.parent / "provenance.json").is_file():
            continue
        found = settings_of(yaml.safe_load(config.read_text(encoding="utf-8")) or {})
        if found is not None:
            return found
    return None


def log_masks(folder: Path, runs: Path, sharing: Sharing, *, wanted: bool | None = None) -> bool:
    """Log the making of masks as a run of job type ``masks``; where the segmenters log to W&B, or where asked for.

    Args:
        folder: The folder of masks, finished.
        runs: The segmenters' runs.
        sharing: Whether the record with scan and patient ids goes along.
        wanted: True or False to log or not; None to do as the segmenters did.

    Returns:
        Whether a run was logged.

    Raises:
        InputError: There is no record of masks, or W&B's client failed.
    """
    settings = settings_below(runs)
    if wanted is False or (wanted is None and settings is None):
        return False
    from datamodules.masks import RECORD, MaskSet

    masks = MaskSet.load(folder)
    name = masks_name(folder)
    sha256 = sha256_of_file(folder / RECORD)
    makers = masks.segmenters
    study, arm = next(((maker.study, maker.arm) for maker in makers.values()), (folder.name, "unknown"))
    scores = sorted(record.dice for record in masks.masks.values() if record.dice is not None)
    bands = [record.quality for record in masks.masks.values() if record.quality is not None]
    facts: dict[str, Any] = {"masks": len(masks.masks), "folds": len(makers)}
    if scores:
        facts |= {"dice_mean": sum(scores) / len(scores), "dice_worst": scores[0]}
    facts |= {f"quality_{band}": bands.count(band) for band in sorted(set(bands))}
    uses = [checkpoint_reference(maker.study, maker.arm, key) for key, maker in makers.items()]
    files = {RECORD: folder / RECORD} if sharing.patients else {}
    with _stage(folder, settings, study, "masks", f"{name}-{sha256[:12]}", [arm], facts) as run:
        run.summary.update(facts)
        if scores:
            import wandb

            run.log({"dice": wandb.Histogram(scores)})
        note(run, folder, uses)
        log_made(run, folder, Made(name, "masks", sha256, facts, files), uses)
    return True


def log_comparison(
    comparison: Comparison, out: Path, written: Sequence[Path], paths: Sequence[Path], sharing: Sharing
) -> str:
    """Log a comparison as a run of job type ``compare``, with its table and what it was made from.

    The table has a row an arm, no patient. ``report.html`` shows pictures and names patients, ``comparison.json``
    names them: both go along only where ``sharing.patients`` says so.

    Args:
        comparison: The comparison.
        out: Its folder.
        written: The files that were written there.
        paths: The studies and files that were compared.
        sharing: Whether files that name patients go along.

    Returns:
        The run's id.

    Raises:
        InputError: W&B's client failed.
    """
    import wandb

    from experiments.compare_tables import header, row

    settings = next((known for path in paths if path.is_dir() and (known := settings_below(path)) is not None), None)
    records = run_directories(comparison)
    uses = sorted({predictions_reference(record) for record in records})
    content = hashlib.sha256("\n".join(uses or map(str, paths)).encode()).hexdigest()
    study = comparison_study(comparison)
    name = artifact_name(study, "compare", "comparison")
    facts = {"families": len(comparison.families), "records": len(records)}
    run_id = f"{name[: ID_LENGTH - 13]}-{content[:12]}"
    sentences = [sentence for found in comparison.families for sentence in found.sentences]
    config = {**facts, "sentences": sentences}
    with _stage(out, settings, study, "compare", run_id, sorted(arms_of(comparison)), config) as run:
        values: dict[str, Any] = {}
        for place, found in enumerate(comparison.families):
            key = "table" if len(comparison.families) == 1 else f"table_{place}_{found.family.kind}"
            values[key] = wandb.Table(columns=list[Any](header(found)), data=[row(found, arm) for arm in found.arms])
        run.log(values)
        run.summary.update(summary_of(comparison))
        allowed = [path for path in written if sharing.patients or path.suffix in (".csv", ".md", ".tex")]
        note(run, out, uses)
        files = {path.name: path for path in allowed if path.is_file()}
        table = next((path for path in written if path.name == "comparison.json"), None)
        sha256 = content if table is None else sha256_of_file(table)
        log_made(run, out, Made(name, "comparison", sha256, facts, files), uses)
    return run_id


def comparison_study(comparison: Comparison) -> str:
    """The names of the studies in a comparison, joined."""
    names = {str(name) for found in comparison.families for name in found.family.frame["study"].dropna().unique()}
    return "+".join(sorted(names)) or "comparison"


def arms_of(comparison: Comparison) -> set[str]:
    """All arms of a comparison."""
    return {arm.arm for found in comparison.families for arm in found.arms}


def run_directories(comparison: Comparison) -> list[Path]:
    """The run directories whose predictions were compared; plain files have none."""
    from experiments.compare_records import RUN

    runs: set[str] = set()
    for found in comparison.families:
        if RUN in found.family.frame:
            runs |= {str(run) for run in found.family.frame[RUN].dropna().unique()}
    return sorted(path for path in map(Path, runs) if (path / "predictions.parquet").is_file())


def predictions_reference(run: Path) -> str:
    """How a comparison names the predictions that it uses: as the cell's test has logged them.

    Args:
        run: A run directory.
    """
    arm, study = run.parent.name, run.parent.parent.name
    sha256 = sha256_of_file(run / "predictions.parquet")
    return f"{artifact_name(study, arm, 'predictions')}:{sha256[:12]}"


def summary_of(comparison: Comparison) -> dict[str, float]:
    """Each arm's primary metric with its interval, and each difference with its adjusted p-value, as plain numbers."""
    values: dict[str, float] = {}
    for found in comparison.families:
        for arm in found.arms:
            interval = arm.metrics.get(found.metric)
            if interval is not None:
                key = f"{arm.arm}/{found.metric}"
                values |= {key: interval.estimate, f"{key}_low": interval.low, f"{key}_high": interval.high}
        for item in found.differences:
            key = f"{item.arm}_minus_{item.reference}/{item.metric}"
            values |= {key: item.interval.estimate, f"{key}_p_holm": item.p_holm}
    return values


@contextlib.contextmanager
def _stage(
    folder: Path,
    settings: Mapping[str, Any] | None,
    study: str,
    role: str,
    run_id: str,
    tags: Sequence[str],
    config: Mapping[str, Any],
) -> Iterator[Any]:
    """A W&B run of a stage, offline unless its study is online; its files lie in ``folder``."""
    import wandb

    from callbacks.provenance import git_state, package_versions

    known = settings or {"project": "hepastage", "entity": None, "mode": "offline"}
    if wandb.run is not None:
        raise InputError("W&B: a run is under way in this process; finish it first")
    code = {"git": git_state(Path(__file__).resolve().parent.parent), "versions": package_versions()}
    folder.mkdir(parents=True, exist_ok=True)
    mode: Any = chosen_mode(known["mode"])
    with artifacts_in(folder), explained_failures():
        run = wandb.init(
            project=known["project"],
            entity=known["entity"],
            mode=mode,
            dir=os.fspath(folder),
            id=run_id[:ID_LENGTH],
            name=f"{role} {study}",
            group=study,
            job_type=role,
            tags=[tag[:64] for tag in tags],
            resume="allow",
            config={"study": study, "role": role, **config, "provenance": code},
        )
        try:
            yield run
        finally:
            run.finish()
