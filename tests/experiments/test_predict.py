"""New scans and new patients, with no training data at hand."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from monai.transforms.post.array import KeepLargestConnectedComponent
from scipy.special import expit, logit

from callbacks.run_directory import RunDirectory
from datamodules.cohort import Cohort
from datamodules.components import largest_component
from datamodules.images import Volume, read_image
from datamodules.records import read_records
from experiments.cli import main
from experiments.inference import Inference, mask_of
from experiments.lightning_cli import fit_and_test
from experiments.trained_segmenter import TrainedSegmenter
from tests.tiny import CLASSIFIER, TESTED, Tiny, affine_of, phantom, write


@pytest.fixture(scope="module")
def runs(segmenters: Path) -> list[Path]:
    """The two segmenters' run directories."""
    return sorted(path.parent for path in segmenters.rglob("provenance.json"))


def check(out: Path, name: str, image: Path) -> np.ndarray:
    """The mask has exactly the image's grid and codes; returns it."""
    source, mask = nib.load(image), nib.load(out / f"{name}.nii.gz")
    assert mask.shape == source.shape
    for field in ("sform_code", "qform_code", "srow_x", "srow_y", "srow_z", "qoffset_x", "quatern_b", "pixdim"):
        np.testing.assert_array_equal(mask.header[field], source.header[field])
    np.testing.assert_array_equal(mask.affine, source.affine)
    data = np.asarray(mask.dataobj)
    assert set(np.unique(data)) <= {0, 1}
    return data


@pytest.mark.parametrize(("sform", "qform"), [(1, 1), (2, 0), (0, 1), (1, 3)])
@pytest.mark.parametrize("kind", ["ras", "lps", "oblique"])
def test_one_file(kind: str, sform: int, qform: int, runs: list[Path], tmp_path: Path) -> None:
    image, liver = phantom(77, 220.0, kind)
    path = write(tmp_path / "new.nii.gz", image, affine_of(kind), sform, qform)
    out = tmp_path / "out"
    assert main(["predict", "--run", str(runs[0]), "--data", str(path), "--out", str(out)]) == 0
    mask = check(out, "new", path)
    assert 2 * (mask & liver).sum() / (mask.sum() + liver.sum()) > 0.6
    (entry,) = json.loads((out / "predictions.json").read_text())["masks"].values()
    assert entry["volume_ml"] == pytest.approx(2.0 * mask.sum(), abs=0.01), "10 x 10 x 20 mm are 2 ml"


def test_a_folder_and_again(runs: list[Path], tmp_path: Path) -> None:
    folder = tmp_path / "scans"
    for number, (kind, name) in enumerate((("ras", "a.nii.gz"), ("lps", "deep/b.nii"), ("oblique", "c.nii.gz"))):
        write(folder / name, phantom(number, 220.0, kind)[0], affine_of(kind))
    out = folder / "masks"
    words = ["predict", f"--run={runs[0]}", "--run", str(runs[1]), "--data", str(folder), "--out", str(out)]
    for _ in range(2):  # the second call must not take the first one's masks for scans
        assert main([*words, "--overlays"]) == 0
        assert set(json.loads((out / "predictions.json").read_text())["masks"]) == {"a", "b", "c"}
    for name, file in (("a", "a.nii.gz"), ("b", "deep/b.nii"), ("c", "c.nii.gz")):
        check(out, name, folder / file)
        assert (out / "overlays" / f"{name}.png").stat().st_size > 0


def test_a_cohort(runs: list[Path], tiny_cohort: Tiny, tmp_path: Path) -> None:
    words = ["predict", "--run", str(runs[0]), "--data", str(tiny_cohort.cohort), "--out", str(tmp_path)]
    assert main(words) == 0
    for scan in tiny_cohort.table.scans:
        check(tmp_path, scan.scan_id, scan.image)


def test_it_is_the_mask_of_the_test(runs: list[Path], tiny_cohort: Tiny, tmp_path: Path) -> None:
    scan = tiny_cohort.table.scan(f"{TESTED[0]}_T2W")
    assert main(["predict", "--run", str(runs[0]), "--data", str(scan.image), "--out", str(tmp_path)]) == 0
    assert scan.mask is not None
    reference = np.asarray(nib.load(scan.mask).dataobj)
    mask = check(tmp_path, scan.scan_id, scan.image)
    rows = read_records(RunDirectory(runs[0]).predictions).set_index("scan_id")
    dice = 2 * (mask & reference).sum() / (mask.sum() + reference.sum())
    assert rows.loc[scan.scan_id, "dice"] == pytest.approx(dice, abs=0.02)


