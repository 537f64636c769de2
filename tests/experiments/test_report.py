from __future__ import annotations

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

from experiments.compare import compare
from experiments.figures import write_figures
from experiments.report import as_html, write_outputs
from tests.experiments.study import add_segmenter, make_study

QUICK = 200


@pytest.fixture(scope="module")
def binary_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("binary")
    study = make_study(folder, strengths={"direct": 1.0, "segmentation_first": 1.8, "probe_outside": 0.0})
    add_segmenter(study)
    return write_outputs(compare([study], resamples=QUICK), folder / "out")[0]


@pytest.fixture(scope="module")
def staging_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("staging")
    study = make_study(folder, classes=3, seeds=1, fixed_test=True)
    return write_outputs(compare([study], resamples=QUICK), folder / "out")[0]


class Page(HTMLParser):
    """Addresses that a browser would fetch, and ids."""

    def __init__(self) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("src", "href", "xlink:href") and value and not value.startswith(("data:", "#")):
                self.fetched.append(value)
            if name == "id" and value:
                self.ids.append(value)


def test_the_page_fetches_nothing_and_its_ids_are_unique(binary_page: Path) -> None:
    text = binary_page.read_text(encoding="utf-8")
    page = Page()
    page.feed(text)
    assert page.fetched == []
    assert "@import" not in text
    assert not re.search(r"url\((?!#)", text)
    assert len(page.ids) == len(set(page.ids))


def test_the_page_says_what_a_reader_must_know(binary_page: Path) -> None:
    text = re.sub(r"<[^>]+>", "", binary_page.read_text(encoding="utf-8"))
    for words in (
        "on the same 60 patients",
        "better",
        "probe fails, as it should",
        "Majority baseline",
        "By segmentation quality",
        "By source",
        "Masks on slices",
        "folds are pooled",
        "0123456789abcdef",
        "80 % power",
    ):
        assert words in text
    assert "nan" not in re.findall(r"\bnan\b", text.lower())


def test_names_are_escaped(tmp_path: Path) -> None:
    study = make_study(tmp_path, patients=24, folds=2, seeds=1, strengths={"direct": 1.0, "<script>alert(1)": 1.0})
    html = as_html(compare([study], resamples=QUICK))
    assert "<script>alert(1)" not in html


def test_the_staging_page_shows_confusion_and_averaging(staging_page: Path) -> None:
    text = staging_page.read_text(encoding="utf-8")
    assert "Quadratic kappa" in text
    assert "Confusion matrices" in text
    assert "averaged over folds" in text


def test_figures_for_paper(tmp_path: Path) -> None:
    study = make_study(tmp_path, patients=24, folds=2, seeds=1)
    (found,) = compare([study], resamples=QUICK).families
    written = write_figures(found, tmp_path / "figures")
    assert {path.suffix for path in written} == {".svg", ".pdf"}
    assert {"binary_roc.pdf", "binary_differences.svg"} <= {path.name for path in written}
    again = write_figures(found, tmp_path / "again")
    assert [path.read_bytes() for path in written] == [path.read_bytes() for path in again]


def browse(page: Path, folder: Path, script: str, width: int) -> tuple[dict[str, object], str]:
    """Open a copy of the page with a script at its end; its result, and what the console said."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no chromium on this machine: the report is not opened in a browser")
    copy = folder / "page.html"
    ending = (
        f"<script>document.body.setAttribute('data-result',JSON.stringify((function(){{{script}}})()));</script></body>"
    )
    copy.write_text(page.read_text(encoding="utf-8").replace("</body>", ending), encoding="utf-8")
    done = subprocess.run(
        [
            chromium, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
            "--disable-background-networking", "--disable-component-update", "--disable-sync",
            "--disable-dev-shm-usage",
            "--enable-logging=stderr", f"--user-data-dir={folder / 'profile'}", f"--window-size={width},900",
            "--dump-dom", copy.as_uri(),
        ],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    console = "\n".join(line for line in done.stderr.splitlines() if "CONSOLE" in line)
    found = re.search(r'<body data-result="([^"]*)"', done.stdout)
    assert found, done.stderr[-2000:]
    return json.loads(found[1].replace("&quot;", '"')), console


LOOK = """
const table=document.querySelector('table.sortable'),column=2;
const button=table.tHead.rows[0].cells[column].querySelector('button');
const rows=function(){return Array.from(table.tBodies[0].rows);};
const read=function(){return rows().map(function(row){return parseFloat(row.cells[column].textContent);});};
button.click();const down=read();button.click();const up=read();
return {figures:document.querySelectorAll('figure svg').length,
 empty:Array.from(document.querySelectorAll('figure svg')).filter(function(svg){const box=svg.getBoundingClientRect();
   return box.width<100||box.height<40||svg.querySelectorAll('path').length<3;}).length,
 broken:Array.from(document.images).filter(function(image){return !image.complete||image.naturalWidth===0;}).length,
 down:down,up:up,page:document.documentElement.scrollWidth,window:window.innerWidth};
"""


@pytest.mark.parametrize("width", [1280, 500])
@pytest.mark.parametrize("kind", ["binary", "staging"])
def test_the_page_works_in_a_browser(kind: str, width: int, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    page: Path = request.getfixturevalue(f"{kind}_page")
    seen, console = browse(page, tmp_path, LOOK, width)
    assert console == ""
    assert seen["empty"] == 0
    assert seen["broken"] == 0
    assert int(str(seen["figures"])) >= (8 if kind == "binary" else 2)
    assert seen["down"] == sorted(seen["down"], reverse=True)  # type: ignore[call-overload]  # a list of numbers
    assert seen["up"] == sorted(seen["up"])  # type: ignore[call-overload]  # a list of numbers
    # tables scroll inside their card; the page itself never does so sideways
    assert int(str(seen["page"])) <= int(str(seen["window"]))
