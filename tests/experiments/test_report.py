from __future__ import annotations

import base64
import io
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datamodules.errors import InputError
from datamodules.records import read_records, write_records
from experiments.compare import compare
from experiments.compare_details import details
from experiments.compare_tables import as_latex
from experiments.figures import write_figures
from experiments.report import as_html, write_outputs
from experiments.report_checklist import checklist
from experiments.report_pictures import encoded
from tests.experiments.browser import check
from tests.experiments.study import add_attention, add_people, add_segmenter, make_study

QUICK = 200


@pytest.fixture(scope="module")
def binary_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("binary")
    study = make_study(folder, strengths={"direct": 1.0, "segmentation_first": 1.8, "probe_outside": 0.0})
    add_segmenter(study)
    add_attention(study, "segmentation_first")
    add_people(study)
    return write_outputs(compare([study], resamples=QUICK), folder / "out")[0]


@pytest.fixture(scope="module")
def staging_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("staging")
    study = make_study(folder, classes=3, seeds=1, fixed_test=True)
    add_attention(study, "segmentation_first")
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
        "Operating points and calibration",
        "Against the Dice of the masks",
        "Where the classifiers looked",
        "By sex",
        "Time, all runs",
        "TRIPOD+AI",
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


def test_the_checklist_answers_what_the_runs_hold_and_no_more(tmp_path: Path) -> None:
    study = make_study(tmp_path, seeds=1, patients=24, folds=2)
    items = {item.asked: item for item in checklist(compare([study], resamples=QUICK))}
    shared = next(item for item in items.values() if item.claim == "19, 20")
    assert shared.answered and "5a5a5a5a5a5a" in shared.answer and shared.tripod == "12a"
    probes = next(item for name, item in items.items() if "shortcuts" in name)
    assert probes.answered and "by mask quality" in probes.answer
    assert not any(item.answered for name, item in items.items() if "ethics" in name or "Patients, elig" in name)
    seeds = next(item for item in items.values() if item.claim == "26, 27")
    assert not seeds.answered and seeds.answer == "one seed only"
    for path in study.rglob("provenance.json"):
        path.unlink()
    bare = {item.asked: item for item in checklist(compare([study], resamples=QUICK))}
    assert bare["Software and versions"].answer == "not recorded"


def test_a_large_picture_is_scaled_down_and_a_small_one_is_kept(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (800, 2400, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "large.png")
    kind, _, content = encoded(tmp_path / "large.png").partition(";base64,")
    assert kind == "data:image/jpeg"
    with Image.open(io.BytesIO(base64.b64decode(content))) as picture:
        assert picture.size == (900, 300)
    Image.fromarray(noise[:20, :20]).save(tmp_path / "small.png")
    assert base64.b64decode(encoded(tmp_path / "small.png").partition(",")[2]) == (tmp_path / "small.png").read_bytes()
    (tmp_path / "torn.png").write_bytes((tmp_path / "large.png").read_bytes()[:5000])
    with pytest.raises(InputError, match=r"torn\.png: is not a picture"):
        encoded(tmp_path / "torn.png")


def test_each_scan_is_shown_once_worst_first(staging_page: Path) -> None:
    text = staging_page.read_text(encoding="utf-8")
    captions = re.findall(r"<figcaption>(P\d+_T2W) · truth (\d), given ([\d.]+)", text)
    # three folds test the same patients: eight pictures in each, of the same eight scans
    assert len({scan for scan, _, _ in captions}) == len(captions) == 8
    given = [float(value) for _, _, value in captions]
    assert given == sorted(given)


def test_the_latex_tables_compile_and_escape_names(tmp_path: Path) -> None:
    strengths = {"direct": 1.0, "100% a_b & c#": 1.2, r"odd{name}~^\x": 1.1}
    study = make_study(tmp_path, patients=24, folds=2, seeds=1, strengths=strengths, name="s")
    add_segmenter(study, patients=24, folds=2)
    latex = as_latex(compare([study], resamples=QUICK))
    assert r"100\% a\_b \& c\#" in latex
    assert r"odd\{name\}\textasciitilde{}\textasciicircum{}\textbackslash{}x" in latex
    assert latex.count(r"\begin{tabular}") == latex.count(r"\end{tabular}") == 5
    body = re.sub(r"\\(textbackslash|textasciitilde|textasciicircum|infty|geq|ldots)\b", "", latex)
    for line in body.splitlines():
        if line.endswith(r"\\"):
            # a sign that LaTeX would read as its own
            assert not re.search(r"(?<!\\)[%#_]", line), line
    for table in latex.split(r"\begin{tabular}")[1:]:
        columns = re.search(r"\{(l?r+)\}", table)
        rows = [line for line in table.splitlines() if line.endswith(r"\\")]
        assert columns and all(len(re.findall(r"(?<!\\)&", line)) == len(columns[1]) - 1 for line in rows)
    compiler = shutil.which("pdflatex") or shutil.which("tectonic")
    if compiler is None:
        pytest.skip("no LaTeX on this machine: the tables are checked by eye of the parser only")
    document = "\\documentclass{article}\\usepackage{booktabs}\\begin{document}\\tiny\n" + latex + "\\end{document}"
    (tmp_path / "t.tex").write_text(document, encoding="utf-8")
    command = [compiler, "t.tex"] if "tectonic" in compiler else [compiler, "-interaction=nonstopmode", "t.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout[-2000:]


@pytest.mark.parametrize(("kind", "figures"), [("binary", 10), ("staging", 4)])
def test_the_page_works_in_a_browser(kind: str, figures: int, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    check(request.getfixturevalue(f"{kind}_page"), tmp_path, figures)


def test_the_demos_own_report_works_in_a_browser(tmp_path: Path) -> None:
    page = Path(__file__).resolve().parents[2] / "runs" / "demo" / "report.html"
    if not page.is_file():
        pytest.skip("no runs/demo/report.html: 'make demo' makes it")
    check(page, tmp_path, 6)


def test_looking_inside_is_a_table_and_grad_cam_has_pictures(tmp_path: Path) -> None:
    study = make_study(tmp_path, seeds=2, strengths={"direct": 1.0, "masked": 1.8})
    for path in study.glob("*/*/predictions.parquet"):
        rows = read_records(path)
        shares = np.linspace(0.2, 0.4, len(rows)) + (0.5 if "masked" in str(path) else 0.0)
        write_records(rows.assign(x_attention_inside=shares), path)
    add_attention(study, "masked")
    for folder in study.glob("masked/*/attention"):
        shutil.copytree(folder, folder.with_name("grad_cam"))
    comparison = compare([study], resamples=200)
    (table,) = [item for item in details(comparison.families[0]) if item.heading == "Looking inside the liver"]
    assert table.header == ["Arm", "Attention in the liver"]
    assert [row[0] for row in table.rows] == ["direct", "masked"]
    assert table.rows[0][1].startswith("0.30 (0.2") and table.rows[1][1].startswith("0.80 (0.7")
    page = as_html(comparison)
    assert page.index("Where the classifiers looked") < page.index("What raised the logit")
    assert "Looking inside the liver" in page
