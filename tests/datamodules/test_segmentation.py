from __future__ import annotations

import dataclasses
import types
from typing import Any

import numpy as np
import pytest

from datamodules.errors import InputError
from datamodules.preprocessing import Preprocessing
from datamodules.sampling import TrainingSampler
from datamodules.segmentation import LastOfStep, SegmentationDataModule, padded, random_window
from tests.tiny import TESTED, Tiny

SMALL = Preprocessing(spacing=(10.0, 10.0, 20.0))


@dataclasses.dataclass
class FakeEntry:
    shape: tuple[int, int, int]
    foreground: np.ndarray


def module(tiny: Tiny, **options: Any) -> SegmentationDataModule:
    values = {"splits": str(tiny.splits), "store": str(tiny.folder / "store"), "preprocessing": SMALL, **options}
    return SegmentationDataModule(cohort=str(tiny.cohort), **values)


@pytest.mark.parametrize("foreground", [0.0, 0.33, 1.0])
def test_windows_stay_inside(foreground: float) -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        shape = tuple(int(n) for n in rng.integers(3, 40, 3))
        patch = tuple(int(n) for n in rng.integers(1, 40, 3))
        points = np.stack([rng.integers(0, n, 50) for n in shape], axis=1).astype(np.int32)
        entry = FakeEntry((shape[0], shape[1], shape[2]), points)
        window = random_window(entry, (patch[0], patch[1], patch[2]), foreground, rng)  # type: ignore[arg-type]  # a fake
        for part, extent, size in zip(window, shape, patch, strict=True):
            assert 0 <= part.start < part.stop <= extent
            assert part.stop - part.start == min(extent, size)


def test_foreground_windows_are_centred_on_the_liver() -> None:
    rng = np.random.default_rng(1)
    point = np.array([[20, 15, 9]], dtype=np.int32)
    window = random_window(FakeEntry((40, 30, 20), point), (8, 9, 6), 1.0, rng)  # type: ignore[arg-type]  # a fake
    assert [(part.start, part.stop) for part in window] == [(16, 24), (11, 20), (6, 12)]
    # at the border the window is moved, never cut, and still holds the voxel
    window = random_window(FakeEntry((40, 30, 20), np.array([[0, 29, 19]])), (8, 9, 6), 1.0, rng)  # type: ignore[arg-type]  # a fake
    assert [(part.start, part.stop) for part in window] == [(0, 8), (21, 30), (14, 20)]


def test_the_share_of_foreground_windows() -> None:
    rng = np.random.default_rng(2)
    point = np.array([[2, 2, 2]], dtype=np.int32)
    entry = FakeEntry((60, 60, 60), point)
    windows = [random_window(entry, (4, 4, 4), 0.33, rng) for _ in range(3000)]  # type: ignore[arg-type]  # a fake
    centred = np.mean([all(part.start == 0 for part in window) for window in windows])
    # by chance a random window begins at the corner once in 57^3
    assert centred == pytest.approx(0.33, abs=0.03)


def test_padding_keeps_values_and_fills_with_zero() -> None:
    array = np.arange(24.0).reshape(2, 3, 4)
    out = padded(array, (3, 3, 6))
    assert out.shape == (3, 3, 6)
    np.testing.assert_array_equal(out[:2, :, :4], array)
    assert out.sum() == array.sum()
    assert padded(array, (2, 3, 4)) is array


def test_patches(tiny_cohort: Tiny) -> None:
    data = module(tiny_cohort, patch=(16, 16, 12), patches_per_epoch=10, foreground=1.0, batch_size=4)
    batches = list(data.train_dataloader())
    assert [len(batch["scan_id"]) for batch in batches] == [4, 4, 4], "the last step is filled up"
    for batch in batches:
        assert batch["image"].shape == batch["mask"].shape == (len(batch["scan_id"]), 1, 16, 16, 12)
        assert (batch["mask"].flatten(1).sum(1) > 0).all(), "every patch is centred on liver"
        assert batch["image"][batch["mask"] > 0.5].mean() > 1.0, "image and mask are cut alike"
        assert (batch["image"][..., 8:] == 0).all(), "eight slices are there, the rest is padding"
        assert set(batch["patient_id"]) <= set(data.fold.train)
    counts = [scan for batch in batches for scan in batch["scan_id"]][:10]
    assert sorted(counts.count(scan) for scan in set(counts)) == [2, 2, 3, 3], "scans are drawn equally often"


