"""Every message in docs/errors.md is produced here: each command of the table is run, and says what stands there."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path
from typing import NamedTuple

import pytest

from experiments.cli import main
from experiments.lightning_cli import run_command
from tests.tiny import CLASSIFIER, Tiny

PAGE = Path(__file__).resolve().parents[2] / "docs" / "errors.md"
FILES = {
    "typo.yaml": "model:\n  init_args:\n    netwrok: 3\n",
    "broken.yaml": "trainer: [\n",
    "study.yaml": "study: s\narm: {}\n",
    "search.yaml": "search: s\nconfig: direct\ntrials: 2\nspace: {lr: {low: 1.0}}\n",
}


class Row(NamedTuple):
    """One mistake: a command, its exit code, and what it says."""

    command: str
    code: int
    message: str


def rows() -> list[Row]:
    """The table: mistake, command, exit code, message; ``<...>`` in a message stands for anything."""
    found = []
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if len(cells) == 4 and cells[1].startswith("`hepastage "):
            found.append(Row(cells[1].strip("`").removeprefix("hepastage "), int(cells[2]), cells[3].strip("`")))
    return found


ROWS = rows()


def usual(tiny: Tiny) -> list[str]:
    """What the dots of a command stand for."""
    words = ["-c", "direct", "--data.init_args.cohort", "cohort.parquet", "--data.init_args.splits", "splits.json"]
    store = ["--data.init_args.store", str(tiny.folder / "store")]
    return [*words, *store, *CLASSIFIER, "--data.init_args.batch_size", "4"]


@pytest.fixture(scope="module")
def folder(tiny_cohort: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder: the tiny cohort, a trained, another and an unfinished cell, files with faults."""
    folder = tmp_path_factory.mktemp("work")
    shutil.copytree(tiny_cohort.folder, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("store"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert run_command("fit", [*usual(tiny_cohort), "--study", "liver", "--arm", "direct"]) == 0
        masked = ["-c", "masked_attention_resnet", *usual(tiny_cohort)[2:], "--study", "liver", "--arm", "masked"]
        assert run_command("fit", masked) == 0
    (run,), (other,) = (list((folder / "runs/liver").glob(f"{arm}/*")) for arm in ("direct", "masked"))
    shutil.copytree(run, folder / "runs/liver/unfinished" / run.name)
    unfinished = folder / "runs/liver/unfinished" / run.name
    (unfinished / "done.json").unlink()
    config = (unfinished / "config.yaml").read_text()
    (unfinished / "config.yaml").write_text(config.replace("arm: direct", "arm: unfinished"))
    (folder / "RUN").symlink_to(run)
    (folder / "UNFINISHED").symlink_to(unfinished)
    (folder / "OTHER").symlink_to(other)
    (folder / "torn.ckpt").write_bytes((run / "checkpoints/last.ckpt").read_bytes()[:5000])
    (folder / "empty").mkdir()
    for name, text in FILES.items():
        (folder / name).write_text(text)
    return folder


def said(command: str, folder: Path, tiny: Tiny, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Exit code and message of a command of the table, with the names of the page in it."""
    places = {name: str((folder / name).resolve()) for name in ("RUN", "UNFINISHED", "OTHER")}
    words: list[str] = []
    for word in shlex.split(command):
        name = word.split("/")[0]
        words += usual(tiny) if word == "..." else [word.replace(name, places[name], 1) if name in places else word]
    capsys.readouterr()
    try:
        code = main(words)
    except SystemExit as stop:
        code = int(stop.code or 0)
    text = "\n".join(line for line in capsys.readouterr().err.splitlines() if line.startswith("hepastage: "))
    for name, place in places.items():
        text = text.replace(place, name)
    return code, text.replace(f"{folder}/", "").removeprefix("hepastage: ")


def test_there_are_twenty_five() -> None:
    assert len(ROWS) >= 25
    assert len({row.command for row in ROWS}) == len(ROWS)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.command)
def test_the_message_is_the_one_shown(
    row: Row,
    folder: Path,
    tiny_cohort: Tiny,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(folder)
    code, text = said(row.command, folder, tiny_cohort, capsys)
    pattern = ".*".join(re.escape(part) for part in row.message.split("<...>"))
    assert re.fullmatch(pattern, text, re.DOTALL), f"\npage: {row.message}\nsaid: {text}"
    assert code == row.code
