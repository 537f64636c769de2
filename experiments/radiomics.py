"""The radiomics baseline: features of the liver, scikit-learn classifiers, and the record that ``compare`` reads."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from callbacks.provenance import provenance_record
from callbacks.run_directory import Identity, RunDirectory
from datamodules.cohort import Cohort
from datamodules.errors import InputError
from datamodules.examinations import Examination, examinations
from datamodules.files import sha256_of_file, sha256_of_json, write_json, write_text
from datamodules.honesty import honesty_faults
from datamodules.masks import RECORD, MaskSet, quality_band
from datamodules.opening import check_masks, opened
from datamodules.records import write_records
from datamodules.splits import Splits
from experiments.radiomics_features import FeatureSettings, versions
from experiments.radiomics_models import PRESENT, Fitted, fit
from experiments.radiomics_table import TABLE, feature_table, wanted_rows
from lightning_modules.metrics.operating_point import youden_threshold


@dataclasses.dataclass(frozen=True)
class RadiomicsStudy:
    """What is asked for.

    Attributes:
        cohort: The cohort table.
        splits: The split file.
        out: The study's folder; each model is an arm below it.
        models: From ``experiments.radiomics_models.MODELS``.
        sequences: Whose features are used; empty for all of the cohort.
        mask_source: ``reference``, ``out_of_fold`` or ``external``.
        masks: Folder of predicted masks, or None for the reference.
        settings: How features are computed.
        arm: Begin of the arms' names.
        folds: Folds to run; None for all.
        seeds: Seeds of inner cross-validation and models.
        kept: Folder where features are kept; ``radiomics`` beside the arms where None.
        workers: Processes for the features.
        progress: Show a progress bar.
    """

    cohort: Path
    splits: Path
    out: Path
    models: tuple[str, ...]
    sequences: tuple[str, ...] = ()
    mask_source: str = "reference"
    masks: Path | None = None
    settings: FeatureSettings = dataclasses.field(default_factory=FeatureSettings)
    arm: str = "radiomics"
    folds: tuple[int, ...] | None = None
    seeds: tuple[int, ...] = (0,)
    kept: Path | None = None
    workers: int = 1
    progress: bool = True


@dataclasses.dataclass(frozen=True)
class _Material:
    """What all cells share: examinations and their features.

    Attributes:
        cohort: The cohort, of which the sequences are taken.
        splits: The split.
        sequences: The sequences, in order.
        masks: Predicted masks, or None.
        items: All examinations of patients that are in a part of a fold that is run, by scan id.
        features: One row an examination, indexed by its scan id: features of each sequence, and its presence.
        empty: Examinations of which a mask held no liver.
    """

    cohort: Cohort
    splits: Splits
    sequences: tuple[str, ...]
    masks: MaskSet | None
    items: dict[str, Examination]
    features: pd.DataFrame
    empty: frozenset[str]


def run_radiomics(study: RadiomicsStudy, arguments: Sequence[str], say: Callable[[str], None]) -> list[RunDirectory]:
    """Compute the features that are missing, then train and test what is not done yet.

    Args:
        study: What is asked for.
        arguments: Words of the command, for the provenance.
        say: Called with each line of progress.

    Returns:
        The run directories, one for each model, fold and seed.

    Raises:
        InputError: The request is wrong, masks leak, or a file cannot be used: all faults.
    """
    check_masks(study.mask_source, None if study.masks is None else str(study.masks))
    whole = Cohort.load(study.cohort)
    sequences = study.sequences or tuple(dict.fromkeys(sorted(scan.sequence for scan in whole)))
    cohort, splits = opened(str(study.cohort), str(study.splits), 0, sequences)
    if splits is None:
        raise InputError("--splits is missing; make a split with 'hepastage split make'")
    masks = None if study.masks is None else MaskSet.load_for(study.mask_source, study.masks)
    folds = tuple(range(len(splits.folds))) if study.folds is None else study.folds
    for fold in folds:
        splits.fold(fold)
    _check_honesty(cohort, splits, folds, study.mask_source, masks)
    material = _material(study, cohort, splits, sequences, masks, folds, say)
    runs = []
    for model in study.models:
        for fold in folds:
            for seed in study.seeds:
                runs.append(_cell(study, material, model, fold, seed, arguments, say))
    return runs


def _check_honesty(
    cohort: Cohort, splits: Splits, folds: Sequence[int], mask_source: str, masks: MaskSet | None
) -> None:
    """Labels and masks of every part, before anything is computed.

    Raises:
        InputError: See ``datamodules.honesty``.
    """
    targets = {part: rule.apply(cohort).target if rule.has_target else {} for part, rule in _rules(splits).items()}
    if not splits.label_rule.has_target:
        raise InputError(f"{cohort.name}: the rule {splits.rule} gives no target; make the split with another --rule")
    faults: dict[str, None] = {}
    for number in folds:
        fold = splits.fold(number)
        if not fold.test:
            raise InputError(f"fold {number} of the split has no test patients; give the split that they are in")
        for part, patients in fold.parts.items():
            scans = [scan for scan in cohort if scan.patient_id in set(patients)]
            found = honesty_faults(
                scans, targets[part], _rules(splits)[part], part, cohort.name, mask_source, masks, fold.test
            )
            if patients and not scans:
                found = [f"{cohort.name}: fold {number} has no scan of these sequences in its {part} part"]
            faults |= dict.fromkeys(found)
    if faults:
        raise InputError(*faults)


def _rules(splits: Splits) -> dict[str, Any]:
    return {"train": splits.label_rule, "valid": splits.label_rule, "test": splits.test_label_rule}


def _material(
    study: RadiomicsStudy,
    cohort: Cohort,
    splits: Splits,
    sequences: tuple[str, ...],
    masks: MaskSet | None,
    folds: Sequence[int],
    say: Callable[[str], None],
) -> _Material:
    patients = {patient for fold in folds for part in splits.fold(fold).parts.values() for patient in part}
    scans = [scan for scan in cohort if scan.patient_id in patients]
    without = sorted(patients - {scan.patient_id for scan in scans})
    if without:
        say(f"{len(without)} patients of the split have no {'/'.join(sequences)} scan: {', '.join(without)}")
    items = {item.scan_id: item for item in examinations(scans, sequences, cohort.name)}
    kept = study.out / "radiomics" if study.kept is None else study.kept
    rows = wanted_rows(scans, masks, study.settings)
    table, computed = feature_table(rows, kept, study.settings, study.workers, study.progress)
    say(f"{len(scans)} scans, {table.shape[1]} features each; {computed} computed now, kept in {kept / TABLE}")
    parts = []
    for place, sequence in enumerate(sequences):
        chosen = {key: item.scans[place] for key, item in items.items()}
        part = table.reindex([None if scan is None else scan.scan_id for scan in chosen.values()])
        part.index = pd.Index(list(chosen))
        part.columns = [f"{sequence}_{name}" for name in part.columns]
        parts.append(part)
        if len(sequences) > 1:
            there = [float(scan is not None) for scan in chosen.values()]
            parts.append(pd.DataFrame({f"{PRESENT}{sequence}": there}, index=part.index))
            missing = int(len(there) - sum(there))
            if missing:
                say(
                    f"{missing} of {len(there)} examinations have no {sequence}: its features are the training "
                    f"patients' medians there, and {PRESENT}{sequence} says so"
                )
    nothing = {scan.scan_id for scan in scans if table.loc[scan.scan_id].isna().all()}
    empty = frozenset(key for key, item in items.items() if any(s.scan_id in nothing for s in item.present_scans))
    if empty:
        say(f"{len(empty)} examinations with an empty mask have no features of it: {', '.join(sorted(empty))}")
    return _Material(cohort, splits, sequences, masks, items, pd.concat(parts, axis=1), empty)


def _cell(
    study: RadiomicsStudy,
    material: _Material,
    model: str,
    fold: int,
    seed: int,
    arguments: Sequence[str],
    say: Callable[[str], None],
) -> RunDirectory:
    """Train and test one model on one fold with one seed, unless that is done."""
    arm = f"{study.arm}-{model}"
    config = {
        "command": "radiomics",
        "model": model,
        "sequences": list(material.sequences),
        "mask_source": study.mask_source,
        "features": study.settings.as_json(),
        "fold": fold,
        "seed_everything": seed,
    }
    masks_sha256 = "" if material.masks is None else sha256_of_file(material.masks.folder / RECORD)
    contents = {
        "config": config,
        "cohort": material.splits.cohort_sha256,
        "split": material.splits.sha256,
        "masks": masks_sha256,
        "versions": {**versions(), "scikit-learn": version("scikit-learn")},
    }
    classes = len(material.splits.label_rule.class_names)
    identity = Identity(
        study=study.out.absolute().name,
        arm=arm,
        role="classifier" if classes == 2 else "staging",
        seed=seed,
        fold=fold,
        cell=sha256_of_json(contents)[:12],
        split_sha256=material.splits.sha256,
        cohort_sha256=material.splits.cohort_sha256,
    )
    run = RunDirectory.of_cell(study.out.absolute().parent, identity.study, arm, identity.cell)
    title = f"{arm}, fold {fold}, seed {seed}"
    if "test" in run.finished():
        say(f"{title}: done before")
        return run
    write_text(run.config, yaml.safe_dump({**config, "study": identity.study, "arm": arm}, sort_keys=False))
    record = provenance_record(identity, sha256_of_json(config), ["radiomics", *arguments], accelerators=False)
    record["versions"] |= contents["versions"]
    write_json(run.provenance, record)
    fitted = _fitted(material, model, fold, seed)
    run.mark_done("fit", parameters=dict(fitted.parameters), inner_loss=fitted.inner_loss)
    valid = _predicted(material, fitted, fold, "valid", study.mask_source)
    threshold = 0.5
    if classes == 2:
        chances = valid["prob"].to_numpy(dtype=float)
        threshold = youden_threshold(valid["target"].to_numpy(), np.stack([1 - chances, chances], axis=1))
    for part, path in (("valid", run.validation), ("test", run.predictions)):
        rows = valid if part == "valid" else _predicted(material, fitted, fold, part, study.mask_source)
        if classes == 2:
            rows["threshold"] = threshold
        facts = {key: getattr(identity, key) for key in ("study", "arm", "role", "seed", "fold", "split_sha256")}
        write_records(rows.assign(**facts), path)
    write_json(
        run.path / "model.json",
        {"parameters": dict(fitted.parameters), "features": list(fitted.features), "inner_loss": fitted.inner_loss,
         "inner_folds": fitted.folds, "threshold": threshold if classes == 2 else None},
    )  # fmt: skip
    run.mark_done("test", patients=len(set(rows["patient_id"])))
    chosen = ", ".join(f"{key} {value}" for key, value in fitted.parameters.items())
    say(f"{title}: {chosen}; inner loss {fitted.inner_loss:.3f}; {len(rows)} test examinations")
    return run


def _members(material: _Material, fold: int, part: str) -> list[str]:
    patients = set(material.splits.fold(fold).parts[part])
    return [key for key, item in material.items.items() if item.patient_id in patients]


def _fitted(material: _Material, model: str, fold: int, seed: int) -> Fitted:
    keys = _members(material, fold, "train")
    target = material.splits.label_rule.apply(material.cohort).target
    patients = [material.items[key].patient_id for key in keys]
    return fit(model, material.features.loc[keys], np.array([target[patient] for patient in patients]), patients, seed)


def _predicted(material: _Material, fitted: Fitted, fold: int, part: str, mask_source: str) -> pd.DataFrame:
    """Columns of the record for the examinations of a part, but for the cell's own."""
    rule = _rules(material.splits)[part]
    target = rule.apply(material.cohort).target
    classes = len(material.splits.label_rule.class_names)
    keys = _members(material, fold, part)
    probability = np.zeros((len(keys), classes))
    # a class that no training patient has is never predicted
    probability[:, fitted.pipeline.classes_] = fitted.pipeline.predict_proba(material.features.loc[keys])
    rows = []
    for key, chances in zip(keys, probability, strict=True):
        item = material.items[key]
        first = item.present_scans[0]
        row: dict[str, Any] = {
            "patient_id": item.patient_id,
            "scan_id": key,
            "source": first.source,
            "sequence": "+".join(scan.sequence for scan in item.present_scans),
            "sex": first.sex,
            "age": first.age,
            "part": part,
            "target": target[item.patient_id],
            "mask_source": mask_source,
            "x_empty_mask": key in material.empty,
            **_quality(material, item),
        }
        bounded = np.clip(chances, 1e-7, 1 - 1e-7)
        if classes == 2:
            row |= {"prob": chances[1], "logit": math.log(bounded[1] / (1 - bounded[1]))}
        else:
            row |= {f"prob_{number}": value for number, value in enumerate(chances)}
            row |= {f"logit_{number}": math.log(value) for number, value in enumerate(bounded)}
        rows.append(row)
    return pd.DataFrame(rows)


def _quality(material: _Material, item: Examination) -> dict[str, Any]:
    """Band and Dice of the masks in use; a reader's band where the reference is used."""
    if material.masks is None:
        bands = [scan.quality for scan in item.present_scans if scan.quality is not None]
        return {"quality": min(bands) if bands else None}
    records = [material.masks.masks[scan.scan_id] for scan in item.present_scans]
    if len(records) == 1:
        return {"quality": records[0].quality, "mask_dice": records[0].dice}
    known = [record.dice for record in records if record.dice is not None]
    mean = sum(known) / len(known) if known else None
    return {"quality": quality_band(mean), "mask_dice": mean}
