"""The phantom cohort as a whole: bytes, table, split, shortcut."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
from scipy import ndimage

from datamodules.cohort import Cohort
from datamodules.errors import InputError
from datamodules.phantom import make_phantom

PATIENTS = 8
DETAIL = 0.5


def digests(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def load(path: Path) -> Any:
    return nib.load(path)


def voxels(path: Path) -> npt.NDArray[np.float64]:
    return np.asarray(load(path).dataobj, dtype=np.float64)


def spacing_mm(path: Path) -> npt.NDArray[np.float64]:
    return np.asarray(np.linalg.norm(np.asarray(load(path).affine, dtype=np.float64)[:3, :3], axis=0))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    out = tmp_path_factory.mktemp("plain")
    return make_phantom(out, PATIENTS, 3, detail=DETAIL, workers=1, progress=False)


@pytest.fixture(scope="module")
def marked(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    out = tmp_path_factory.mktemp("marked")
    return make_phantom(out, PATIENTS, 3, shortcut=True, detail=DETAIL, workers=1, progress=False)


def test_same_seed_gives_the_same_bytes_with_any_number_of_workers(plain: Cohort, tmp_path: Path) -> None:
    make_phantom(tmp_path, PATIENTS, 3, detail=DETAIL, workers=2, progress=False)
    assert digests(tmp_path) == digests(plain.root)


def test_a_rerun_in_place_changes_nothing(tmp_path: Path) -> None:
    make_phantom(tmp_path, 1, 5, detail=DETAIL, workers=1, progress=False)
    before = digests(tmp_path)
    make_phantom(tmp_path, 1, 5, detail=DETAIL, workers=1, progress=False)
    assert digests(tmp_path) == before


def test_a_patient_does_not_depend_on_how_many_there_are(plain: Cohort, tmp_path: Path) -> None:
    make_phantom(tmp_path, 2, 3, detail=DETAIL, workers=1, progress=False)
    few, many = digests(tmp_path), digests(plain.root)
    images = [name for name in few if name.endswith(".nii.gz")]
    assert len(images) >= 4
    assert all(few[name] == many[name] for name in images)


def test_another_seed_gives_other_images(plain: Cohort, tmp_path: Path) -> None:
    make_phantom(tmp_path, 1, 4, detail=DETAIL, workers=1, progress=False)
    assert digests(tmp_path)["images/P0001_T2W.nii.gz"] != digests(plain.root)["images/P0001_T2W.nii.gz"]


def test_refuses_a_folder_with_another_cohort(tmp_path: Path) -> None:
    make_phantom(tmp_path, 1, 5, detail=DETAIL, workers=1, progress=False)
    before = digests(tmp_path)
    with pytest.raises(InputError, match="another seed"):
        make_phantom(tmp_path, 1, 6, detail=DETAIL, workers=1, progress=False)
    with pytest.raises(InputError, match="another shortcut"):
        make_phantom(tmp_path, 1, 5, shortcut=True, detail=DETAIL, workers=1, progress=False)
    assert digests(tmp_path) == before


def test_refuses_a_folder_with_a_real_cohort(tmp_path: Path) -> None:
    (tmp_path / "cohort.parquet").write_bytes(b"someone's")
    with pytest.raises(InputError, match="no phantom"):
        make_phantom(tmp_path, 1, 5, progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["cohort.parquet"]


def test_all_bad_parameters_are_named_at_once(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        make_phantom(
            tmp_path / "new",
            0,
            -1,
            sources=("a", "a"),
            sequences=("T2W", "FLAIR"),
            detail=9.0,
            test_fraction=1.0,
            workers=0,
            shortcut_agreement=2.0,
        )
    named = [fault.split(":")[0] for fault in caught.value.faults]
    assert named == [
        "patients",
        "seed",
        "shortcut_agreement",
        "sources",
        "sequences",
        "detail",
        "test_fraction",
        "workers",
    ]
    assert not (tmp_path / "new").exists()


def test_the_table_loads_and_names_every_file(plain: Cohort) -> None:
    cohort = Cohort.load(plain.root / "cohort.parquet")
    assert len(cohort.patients) == PATIENTS
    assert set(cohort.frame["source"]) == {"site_a", "site_b"}
    on_disk = set((plain.root / "images").iterdir())
    assert {scan.image for scan in cohort} == on_disk
    for scan in cohort:
        assert scan.scan_id == f"{scan.patient_id}_{scan.sequence}"
        assert scan.mask is not None and scan.mask.is_file() and scan.mask_labels == (1,)
        assert scan.healthy is False
        assert scan.official_split in ("train", "test")
    for column in ("lsm_kpa", "metavir", "stage", "age", "sex", "official_split", "source"):
        per_patient = cohort.frame.groupby("patient_id")[column]
        assert all(len(set(values)) == 1 for _, values in per_patient)


def test_masks_share_the_grid_and_lie_on_the_right(plain: Cohort) -> None:
    for scan in plain:
        assert scan.mask is not None
        image, mask = load(scan.image), load(scan.mask)
        assert np.array_equal(image.affine, mask.affine) and image.shape == mask.shape
        assert mask.get_data_dtype() == np.uint8
        assert image.get_data_dtype() == (np.int16 if scan.source == "site_a" else np.uint16)
        data = voxels(scan.image)
        body = np.argwhere(ndimage.gaussian_filter(data, 1.0) > 0.15 * np.percentile(data, 95))
        liver = np.argwhere(np.asarray(mask.dataobj) == 1)
        # in RAS+ the first coordinate grows toward the patient's right
        to_mm = image.affine[:3, :3]
        assert (to_mm @ (liver.mean(0) - body.mean(0)))[0] > 25.0
        litres = len(liver) * abs(np.linalg.det(to_mm)) / 1e6
        assert 0.8 <= litres <= 2.6


def test_grids_differ_between_patients_and_sequences(plain: Cohort) -> None:
    codes: Any = nib.aff2axcodes
    spacings: set[tuple[float, ...]] = set()
    orientations: set[str] = set()
    oblique = 0
    for scan in plain:
        affine = load(scan.image).affine
        spacings.add(tuple(np.round(spacing_mm(scan.image), 3).tolist()))
        orientations.add("".join(codes(affine)))
        # on a straight grid each axis moves along one coordinate only
        oblique += int(np.count_nonzero(np.abs(affine[:3, :3]) > 0.01) > 3)
    assert len(spacings) > len(plain) // 2
    assert len(orientations) >= 3
    assert 0 < oblique < len(plain)


def test_the_marker_changes_nothing_but_the_marker(plain: Cohort, marked: Cohort) -> None:
    assert plain.sha256 == marked.sha256
    truth = pd.read_csv(marked.root / "truth.csv").set_index("scan_id")
    assert not pd.read_csv(plain.root / "truth.csv")["marker"].any()
    assert truth["marker"].nunique() == 2
    for before, after in zip(plain, marked, strict=True):
        assert before.mask is not None and after.mask is not None
        assert before.mask.read_bytes() == after.mask.read_bytes()
        if not truth.loc[after.scan_id, "marker"]:
            assert before.image.read_bytes() == after.image.read_bytes()
            continue
        changed = voxels(before.image) != voxels(after.image)
        liver = voxels(after.mask) == 1
        distance_mm = ndimage.distance_transform_edt(~liver, sampling=spacing_mm(after.image).tolist())
        assert changed.any()
        assert distance_mm[changed].min() >= 10.0
        # on the patient's left
        step = load(after.image).affine[:3, :3] @ (np.argwhere(changed).mean(0) - np.argwhere(liver).mean(0))
        assert step[0] < -60.0


def test_the_marker_is_seen_at_coarse_resolution(marked: Cohort, plain: Cohort) -> None:
    truth = pd.read_csv(marked.root / "truth.csv").set_index("scan_id")
    scan = next(scan for scan in marked if truth.loc[scan.scan_id, "marker"])
    zoom = (spacing_mm(scan.image) / (4.0, 4.0, 8.0)).tolist()
    without = ndimage.zoom(voxels(plain.scan(scan.scan_id).image), zoom, order=1)
    with_it = ndimage.zoom(voxels(scan.image), zoom, order=1)
    bright = (with_it - without) > 0.5 * np.percentile(without, 95)
    assert bright.sum() > 30


def test_one_sequence_alone_is_never_missing(tmp_path: Path) -> None:
    cohort = make_phantom(
        tmp_path,
        3,
        1,
        sequences=("T1W",),
        sources=("only",),
        detail=DETAIL,
        test_fraction=0.0,
        workers=1,
        progress=False,
    )
    assert [scan.sequence for scan in cohort] == ["T1W"] * 3
    assert set(cohort.frame["official_split"]) == {"train"}
