"""Bad input through the command line: exit code 2, one line a fault on stderr, nothing half-written."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from experiments.cli import main
from tests.tiny import CLASSIFIER, SEGMENTER, Tiny

IMAGE = "images/P06_T2W.nii.gz"
MASK = "masks/P06_T2W.nii.gz"


@pytest.fixture(autouse=True)
def one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Starting preprocessing workers takes longer than the work here."""
    monkeypatch.setattr("datamodules.store_fill.usable_cores", lambda: 1)


@pytest.fixture
def copy(tiny_cohort: Tiny, tmp_path: Path) -> Tiny:
    """The tiny cohort, to be spoiled."""
    folder = tmp_path / "data"
    shutil.copytree(tiny_cohort.folder, folder, ignore=shutil.ignore_patterns("store"))
    return Tiny(folder, folder / "cohort.parquet", folder / "splits.json")


def lines_of(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """What stands on stderr, without progress bars."""
    text = capsys.readouterr().err
    return [line for line in text.splitlines() if line.strip() and not line.startswith("preprocessing")]


def assert_refused(words: list[str], runs: Path, capsys: pytest.CaptureFixture[str], *mentions: str) -> None:
    """The command ends with 2, says one line with all mentions, and leaves no run and no temporary file."""
    assert main(words) == 2
    lines = lines_of(capsys)
    assert len(lines) == 1, lines
    assert lines[0].startswith("hepastage: ")
    assert len(lines[0]) < 600
    for mention in mentions:
        assert mention in lines[0]
    assert ";" in lines[0] or "choose one of" in lines[0], "it says what to do next"
    assert not runs.exists() or not [path for path in runs.rglob("*") if path.is_file()]
    assert not list(runs.parent.rglob(".writing-*"))


def missing(copy: Tiny) -> None:
    (copy.folder / IMAGE).unlink()


def unreadable(copy: Tiny) -> None:
    (copy.folder / IMAGE).write_bytes(b"\x1f\x8bthis is no NIfTI at all" * 20)


def truncated(copy: Tiny) -> None:
    path = copy.folder / IMAGE
    path.write_bytes(path.read_bytes()[:900])


def other_shape(copy: Tiny) -> None:
    image = nib.load(copy.folder / MASK)
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj)[:, :, :-1], image.affine), copy.folder / MASK)


def other_place(copy: Tiny) -> None:
    image = nib.load(copy.folder / MASK)
    affine = image.affine.copy()
    affine[0, 3] += 7.0
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj), affine), copy.folder / MASK)


def not_finite(value: float) -> Callable[[Tiny], None]:
    def spoil(copy: Tiny) -> None:
        image = nib.load(copy.folder / IMAGE)
        data = np.asarray(image.dataobj, dtype=np.float32).copy()
        data[3, 4, 5] = value
        nib.save(nib.Nifti1Image(data, image.affine), copy.folder / IMAGE)

    return spoil


def empty_mask(copy: Tiny) -> None:
    image = nib.load(copy.folder / MASK)
    nib.save(nib.Nifti1Image(np.zeros(image.shape, np.uint8), image.affine), copy.folder / MASK)


def four_axes(copy: Tiny) -> None:
    image = nib.load(copy.folder / IMAGE)
    data = np.repeat(np.asarray(image.dataobj)[..., None], 2, axis=3)
    nib.save(nib.Nifti1Image(data, image.affine), copy.folder / IMAGE)


