"""Loading that is chosen from the machine, and scans that stay on the device: the same batches either way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from datamodules.classification import ClassificationDataModule
from datamodules.errors import InputError
from datamodules.loading import chosen_loading
from datamodules.preprocessing import Preprocessing
from datamodules.segmentation import SegmentationDataModule
from datamodules.staging import StagingDataModule
from tests.tiny import SPACING, Tiny

GRID = Preprocessing(spacing=SPACING, shape=(24, 24, 8))


def test_an_accelerator_is_fed_by_the_cores_that_are_left_and_a_processor_by_itself() -> None:
    assert chosen_loading("auto", accelerator=True, cores=16).workers == 8
    assert chosen_loading("auto", accelerator=True, cores=4).workers == 3
    assert chosen_loading("auto", accelerator=True, cores=16, processes=4).workers == 3
    assert chosen_loading("auto", accelerator=True, cores=1).workers == 0
    assert chosen_loading("auto", accelerator=False, cores=16).workers == 0
    assert chosen_loading(5, accelerator=False, cores=2).workers == 5


def test_large_batches_are_not_held_ready_by_the_dozen() -> None:
    assert chosen_loading(2, accelerator=True, batch_bytes=2**20).ahead == 8
    assert chosen_loading(2, accelerator=True, batch_bytes=2**26).ahead == 4
    assert chosen_loading(2, accelerator=True, batch_bytes=2**30).ahead == 2


def same(first: dict[str, Any], second: dict[str, Any]) -> bool:
    tensors = ("image", "mask", "target", "present")
    return all(
        torch.equal(first[key], value) if key in tensors else first[key] == value
        for key, value in second.items()
        if key != "seed"
    )


def resident_batches(kind: Any, parts: tuple[str, ...], tiny: Tiny, store: Path, **more: Any) -> list[dict[str, Any]]:
    """Batches of the parts by resident scans, which must be those of the memory map."""
    words = (str(tiny.cohort), str(tiny.splits))
    made = [kind(*words, store=str(store), preprocessing=GRID, resident=resident, **more) for resident in (False, True)]
    made[0].prepare_data()
    batches = []
    for part in parts:
        plain, resident = (list(getattr(module, f"{part}_dataloader")()) for module in made)
        assert len(plain) == len(resident) > 0
        assert all(same(*pair) for pair in zip(plain, resident, strict=True))
        batches += resident
    return batches


@pytest.mark.parametrize("patch", [None, (16, 28, 8)], ids=["whole", "patch"])
def test_resident_patches_are_those_of_the_memory_map(tiny_cohort: Tiny, tmp_path: Path, patch: Any) -> None:
    resident_batches(SegmentationDataModule, ("train", "val"), tiny_cohort, tmp_path, patch=patch)


def test_resident_volumes_are_those_of_the_memory_map(tiny_cohort: Tiny, tmp_path: Path) -> None:
    more = {"mask_source": "reference", "batch_size": 2}
    resident_batches(ClassificationDataModule, ("train",), tiny_cohort, tmp_path, **more)


def test_resident_examinations_are_those_of_the_memory_map(tiny_cohort: Tiny, tmp_path: Path) -> None:
    more = {"mask_source": "reference", "batch_size": 2}
    batches = resident_batches(StagingDataModule, ("train", "val", "test"), tiny_cohort, tmp_path, **more)
    present, images = (torch.cat([batch[key] for batch in batches]) for key in ("present", "image"))
    assert not present.all() and (images.abs().amax((2, 3, 4)) > 0).equal(present), "what is missing is zeros"


def test_what_contradicts_is_refused(tiny_cohort: Tiny) -> None:
    words = (str(tiny_cohort.cohort), str(tiny_cohort.splits))
    with pytest.raises(InputError, match=r"resident data are cut in the training process"):
        SegmentationDataModule(*words, patch=(8, 8, 8), workers=2, resident=True)
    with pytest.raises(InputError, match=r"workers is many; give 0 or more, or auto"):
        SegmentationDataModule(*words, patch=(8, 8, 8), workers="many")  # type: ignore[arg-type]  # that is the point
