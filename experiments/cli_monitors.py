"""Callbacks that watch a metric nobody logs, or look for neither its least nor its most: found before anything runs.

Lightning says it at the first validation, minutes into a training. Light: names are written down here, and a test
holds them against what the modules log.
"""

from __future__ import annotations

from collections.abc import Sequence

from datamodules.errors import InputError
from experiments.cli_given import Given
from experiments.cli_hints import did_you_mean, wrong_choice
from experiments.cli_precheck import classes_given, place_of, with_members

PATIENT = ("loss", "accuracy", "auc")
STAGES = ("kappa", "macro_f1", "mae_stages")
SCALED = ("loss_scaled", "temperature")
WHOLE = tuple(f"valid/{name}" for name in (*PATIENT, *STAGES, *SCALED))
SLICES = tuple(f"valid/{before}{name}" for before in ("", "slice_") for name in (*PATIENT, *STAGES))
LOGGED = {
    "lightning_modules.segmentation.SegmentationModule": ("valid/dice",),
    "lightning_modules.direct_classification.DirectClassificationModule": WHOLE,
    "lightning_modules.masked_classification.MaskedClassificationModule": WHOLE,
    "lightning_modules.staging.StagingModule": WHOLE,
    "lightning_modules.slice_classification.SliceClassificationModule": SLICES,
}
"""What each module logs in validation; ``train/loss`` comes with all of them."""
WATCHERS = ("ModelCheckpoint", "EarlyStopping")
MODES = ("min", "max")


def check_monitors(given: Sequence[Given]) -> None:
    """Refuse a ``monitor`` that the module does not log, and a ``mode`` that is none.

    Args:
        given: All that was given.

    Raises:
        InputError: The first fault.
    """
    given = with_members(given)
    classes = classes_given(given)
    module = classes["model"][-1][1] if "model" in classes else ""
    if module not in LOGGED:
        return
    known = ("train/loss", *LOGGED[module])
    for owner, paths in classes.items():
        if not owner.startswith("trainer.callbacks") or paths[-1][1].rpartition(".")[2] not in WATCHERS:
            continue
        last = {item.key: item for item in given if item.key.startswith(f"{owner}.init_args.")}
        monitor, mode = (last.get(f"{owner}.init_args.{name}") for name in ("monitor", "mode"))
        # what was measured of the run's speed is logged too
        if (
            monitor is not None
            and isinstance(monitor.value, str)
            and monitor.value not in known
            and not monitor.value.startswith("speed/")
        ):
            name = module.rpartition(".")[2]
            near = did_you_mean(monitor.value, known) or f"it logs {', '.join(known)}"
            raise InputError(f"{place_of(monitor)}: {monitor.value!r} is not logged by {name}; {near.strip()}")
        if mode is not None and mode.value not in MODES:
            raise InputError(f"{place_of(mode)}: {wrong_choice(mode.value, [', '.join(MODES)])}")
