"""Fixtures that every test may use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.tiny import SEGMENTER, Tiny, make


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder with real scans and reference tables, or a skip that says what is missing."""
    value = os.environ.get("HEPASTAGE_TEST_DATA", "")
    if not value:
        pytest.skip("HEPASTAGE_TEST_DATA is not set: no real scans and reference tables at hand")
    folder = Path(value).resolve()
    if not folder.is_dir():
        pytest.skip(f"HEPASTAGE_TEST_DATA={value} is not a folder")
    return folder


@pytest.fixture(scope="session")
def tiny_cohort(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """Twelve patients of two sources, T1W and T2W, on disk; read only."""
    return make(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def segmenters(tiny_cohort: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A runs folder with the study ``tiny``: a segmenter for each of the two folds, trained and tested; read only."""
    from experiments.lightning_cli import fit_and_test

    runs = tmp_path_factory.mktemp("runs")
    for fold in range(2):
        words = tiny_cohort.words("segmentation", runs=runs)
        words += ["--study", "tiny", "--arm", "segmenter", "--data.init_args.fold", str(fold)]
        assert not fit_and_test([*words, *SEGMENTER])
    return runs
