"""The digital liver phantom: a synthetic cohort of liver MRI whose truth is known.

What is modelled: a torso with liver (right and left lobe, caudate, own vessels, fissure), spleen,
kidneys, spine, great vessels, stomach, bowel, gallbladder, pancreas, lungs, heart and fat, bent and
scaled from patient to patient; T1W and T2W signal from the spoiled gradient-echo and spin-echo
equations with published relaxation times at 1.5 T and 3 T; a latent severity that drives reticular
texture, surface nodules, caudate growth and right-lobe shrinkage, and weakly spleen and ascites;
partial volume across slices, coil sensitivity, Rician noise, breathing shift between sequences,
differing grids, orientations and integer types.

What is not modelled: motion within a scan, chemical shift, fat suppression, contrast agent, focal
lesions, iron or fat as a disease, varices, pathologies of other organs, the point spread of a real
turbo spin echo. Shapes are formulas, not people: a method that works here has shown that it can find
such a signal, not that patients carry it.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from pathlib import Path
from typing import Any

import pandas as pd

from datamodules.cohort import Cohort
from datamodules.errors import InputError
from datamodules.files import atomic_path, read_json, write_json
from datamodules.phantom_plan import PatientPlan, plan_patients
from datamodules.phantom_scan import make_patient
from datamodules.phantom_severity import PhantomStrength
from datamodules.phantom_texture import phantom_texture

__all__ = ["PhantomStrength", "make_phantom", "phantom_texture"]

FORMAT = 1
"""Raised with every change that alters the bytes written for the same seed."""
SEQUENCES = ("T1W", "T2W")


def make_phantom(
    out: Path,
    patients: int,
    seed: int,
    *,
    shortcut: bool = False,
    shortcut_agreement: float = 0.95,
    shortcut_in_test: bool = False,
    sources: Sequence[str] = ("site_a", "site_b"),
    sequences: Sequence[str] = ("T2W", "T1W"),
    detail: float = 1.0,
    test_fraction: float = 0.4,
    strength: PhantomStrength | None = None,
    workers: int | None = None,
    progress: bool = True,
) -> Cohort:
    """Make a phantom cohort and write it.

    Writes ``out/images/<scan id>.nii.gz``, ``out/masks/<scan id>.nii.gz`` (1 = liver),
    ``out/truth.csv`` (what no model may see: the latent severity, the marker, the liver's volume),
    ``out/phantom.json`` (the parameters), and last ``out/cohort.parquet``. The same parameters give
    the same bytes, whatever ``workers`` is; a patient looks the same whatever ``patients`` is.

    Args:
        out: The cohort's folder; made if missing.
        patients: Number of patients, at least 1.
        seed: Seed of everything, at least 0.
        shortcut: Plant an extra-hepatic shortcut: a bright skin marker at the patient's left front.
            Among training patients it goes with LSM > 12 kPa; among test patients it lies on half of
            either class. Anatomy, labels, split and noise stay as they are without it.
        shortcut_agreement: Share of the training patients whose marker agrees with their label.
        shortcut_in_test: The marker agrees with the label among test patients as well, as it would in a test set
            from the same hospital. Training patients are those of the cohort without this.
        sources: Names of the sources, dealt to the patients in turn; 1.5 T and 3 T alternate.
        sequences: Any of ``T2W`` and ``T1W``. With both, about 15 % of the patients lack T1W.
        detail: In-plane resolution relative to the quick default (about 144 × 112 voxels of 2.3 mm);
            2 is near a clinical scan. In [0.5, 3].
        test_fraction: Share of patients whose ``official_split`` is ``test``, in [0, 1); exactly
            ``round(test_fraction * patients)``, stratified by LSM > 12 kPa and source.
        strength: How strongly severity shows; None for the default.
        workers: Processes; None for one a core. They are spawned, so a script that calls this with
            more than one needs an ``if __name__ == "__main__"`` guard.
        progress: Show a progress bar on stderr.

    Returns:
        The cohort, loaded from the file written.

    Raises:
        InputError: A parameter is out of range, or the folder holds another cohort.
    """
    out = Path(out)
    strength = strength or PhantomStrength()
    sources, sequences = tuple(sources), tuple(sequences)
    _check(patients, seed, shortcut_agreement, sources, sequences, detail, test_fraction, workers)
    parameters: dict[str, Any] = {
        "format": FORMAT,
        "patients": patients,
        "seed": seed,
        "shortcut": shortcut,
        "shortcut_agreement": shortcut_agreement,
        "sources": list(sources),
        "sequences": list(sequences),
        "detail": detail,
        "test_fraction": test_fraction,
        "strength": dataclasses.asdict(strength),
    }
    if shortcut_in_test:
        if not shortcut:
            raise InputError("shortcut_in_test: there is no shortcut; ask for one as well")
        # only where it is asked for: older folders have no such key
        parameters["shortcut_in_test"] = True
    _claim(out, parameters)
    table = out / "cohort.parquet"
    if table.is_file():
        # written last: the cohort of these very parameters is whole, unless somebody removed a scan
        cohort = Cohort.load(table)
        if all(path is not None and path.is_file() for scan in cohort.scans for path in (scan.image, scan.mask)):
            return cohort
    plans = plan_patients(
        patients,
        seed,
        sources=sources,
        sequences=sequences,
        test_fraction=test_fraction,
        shortcut=shortcut,
        shortcut_agreement=shortcut_agreement,
        shortcut_in_test=shortcut_in_test,
    )
    volumes = {
        plan.patient_id: volume
        for plan, volume in zip(plans, _made(plans, out, seed, detail, strength, workers, progress), strict=True)
    }
    _write_truth(out, plans, volumes)
    frame = pd.DataFrame([row for plan in plans for row in _rows(plan)])
    Cohort(frame, out, str(table)).save(table)
    return Cohort.load(table)


def _check(
    patients: int,
    seed: int,
    agreement: float,
    sources: tuple[str, ...],
    sequences: tuple[str, ...],
    detail: float,
    test_fraction: float,
    workers: int | None,
) -> None:
    faults = []
    if patients < 1:
        faults.append(f"patients: {patients} is too few; ask for at least 1")
    if seed < 0:
        faults.append(f"seed: {seed} is negative; give a whole number from 0")
    if not 0.0 <= agreement <= 1.0:
        faults.append(f"shortcut_agreement: {agreement} is not a share; give a number from 0 to 1")
    if not sources or len(set(sources)) != len(sources) or not all(source.strip() for source in sources):
        faults.append(f"sources: {', '.join(sources) or 'none'}; name one or more, each once")
    unknown = [name for name in sequences if name not in SEQUENCES]
    if unknown or not sequences or len(set(sequences)) != len(sequences):
        faults.append(f"sequences: {', '.join(sequences) or 'none'}; the phantom has T2W and T1W, each once")
    if not 0.5 <= detail <= 3.0:
        faults.append(f"detail: {detail} is out of range; give a number from 0.5 to 3")
    if not 0.0 <= test_fraction < 1.0:
        faults.append(f"test_fraction: {test_fraction} is out of range; give a number from 0 to below 1")
    if workers is not None and workers < 1:
        faults.append(f"workers: {workers} is too few; ask for at least 1")
    if faults:
        raise InputError(*faults)


def _claim(out: Path, parameters: dict[str, Any]) -> None:
    """Write the parameters into the folder, or stop where it belongs to another cohort."""
    record, table = out / "phantom.json", out / "cohort.parquet"
    if record.exists():
        other = read_json(record, "the parameters of a phantom cohort")
        if other != parameters:
            known = other if isinstance(other, dict) else {}
            differing = [name for name in parameters if known.get(name) != parameters[name]]
            raise InputError(
                f"{out}: holds a phantom made with another {', '.join(differing) or 'set of parameters'}; "
                "choose another --out or delete the folder"
            )
    elif table.exists():
        raise InputError(f"{table}: a cohort that is no phantom; choose another --out")
    write_json(record, parameters)


def _made(
    plans: Sequence[PatientPlan],
    out: Path,
    seed: int,
    detail: float,
    strength: PhantomStrength,
    workers: int | None,
    progress: bool,
) -> Iterator[dict[str, float]]:
    """Make all patients, and give the liver's volume in ml by scan id, in the order of the plans."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    count = min(len(plans), workers or _cores())
    columns = (TextColumn("phantom patients"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not progress) as bar:
        task = bar.add_task("phantom", total=len(plans))
        if count == 1:
            for plan in plans:
                yield make_patient(plan, out, seed, detail, strength)
                bar.advance(task)
            return
        # spawn: a fork of a process that has started threads (torch does) may hang
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(count, mp_context=context) as pool:
            futures = [pool.submit(make_patient, plan, out, seed, detail, strength) for plan in plans]
            for future in futures:
                future.add_done_callback(lambda _: bar.advance(task))
            failed = next((f for f in wait(futures, return_when=FIRST_EXCEPTION).done if f.exception()), None)
            if failed is not None:
                pool.shutdown(cancel_futures=True)
                failed.result()
            for future in futures:
                yield future.result()


def _cores() -> int:
    """Cores this process may use (a cluster's allotment is often smaller than the machine)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _rows(plan: PatientPlan) -> Iterator[dict[str, object]]:
    for sequence in plan.sequences:
        scan_id = f"{plan.patient_id}_{sequence}"
        yield {
            "scan_id": scan_id,
            "patient_id": plan.patient_id,
            "sequence": sequence,
            "image": f"images/{scan_id}.nii.gz",
            "mask": f"masks/{scan_id}.nii.gz",
            "mask_labels": "1",
            "source": plan.source,
            "visit": "1",
            "stage": plan.findings.stage,
            "lsm_kpa": plan.findings.lsm_kpa,
            "metavir": plan.findings.metavir,
            "healthy": False,
            "age": plan.findings.age,
            "sex": plan.findings.sex,
            "official_split": "test" if plan.test else "train",
        }


def _write_truth(out: Path, plans: Sequence[PatientPlan], volumes: dict[str, dict[str, float]]) -> None:
    rows = [
        {
            "scan_id": scan_id,
            "patient_id": plan.patient_id,
            "marker": plan.marker,
            "liver_volume_ml": round(volume, 1),
            **{
                f"severity{'' if name == 'severity' else '_' + name}": round(getattr(plan.findings, name), 4)
                for name in ("severity", "texture", "nodularity", "shape", "spleen", "ascites")
            },
        }
        for plan in plans
        for scan_id, volume in volumes[plan.patient_id].items()
    ]
    with atomic_path(out / "truth.csv") as temporary:
        pd.DataFrame(rows).to_csv(temporary, index=False)
