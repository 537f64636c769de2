"""What a finished cell shows in W&B: ROC and confusion, and, where asked for, pictures and a table of patients."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from callbacks.run_directory import RunDirectory
from datamodules.files import sha256_of_file
from datamodules.records import read_records
from experiments.wandb_lineage import Made, artifact_name, log_made, recorded
from experiments.wandb_runs import FOLDER, Sharing, artifacts_in, explained_failures, wandb_runs

SHOWN = 4
"""Pictures of each kind: as many of the worst scans and as many of the best."""

METRICS = ("dice", "iou", "hd95_mm", "assd_mm", "nsd")


def log_results(loggers: list[Any], directory: RunDirectory, command: str, sharing: Sharing) -> None:
    """Log what a command has left in the run directory; nothing without a W&B logger.

    A segmenter's ``fit`` makes the artifact of its weights. Every ``test`` makes the artifact of its predictions and
    logs ROC and confusion; overlays, attention, Grad-CAM and the table of patients only where ``sharing`` says so.

    Args:
        loggers: The trainer's loggers.
        directory: The run directory.
        command: The command that has ended.
        sharing: What of the patients may go to W&B.

    Raises:
        InputError: W&B's client failed.
    """
    for run in wandb_runs(loggers):
        # tables are staged as artifacts are
        with explained_failures(), artifacts_in(directory.path):
            if command == "fit" and directory.identity().role == "segmenter":
                _log_checkpoint(run, directory, sharing)
            elif command == "test" and directory.predictions.is_file():
                _log_test(run, directory, sharing)


def _log_checkpoint(run: Any, directory: RunDirectory, sharing: Sharing) -> None:
    identity = directory.identity()
    path = directory.checkpoint()
    made = Made(
        artifact_name(identity.study, identity.arm, "checkpoint"),
        "segmenter",
        sha256_of_file(path),
        _facts(directory),
        {path.name: path} if sharing.checkpoint else {},
    )
    _log(run, directory, made)


def _log_test(run: Any, directory: RunDirectory, sharing: Sharing) -> None:
    identity = directory.identity()
    frame = read_records(directory.predictions)
    counts = {"scans": len(frame), "patients": int(frame["patient_id"].nunique())}
    made = Made(
        artifact_name(identity.study, identity.arm, "predictions"),
        "predictions",
        sha256_of_file(directory.predictions),
        {**_facts(directory), **counts},
        {directory.predictions.name: directory.predictions} if sharing.patients else {},
    )
    values: dict[str, Any] = {}
    columns = probability_columns(frame)
    if columns:
        values |= _charts(frame, columns)
    if sharing.patients:
        values |= _patients(frame, directory)
    if values:
        run.log(values)
    _log(run, directory, made)


def _log(run: Any, directory: RunDirectory, made: Made) -> None:
    from callbacks.provenance import git_state

    uses = recorded(directory.path / FOLDER).get("uses", [])
    log_made(run, directory.path, made, uses, git_state(Path(__file__).resolve().parent.parent))


def _facts(directory: RunDirectory) -> dict[str, Any]:
    """Which cell made it; no ids of patients, no paths."""
    identity = directory.identity()
    return {
        key: getattr(identity, key)
        for key in ("study", "arm", "role", "seed", "fold", "cell", "split_sha256", "cohort_sha256")
    }


def probability_columns(frame: pd.DataFrame) -> list[str]:
    """``prob`` for two classes, ``prob_0 … prob_k`` for more, none for a segmenter's record."""
    if "prob" in frame and frame["prob"].notna().all():
        return ["prob"]
    return sorted(
        (str(name) for name in frame if str(name).startswith("prob_")), key=lambda name: int(name.rpartition("_")[2])
    )


def roc_points(target: np.ndarray, probability: np.ndarray) -> dict[str, list[tuple[float, float]]]:
    """ROC curves, each class against the rest: points (1 - specificity, sensitivity), without thresholds.

    Thresholds are left out because each is the probability of one patient.

    Args:
        target: Class of each row, shape (N,).
        probability: Shape (N,) for two classes, (N, classes) for more.

    Returns:
        Points by curve; a class that is missing or alone has no curve.
    """
    from sklearn.metrics import roc_curve

    named = {"roc": (target == 1, probability)} if probability.ndim == 1 else {
        f"class {index} against the rest": (target == index, probability[:, index])
        for index in range(probability.shape[1])
    }  # fmt: skip
    curves = {}
    for name, (positive, score) in named.items():
        if 0 < positive.sum() < len(positive):
            false_positive, true_positive, _ = roc_curve(positive, score)
            curves[name] = [(float(x), float(y)) for x, y in zip(false_positive, true_positive, strict=True)]
    return curves


