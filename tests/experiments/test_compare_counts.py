"""The published two-stage result, re-stated from its four counts."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from datamodules.errors import InputError
from experiments.cli import main
from experiments.compare_counts import as_json, parse_counts, restated, sentences

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "compare.md"


def test_the_published_result_with_our_intervals() -> None:
    found = restated(**parse_counts("tp=14, fn=4, tn=4, fp=1"))
    assert (found.positives, found.negatives) == (18, 5)
    expected = {
        "sensitivity": (0.778, 0.548, 0.910, 0.524, 0.936),
        "specificity": (0.800, 0.376, 0.964, 0.284, 0.995),
        "accuracy": (0.783, 0.581, 0.903, 0.563, 0.925),
        "majority baseline": (0.783, 0.581, 0.903, 0.563, 0.925),
        "positive predictive value": (0.933, 0.702, 0.988, 0.681, 0.998),
        "negative predictive value": (0.500, 0.215, 0.785, 0.157, 0.843),
    }
    assert list(found.wilson) == list(expected)
    for name, (estimate, low, high, exact_low, exact_high) in expected.items():
        assert found.wilson[name].estimate == pytest.approx(estimate, abs=6e-4)
        assert list(found.wilson[name]) == pytest.approx([low, high], abs=6e-4)
        assert list(found.exact[name]) == pytest.approx([exact_low, exact_high], abs=6e-4)


def test_what_twenty_three_patients_can_show() -> None:
    lines = sentences(restated(14, 4, 4, 1))
    assert "right for 18 of them; the result is right for 18, exactly as often as that" in lines[0]
    assert "right on 6 patients" in lines[1] and "26 percentage points" in lines[1] and "below 32 points" in lines[1]
    assert lines[2] == "On 5 negative patients no difference in specificity can be significant."
    assert [line for line in lines if "not even a perfect arm" in line] == lines[3:]
    assert "smallest gain found with 80 % power is 0.09" in sentences(restated(80, 20, 80, 20))[2]


def test_a_class_that_does_not_occur_is_left_out() -> None:
    found = restated(0, 0, 4, 1)
    assert "sensitivity" not in found.wilson
    assert not any("AUC" in line for line in sentences(found))
    assert "cannot differ significantly" in sentences(restated(1, 1, 1, 0))[1]
    assert "more often than that" in sentences(restated(10, 0, 10, 1))[0]
    assert "less often than that" in sentences(restated(8, 2, 0, 1))[0]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("tp=14,fn=4,tn=4", "fp missing"),
        ("tp=14,fn=4,tn=4,fp=-1", "fp=-1: no count"),
        ("tp=14,fn=4,tn=4,fp=1,n=3", "n=3: no count"),
        ("tp=14,tp=4,fn=4,tn=4,fp=1", "tp stands there twice"),
        ("tp=0,fn=0,tn=0,fp=0", "no patient at all"),
    ],
)
def test_impossible_counts_are_refused(text: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        parse_counts(text)


def test_the_command(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["compare", "--counts", "tp=14,fn=4,tn=4,fp=1", "--out", str(tmp_path)]) == 0
    assert json.loads((tmp_path / "counts.json").read_text())["counts"]["tp"] == 14
    seen = capsys.readouterr().out
    assert "0.78 (0.55–0.91)" in seen and "0.52–0.94" in seen
    assert main(["compare", "--counts", "tp=14,fn=4,tn=4,fp=1", "--level", "95"]) == 2
    assert main(["compare", "--counts", "tp=14,fn=4,tn=4,fp=1", str(tmp_path)]) == 2
    assert main(["compare"]) == 2
    said = capsys.readouterr().err
    for words in ("--level 95", "--counts stands in place of files", "no study folder or file", "--out is missing"):
        assert words in said


def test_json_is_plain() -> None:
    content = json.loads(json.dumps(as_json(restated(14, 4, 4, 1))))
    assert content["counts"] == {"tp": 14, "fn": 4, "tn": 4, "fp": 1}
    assert content["wilson"]["sensitivity"]["low"] == pytest.approx(0.548, abs=5e-4)


def test_the_numbers_in_the_docs_are_those_that_we_compute() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    found = restated(14, 4, 4, 1)
    for label, name in (("sensitivity 14/18", "sensitivity"), ("specificity 4/5", "specificity"),
                        ("accuracy 18/23", "accuracy")):  # fmt: skip
        row = re.search(rf"^\| {label} \| (\S+) \| (\S+) \| (\S+) \|$", text, re.MULTILINE)
        assert row, f"docs/compare.md has no row {label}"
        wilson, exact = found.wilson[name], found.exact[name]
        assert row[1] == f"{wilson.estimate:.2f}"
        assert row[2] == f"{wilson.low:.2f}–{wilson.high:.2f}"
        assert row[3] == f"{exact.low:.2f}–{exact.high:.2f}"
    for sentence in sentences(found)[1:3]:
        numbers = re.findall(r"\d+ patients|\d+ percentage points|\d+ points|\d+ negative patients", sentence)
        assert numbers and all(number in text for number in numbers)
