"""Our segmenter beside nnU-Net v2's and a plain MONAI loop: time per iteration, Dice over seeds, and inference.

    python -m benchmarks.segmentation train --scans chaos_t2 [--iterations 250] [--seeds 3] [--out DIR]
    python -m benchmarks.segmentation predict --out DIR

Both train on the same patients with the same patch, batch, network and number of iterations: ours as
``hepastage fit -c segmentation`` does in bf16, nnU-Net with its own trainer, augmentation and optimiser. They take
turns on the whole machine (benchmarks/turns.py), on as many threads as ``OMP_NUM_THREADS`` says. With ``--monai`` a
plain MONAI loop takes part in the first seed (benchmarks/monai_peer.py), for its time alone. Needs nnunetv2, which
``.[dev]`` installs. Without ``--scans`` phantom patients are made.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.turns import Contestant, Diary, spread, take_turns

TEST_PATIENTS = 4
EPOCH = 10  # iterations
WHO = {"ours": "ours", "peer": "nnU-Net", "monai": "MONAI"}
PATCH, SPACING, BATCH = (64, 64, 32), (5.0, 5.0, 7.7), 2


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["train", "predict", *WHO], help="the last three are for the script")
    parser.add_argument("--scans", type=Path, help="folder with image_N.nii.gz and label_N.nii.gz, 1 is liver")
    parser.add_argument("--out", type=Path, default=Path(tempfile.gettempdir()) / "hepastage-segmentation")
    parser.add_argument("--iterations", type=int, default=250)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--turn", type=float, default=30.0, help="seconds of a turn")
    parser.add_argument("--rounds", type=int, default=2, help="of predicting each held-out scan")
    parser.add_argument("--enough", type=int, help="stop at so many measured iterations each, without Dice")
    parser.add_argument("--monai", action="store_true", help="a plain MONAI loop takes part")
    options = parser.parse_args()
    out: Path = options.out.absolute()
    roles = {"train": _train, "predict": _predict, "ours": _ours, "peer": _peer, "monai": _monai}
    roles[options.what](out, options)


def _train(out: Path, options: argparse.Namespace) -> None:
    from benchmarks import nnunet_peer
    from datamodules.cohort import Cohort
    from datamodules.splits import Splits

    out.mkdir(parents=True, exist_ok=True)
    console = Console()
    if not (out / "splits.json").is_file():
        _make_cohort(out, options.scans)
    cohort = Cohort.load(out / "cohort.parquet")
    fold = Splits.load(out / "splits.json", cohort).folds[0]
    work = _our_work()
    nnunet_peer.prepare(out, cohort, fold, SPACING, work)
    ratios: list[float] = []
    busy: list[float] = []
    rows: list[tuple[dict[str, float], dict[str, float]]] = []
    for seed in range(options.seeds):
        contestants = [
            Contestant(
                name, _command(name, out, seed, options), out / f"{name}_{seed}.jsonl", out / f"{name}_{seed}.log"
            )
            for name in WHO
            if name != "monai" or (options.monai and seed == 0)
        ]
        for contestant in contestants:
            contestant.diary.unlink(missing_ok=True)
        take_turns(contestants, options.turn, options.enough)
        clock = {item.name: statistics.median(item.iterations()) for item in contestants}
        used = {item.name: statistics.mean(item.processor()) for item in contestants}
        for item in contestants:
            own = f"ours / this {clock['ours'] / clock[item.name]:.3f}"
            own += f"; processor time, loaders included, {used[item.name]:.3f} s, {used['ours'] / used[item.name]:.3f}"
            console.print(f"seed {seed}: {WHO[item.name]} {spread(item.iterations())} s, {own}")
        ratios.append(clock["ours"] / clock["peer"])
        busy.append(used["ours"] / used["peer"])
        if options.enough is None:
            rows.append((_dice_ours(out, seed), _dice_peer(out, seed, cohort, sorted(fold.test))))
            console.print(f"  Dice by patient: ours {rows[-1][0]}, nnU-Net {rows[-1][1]}")
    table = Table(
        "seed", "ratio by the clock", "of processor time", "Dice ours", "Dice nnU-Net", title="Training beside nnU-Net"
    )
    for seed, ratio in enumerate(ratios):
        dices = [f"{statistics.mean(item.values()):.4f}" for item in rows[seed]] if rows else ["", ""]
        table.add_row(str(seed), f"{ratio:.3f}", f"{busy[seed]:.3f}", *dices)
    console.print(table)
    if rows:
        ours, peer = ([statistics.mean(row[index].values()) for row in rows] for index in (0, 1))
        console.print(f"mean Dice: ours {statistics.mean(ours):.4f}, nnU-Net {statistics.mean(peer):.4f}")
    (out / "train.json").write_text(json.dumps({"ratios": ratios, "processor": busy, "dice": rows}), encoding="utf-8")


def _make_cohort(out: Path, scans: Path | None) -> None:
    """The cohort table, and a split: four patients held out, one for validation (unused), the others train."""
    from datamodules.cohort import Cohort
    from experiments.cli import main as hepastage

    if scans is None:
        words = ["cohort", "phantom", "--out", str(out / "phantom"), "--patients", "24", "--seed", "0"]
        assert hepastage(words) == 0
        (out / "cohort.parquet").symlink_to(out / "phantom" / "cohort.parquet")
    else:
        words = ["cohort", "nifti", str(scans), "--image", "image_{id}.nii.gz", "--mask", "label_{id}.nii.gz"]
        words += ["--mask-label", "1", "--sequence", "T2W", "--source", "scans", "--out", str(out / "cohort.parquet")]
        assert hepastage(words) == 0
    patients = sorted({scan.patient_id for scan in Cohort.load(out / "cohort.parquet").scans})
    held = patients[::2][:TEST_PATIENTS]
    valid = next(patient for patient in patients if patient not in held)
    words = ["split", "make", str(out / "cohort.parquet"), "--test-patients", ",".join(held)]
    words += ["--valid-patients", valid, "--out", str(out / "splits.json")]
    assert hepastage(words) == 0


def _our_work() -> dict[str, Any]:
    import yaml

    folder = Path(__file__).parent.parent / "experiments" / "configs"
    network = yaml.safe_load((folder / "segmentation.yaml").read_text(encoding="utf-8"))
    settings = network["model"]["init_args"]["network"]["init_args"]
    return {"patch": PATCH, "batch_size": BATCH, **settings}


def _command(name: str, out: Path, seed: int, options: argparse.Namespace) -> list[str]:
    words = [sys.executable, "-m", "benchmarks.segmentation", name, "--out", str(out), "--seed", str(seed)]
    return [*words, "--iterations", str(options.iterations if name != "monai" else min(options.iterations, 60))]


def _words(out: Path, seed: int, iterations: int) -> list[str]:
    data = "--data.init_args"
    return [
        "-c", "segmentation", "--trainer.precision", "bf16-mixed", "--study", f"seed{seed}", "--arm", "ours",
        "--runs", str(out / "runs"),
        "--seed_everything", str(seed), "--trainer.max_epochs", str(iterations // EPOCH),
        "--trainer.check_val_every_n_epoch", str(iterations // EPOCH),
        f"{data}.cohort", str(out / "cohort.parquet"), f"{data}.splits", str(out / "splits.json"),
        f"{data}.store", str(out / "store"), f"{data}.patches_per_epoch", str(EPOCH * BATCH),
        f"{data}.preprocessing.spacing", json.dumps(SPACING), f"{data}.patch", json.dumps(PATCH),
        f"{data}.batch_size", str(BATCH), "--model.init_args.window", json.dumps(PATCH),
    ]  # fmt: skip


def _ours(out: Path, options: argparse.Namespace) -> None:
    """Train and test as the command line does, with a diary."""
    from lightning.pytorch import Callback

    from experiments.lightning_cli import parsed
    from experiments.run_stages import evaluate, fit

    book = Diary(out / f"ours_{options.seed}.jsonl")

    class Watch(Callback):
        def on_train_epoch_start(self, *unused: object) -> None:
            book.pause()

        def on_train_batch_end(self, *unused: object) -> None:
            book.tick()

    cli = parsed("fit", _words(out, options.seed, options.iterations))
    cli.trainer.callbacks.append(Watch())  # type: ignore[attr-defined]  # Lightning's trainer keeps a list there
    fit(cli)
    words = ["-c", str(cli.directory.config), "--runs", str(out / "runs")]
    evaluate(parsed("test", words), "test", "last", verbose=False)


def _peer(out: Path, options: argparse.Namespace) -> None:
    from benchmarks import nnunet_peer

    nnunet_peer.train(out, options.seed, options.iterations // EPOCH, EPOCH, out / f"peer_{options.seed}.jsonl")


def _monai(out: Path, options: argparse.Namespace) -> None:
    from benchmarks import monai_peer
    from datamodules.cohort import Cohort
    from datamodules.splits import Splits

    cohort = Cohort.load(out / "cohort.parquet")
    fold = Splits.load(out / "splits.json", cohort).folds[0]
    monai_peer.train(cohort, fold, SPACING, _our_work(), options.iterations, out / f"monai_{options.seed}.jsonl")


def _dice_ours(out: Path, seed: int) -> dict[str, float]:
    import pandas as pd

    (record,) = (out / "runs" / f"seed{seed}" / "ours").glob("*/predictions.parquet")
    frame = pd.read_parquet(record)
    return dict(zip(frame["scan_id"].astype(str), frame["dice"].astype(float).round(4).tolist(), strict=True))


def _dice_peer(out: Path, seed: int, cohort: Any, patients: list[str]) -> dict[str, float]:
    from benchmarks import nnunet_peer
    from datamodules.images import read_mask
    from lightning_modules.metrics.segmentation import dice

    made = nnunet_peer.predictor(out, seed, mirror=True)
    result = {}
    for scan in cohort.scans:
        if scan.patient_id in patients:
            file = nnunet_peer.predict(made, scan.image, out / "peer_masks" / str(seed) / scan.scan_id)
            reference = read_mask(scan.mask, scan.mask_labels).data
            result[scan.scan_id] = round(float(dice(read_mask(file, (1,)).data, reference)), 4)
    return result


def _predict(out: Path, options: argparse.Namespace) -> None:
    """nnU-Net's trained model, by its predictor and imported into hepastage: file to file, in turns."""
    import torch

    from benchmarks import monai_peer, nnunet_peer
    from datamodules.cohort import Cohort
    from datamodules.images import read_image, read_mask, write_nifti
    from datamodules.splits import Splits
    from experiments.cli import main as hepastage
    from experiments.inference import Inference, mask_of
    from experiments.nnunet_segmenter import ImportedSegmenter
    from lightning_modules.metrics.segmentation import dice

    cohort = Cohort.load(out / "cohort.parquet")
    held = set(Splits.load(out / "splits.json", cohort).folds[0].test)
    checkpoint = out / "imported" / "model.ckpt"
    if not checkpoint.exists():
        trained = nnunet_peer.results(out, 0)
        assert hepastage(["nnunet", "import", str(trained), "--out", str(checkpoint)]) == 0
    ours = ImportedSegmenter(checkpoint, device=torch.device("cpu"))
    plain = monai_peer.network(_our_work()).eval()  # its weights are random: for its time alone
    console = Console(width=150)
    table = Table(
        "mirrored",
        "precision",
        "nnU-Net s",
        "MONAI s",
        "ours s",
        "to nnU-Net",
        "to MONAI",
        "least Dice to nnU-Net's",
        title="Inference",
    )
    for mirror in (False, True):
        peer = nnunet_peer.predictor(out, 0, mirror=mirror)
        settings = {name: Inference(mirror=mirror, precision=name) for name in ("bf16", "32")}
        times: dict[str, list[float]] = {"peer": [], "monai": [], **{name: [] for name in settings}}
        agreement: dict[str, list[float]] = {name: [] for name in settings}
        for turn in range(options.rounds):
            for scan in (scan for scan in cohort.scans if scan.patient_id in held):
                started = time.perf_counter()
                theirs = read_mask(nnunet_peer.predict(peer, scan.image, out / "inferred" / scan.scan_id), (1,)).data
                seconds = {"peer": time.perf_counter() - started}
                if not mirror:
                    started = time.perf_counter()
                    monai_peer.predict(plain, scan.image, SPACING, PATCH, out / "inferred" / "monai")
                    seconds["monai"] = time.perf_counter() - started
                for name, inference in settings.items():
                    started = time.perf_counter()
                    image = read_image(scan.image)
                    mask = mask_of([ours.log_odds(image, inference)], inference)
                    write_nifti(out / "inferred" / f"{scan.scan_id}_{name}.nii.gz", mask, image.affine, like=scan.image)
                    seconds[name] = time.perf_counter() - started
                    agreement[name].append(float(dice(mask, theirs)))
                # the first scan of all pays for loading libraries
                if turn or mirror or len(agreement["32"]) > 1:
                    for name, value in seconds.items():
                        times[name].append(value)
        for name in settings:
            ratios = {
                peer: [own / other for own, other in zip(times[name], times[peer], strict=True)] if times[peer] else []
                for peer in ("peer", "monai")
            }
            table.add_row(
                "yes" if mirror else "no", name, spread(times["peer"]), spread(times["monai"]), spread(times[name]),
                spread(ratios["peer"]), spread(ratios["monai"]), f"{min(agreement[name]):.5f}",
            )  # fmt: skip
    console.print(table)


if __name__ == "__main__":
    os.environ.setdefault("WANDB_MODE", "disabled")
    started = time.monotonic()
    main()
