"""Out-of-fold masks: who makes which, on which grid, and what a second call does."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from datamodules.classification import ClassificationDataModule
from datamodules.cohort import Cohort
from datamodules.errors import InputError
from datamodules.files import sha256_of_file
from datamodules.masks import MaskSet
from datamodules.preprocessing import Preprocessing
from experiments import masks as masks_module
from experiments.cli import main
from experiments.inference import Inference
from experiments.masks import make_masks
from experiments.trained_segmenter import segmenter_runs
from tests.tiny import TESTED, Tiny, frame_of


@pytest.fixture(scope="module")
def made(segmenters: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The masks of the whole tiny cohort; read only."""
    out = tmp_path_factory.mktemp("masks")
    make_masks(segmenters / "tiny", out)
    return out


def test_masks_are_out_of_fold_and_say_who_made_them(made: Path, tiny_cohort: Tiny, segmenters: Path) -> None:
    record = MaskSet.load(made)
    split = tiny_cohort.split
    scans = [scan for scan in tiny_cohort.table.scans if scan.sequence == "T2W"]
    assert set(record.masks) == {scan.scan_id for scan in scans}
    by_fold = {maker.fold: (key, maker) for key, maker in record.segmenters.items()}
    assert set(by_fold) == {0, 1}
    for fold, (key, maker) in by_fold.items():
        assert fold is not None
        assert maker.trained_on == tuple(sorted(split.folds[fold].train))
        assert maker.split_sha256 == split.sha256
        checkpoints = {sha256_of_file(path) for path in segmenters.rglob("best.ckpt")}
        assert key in checkpoints
    for scan in scans:
        entry = record.masks[scan.scan_id]
        makers = [record.segmenters[key] for key in entry.segmenters]
        assert makers and all(scan.patient_id not in (maker.trained_on or ()) for maker in makers)
        assert len(makers) == (2 if scan.patient_id in TESTED else 1)
        assert entry.sha256 == sha256_of_file(made / entry.file)
    for part in split.folds:
        assert record.leaks(scans, part.test) == []


def test_masks_lie_on_the_images_voxels(made: Path, tiny_cohort: Tiny) -> None:
    record = MaskSet.load(made)
    for scan_id, entry in record.masks.items():
        scan = tiny_cohort.table.scan(scan_id)
        image, mask = nib.load(scan.image), nib.load(made / entry.file)
        assert mask.shape == image.shape
        np.testing.assert_array_equal(mask.affine, image.affine)
        for code in ("sform_code", "qform_code"):
            assert mask.header[code] == image.header[code]
        data = np.asarray(mask.dataobj)
        assert data.dtype == np.uint8 and set(np.unique(data)) <= {0, 1}
        assert scan.mask is not None
        reference = np.asarray(nib.load(scan.mask).dataobj)
        dice = 2 * (data & reference).sum() / (data.sum() + reference.sum())
        assert entry.dice == pytest.approx(dice)
        assert dice > 0.6, "on the liver, whatever the affine"


