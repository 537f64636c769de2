"""Fixtures that every test may use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


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
