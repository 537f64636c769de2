"""``hepastage search``: what it prints, writes and refuses; on searches whose trials are functions."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from experiments.cli import main
from experiments.cli_given import given_of
from experiments.cli_precheck import precheck
from experiments.cli_words import with_shipped
from tests.experiments.searches import DECAY, LR, folder_of, run_here, study_of, write_search
from tests.tiny import Tiny

TWO = [{"metric": "valid/auc", "direction": "maximize"}, {"metric": "minutes", "direction": "minimize"}]


def searched(folder: Path, tiny: Tiny, runner: str, **changes: object) -> Path:
    """A search that one worker has ended in this process."""
    path = write_search(folder, tiny, **changes)
    assert run_here(path, runner) == 0
    return path


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory, tiny_cohort: Tiny) -> Path:
    """Twelve trials with learning curves, some of them pruned."""
    return searched(tmp_path_factory.mktemp("search"), tiny_cohort, "curves", trials=12, pruner="median")


def command(path: Path, action: str, *words: str) -> list[str]:
    return ["search", action, str(path), "--runs", str(path.parent / "runs"), *words]


def test_status(ended: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command(ended, "status")) == 0
    text = capsys.readouterr().out
    assert "tiny: 12 of 12 trials ended" in text and "0 running, 0 waiting, 0 failed" in text
    assert main(command(ended, "status", "--json")) == 0
    view = json.loads(capsys.readouterr().out)
    study = study_of(ended)
    assert view["complete"] + view["pruned"] == 12 and view["pruned"] > 0
    assert view["best"][0]["values"] == {"valid/loss": study.best_value}
    assert len(view["trials"]) == 12 and view["trials"][3]["parameters"] == study.trials[3].params


def test_status_without_torch(ended: Path) -> None:
    """In a process of its own: what is imported, and that a second is enough on an idle machine."""
    code = (
        "import sys\nfrom experiments.cli import main\ncode = main(sys.argv[1:])\n"
        "assert not {'torch', 'lightning'} & set(sys.modules), 'imported torch'\nsys.exit(code)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, *command(ended, "status")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_trial_whose_worker_has_gone_is_shown_so(
    tiny_cohort: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = searched(tmp_path, tiny_cohort, "branin", trials=1)
    study = study_of(path)
    study.ask().suggest_float("x", -5, 10)
    assert main(command(path, "status")) == 0
    assert "gone: trial 1 (its worker has ended; the next run tries it again)" in capsys.readouterr().out


def test_best_writes_an_overlay(ended: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It parses with the search's configuration, and holds the best trial's parameters."""
    out = tmp_path / "best.yaml"
    assert main(command(ended, "best", "--to-config", str(out))) == 0
    best = study_of(ended).best_trial
    assert f"trial {best.number}: valid/loss" in capsys.readouterr().out
    text = out.read_text(encoding="ascii")
    assert text.startswith(f"# Search tiny, trial {best.number}: valid/loss") and "[direct, best.yaml]" in text
    made = yaml.safe_load(text)
    assert made == {
        "model": {"init_args": {"optimizer": {"init_args": {"lr": best.params["x"], "weight_decay": best.params["y"]}}}}
    }
    precheck(given_of(with_shipped(["-c", "direct", "-c", str(out)])))


