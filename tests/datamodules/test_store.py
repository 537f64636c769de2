"""The store: keys by content, reading by windows, faults together."""

from __future__ import annotations

import logging
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datamodules.cohort import Cohort
from datamodules.errors import InputError
from datamodules.images import read_image, read_mask, write_nifti
from datamodules.preprocessing import Preprocessing, preprocess
from datamodules.store import Store
from tests.datamodules.store_scans import PARAMS, make_cohort


def stamps(root: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in sorted(root.glob("??/*/meta.json"))}


def test_an_entry_holds_what_preprocessing_gives(tmp_path: Path) -> None:
    cohort = make_cohort(tmp_path)
    store = Store(tmp_path / "store", PARAMS)
    keys = store.fill(cohort, workers=1, progress=False)
    assert list(keys) == ["s0", "s1", "s2"]
    for scan in cohort:
        assert scan.mask is not None
        image, mask, geometry = preprocess(read_image(scan.image), read_mask(scan.mask, (1,)), PARAMS)
        entry = store.entry(scan)
        assert mask is not None
        assert (entry.key, entry.geometry, entry.shape, entry.spacing) == (
            keys[scan.scan_id], geometry, image.shape, (1.5, 1.5, 3.0),
        )  # fmt: skip
        found = entry.image()
        assert found.dtype == np.float32
        assert found.flags.c_contiguous
        assert found.flags.writeable
        np.testing.assert_allclose(found, image, atol=1e-4 * float(np.ptp(image)))
        assert entry.has_mask
        np.testing.assert_array_equal(entry.mask(), mask)
        assert mask[tuple(entry.foreground.T)].all()
        assert len(entry.foreground) == mask.sum()
        assert entry.normalisation.std > 0


def test_a_window_is_a_part_of_the_whole(tmp_path: Path) -> None:
    cohort = make_cohort(tmp_path, 1)
    entry = Store(tmp_path / "store", PARAMS).entry(cohort.scans[0])
    window = (slice(3, 11), slice(0, 7), slice(2, 9))
    np.testing.assert_array_equal(entry.image(window), entry.image()[window])
    np.testing.assert_array_equal(entry.mask(window), entry.mask()[window])
    for bad in (slice(0, 999), slice(-3, 2), slice(4, 4), slice(0, 8, 2)):
        with pytest.raises(ValueError, match="not inside"):
            entry.image((bad, slice(0, 2), slice(0, 2)))


def test_the_foreground_sample_is_bounded_and_repeats(tmp_path: Path) -> None:
    cohort = make_cohort(tmp_path, 1, (80, 80, 20))
    first = Store(tmp_path / "a", PARAMS).entry(cohort.scans[0])
    second = Store(tmp_path / "b", PARAMS).entry(cohort.scans[0])
    assert first.foreground.shape == (20_000, 3)
    assert first.foreground.dtype == np.int32
    assert len(np.unique(first.foreground, axis=0)) == 20_000
    assert first.mask()[tuple(first.foreground.T)].all()
    np.testing.assert_array_equal(first.foreground, second.foreground)


def test_a_second_filling_makes_nothing(tmp_path: Path) -> None:
    cohort = make_cohort(tmp_path)
    keys = Store(tmp_path / "store", PARAMS).fill(cohort, workers=1, progress=False)
    before = stamps(tmp_path / "store")
    assert Store(tmp_path / "store", PARAMS).fill(cohort, workers=1, progress=False) == keys
    assert stamps(tmp_path / "store") == before


def test_two_workers_make_what_one_makes(tmp_path: Path) -> None:
    cohort = make_cohort(tmp_path, 4)
    one = Store(tmp_path / "one", PARAMS).fill(cohort, workers=1, progress=False)
    two = Store(tmp_path / "two", PARAMS).fill(cohort, workers=2, progress=True)
    assert one == two
    for key in one.values():
        for name in ("image.npy", "mask.npy", "foreground.npy", "meta.json"):
            place = Path(key[:2]) / key / name
            assert (tmp_path / "one" / place).read_bytes() == (tmp_path / "two" / place).read_bytes()


def test_the_key_follows_content_labels_and_parameters_but_not_the_place(tmp_path: Path) -> None:
    cohort = make_cohort(tmp_path / "a", 1)
    key = Store(tmp_path / "store", PARAMS).fill(cohort, workers=1, progress=False)["s0"]
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    moved = Cohort.load(tmp_path / "b" / "cohort.csv")
    assert Store(tmp_path / "store", PARAMS).fill(moved, workers=1, progress=False)["s0"] == key
    others = {key, Store(tmp_path / "store", Preprocessing()).entry(moved.scans[0]).key}
    frame = moved.frame.copy()
    frame["mask_labels"] = "1,2"
    others.add(Store(tmp_path / "store", PARAMS).entry(Cohort(frame, moved.root).scans[0]).key)
    frame["mask"], frame["mask_labels"] = None, None
    bare = Store(tmp_path / "store", PARAMS).entry(Cohort(frame, moved.root).scans[0])
    others.add(bare.key)
    write_nifti(moved.scans[0].image, read_image(moved.scans[0].image).data + 1, np.diag([-1.25, -1.25, 5.0, 1.0]))
    others.add(Store(tmp_path / "store", PARAMS).entry(moved.scans[0]).key)
    assert len(others) == 5
    assert not bare.has_mask
    assert bare.foreground.shape == (0, 3)
    with pytest.raises(InputError, match="no reference mask"):
        bare.mask()