def test_whole_volumes(tiny_cohort: Tiny) -> None:
    data = module(tiny_cohort, preprocessing=dataclasses.replace(SMALL, shape=(24, 24, 8)), batch_size=2)
    (first, second) = data.train_dataloader()
    assert first["image"].shape == (2, 1, 24, 24, 8)
    assert sorted(first["patient_id"] + second["patient_id"]) == sorted(data.fold.train)
    assert [batch["patient_id"][0] for batch in data.test_dataloader()] == list(TESTED)
    assert "target" not in first


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({}, "patch and preprocessing.shape are both unset"),
        ({"patch": (0, 16, 8)}, r"patch is \(0, 16, 8\); give three whole numbers of voxels from 1 on"),
        ({"preprocessing": dataclasses.replace(SMALL, shape=(8, 8, 8)), "patches_per_epoch": 3}, "would be ignored"),
    ],
)
def test_arguments_that_contradict_each_other(options: dict[str, Any], match: str, tiny_cohort: Tiny) -> None:
    with pytest.raises(InputError, match=match):
        module(tiny_cohort, **options)


@pytest.mark.parametrize(
    ("batch_size", "ranks", "accumulated"), [(2, 1, 1), (5, 1, 1), (4, 2, 1), (2, 1, 3), (1, 3, 1)]
)
def test_the_last_patches_of_each_step_are_centred_on_liver_as_nnunets(
    batch_size: int, ranks: int, accumulated: int
) -> None:
    from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader

    step = batch_size * ranks * accumulated
    oracle = types.SimpleNamespace(batch_size=step, oversample_foreground_percent=0.33)
    expected = [nnUNetDataLoader._oversample_last_XX_percent(oracle, place) for place in range(step)]
    items = 4 * step
    plain = [TrainingSampler(items, 7, batch_size, ranks, rank, accumulated) for rank in range(ranks)]
    marked = [list(LastOfStep(sampler, 0.33)) for sampler in plain]
    # rank r holds every ranks-th item of the order, from the r-th on
    together = [draw for draws in zip(*marked, strict=True) for draw in draws]
    assert [draw >= items for draw in together] == expected * 4
    order = [draw for draws in zip(*plain, strict=True) for draw in draws]
    assert [int(draw) % items for draw in together] == [int(draw) for draw in order], "the same items in the same order"
    assert [draw.seed for draw in together] == [draw.seed for draw in order]


def test_marked_patches_hold_liver_and_others_lie_anywhere(tiny_cohort: Tiny) -> None:
    data = module(
        tiny_cohort, patch=(6, 6, 4), patches_per_epoch=90, foreground=0.5, foreground_rule="last_of_step", batch_size=2
    )
    batches = list(data.train_dataloader())
    centre = np.array([[float(mask[0, 3, 3, 2]) for mask in batch["mask"]] for batch in batches])
    assert centre[:, 1].mean() > 0.9, "centred on liver, but for livers at the scan's border"
    assert centre[:, 0].mean() < 0.7, "anywhere"
    scans = {scan for batch in batches for scan in batch["scan_id"]}
    assert scans == {scan.scan_id for scan in data.items("train")}, "each scan comes to either place"


def test_one_segmenter_for_several_sequences_sees_each_scan_by_itself(tiny_cohort: Tiny) -> None:
    both, t2 = module(tiny_cohort, sequence=("T1W", "T2W"), patch=(16, 16, 8)), module(tiny_cohort, patch=(16, 16, 8))
    train = both.items("train")
    assert {scan.sequence for scan in train} == {"T1W", "T2W"}
    assert [scan for scan in train if scan.sequence == "T2W"] == t2.items("train")
    assert len(train) > len(t2.items("train"))
    image = next(iter(both.train_dataloader()))["image"]
    assert image.shape[1] == 1, "never two sequences as channels"
