"""Semi-synthetic patients: the texture alone differs, each origin brings both halves, and stays in one part."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from datamodules.cohort import Cohort
from datamodules.errors import InputError
from datamodules.images import read_image, read_mask
from datamodules.masks import MaskRecord, MaskSet, Segmenter
from datamodules.semisynthetic import Texture, derived_scan, make_semisynthetic
from datamodules.split_audit import audit
from datamodules.splits import Fold, Splits, make_splits
from experiments.cli import main
from tests.tiny import Tiny


@pytest.fixture(scope="module")
def real(tiny_cohort: Tiny) -> Cohort:
    return tiny_cohort.table.select(sequences=["T2W"], patients=["P01", "P02", "P05", "P06", "P07", "P08"])


@pytest.fixture(scope="module")
def made(real: Cohort, tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    said: list[str] = []
    folder = tmp_path_factory.mktemp("semi")
    cohort = make_semisynthetic(real, folder, Texture(0.5, 4, 0), notify=said.append, progress=False)
    assert len(said) == 1 and said[0].startswith("SEMI-SYNTHETIC") and "stand-ins" in said[0]
    return cohort


def test_the_texture_is_all_that_differs(real: Cohort) -> None:
    scan = real.scans[0]
    assert scan.mask is not None
    image, liver = read_image(scan.image), read_mask(scan.mask, scan.mask_labels).data != 0
    plain, inside = derived_scan(image, liver, 0.0, np.random.default_rng(3))
    textured, again = derived_scan(image, liver, 0.5, np.random.default_rng(3))
    assert np.array_equal(inside, again)
    assert np.array_equal(plain[~inside], textured[~inside])
    assert (plain[inside] != textured[inside]).mean() > 0.9
    relative = textured[inside] / plain[inside].astype(float) - 1
    assert 0.05 < np.ptp(np.percentile(relative, [5, 95])) <= 0.6
    assert abs(relative.mean()) < 0.1, "the liver's mean signal does not give it away"
    other, _ = derived_scan(image, liver, 0.0, np.random.default_rng(4))
    assert np.corrcoef(plain.ravel(), other.ravel())[0, 1] < 0.999, "another derived patient is another one"


def test_the_table_keeps_origins_and_says_what_it_is(made: Cohort, real: Cohort) -> None:
    assert len(made.patients) == 24
    assert Counter(made.origins.values()) == dict.fromkeys(real.patients, 4)
    for _, rows in made.frame.groupby("origin"):
        assert sorted(rows["x_texture"]) == [0, 0, 0.5, 0.5]
        assert set(rows["source"]) <= {"A (semi-synthetic)", "B (semi-synthetic)"}
    positive = made.frame["lsm_kpa"] > 12
    assert (positive == (made.frame["x_texture"] > 0)).all()
    assert made.frame["metavir"].isna().all() and made.frame["stage"].isna().all()
    for scan in made.scans:
        image, mask = read_image(scan.image), read_mask(scan.mask or Path(), scan.mask_labels)
        assert image.data.dtype == np.int16 and mask.data.any()
        assert np.array_equal(image.affine, read_image(real.root / real.scan(scan.scan_id[:-2]).image).affine)


@pytest.mark.parametrize(
    "options",
    [{"folds": 3}, {"folds": 5, "repeats": 2}, {"test_patients": ["P01~1", "P02~3"]}, {"by": "source"}],
)
def test_a_split_keeps_an_origin_in_one_part(options: dict[str, object], made: Cohort) -> None:
    splits = make_splits(made, "lsm>12", seed=1, **options)  # type: ignore[arg-type]  # of several kinds
    stiffness = {scan.patient_id: scan.lsm_kpa or 0.0 for scan in made.scans}
    for fold in splits.folds:
        where: dict[str, set[str]] = {}
        for part, patients in fold.parts.items():
            assert {stiffness[patient] > 12 for patient in patients} == {True, False}
            for patient in patients:
                where.setdefault(made.origins[patient], set()).add(part)
        assert len(where) == 6 and all(len(parts) == 1 for parts in where.values())
        assert sum(map(len, fold.parts.values())) == 24
    if "test_patients" in options:
        assert {made.origins[patient] for patient in splits.folds[0].test} == {"P01", "P02"}
    assert not audit(made, splits).leaks
    assert any("24 patients are derived from 6" in line for line in audit(made, splits).warnings)


def test_an_origin_in_two_parts_is_a_leak(made: Cohort, tmp_path: Path) -> None:
    splits = make_splits(made, "lsm>12", folds=3, seed=1)
    fold = splits.folds[0]
    moved = fold.train[0]
    bad = Fold(fold.train[1:], (*fold.valid, moved), fold.test)
    torn = dataclasses.replace(splits, folds=(bad, *splits.folds[1:]))
    (leak,) = audit(made, torn).leaks
    assert (leak.patient_id, leak.kind, leak.fold) == (made.origins[moved], "shared-origin", 0)
    assert "derived from this one are in train, valid of fold 0" in leak.message
    (tmp_path / "s.json").write_text(json.dumps(torn.as_json()))
    with pytest.raises(InputError, match=r"fold 0: patients derived from 'P0\d' are in .*they are one person"):
        Splits.load(tmp_path / "s.json", made)


def test_a_segmenter_of_the_real_patient_is_no_stranger_to_the_derived_one(made: Cohort, tmp_path: Path) -> None:
    scan = made.scans[0]
    masks = MaskSet(
        tmp_path,
        {"a" * 64: Segmenter("s", "segmenter", 0, "x", (str(scan.origin),))},
        {scan.scan_id: MaskRecord("m.nii.gz", "x", ("a" * 64,), 0.9, 2)},
    )
    (fault,) = masks.leaks([scan], [])
    assert "trained on this patient" in fault


def test_hashes_of_cohorts_without_origins_stay(real: Cohort) -> None:
    bare = real.frame.drop(columns="origin")
    assert Cohort(bare, real.root).sha256 == real.sha256
    assert Cohort(real.frame.assign(origin=real.frame["patient_id"]), real.root).sha256 != real.sha256


def test_the_command(tiny_cohort: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny_cohort.table.select(sequences=["T2W"], patients=["P01", "P02"]).save(tmp_path / "real.parquet")
    words = ["cohort", "semisynthetic", str(tmp_path / "real.parquet"), "--seed", "0", "--copies", "2"]
    assert main([*words, "--out", str(tmp_path / "semi"), "--strength", "0.3"]) == 0
    assert "SEMI-SYNTHETIC" in capsys.readouterr().err
    assert main([*words, "--out", str(tmp_path / "semi"), "--strength", "0.4"]) == 2
    assert "made with other parameters" in capsys.readouterr().err
    assert main([*words, "--out", str(tmp_path / "odd"), "--strength", "3"]) == 2
    assert "give 0 (nothing is put in) to 2" in capsys.readouterr().err
    derived = tmp_path / "semi" / "cohort.parquet"
    assert (
        main(["cohort", "semisynthetic", str(derived), *words[3:], "--out", str(tmp_path / "x"), "--strength", "0"])
        == 2
    )
    assert "derived from other patients already" in capsys.readouterr().err