def test_a_second_call_computes_nothing(
    made: Path, segmenters: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = Path(shutil.copytree(made, tmp_path / "masks"))
    predicted: list[str] = []
    real = masks_module._predict

    def counted(scan: object, *rest: object) -> object:
        predicted.append(scan.scan_id)  # type: ignore[attr-defined]  # a scan
        return real(scan, *rest)  # type: ignore[arg-type]  # as it was called

    monkeypatch.setattr(masks_module, "_predict", counted)
    before = (out / "masks.json").read_bytes()
    make_masks(segmenters / "tiny", out)
    assert predicted == []
    assert (out / "masks.json").read_bytes() == before
    (out / "P02_T2W.nii.gz").unlink()
    (out / "P07_T2W.nii.gz").write_bytes(b"torn")
    make_masks(segmenters / "tiny", out)
    assert sorted(predicted) == ["P02_T2W", "P07_T2W"]
    assert (out / "masks.json").read_bytes() == before, "the same masks again, byte by byte"
    assert sha256_of_file(out / "P07_T2W.nii.gz") == sha256_of_file(made / "P07_T2W.nii.gz")


def test_a_killed_call_goes_on(segmenters: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made: Path) -> None:
    out = tmp_path / "masks"
    real = masks_module._predict
    predicted: list[str] = []

    def killed(scan: object, *rest: object) -> object:
        if len(predicted) == 5:
            raise RuntimeError("killed")
        predicted.append(scan.scan_id)  # type: ignore[attr-defined]  # a scan
        return real(scan, *rest)  # type: ignore[arg-type]  # as it was called

    with monkeypatch.context() as patch:
        patch.setattr(masks_module, "_predict", killed)
        with pytest.raises(RuntimeError):
            make_masks(segmenters / "tiny", out)
    assert len(MaskSet.load(out).masks) == 5
    make_masks(segmenters / "tiny", out)
    assert (out / "masks.json").read_bytes() == (made / "masks.json").read_bytes()


def test_a_call_that_is_killed_half_way_goes_on(made: Path, segmenters: Path, tmp_path: Path) -> None:
    """A real process and a real SIGKILL: nothing of it can tidy up."""
    out = tmp_path / "masks"
    words = [sys.executable, "-m", "experiments.cli", "masks", str(segmenters / "tiny"), "--out", str(out)]
    process = subprocess.Popen(words, cwd=Path(__file__).parents[2], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and len(list(out.glob("P*.nii.gz"))) < 3:
        time.sleep(0.005)
    process.kill()
    assert process.wait() == -signal.SIGKILL, "it was killed before it had ended"
    finished = MaskSet.load(out).masks
    assert 2 <= len(finished) < 12
    before = {record.file: (out / record.file).stat().st_mtime_ns for record in finished.values()}
    assert main(["masks", str(segmenters / "tiny"), "--out", str(out)]) == 0
    assert {name: (out / name).stat().st_mtime_ns for name in before} == before, "finished masks are left alone"
    assert (out / "masks.json").read_bytes() == (made / "masks.json").read_bytes()
    files = {path.name for path in out.iterdir() if not path.name.startswith(".writing-")}
    assert files == {path.name for path in made.iterdir()}


def test_masks_made_with_other_options(made: Path, segmenters: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(made, tmp_path / "masks"))
    with pytest.raises(InputError, match=r"holds masks made with other options \(mirror False"):
        make_masks(segmenters / "tiny", out, inference=Inference(largest_component=True))
    with pytest.raises(InputError, match="trained without mirroring"):
        make_masks(segmenters / "tiny", tmp_path / "mirrored", inference=Inference(mirror=True))


def test_a_classifier_takes_them_and_refuses_masks_by_a_segmenter_that_knew_the_patient(
    made: Path, segmenters: Path, tiny_cohort: Tiny, tmp_path: Path
) -> None:
    def arm(masks: Path, fold: int) -> ClassificationDataModule:
        return ClassificationDataModule(
            cohort=str(tiny_cohort.cohort), splits=str(tiny_cohort.splits), store=str(tmp_path / "store"),
            preprocessing=Preprocessing(spacing=(10.0, 10.0, 20.0), shape=(24, 24, 8)), fold=fold,
            mask_source="out_of_fold", masks=str(masks),
        )  # fmt: skip

    for fold in range(2):
        arm(made, fold).prepare_data()
    # all masks by the segmenter of fold 0, whoever trained it: as if each patient were new to it
    run = next(path.parent for path in segmenters.rglob("provenance.json") if '"fold": 0' in path.read_text())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(masks_module, "eligible", lambda patient, known, splits: list(known))
        in_sample = tmp_path / "in_sample"
        make_masks(run, in_sample)
    with pytest.raises(InputError) as caught:
        arm(in_sample, 0).prepare_data()
    named = {fault.split("the mask of patient ")[1].split(" ")[0].strip("'") for fault in caught.value.faults}
    assert named == set(tiny_cohort.split.folds[0].train)


def test_unfinished_segmenters_are_named(segmenters: Path, tmp_path: Path) -> None:
    runs = Path(shutil.copytree(segmenters, tmp_path / "runs"))
    first, second = sorted(path.parent for path in runs.rglob("provenance.json"))
    (first / "done.json").unlink()
    with pytest.warns(UserWarning, match=f"left out, because their training has not ended: {first}"):
        assert [run.path for run in segmenter_runs(runs / "tiny")] == [second]
    (second / "done.json").unlink()
    with pytest.raises(InputError) as caught:
        segmenter_runs(runs / "tiny")
    assert len(caught.value.faults) == 2
    assert all("training has not ended; run its 'hepastage fit' again" in fault for fault in caught.value.faults)


def test_a_patient_whom_all_trained_on(
    segmenters: Path, tiny_cohort: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = next(path.parent for path in segmenters.rglob("provenance.json") if '"fold": 0' in path.read_text())
    assert main(["masks", str(run), "--out", str(tmp_path / "masks")]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    trained = sorted(tiny_cohort.split.folds[0].train)
    assert len(lines) == len(trained)
    for patient, line in zip(trained, lines, strict=True):
        assert f"patient {patient!r}" in line and "fold 0" in line and "train the other folds too" in line
    assert not (tmp_path / "masks").exists()


def test_another_cohort_gets_the_mean_of_all(segmenters: Path, tmp_path: Path) -> None:
    folder = tmp_path / "other"
    frame = frame_of(folder, ("X1", "P01"))
    Cohort(frame[frame["sequence"] == "T2W"], folder).save(folder / "c.csv")
    record = make_masks(segmenters / "tiny", tmp_path / "masks", folder / "c.csv")
    assert len(record.masks["X1_T2W"].segmenters) == 2
    (key,) = record.masks["P01_T2W"].segmenters
    assert "P01" not in (record.segmenters[key].trained_on or ()), "the same id is the same person"


def test_the_command_says_what_came_out(
    segmenters: Path, made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = Path(shutil.copytree(made, tmp_path / "masks"))
    assert main(["masks", str(segmenters / "tiny"), "--out", str(out)]) == 0
    assert "12 masks" in capsys.readouterr().out


def test_masks_are_never_written_over_scans(segmenters: Path, tiny_cohort: Tiny) -> None:
    images = tiny_cohort.folder / "images"
    before = {path.name: path.read_bytes() for path in images.iterdir()}
    for folder in (images, tiny_cohort.folder / "masks"):
        with pytest.raises(InputError, match="would be written over a file of the data"):
            make_masks(segmenters / "tiny", folder)
    assert {path.name: path.read_bytes() for path in images.iterdir()} == before


def test_segmenters_that_do_not_belong_together(segmenters: Path, tmp_path: Path) -> None:
    runs = Path(shutil.copytree(segmenters, tmp_path / "runs"))
    config = next(runs.rglob("config.yaml"))
    text = config.read_text()
    config.write_text(text.replace("normalisation: zscore", "normalisation: percentile"))
    assert config.read_text() != text
    with pytest.raises(InputError, match="cannot be averaged"):
        make_masks(runs / "tiny", tmp_path / "masks")
    config.write_text(text)
    provenance = config.parent / "provenance.json"
    record = json.loads(provenance.read_text())
    record["identity"]["split_sha256"] = "0" * 64
    provenance.write_text(json.dumps(record))
    with pytest.raises(InputError, match="segmenters of 2 different splits"):
        make_masks(runs / "tiny", tmp_path / "masks")


def test_a_folder_without_a_segmenter(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no trained segmenter in it"):
        make_masks(tmp_path, tmp_path / "out")