def _charts(frame: pd.DataFrame, columns: list[str]) -> dict[str, Any]:
    """ROC and confusion, as W&B's charts (tables behind them) and as one picture."""
    import wandb

    target = frame["target"].to_numpy(dtype=int)
    probability: np.ndarray = frame[columns[0]].to_numpy(float) if len(columns) == 1 else frame[columns].to_numpy(float)
    cut = frame.get("threshold", pd.Series(0.5, frame.index)).fillna(0.5).to_numpy(float)
    called = (probability >= cut).astype(int) if probability.ndim == 1 else probability.argmax(1)
    curves = roc_points(target, probability)
    values: dict[str, Any] = {}
    points: list[Any] = [[name, x, y] for name, curve in curves.items() for x, y in curve]
    if points:
        table = wandb.Table(columns=["curve", "1 - specificity", "sensitivity"], data=points)
        values["test/roc"] = wandb.plot_table(
            "wandb/area-under-curve/v0",
            table,
            {"x": "1 - specificity", "y": "sensitivity", "class": "curve"},
            {"title": "ROC, test scans"},
        )
    classes = 2 if probability.ndim == 1 else probability.shape[1]
    counts = np.zeros((classes, classes), dtype=int)
    np.add.at(counts, (target, called), 1)
    names = [str(index) for index in range(classes)]
    cells: list[Any] = [[names[i], names[j], int(counts[i, j])] for i in range(classes) for j in range(classes)]
    values["test/confusion"] = wandb.plot_table(
        "wandb/confusion_matrix/v1",
        wandb.Table(columns=["Actual", "Predicted", "nPredictions"], data=cells),
        {"Actual": "Actual", "Predicted": "Predicted", "nPredictions": "nPredictions"},
        {"title": "Confusion, test scans"},
    )
    values["test/roc_and_confusion"] = wandb.Image(_figure(curves, counts))
    return values


def _figure(curves: dict[str, list[tuple[float, float]]], counts: np.ndarray) -> Any:
    """ROC beside the confusion matrix, as a picture."""
    from matplotlib.figure import Figure
    from PIL import Image

    figure = Figure(figsize=(8, 4), dpi=100, layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot([0, 1], [0, 1], color="0.7", linewidth=1)
    for name, curve in curves.items():
        left.plot(*zip(*curve, strict=True), label=name)
    left.set(xlabel="1 - specificity", ylabel="sensitivity", aspect="equal", title="test scans")
    if len(curves) > 1:
        left.legend(fontsize="small")
    right.imshow(counts, cmap="Blues")
    for (row, column), count in np.ndenumerate(counts):
        right.text(
            column, row, str(count), ha="center", va="center", color="white" if count > counts.max() / 2 else "k"
        )
    right.set(xlabel="called", ylabel="true", xticks=range(len(counts)), yticks=range(len(counts)))
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return Image.open(buffer).convert("RGB")


def _patients(frame: pd.DataFrame, directory: RunDirectory) -> dict[str, Any]:
    """The table of patients, and pictures of the worst and best scans."""
    import wandb

    shown = frame.loc[:, frame.notna().any()].copy()
    for name in shown.columns:
        if not pd.api.types.is_numeric_dtype(shown[name]) or shown[name].isna().any():
            # W&B's tables hold one kind of value a column; None is allowed, pandas' NA is not
            shown[name] = [None if pd.isna(value) else value for value in shown[name].astype(object)]
    values: dict[str, Any] = {"test/predictions": wandb.Table(dataframe=shown)}
    for folder in ("overlays", "attention", "grad_cam"):
        for which, rows in worst_and_best(frame).items():
            pictures = [
                wandb.Image(str(path), caption=caption)
                for scan, caption in rows
                if (path := directory.path / folder / f"{scan}.png").is_file()
            ]
            if pictures:
                values[f"test/{folder}_{which}"] = pictures
    return values


def worst_and_best(frame: pd.DataFrame, count: int = SHOWN) -> dict[str, list[tuple[str, str]]]:
    """Scans by Dice, or by the probability of their true class; each with a caption.

    Args:
        frame: A prediction record.
        count: Scans of each kind at most; no scan is in both.

    Returns:
        ``worst`` and ``best``: (scan id, caption), the most extreme first.
    """
    if "dice" in frame and frame["dice"].notna().any():
        score, what = frame["dice"], "Dice"
    else:
        columns = probability_columns(frame)
        if not columns:
            return {"worst": [], "best": []}
        target = frame["target"].to_numpy(int)
        probability = frame[columns].to_numpy(float)
        full = np.column_stack([1 - probability[:, 0], probability[:, 0]]) if len(columns) == 1 else probability
        score, what = pd.Series(full[np.arange(len(frame)), target], frame.index), "probability of the true class"
    known = frame.assign(_score=score).dropna(subset="_score").sort_values(["_score", "scan_id"])
    count = min(count, len(known) // 2) if len(known) > 1 else len(known)
    rows = [
        (str(scan), f"{scan}: {what} {value:.3f}")
        for scan, value in known[["scan_id", "_score"]].itertuples(index=False)
    ]
    return {"worst": rows[:count], "best": rows[::-1][:count] if len(rows) > 1 else []}
