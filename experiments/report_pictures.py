"""Pictures that runs left behind, small enough for a page: masks on slices, attention, thumbnails of patients."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamodules.errors import InputError
from experiments.compare_records import RUN
from experiments.compare_results import Comparison, FamilyResult
from experiments.compare_words import number

OVERLAYS, ATTENTION, GRAD_CAM = "overlays", "attention", "grad_cam"
"""Folders of a run directory with one ``<scan_id>.png`` for each scan."""
_SHOWN = 12
_WIDEST = 900  # pixels: three slices side by side, sharp on a phone's screen
_KEPT = 60_000  # bytes: a picture this small is left as it is
_QUALITY = 82  # of JPEG


@dataclass(frozen=True, slots=True)
class Drawn:
    """A picture of one scan by one run.

    Attributes:
        path: The file.
        arm: The run's arm.
        patient: Of the scan.
        scan: Its id.
        seed: Of the run.
        value: What pictures are ranked by: Dice, or the probability given to the true class.
        target: The true class; None for segmentation.
    """

    path: Path
    arm: str
    patient: str
    scan: str
    seed: int
    value: float
    target: int | None


def encoded(path: Path) -> str:
    """A picture as a ``data:`` address; a large one is scaled down to 900 pixels across and becomes a JPEG.

    Raises:
        InputError: The file is no picture.
    """
    from PIL import Image, UnidentifiedImageError

    content = path.read_bytes()
    try:
        with Image.open(io.BytesIO(content)) as picture:
            picture.load()
            if len(content) <= _KEPT and picture.format == "PNG" and picture.width <= _WIDEST:
                return f"data:image/png;base64,{base64.b64encode(content).decode()}"
            small = picture.convert("RGB")
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise InputError(f"{path}: is not a picture ({error}); delete it, or test the run again") from error
    if small.width > _WIDEST:
        small = small.resize((_WIDEST, max(1, round(small.height * _WIDEST / small.width))), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    small.save(stream, format="JPEG", quality=_QUALITY, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}"


def drawn(found: FamilyResult, folder: str) -> list[Drawn]:
    """The pictures that the family's runs left in a folder, lowest value first; one of each scan for an arm and seed.

    Args:
        found: The family.
        folder: ``overlays`` (segmentation, by Dice), ``attention`` or ``grad_cam`` (classification, by the probability
            of the true class).
    """
    frame = found.family.frame
    if RUN not in frame or "scan_id" not in frame:
        return []
    segmentation = found.family.kind == "segmentation"
    values = frame["dice"].to_numpy(dtype=float) if segmentation else _truth_probability(found)
    rows = []
    columns = [RUN, "arm", "seed", "patient_id", "scan_id", "target"]
    for item, value in zip(frame.reindex(columns=columns).to_dict("records"), values, strict=True):
        if isinstance(item[RUN], str) and isinstance(item["scan_id"], str):
            path = Path(item[RUN]) / folder / f"{item['scan_id']}.png"
            if path.is_file():
                target = None if segmentation else int(item["target"])
                who = str(item["arm"]), str(item["patient_id"]), str(item["scan_id"]), int(item["seed"])
                rows.append(Drawn(path, *who, float(value), target))
    rows.sort(key=lambda row: (row.value, row.arm, row.scan, row.seed, row.path))
    # where every fold tests the same patients, the fold that did worst stands for a scan
    first: dict[tuple[str, int, str], Drawn] = {}
    for row in rows:
        first.setdefault((row.arm, row.seed, row.scan), row)
    return list(first.values())


def _truth_probability(found: FamilyResult) -> NDArray[np.float64]:
    """Probability given to the true class, for each row of the family."""
    frame = found.family.frame
    target = frame["target"].to_numpy(dtype=int)
    if found.family.kind == "binary":
        positive = frame["prob"].to_numpy(dtype=float)
        return np.where(target == 1, positive, 1 - positive)
    shares = frame[[f"prob_{index}" for index in range(found.family.classes)]].to_numpy(dtype=float)
    return np.asarray(shares[np.arange(len(target)), target], dtype=np.float64)


def montages(found: FamilyResult) -> list[dict[str, Any]]:
    """Pictures of a family, at most twelve of each kind, the worst first, then the best; none where no run drew any."""
    folders = (OVERLAYS,) if found.family.kind == "segmentation" else (ATTENTION, GRAD_CAM)
    return [made for folder in folders if (made := _montage(drawn(found, folder), folder)) is not None]


def _montage(rows: list[Drawn], folder: str) -> dict[str, Any] | None:
    if not rows:
        return None
    half = _SHOWN * 2 // 3
    chosen = [(row, "worst") for row in rows[:half]]
    chosen += [(row, "best") for row in rows[max(half, len(rows) - (_SHOWN - half)) :][::-1]]
    order = "worst first (red frame: the true class got the least probability), then the best (green frame)."
    heading, note = {
        OVERLAYS: (
            "Masks on slices",
            "Worst by Dice first (red frame), then the best (green frame). Amber: predicted; blue: reference.",
        ),
        ATTENTION: (
            "Where the classifiers looked",
            f"Attention over slices: {order} Attention shows where a network looked, not why.",
        ),
        GRAD_CAM: (
            "What raised the logit",
            f"Grad-CAM of the positive class (of several classes, the predicted one): {order}",
        ),
    }[folder]
    pictures = [{"data": encoded(row.path), "caption": _caption(row), "rank": rank} for row, rank in chosen]
    more = f" {len(rows) - len(chosen)} more lie in the run directories." if len(rows) > len(chosen) else ""
    return {"heading": heading, "note": note + more, "pictures": pictures}


def _caption(row: Drawn) -> str:
    if row.target is None:
        return f"{row.scan} · Dice {number(row.value, 3)} · {row.arm}"
    return f"{row.scan} · truth {row.target}, given {number(row.value)} · {row.arm}, seed {row.seed}"


def patient_pictures(comparison: Comparison) -> dict[str, Path]:
    """One picture for each patient: an overlay of the first segmenter that drew one, else an attention map."""
    result: dict[str, Path] = {}
    for segmentation, folder in ((True, OVERLAYS), (False, ATTENTION)):
        for found in comparison.families:
            if (found.family.kind == "segmentation") == segmentation:
                for row in drawn(found, folder):
                    result.setdefault(row.patient, row.path)
    return result