def test_a_faulty_file_does_not_stop_the_others(
    runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "scans"
    write(folder / "good.nii.gz", phantom(1, 220.0)[0], affine_of("ras"))
    (folder / "bad.nii.gz").write_bytes(b"no NIfTI")
    out = tmp_path / "out"
    assert main(["predict", "--run", str(runs[0]), "--data", str(folder), "--out", str(out)]) == 2
    faults = [line for line in capsys.readouterr().err.splitlines() if line.startswith("hepastage: ")]
    assert len(faults) == 1 and "bad.nii.gz" in faults[0]
    assert {path.name for path in out.iterdir()} == {"good.nii.gz", "predictions.json"}
    assert (
        main(["predict", "--run", str(runs[0]), "--data", str(folder / "bad.nii.gz"), "--out", str(tmp_path / "o")])
        == 2
    )
    assert not (tmp_path / "o").exists()


def test_scans_are_never_written_over(runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "new.nii.gz", phantom(1, 220.0)[0], affine_of("ras"))
    before = path.read_bytes()
    for data in (path, tmp_path):
        assert main(["predict", "--run", str(runs[0]), "--data", str(data), "--out", str(tmp_path)]) == 2
        assert "would be written over a file of the data" in capsys.readouterr().err
    assert path.read_bytes() == before


def test_a_spoiled_run_is_named(runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "new.nii.gz", phantom(1, 220.0)[0], affine_of("ras"))
    torn = (runs[0] / "checkpoints" / "best.ckpt").read_bytes()[:500]
    other = io.BytesIO()
    torch.save({"state_dict": {"other": torch.zeros(1)}}, other)
    cases = [("checkpoints/best.ckpt", torn), ("checkpoints/best.ckpt", other.getvalue())]
    cases += [("config.yaml", b"model: ["), ("config.yaml", b"a list")]
    for number, (name, content) in enumerate(cases):
        run = Path(shutil.copytree(runs[0], tmp_path / f"run{number}"))
        (run / name).write_bytes(content)
        assert main(["predict", "--run", str(run), "--data", str(path), "--out", str(tmp_path / "out")]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert name in line and "train the run again" in line
        assert not (tmp_path / "out").exists()


def test_two_files_of_one_name(runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a/scan.nii.gz", "b/scan.nii.gz"):
        write(tmp_path / name, phantom(1, 220.0)[0], affine_of("ras"))
    assert main(["predict", "--run", str(runs[0]), "--data", str(tmp_path), "--out", str(tmp_path / "o")]) == 2
    assert "several files are called scan" in capsys.readouterr().err


def test_without_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["predict", "-c", "direct"])
    assert stop.value.code == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_no_training_data_is_needed_and_a_run_may_move(
    runs: list[Path], tiny_cohort: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cohort, split and store of the training are gone, and the run directory lies elsewhere."""
    scan = tiny_cohort.table.scan(f"{TESTED[0]}_T2W")
    assert main(["predict", "--run", str(runs[0]), "--data", str(scan.image), "--out", str(tmp_path / "before")]) == 0
    moved = Path(shutil.copytree(runs[0], tmp_path / "moved" / "segmenter"))
    text = moved.joinpath("config.yaml").read_text()
    assert str(tiny_cohort.folder) in text
    moved.joinpath("config.yaml").write_text(text.replace(str(tiny_cohort.folder), "/gone/for/good"))
    image = Path(shutil.copy(scan.image, tmp_path / scan.image.name))
    monkeypatch.chdir(tmp_path)
    assert main(["predict", "--run", "moved/segmenter", "--data", str(image), "--out", "after"]) == 0
    name = f"{scan.scan_id}.nii.gz"
    assert (tmp_path / "after" / name).read_bytes() == (tmp_path / "before" / name).read_bytes()


def test_probability_maps_of_an_ensemble(runs: list[Path], tmp_path: Path) -> None:
    path = write(tmp_path / "new.nii.gz", phantom(3, 220.0, "oblique")[0], affine_of("oblique"))
    maps = []
    for name, chosen in (("a", runs[:1]), ("b", runs[1:]), ("both", runs)):
        words = [word for run in chosen for word in ("--run", str(run))]
        out = tmp_path / name
        assert main(["predict", *words, "--data", str(path), "--out", str(out), "--probabilities"]) == 0
        mask, probability = nib.load(out / "new.nii.gz"), nib.load(out / "new_prob.nii.gz")
        np.testing.assert_array_equal(probability.affine, mask.affine)
        assert probability.header["sform_code"] == mask.header["sform_code"]
        values = np.asarray(probability.dataobj)
        assert values.dtype == np.float32 and values.shape == mask.shape
        assert values.min() >= 0 and values.max() <= 1
        np.testing.assert_array_equal(values > 0.5, np.asarray(mask.dataobj) == 1)
        maps.append(values.astype(float))
    inner = (maps[0] > 1e-6) & (maps[0] < 1 - 1e-6) & (maps[1] > 1e-6) & (maps[1] < 1 - 1e-6)
    np.testing.assert_allclose(
        logit(maps[2][inner]), (logit(maps[0][inner]) + logit(maps[1][inner])) / 2, atol=0.05, err_msg="mean log-odds"
    )
    record = json.loads((tmp_path / "both" / "predictions.json").read_text())
    assert 0 <= record["masks"]["new"]["dice"] <= 1, "how far the two agree"
    assert record["inference"] == {"mirror": False, "precision": None, "largest_component": False}


def test_mirroring_is_for_segmenters_that_were_trained_with_it(
    runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "new.nii.gz", phantom(3, 220.0)[0], affine_of("ras"))
    words = ["predict", "--data", str(path), "--probabilities", "--mirror", "--out"]
    assert main([*words, str(tmp_path / "refused"), "--run", str(runs[0])]) == 2
    assert "was trained without mirroring" in capsys.readouterr().err
    assert not (tmp_path / "refused").exists()
    mirrored = Path(shutil.copytree(runs[0], tmp_path / "mirrored"))
    config = yaml.safe_load(mirrored.joinpath("config.yaml").read_text())
    flip = {"class_path": "datamodules.augmentation.RandomFlip", "init_args": {"axes": [0, 1]}}
    config["data"]["init_args"]["augmentation"] = {"class_path": "x", "init_args": {"transforms": [flip]}}
    mirrored.joinpath("config.yaml").write_text(yaml.safe_dump(config))
    assert main([*words, str(tmp_path / "out"), "--run", str(mirrored)]) == 0
    found = np.asarray(nib.load(tmp_path / "out" / "new_prob.nii.gz").dataobj)
    # the mean of four predictions, made by hand
    segmenter = TrainedSegmenter(RunDirectory(runs[0]))
    volume = read_image(path)
    total = np.zeros(volume.data.shape)
    for axes in ((), (0,), (1,), (0, 1)):
        copy = Volume(np.flip(volume.data, axes).copy(), volume.affine)
        total += np.flip(segmenter.log_odds(copy), axes)
    np.testing.assert_allclose(found, expit(total / 4), atol=1e-4)


def test_bf16_is_asked_for_and_close(runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    segmenter = TrainedSegmenter(RunDirectory(runs[0]))
    volume = Volume(phantom(3, 220.0)[0], affine_of("ras"))
    seen: list[bool] = []
    real = segmenter.module._windowed

    def spied(image: torch.Tensor) -> torch.Tensor:
        seen.append(torch.is_autocast_enabled("cpu"))
        return real(image)

    monkeypatch.setattr(segmenter.module, "_windowed", spied)
    exact, rough = (segmenter.log_odds(volume, Inference(precision=word)) for word in ("32", "bf16"))
    assert seen == [False, True]
    assert not np.array_equal(exact, rough)
    np.testing.assert_allclose(rough, exact, atol=0.05 * float(np.abs(exact).max()))
    # without the option: as in training, where the hardware is fast in it
    segmenter.config["trainer"]["precision"] = "bf16-mixed"
    for best, expected in (("bf16-mixed", "bf16"), ("32-true", "32")):
        monkeypatch.setattr("experiments.trained_segmenter.best_precision", lambda best=best: best)
        assert segmenter.computes_in(Inference()) == expected
    segmenter.config["trainer"]["precision"] = "32-true"
    assert segmenter.computes_in(Inference()) == "32"


def test_the_largest_component_alone() -> None:
    mask = np.zeros((12, 12, 6), np.uint8)
    mask[1:5, 1:5, 1:4] = 1
    mask[5, 5, 4] = 1  # touches by a corner
    mask[9:11, 9:11, 1:3] = 1
    kept = largest_component(mask)
    expected = mask.copy()
    expected[9:11, 9:11, 1:3] = 0
    np.testing.assert_array_equal(kept, expected)
    np.testing.assert_array_equal(largest_component(kept), kept)
    np.testing.assert_array_equal(largest_component(np.zeros_like(mask)), np.zeros_like(mask))
    odds = np.where(mask, 1.0, -1.0).astype(np.float32)
    np.testing.assert_array_equal(mask_of([odds], Inference(largest_component=True)), expected)
    np.testing.assert_array_equal(mask_of([odds], Inference()), mask)
    oracle = KeepLargestConnectedComponent(applied_labels=[1])(torch.from_numpy(mask)[None])
    np.testing.assert_array_equal(np.asarray(oracle)[0], kept)


@pytest.fixture(scope="module")
def classifier(tiny_cohort: Tiny, tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """A masked arm, trained on reference masks and tested."""
    runs = tmp_path_factory.mktemp("classifier")
    fit_and_test([*tiny_cohort.words("masked_attention_resnet", runs=runs), *CLASSIFIER])
    (config,) = runs.glob("*/*/*/config.yaml")
    return RunDirectory(config.parent)


def test_new_patients_get_the_probabilities_of_the_test(
    classifier: RunDirectory, tiny_cohort: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["predict", "--run", str(classifier.path), "--data", str(tiny_cohort.cohort), "--out", str(tmp_path)]
    assert main([*words, "--mirror", "--precision", "bf16"]) == 2
    assert "--mirror, --precision: for segmenters" in capsys.readouterr().err
    assert main(words) == 0
    rows = pd.read_csv(tmp_path / "predictions.csv").set_index("scan_id")
    assert len(rows) == 12
    tested = read_records(classifier.predictions).set_index("scan_id")
    for scan_id in tested.index.tolist():
        new, row = rows.loc[scan_id], tested.loc[scan_id]
        assert new["logit"] == pytest.approx(row["logit"], abs=2e-3), "the store keeps 16 bits"
        assert new["prob"] == pytest.approx(float(expit(new["logit"] / new["temperature"])), abs=1e-6)
        assert new["threshold"] == pytest.approx(row["threshold"])
        assert new["temperature"] == row["x_temperature"]


def test_an_arm_that_sees_a_mask_asks_for_one(
    classifier: RunDirectory, tiny_cohort: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tiny_cohort.table
    frame = table.frame[table.frame["sequence"] == "T2W"].head(2).copy()
    frame[["mask", "mask_labels"]] = None
    Cohort(frame, table.root).save(tmp_path / "c.csv")
    words = ["predict", "--run", str(classifier.path), "--data", str(tmp_path / "c.csv"), "--out", str(tmp_path / "o")]
    assert main(words) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("hepastage")]
    assert len(lines) == 2 and "'P01_T2W'" in lines[0] and "--masks" in lines[0]
    masks = tmp_path / "masks"
    masks.mkdir()
    shutil.copy(tiny_cohort.folder / "masks" / "P01_T2W.nii.gz", masks)
    assert main([*words, "--masks", str(masks)]) == 2
    assert "P02_T2W.nii.gz: no such mask" in capsys.readouterr().err
    shutil.copy(tiny_cohort.folder / "masks" / "P02_T2W.nii.gz", masks)
    assert main([*words, "--masks", str(masks)]) == 0
    assert len(pd.read_csv(tmp_path / "o" / "predictions.csv")) == 2


def test_a_configuration_without_a_grid_means_its_data_modules_default() -> None:
    from datamodules.segmentation import DEFAULT_GRID
    from experiments.trained_segmenter import preprocessing_of

    path = "datamodules.segmentation.SegmentationDataModule"
    assert preprocessing_of({"data": {"class_path": path, "init_args": {"preprocessing": None}}}) == DEFAULT_GRID


@pytest.mark.real
def test_a_real_scan_of_another_kind(runs: list[Path], test_data: Path, tmp_path: Path) -> None:
    image = test_data / "totalseg_mr" / "example_mr_sm.nii.gz"
    words = ["predict", "--run", str(runs[0]), "--data", str(image), "--out", str(tmp_path), "--overlays"]
    assert main(words) == 0
    check(tmp_path, "example_mr_sm", image)
