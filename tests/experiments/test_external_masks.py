"""Masks from elsewhere: checked against their images, recorded with their maker, and honest about what is unknown."""

from __future__ import annotations

import warnings
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from datamodules.classification import ClassificationDataModule
from datamodules.cohort import Cohort
from datamodules.errors import InputError
from datamodules.masks import MaskSet
from datamodules.preprocessing import Preprocessing
from experiments.cli import main
from experiments.external_masks import ExternalMasks, import_masks
from tests.tiny import Tiny, write

GRID = Preprocessing(spacing=(10.0, 10.0, 20.0), shape=(24, 24, 8))
MAKER = "TotalSegmentator v2.4"


@pytest.fixture
def elsewhere(tiny_cohort: Tiny, tmp_path: Path) -> Path:
    """The T2W livers as label 5 of a multi-organ segmentation, one folder a scan."""
    folder = tmp_path / "elsewhere"
    for scan in tiny_cohort.table.scans:
        if scan.sequence == "T2W":
            assert scan.mask is not None
            image = nib.load(scan.mask)
            organs = np.asarray(image.dataobj) * 5
            organs[0, 0, 0] = 1  # a spleen
            write(folder / scan.scan_id / "total.nii.gz", organs.astype(np.uint8), image.affine)
    return folder


def words(tiny: Tiny, folder: Path, out: Path, *more: str) -> list[str]:
    return [
        "masks", "--external", str(folder), "--pattern", "{id}/total.nii.gz", "--label", "5", "--maker", MAKER,
        "--cohort", str(tiny.cohort), "--sequence", "T2W", "--out", str(out), *more,
    ]  # fmt: skip


def arm(tiny: Tiny, masks: Path, source: str = "external") -> ClassificationDataModule:
    return ClassificationDataModule(
        cohort=str(tiny.cohort), splits=str(tiny.splits), store=str(masks.parent / "store"), preprocessing=GRID,
        mask_source=source, masks=str(masks),  # type: ignore[arg-type]  # one of the words
    )  # fmt: skip


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return [line for line in capsys.readouterr().err.splitlines() if line.startswith("hepastage: ")]


