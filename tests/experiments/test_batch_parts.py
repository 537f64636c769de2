"""A batch in parts: the same cell, the same effective batch, less of it at a time."""

from __future__ import annotations

from pathlib import Path

import pytest

from datamodules.errors import InputError
from experiments.lightning_cli import parsed
from tests.tiny import CLASSIFIER, Tiny


def test_the_id_and_the_effective_batch_stay(tiny_cohort: Tiny, tmp_path: Path) -> None:
    words = [*tiny_cohort.words("direct", runs=tmp_path), *CLASSIFIER, "--data.init_args.batch_size", "4"]
    whole = parsed("fit", words)
    parts = parsed("fit", [*words, "--part_size", "2"])
    assert parts.identity == whole.identity and parts.resolved == whole.resolved
    assert (whole.datamodule.batch_size, whole.trainer.accumulate_grad_batches) == (4, 1)
    assert (parts.datamodule.batch_size, parts.trainer.accumulate_grad_batches) == (2, 2)


@pytest.mark.parametrize("size", ["3", "0", "8"])
def test_parts_that_do_not_fit(size: str, tiny_cohort: Tiny, tmp_path: Path) -> None:
    words = [*tiny_cohort.words("direct", runs=tmp_path), *CLASSIFIER, "--data.init_args.batch_size", "4"]
    with pytest.raises(InputError, match="does not divide"):
        parsed("fit", [*words, "--part_size", size])
