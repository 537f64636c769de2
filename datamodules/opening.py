"""What a data module is given is opened and held together here: cohort, split, fold, sequences, rules. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from datamodules.cohort import Cohort
from datamodules.errors import InputError
from datamodules.labels import LabelRule, parse_rule
from datamodules.splits import Splits


def check_loading(batch_size: int, workers: int | str) -> None:
    """Refuse numbers with which nothing can be loaded.

    Args:
        batch_size: Items of a batch.
        workers: Loader processes, or ``auto``.

    Raises:
        InputError: One of them is too small.
    """
    if batch_size < 1:
        raise InputError(f"data.init_args.batch_size is {batch_size}; give 1 or more")
    if workers != "auto" and (not isinstance(workers, int) or workers < 0):
        raise InputError(f"data.init_args.workers is {workers}; give 0 or more, or auto")


def opened(cohort: str, splits: str | None, fold: int, sequences: Sequence[str]) -> tuple[Cohort, Splits | None]:
    """Load the cohort, of which the sequences are taken, and the split file.

    Args:
        cohort: The cohort table.
        splits: The split file, or None.
        fold: Fold of the split file, counted from 0.
        sequences: Sequences to use.

    Raises:
        InputError: A file cannot be used, or there is no such sequence or fold.
    """
    whole = Cohort.load(cohort)
    selected = whole.select(sequences=sequences)
    split = None if splits is None else Splits.load(Path(splits), whole)
    if split is not None and not 0 <= fold < len(split.folds):
        raise InputError(f"{splits}: no fold {fold}; it has folds 0 to {len(split.folds) - 1}")
    return selected, split


def label_rules(splits: Splits | None, rule: str | None, test_rule: str | None) -> tuple[LabelRule, LabelRule]:
    """The rules of train and valid parts, and of the test part: the split's, which what is given must equal.

    Args:
        splits: The split, or None.
        rule: As configured, or None.
        test_rule: As configured, or None.

    Raises:
        InputError: A rule differs from the split's, or there is neither.
    """
    if splits is None:
        if rule is None:
            raise InputError("data.init_args.rule is not set, and there is no split to take it from; set one")
        return parse_rule(rule), parse_rule(test_rule or rule)
    own, own_test = splits.label_rule, splits.test_label_rule
    for key, given, expected in (("rule", rule, own), ("test_rule", test_rule, own_test)):
        if given is not None and parse_rule(given) != expected:
            raise InputError(
                f"data.init_args.{key} is {given}, but the split was made with {expected}; leave it out, or make "
                "a split with this rule"
            )
    return own, own_test


def check_masks(mask_source: str, masks: str | None) -> None:
    """Refuse a folder of masks that would be ignored, and one that is missing.

    Args:
        mask_source: ``none``, ``reference``, ``out_of_fold``, ``external`` or ``perturbed``.
        masks: Folder of predicted masks, or None.

    Raises:
        InputError: Source and folder contradict each other.
    """
    if mask_source in ("none", "reference"):
        if masks is not None:
            raise InputError(
                f"data.init_args.masks={masks} would be ignored with mask_source {mask_source}; "
                "remove it or set mask_source to out_of_fold"
            )
    elif masks is None and mask_source != "perturbed":
        raise InputError(f"data.init_args.masks is not set, and mask_source {mask_source} needs a folder of masks")