@pytest.mark.parametrize(
    ("spoil", "mentions"),
    [
        (missing, (IMAGE, "no such file", "cohort table")),
        (unreadable, (IMAGE, "copy or convert it again")),
        (truncated, (IMAGE, "copy or convert it again")),
        (other_shape, (MASK, IMAGE, "resample the mask")),
        (other_place, (MASK, IMAGE, "resample the mask")),
        (not_finite(float("nan")), (IMAGE, "1 of 3840 voxels are NaN or infinite", "leave out the scan")),
        (not_finite(float("inf")), (IMAGE, "1 of 3840 voxels are NaN or infinite", "leave out the scan")),
        (empty_mask, (MASK, "an empty mask", "mask_labels")),
        (four_axes, (IMAGE, "this file has 4", "split it into 3-D volumes")),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_faulty_scan_is_named_before_training(
    spoil: Callable[[Tiny], None],
    mentions: tuple[str, ...],
    copy: Tiny,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    spoil(copy)
    words = copy.words("direct", runs=tmp_path / "runs", store=tmp_path / "store")
    assert_refused(["fit", *words, *CLASSIFIER], tmp_path / "runs", capsys, *mentions)


def test_segmentation_checks_its_scans_before_training(
    copy: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # a test patient: training alone would never read it
    (copy.folder / "masks/P03_T2W.nii.gz").unlink()
    words = copy.words("segmentation", runs=tmp_path / "runs", store=tmp_path / "store")
    assert_refused(["fit", *words, *SEGMENTER], tmp_path / "runs", capsys, "masks/P03_T2W.nii.gz", "no such file")


def test_all_faults_are_reported_together(copy: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    missing(copy)
    (copy.folder / "images/P03_T2W.nii.gz").unlink()
    (copy.folder / "masks/P10_T2W.nii.gz").write_bytes(b"")
    words = copy.words("direct", runs=tmp_path / "runs", store=tmp_path / "store")
    assert main(["fit", *words, *CLASSIFIER]) == 2
    lines = lines_of(capsys)
    assert len(lines) == 3
    for name, line in zip(("images/P03_T2W", "images/P06_T2W", "masks/P10_T2W"), sorted(lines), strict=True):
        assert name in line
    assert not (tmp_path / "runs").exists()


def test_the_command_preprocess_says_the_same(copy: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    missing(copy)
    words = ["preprocess", str(copy.cohort), "--store", str(tmp_path / "store"), "--spacing", "10,10,20"]
    assert main(words) == 2
    (line,) = lines_of(capsys)
    assert IMAGE in line


def spoiled_table(copy: Tiny, change: Callable[[pd.DataFrame], pd.DataFrame]) -> Path:
    """The cohort's table as CSV, changed."""
    path = copy.folder / "spoiled.csv"
    change(copy.table.frame.copy()).to_csv(path, index=False)
    return path


def double(frame: pd.DataFrame) -> pd.DataFrame:
    ids = frame["scan_id"].tolist()
    return frame.assign(scan_id=[*ids[:4], ids[1], *ids[5:]])


def unknown_column(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.rename(columns={"lsm_kpa": "lsm_kPa"})


def no_number(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.astype({"lsm_kpa": "string"}).replace({"lsm_kpa": {"5.0": "five"}}).head(3)


@pytest.mark.parametrize(
    ("change", "mentions"),
    [
        (double, ("rows 2, 5", "scan_id 'P01_T2W'", "give each scan its own id")),
        (unknown_column, ("unknown column 'lsm_kPa'", "did you mean 'lsm_kpa'?")),
        (no_number, ("row 3", "lsm_kpa 'five' is not a number", "correct it")),
    ],
)
def test_faulty_table(
    change: Callable[[pd.DataFrame], pd.DataFrame],
    mentions: tuple[str, ...],
    copy: Tiny,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    table = spoiled_table(copy, change)
    words = copy.words("direct", runs=tmp_path / "runs")
    words[words.index(str(copy.cohort))] = str(table)
    assert_refused(["fit", *words, *CLASSIFIER], tmp_path / "runs", capsys, str(table), *mentions)


def test_a_table_that_is_no_table(copy: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy.cohort.write_bytes(b"PAR1 torn")
    words = copy.words("direct", runs=tmp_path / "runs")
    assert_refused(["fit", *words, *CLASSIFIER], tmp_path / "runs", capsys, str(copy.cohort), "cannot be read as a")


@pytest.mark.parametrize(
    ("more", "mentions"),
    [
        (["--model.init_args.netwrok", "x"], ("--model.init_args.netwrok: ", "'netwrok'; did you mean 'network'?")),
        (["--model.init_args.network.init_args.backbne", "x"], ("unknown key 'backbne'",)),
        (["--data.init_args.preprocessing.spacng", "[1, 1, 1]"], ("unknown key 'spacng'",)),
        (["--trainer.max_epoch", "3"], ("unknown key 'trainer.max_epoch'",)),
        (["--trainer.callbacks.foo", "3"], ("unknown key 'foo'",)),
        (["--seed", "3"], ("unknown key 'seed'",)),
        (["--ckpt_path", "x.ckpt"], ("unknown key 'ckpt_path'",)),
        (["--trainer.max_epochs", "many"], ("trainer.max_epochs", "many")),
        (["--seed_everything", "x"], ("seed_everything", "x")),
        (["--data.init_args.mask_source", "blurred"], ("mask_source", "blurred", "out_of_fold")),
        (["--data.init_args.mask_source", "perturbed"], ("mask_source", "perturbed", "a direct arm sees no mask")),
        (["--data.init_args.preprocessing.normalisation", "z"], ("normalisation 'z'", "choose one of")),
        (["--model.init_args.network.init_args.backbone", "resnet81"], ("backbone 'resnet81'", "near names")),
        (["--model.class_path", "lightning_modules.Nothing"], ("lightning_modules.Nothing",)),
        (["--data.init_args.sequence", "PD"], ("no sequence PD", "T1W, T2W")),
        (["--study", "a b"], ("--study 'a b'", "cannot name a folder")),
        (["--role", "king"], ("role", "king")),
        (["-c", "nosuch"], ("nosuch", "shipped ones are", "direct")),
        (["--config=nosuch"], ("nosuch", "shipped ones are", "direct")),
        (["-c", "model/nosuch"], ("model/nosuch", "shipped ones are model/", "model/resnet50")),
        (["--trainer.accelerator", "gpux"], ("gpux",)),
    ],
)
def test_faulty_words(
    more: list[str], mentions: tuple[str, ...], tiny_cohort: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = tiny_cohort.words("direct", runs=tmp_path / "runs")
    assert_refused(["fit", *words, *CLASSIFIER, *more], tmp_path / "runs", capsys, *mentions)


@pytest.mark.parametrize(
    ("text", "mentions"),
    [
        ("trianer:\n  max_epochs: 3\n", ("unknown key 'trianer",)),
        ("model:\n  init_args:\n    netwrok: 3\n", ("own.yaml: model.init_args.netwrok: unknown key 'netwrok'",)),
        ("data:\n  init_args:\n    augmentation:\n      init_args:\n        transfroms: []\n", ("'transfroms'",)),
        ("trainer: [\n", ("own.yaml", "cannot be read as YAML")),
        ("- a\n- b\n", ("own.yaml", "not a mapping")),
        ("", ("own.yaml", "not a mapping")),
    ],
)
def test_faulty_configuration_file(
    text: str, mentions: tuple[str, ...], tiny_cohort: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "own.yaml").write_text(text)
    words = ["fit", *tiny_cohort.words("direct", str(tmp_path / "own.yaml"), runs=tmp_path / "runs")]
    assert_refused(words, tmp_path / "runs", capsys, *mentions)


def test_a_patient_in_two_parts_stops_the_command(
    copy: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = copy.splits.read_text()
    copy.splits.write_text(text.replace('"test": [\n        "P03"', '"test": [\n        "P01",\n        "P03"', 1))
    assert copy.splits.read_text() != text
    words = copy.words("direct", runs=tmp_path / "runs")
    assert_refused(
        ["fit", *words, *CLASSIFIER], tmp_path / "runs", capsys, "splits.json", "fold 0", "patient 'P01'", "train"
    )


@pytest.mark.parametrize(
    ("words", "mentions"),
    [
        (["fit"], ("required", "model")),
        (["fit", "-c", "direct"], ("required", "cohort")),
        (["fit", "direct"], ("'direct'",)),
        (["fit", "--study"], ("--study",)),
        (["test", "--run"], ("--run", "needs a value")),
        (["test", "--run", "/nowhere/at/all"], ("/nowhere/at/all", "not a run directory")),
        (["predict", "--run=/nowhere", "--data", "/nothing", "--out", "/tmp/x"], ("/nowhere", "not a run directory")),
        (["masks", "/nowhere", "--out", "/tmp/x"], ("/nowhere", "no trained segmenter")),
        (["demo", "--patients", "3"], ("--patients 3", "at least 20")),
        (["demo", "--seed", "-1", "--out", "demo"], ("-1",)),
    ],
)
def test_faulty_requests(
    words: list[str],
    mentions: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    *progress, line = lines_of(capsys)
    assert all(not text.startswith("hepastage") for text in progress)
    assert line.startswith("hepastage: ") and ";" in line
    for mention in mentions:
        assert mention in line
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize("words", [["masks"], ["nosuch"], ["split", "mkae"], ["demo", "--patient", "30"], []])
def test_words_that_the_front_door_does_not_know(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 2
    (line,) = lines_of(capsys)
    assert line.startswith("hepastage: ") and "--help" in line
