"""New scans and new patients, with no training data at hand."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from scipy.special import expit

from callbacks.run_directory import RunDirectory
from datamodules.cohort import Cohort
from datamodules.records import read_records
from experiments.cli import main
from experiments.lightning_cli import fit_and_test
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


@pytest.fixture(scope="module")
def classifier(tiny_cohort: Tiny, tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """A masked arm, trained on reference masks and tested."""
    runs = tmp_path_factory.mktemp("classifier")
    fit_and_test([*tiny_cohort.words("masked_attention_resnet", runs=runs), *CLASSIFIER])
    (config,) = runs.glob("*/*/*/config.yaml")
    return RunDirectory(config.parent)


def test_new_patients_get_the_probabilities_of_the_test(
    classifier: RunDirectory, tiny_cohort: Tiny, tmp_path: Path
) -> None:
    words = ["predict", "--run", str(classifier.path), "--data", str(tiny_cohort.cohort), "--out", str(tmp_path)]
    assert main(words) == 0
    rows = pd.read_csv(tmp_path / "predictions.csv").set_index("scan_id")
    assert len(rows) == 12
    tested = read_records(classifier.predictions).set_index("scan_id")
    for scan_id in tested.index.tolist():
        new, row = rows.loc[scan_id], tested.loc[scan_id]
        assert new["logit"] == pytest.approx(row["logit"], abs=2e-3), "the store keeps 16 bits"
        assert new["prob"] == pytest.approx(float(expit(new["logit"])), abs=1e-6)
        assert new["threshold"] == pytest.approx(row["threshold"])


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
