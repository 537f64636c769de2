"""The cohort page and its command."""

from __future__ import annotations

import argparse
import base64
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datamodules.cohort import Cohort
from datamodules.cohort_check import check_cohort
from datamodules.cohort_check_files import THUMBNAIL_PIXELS, draw
from experiments.cohort_page import write_cohort_page
from experiments.commands import cohort_check
from tests.datamodules.test_cohort_check import Case, liver


@pytest.fixture
def cohort(tmp_path: Path) -> Cohort:
    case = Case(tmp_path)
    case.add("plain", mask=liver(4.7), stage=2, lsm_kpa=12.5)
    case.add("<script>alert(1)&lt;", patient="Ü & <b>", mask=liver() * 2)
    return case.cohort()


class Page(HTMLParser):
    """Collects articles, pictures and everything that would be loaded."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.articles: list[dict[str, str | None]] = []
        self.pictures: list[bytes] = []
        self.loaded: list[str] = []
        self.scripts = 0
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.scripts += tag == "script"
        if tag == "article":
            self.articles.append(values)
        source = values.get("src") or (values.get("href") if tag == "link" else None)
        if source and source.startswith("data:image/png;base64,"):
            self.pictures.append(base64.b64decode(source.partition(",")[2]))
        elif source:
            self.loaded.append(source)


def test_the_page_is_self_contained_and_escapes_what_it_shows(cohort: Cohort, tmp_path: Path) -> None:
    write_cohort_page(check_cohort(cohort, progress=False, thumbnails=True), tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    page = Page(text)
    assert page.loaded == [] and "http" not in text and "@import" not in text
    assert page.scripts == 1 and "<script>alert" not in text
    assert len(page.articles) == len(page.pictures) == 2
    assert page.articles[1]["data-codes"] == "empty-mask" and page.articles[1]["data-levels"] == "fault"
    assert page.articles[1]["data-name"] == "Ü & <b>"
    assert "stage 2" in text and "LSM 12.5 kPa" in text


def test_every_filter_and_sort_key_has_its_data(cohort: Cohort, tmp_path: Path) -> None:
    write_cohort_page(check_cohort(cohort, progress=False), tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    keys = re.findall(r'<option value="([a-z]+)">', text)
    assert keys == ["worst", "place", "volume", "signal", "name", "source"]
    for article in Page(text).articles:
        assert all(article.get(f"data-{key}") not in (None, "") for key in keys)
    assert "no picture" in text


def picture(shape: tuple[int, int, int], spacing: tuple[float, float, float], bright: tuple[slice, ...]) -> Image.Image:
    image = np.zeros(shape, np.int16)
    image[bright] = 100
    mask = np.zeros(shape, np.bool_)
    mask[bright] = True
    return Image.open(io.BytesIO(draw(image, mask, spacing))).convert("RGB")


def middle_of_outline(shown: Image.Image) -> tuple[float, float]:
    """Where the outline's middle lies, as shares of width and height."""
    pixels = np.asarray(shown).astype(int)
    yellow = np.argwhere((pixels[..., 0] > 200) & (pixels[..., 1] > 150) & (pixels[..., 2] < 80))
    assert len(yellow)
    row, column = yellow.mean(axis=0)
    return column / shown.width, row / shown.height


def test_thumbnails_have_true_proportions_and_radiological_sides() -> None:
    # RAS+: high indices are right, anterior, superior
    axial = picture((40, 40, 10), (1.0, 2.0, 5.0), (slice(28, 36), slice(28, 36), slice(3, 8)))
    assert axial.size == (THUMBNAIL_PIXELS // 2, THUMBNAIL_PIXELS)
    column, row = middle_of_outline(axial)
    assert column < 0.3 and row < 0.3  # the patient's right is on the left, anterior is up
    coronal = picture((40, 10, 20), (1.0, 6.0, 1.0), (slice(28, 36), slice(3, 8), slice(1, 6)))
    assert coronal.size == (THUMBNAIL_PIXELS, THUMBNAIL_PIXELS // 2)
    column, row = middle_of_outline(coronal)
    assert column < 0.3 and row > 0.7  # inferior is down
    sagittal = picture((10, 40, 40), (6.0, 1.0, 1.0), (slice(3, 8), slice(28, 36), slice(28, 36)))
    column, row = middle_of_outline(sagittal)
    assert column < 0.3 and row < 0.3  # anterior is on the left, superior is up


def test_the_command(cohort: Cohort, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    cohort_check.register(parser.add_subparsers())
    cohort.save(tmp_path / "cohort.parquet")
    page, record = tmp_path / "a page" / "p.html", tmp_path / "r.json"
    args = parser.parse_args(["check", str(tmp_path / "cohort.parquet"), "--html", str(page), "--json", str(record)])
    assert args.run(args) == 1
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and lines[0].startswith("fault: empty-mask: ") and "2 scans checked: 1 fault" in lines[1]
    assert page.is_file() and json.loads(record.read_text(encoding="utf-8"))["summary"]["faults"] == 1
    cohort.select(patients=["plain"]).save(tmp_path / "good.csv")
    args = parser.parse_args(["check", str(tmp_path / "good.csv")])
    assert args.run(args) == 0