def test_masks_come_in_on_their_images_grid_with_their_maker(
    elsewhere: Path, tiny_cohort: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "masks"
    assert main(words(tiny_cohort, elsewhere, out)) == 0
    assert "12 masks" in capsys.readouterr().out
    record = MaskSet.load(out)
    ((_, maker),) = record.segmenters.items()
    assert (maker.study, maker.maker, maker.trained_on) == ("external", MAKER, None)
    for scan_id, mask in record.masks.items():
        scan = tiny_cohort.table.scan(scan_id)
        assert scan.mask is not None
        image, found, truth = (nib.load(path) for path in (scan.image, out / mask.file, scan.mask))
        np.testing.assert_array_equal(found.affine, image.affine)
        np.testing.assert_array_equal(np.asarray(found.dataobj), np.asarray(truth.dataobj))
        assert (mask.dice, mask.quality, mask.quality_from) == (1.0, 3, "reference")
    assert record.damaged(tiny_cohort.table.scans) == []


def test_unknown_training_patients_are_said_loudly_and_are_no_out_of_fold_masks(
    elsewhere: Path, tiny_cohort: Tiny, tmp_path: Path
) -> None:
    out = tmp_path / "masks"
    assert main(words(tiny_cohort, elsewhere, out)) == 0
    with pytest.warns(UserWarning, match=r"training patients of TotalSegmentator v2\.4 are unknown"):
        data = arm(tiny_cohort, out)
    data.prepare_data()
    assert "mask" in data.dataset("test")[0]
    with pytest.raises(InputError, match=r"nobody knows which patients TotalSegmentator v2\.4 trained on"):
        arm(tiny_cohort, out, "out_of_fold")


def test_known_training_patients_are_refused_where_they_leak(
    elsewhere: Path, tiny_cohort: Tiny, tmp_path: Path
) -> None:
    known = tmp_path / "trained.txt"
    known.write_text("P03\n\nsomebody else\n")
    assert main(words(tiny_cohort, elsewhere, tmp_path / "leaking", "--trained-on", str(known))) == 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = arm(tiny_cohort, tmp_path / "leaking")
    with pytest.raises(InputError) as caught:
        data.prepare_data()
    assert any(
        "'P03'" in fault and MAKER in fault and "trained on this patient" in fault for fault in caught.value.faults
    )
    known.write_text("somebody else\n")
    assert main(words(tiny_cohort, elsewhere, tmp_path / "clean", "--trained-on", str(known))) == 0
    arm(tiny_cohort, tmp_path / "clean").prepare_data()
    # a reader trained on nobody
    known.write_text("")
    assert main(words(tiny_cohort, elsewhere, tmp_path / "reader", "--trained-on", str(known))) == 0
    assert next(iter(MaskSet.load(tmp_path / "reader").segmenters.values())).trained_on == ()
    arm(tiny_cohort, tmp_path / "reader", "out_of_fold").prepare_data()


def test_missing_masks_are_errors_or_are_recorded(
    elsewhere: Path, tiny_cohort: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for patient in ("P02", "P07"):
        (elsewhere / f"{patient}_T2W" / "total.nii.gz").unlink()
    out = tmp_path / "masks"
    assert main(words(tiny_cohort, elsewhere, out)) == 2
    found = lines(capsys)
    assert len(found) == 2 and "'P02_T2W'" in found[0] and "--allow-missing" in found[0]
    assert not out.exists()
    assert main(words(tiny_cohort, elsewhere, out, "--allow-missing")) == 0
    assert "2 scans without a mask: P02_T2W, P07_T2W" in capsys.readouterr().out
    assert MaskSet.load(out).missing == ("P02_T2W", "P07_T2W")
    with pytest.warns(UserWarning, match="unknown"), pytest.raises(InputError, match="no mask for scan 'P0"):
        arm(tiny_cohort, out).prepare_data()


def test_a_mask_on_another_grid(
    elsewhere: Path, tiny_cohort: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shifted, cut = (elsewhere / f"{patient}_T2W" / "total.nii.gz" for patient in ("P02", "P07"))
    image = nib.load(shifted)
    affine = image.affine.copy()
    affine[0, 3] += 5.0
    write(shifted, np.asarray(image.dataobj), affine)
    write(cut, np.asarray(nib.load(cut).dataobj)[:, :, :-1], nib.load(cut).affine)
    assert main(words(tiny_cohort, elsewhere, tmp_path / "masks")) == 2
    found = lines(capsys)
    assert len(found) == 2 and all("does not lie on the grid" in line for line in found)
    assert not (tmp_path / "masks").exists()


def test_wrong_words(elsewhere: Path, tiny_cohort: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "masks"
    good = words(tiny_cohort, elsewhere, out)
    cases = [
        ([word if word != "{id}/total.nii.gz" else "{scan}.nii.gz" for word in good], "needs {id}"),
        ([word if word != "{id}/total.nii.gz" else "total.nii.gz" for word in good], "needs {id}"),
        (
            [word if word != "{id}/total.nii.gz" else "P01_{sequence}/total.nii.gz" for word in good],
            "gives one file to",
        ),
        ([word if word != "5" else "liver" for word in good], "--label liver"),
        ([word if word != "5" else "9" for word in good], "no voxel of 12 masks has the value 9"),
        ([word if word != MAKER else " " for word in good], "--maker: is empty"),
        ([*good, "--mirror"], "--mirror: has no part"),
        ([*good, "runs/study"], "runs/study: has no part"),
        ([word for word in good if word not in ("--maker", MAKER)], "--maker: is missing"),
        ([*good, "--trained-on", str(tmp_path / "nowhere.txt")], "one patient id a line"),
        (["masks", "--out", str(out)], "RUN_OR_STUDY is missing"),
        (["masks", "runs/study", "--label", "5", "--out", str(out)], "only with --external"),
    ]
    for arguments, message in cases:
        assert main(arguments) == 2, message
        (line,) = lines(capsys)
        assert message in line
    with pytest.raises(InputError, match="would be written over"):
        source = ExternalMasks(elsewhere, "{id}/total.nii.gz", (5,), MAKER)
        import_masks(source, tiny_cohort.cohort, tiny_cohort.folder / "images", ["T2W"])


def test_a_readers_band_stands_where_there_is_no_reference(elsewhere: Path, tiny_cohort: Tiny, tmp_path: Path) -> None:
    table = tiny_cohort.table
    frame = table.frame[table.frame["sequence"] == "T2W"].copy()
    frame["quality"] = [1, 2, 3] * 4
    frame.loc[frame.index[6:], ["mask", "mask_labels"]] = None
    Cohort(frame, table.root).save(tmp_path / "graded.csv")
    graded = Cohort.load(tmp_path / "graded.csv")
    assert [scan.quality for scan in graded.scans] == [1, 2, 3] * 4
    source = ExternalMasks(elsewhere, "{id}/total.nii.gz", (5,), MAKER)
    record = import_masks(source, tmp_path / "graded.csv", tmp_path / "masks")
    bands = [(record.masks[scan.scan_id].quality, record.masks[scan.scan_id].quality_from) for scan in graded.scans]
    assert bands == [(3, "reference")] * 6 + [(band, "reader") for band in [1, 2, 3] * 2]
    frame["quality"] = "good"
    with pytest.raises(InputError, match=r"row 1: quality 'good' is not a whole number"):
        Cohort(frame, table.root)
    frame["quality"] = 4
    with pytest.raises(InputError, match="is not a quality band"):
        Cohort(frame, table.root)


def test_a_column_that_nobody_filled_does_not_change_a_cohorts_hash(tiny_cohort: Tiny) -> None:
    table = tiny_cohort.table
    assert "quality" in table.frame
    graded = table.frame.copy()
    graded.loc[0, "quality"] = 2
    assert Cohort(graded, table.root).sha256 != table.sha256
    without = table.frame.drop(columns="quality")
    assert Cohort(without, table.root).sha256 == table.sha256