def test_stores_and_entries_travel_to_workers_light(tmp_path: Path) -> None:
    cohort = make_cohort(tmp_path, 1)
    store = Store(tmp_path / "store", PARAMS)
    entry = store.entry(cohort.scans[0])
    entry.image()
    assert len(pickle.dumps(store)) < 5_000
    copy = pickle.loads(pickle.dumps(entry))
    assert len(pickle.dumps(entry)) < 10_000
    np.testing.assert_array_equal(copy.image(), entry.image())


def test_another_mask_comes_to_the_same_grid_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cohort = make_cohort(tmp_path, 1)
    scan = cohort.scans[0]
    store = Store(tmp_path / "store", PARAMS)
    reference = store.entry(scan).mask()
    assert scan.mask is not None
    other = tmp_path / "predicted.nii.gz"
    write_nifti(other, read_image(scan.mask).data.astype(np.int16) * 7, read_image(scan.mask).affine)
    np.testing.assert_array_equal(store.external_mask(scan, other), reference)
    monkeypatch.setattr("datamodules.store.decode_mask", None)
    np.testing.assert_array_equal(store.external_mask(scan, other), reference)
    monkeypatch.undo()
    (stored,) = (tmp_path / "store" / "masks").glob("*/*.npy")
    stored.write_bytes(stored.read_bytes()[:-100])
    np.testing.assert_array_equal(store.external_mask(scan, other), reference)
    write_nifti(other, np.zeros((24, 20, 10), np.uint8), read_image(scan.mask).affine)
    assert store.external_mask(scan, other).sum() == 0


def test_another_mask_must_lie_on_the_scans_grid(tmp_path: Path) -> None:
    scan = make_cohort(tmp_path, 1).scans[0]
    store = Store(tmp_path / "store", PARAMS)
    affine = read_image(scan.image).affine
    write_nifti(tmp_path / "small.nii.gz", np.ones((24, 20, 9), np.uint8), affine)
    write_nifti(
        tmp_path / "moved.nii.gz", np.ones((24, 20, 10), np.uint8), affine + np.eye(4)[:, 3:] @ np.ones((1, 4)) * 0
    )
    with pytest.raises(InputError, match=r"small\.nii\.gz"):
        store.external_mask(scan, tmp_path / "small.nii.gz")
    moved = affine.copy()
    moved[:3, 3] += 3
    write_nifti(tmp_path / "moved.nii.gz", np.ones((24, 20, 10), np.uint8), moved)
    with pytest.raises(InputError, match=r"moved\.nii\.gz: .*voxels away"):
        store.external_mask(scan, tmp_path / "moved.nii.gz")


@pytest.mark.parametrize("workers", [1, 2])
def test_all_faults_are_told_together_and_the_rest_is_kept(tmp_path: Path, workers: int) -> None:
    cohort = make_cohort(tmp_path, 5)
    (tmp_path / "image 0.nii.gz").unlink()
    (tmp_path / "image 1.nii.gz").write_bytes(b"no image")
    write_nifti(tmp_path / "mask_2.nii.gz", np.zeros((24, 20, 10), np.uint8), read_image(cohort.scans[4].image).affine)
    write_nifti(tmp_path / "mask_3.nii.gz", np.ones((24, 20, 11), np.uint8), read_image(cohort.scans[4].image).affine)
    store = Store(tmp_path / "store", PARAMS)
    with pytest.raises(InputError) as caught:
        store.fill(cohort, workers=workers, progress=False)
    assert len(caught.value.faults) == 4
    for name, fault in zip(("image 0", "image 1", "mask_2", "mask_3"), sorted(caught.value.faults), strict=True):
        assert name in fault
    assert "an empty mask" in caught.value.faults[-2] + caught.value.faults[-1]
    assert len(stamps(tmp_path / "store")) == 1


def test_a_mask_that_is_cropped_away_is_named(tmp_path: Path) -> None:
    cohort = make_cohort(tmp_path, 1)
    affine = read_image(cohort.scans[0].image).affine
    corner = np.zeros((24, 20, 10), np.uint8)
    corner[:2, :2, :2] = 1
    write_nifti(tmp_path / "mask_0.nii.gz", corner, affine)
    with pytest.raises(InputError, match=r"mask_0\.nii\.gz: nothing of the mask is left"):
        Store(tmp_path / "store", Preprocessing(shape=(8, 8, 4))).entry(cohort.scans[0])


@pytest.mark.parametrize("name", ["image.npy", "mask.npy", "foreground.npy", "meta.json"])
@pytest.mark.parametrize("harm", ["truncate", "remove"])
def test_a_damaged_entry_is_made_again_with_a_note(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, harm: str
) -> None:
    cohort = make_cohort(tmp_path, 2)
    keys = Store(tmp_path / "store", PARAMS).fill(cohort, workers=1, progress=False)
    whole = stamps(tmp_path / "store")
    folder = tmp_path / "store" / keys["s1"][:2] / keys["s1"]
    content = (folder / name).read_bytes()
    if harm == "truncate":
        (folder / name).write_bytes(content[: len(content) // 2])
    else:
        (folder / name).unlink()
    with caplog.at_level(logging.WARNING):
        entry = Store(tmp_path / "store", PARAMS).entry(cohort.scans[1])
    assert "damaged" in caplog.text
    assert keys["s1"] in caplog.text
    assert (folder / name).read_bytes() == content
    assert entry.image().shape == entry.shape
    after = stamps(tmp_path / "store")
    assert [path for path in whole if whole[path] != after[path]] == [str(folder / "meta.json")]


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path: Path) -> None:
    cohort = make_cohort(tmp_path, 1)
    store = Store(tmp_path / "store", PARAMS)
    request = store._request(cohort.scans[0])
    image: Any = read_image(cohort.scans[0].image)
    write_nifti(cohort.scans[0].image, image.data * 2, image.affine)
    with pytest.raises(InputError, match="changed while"):
        store.make(request)