def test_importance(ended: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for evaluator in ("fanova", "ped-anova"):
        assert main(command(ended, "importance", "--json", "--evaluator", evaluator)) == 0
        found = json.loads(capsys.readouterr().out)["valid/loss"]
        assert set(found) == {"x", "y"} and all(0 <= value <= 1 for value in found.values())
    assert main(command(ended, "importance")) == 0
    assert re.search(r"^  [xy] +0\.\d{3} +#", capsys.readouterr().out, re.MULTILINE)


def test_importance_leaves_out_what_was_not_always_asked(
    tiny_cohort: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    space = {
        "x": {"key": LR, "low": -5.0, "high": 10.0},
        "y": {"key": DECAY, "low": 0.0, "high": 15.0},
        "kind": {"key": "data.init_args.batch_size", "choices": [4, 8]},
        "z": {"key": "trainer.gradient_clip_val", "low": 0.1, "high": 1.0, "when": {"kind": 4}},
    }  # fmt: skip
    path = searched(tmp_path, tiny_cohort, "branin", trials=12, space=space)
    assert main(command(path, "importance")) == 0
    assert "not asked for in every trial, and so left out: z" in capsys.readouterr().out


def test_plots_need_no_network(ended: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One page with the library inside, once, and nothing that is loaded from elsewhere."""
    page = tmp_path / "page.html"
    assert main(command(ended, "plots", "--out", str(page))) == 0
    assert capsys.readouterr().err == ""
    text = page.read_text(encoding="utf-8")
    titles = re.findall(r"<h2>(.*?)</h2>", text)
    assert titles == [
        "History",
        "Importance",
        "Each parameter",
        "Parallel coordinates",
        "Pairs",
        "Learning curves",
        "Timeline",
    ]
    assert not re.search(r"""<(?:script|link)[^>]+(?:src|href)=["']https?:""", text)
    assert text.count("plotly.js v") == 1 and text.count("Plotly.newPlot(") >= len(titles)


def test_several_objectives(tiny_cohort: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All that no other trial beats are best; a plot shows them; one must be chosen for a study."""
    path = searched(tmp_path, tiny_cohort, "two", trials=10, objective=TWO)
    assert main(command(path, "best", "--json")) == 0
    best = json.loads(capsys.readouterr().out)
    values = [tuple(trial.values) for trial in study_of(path).trials]
    front = [v for v in values if not any(o != v and o[0] >= v[0] and o[1] <= v[1] for o in values)]
    assert sorted(tuple(row["values"].values()) for row in best) == sorted(front)
    assert main(command(path, "plots")) == 0
    assert "<h2>Pareto front</h2>" in (folder_of(path).search / "search.html").read_text(encoding="utf-8")
    out = tmp_path / "best.yaml"
    if len(front) > 1:
        assert main(command(path, "best", "--to-config", str(out))) == 2
        assert "choose one with --trial" in capsys.readouterr().err
    assert main(command(path, "best", "--to-config", str(out), "--trial", str(best[0]["trial"]))) == 0
    assert out.is_file()


def test_checkpoints_of_the_best_alone_are_kept(tiny_cohort: Tiny, tmp_path: Path) -> None:
    from experiments.search_worker import drop_checkpoints

    path = searched(tmp_path, tiny_cohort, "branin", trials=4)
    study, folder = study_of(path), folder_of(path)
    for trial in study.trials:
        checkpoints = folder.search / f"trial-{trial.number:04d}" / "0123456789ab" / "checkpoints"
        checkpoints.mkdir(parents=True)
        (checkpoints / "best.ckpt").touch()
        (checkpoints.parent / "metrics.jsonl").touch()
    drop_checkpoints(study, folder)
    kept = [found.parent.parent.name for found in folder.search.glob("*/*/checkpoints")]
    assert kept == [f"trial-{study.best_trial.number:04d}"]
    assert len(list(folder.search.glob("*/*/metrics.jsonl"))) == 4, "the runs themselves are kept"


@pytest.mark.parametrize(
    ("action", "words", "said"),
    [
        ("status", [], "nothing has been searched yet; 'hepastage search run' does it"),
        ("best", [], "nothing has been searched yet"),
        ("run", ["--workers", "0"], "--workers 0: give 1 or more"),
        ("run", ["--cohort", "no.parquet"], "no.parquet: "),
    ],
)
def test_wrong_requests(
    action: str, words: list[str], said: str, tiny_cohort: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command(write_search(tmp_path, tiny_cohort), action, *words)) == 2
    error = capsys.readouterr().err
    assert said in error and all(line.startswith("hepastage: ") for line in error.splitlines())


def test_a_cohort_must_be_named(tiny_cohort: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_search(tmp_path, tiny_cohort, cohort=None)
    assert main(command(path, "run")) == 2
    assert "cohort: is not set; set it there or give --cohort" in capsys.readouterr().err


def test_schema(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["search", "schema"]) == 0
    assert "space" in json.loads(capsys.readouterr().out)["properties"]
