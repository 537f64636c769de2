"""Journals that a kill has torn, and locks that die with their holder."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import optuna
import pytest
from optuna.storages import JournalStorage

from datamodules.errors import InputError
from experiments.search_journal import FileLock, Journal


def journal_of(path: Path, trials: int = 3) -> tuple[optuna.Study, list[str]]:
    notes: list[str] = []
    study = optuna.create_study(study_name="s", storage=JournalStorage(Journal(path, notes.append)))
    for number in range(trials):
        study.tell(study.ask({"x": optuna.distributions.FloatDistribution(0, 1)}), float(number))
    return study, notes


def values_of(path: Path, notes: list[str]) -> list[float]:
    study = optuna.load_study(study_name="s", storage=JournalStorage(Journal(path, notes.append)))
    return [trial.value for trial in study.trials if trial.value is not None]


@pytest.mark.parametrize("cut", [1, 7, 60])
def test_a_torn_last_line_is_repaired_with_a_note(cut: int, tmp_path: Path) -> None:
    """Torn at any place, and then written on: nothing that was whole is lost."""
    path = tmp_path / "journal.log"
    journal_of(path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    torn = whole[:-cut].rpartition(b"\n")[2]
    notes: list[str] = []
    assert values_of(path, notes) == [0.0, 1.0]
    assert notes == [f"{path}: the last line was torn; its {len(torn)} bytes were moved to {path.name}.torn"]
    assert path.with_name("journal.log.torn").read_bytes() == torn + b"\n"
    assert all(json.loads(line) for line in path.read_bytes().splitlines())
    notes.clear()
    assert values_of(path, notes) == [0.0, 1.0] and not notes


def test_a_line_that_is_torn_while_others_work_is_repaired_before_the_next(tmp_path: Path) -> None:
    path = tmp_path / "journal.log"
    study, notes = journal_of(path)
    with path.open("ab") as stream:
        stream.write(b'{"op_code":4,"wor')
    study.tell(study.ask({"x": optuna.distributions.FloatDistribution(0, 1)}), 9.0)
    assert len(notes) == 1 and "the last line was torn" in notes[0]
    assert values_of(path, []) == [0.0, 1.0, 2.0, 9.0]


def test_what_another_program_wrote_after_a_torn_line_is_kept(tmp_path: Path) -> None:
    """Optuna's own backend appends to a torn line, and the study is unreadable after it."""
    path = tmp_path / "journal.log"
    journal_of(path)
    plain = optuna.storages.journal.JournalFileBackend(str(path))
    with path.open("ab") as stream:
        stream.write(b'{"op_code":4,"wor')
    study = optuna.load_study(study_name="s", storage=JournalStorage(Journal(tmp_path / "journal.log", lambda _: None)))
    with path.open("ab") as stream:
        stream.write(b'{"op_code":4,"wor')
    plain.append_logs([{"op_code": 2, "worker_id": "w", "study_id": 0, "user_attr": {"kept": True}}])
    plain.append_logs([{"op_code": 2, "worker_id": "w", "study_id": 0, "user_attr": {"also": True}}])
    with pytest.raises(ValueError):
        list(optuna.storages.journal.JournalFileBackend(str(path)).read_logs(0))
    size = path.stat().st_size
    notes: list[str] = []
    assert values_of(path, notes) == [0.0, 1.0, 2.0]
    assert len(notes) == 1 and "began with a torn operation of 17 bytes" in notes[0]
    assert path.stat().st_size == size, "no other line has moved: workers remember places"
    study = optuna.load_study(study_name="s", storage=JournalStorage(Journal(path, notes.append)))
    assert study.user_attrs == {"kept": True, "also": True}


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "journal.log"
    journal_of(path)
    lines = path.read_bytes().splitlines(keepends=True)
    lines[2] = b"\0" * len(lines[2][:-1]) + b"\n"
    path.write_bytes(b"".join(lines))
    with pytest.raises(InputError, match="line 3 is damaged"):
        values_of(path, [])


def test_an_empty_journal_is_a_journal(tmp_path: Path) -> None:
    path = tmp_path / "journal.log"
    path.touch()
    journal_of(path)
    assert values_of(path, []) == [0.0, 1.0, 2.0]


def test_the_lock_of_a_killed_process_is_free_at_once(tmp_path: Path) -> None:
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom experiments.search_journal import FileLock\n"
        "FileLock(Path(sys.argv[1])).acquire()\nprint('held', flush=True)\ntime.sleep(60)\n"
    )
    path = tmp_path / "lock"
    process = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == b"held\n"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    began = time.monotonic()
    with FileLock(path).held():
        assert time.monotonic() - began < 1
    process.stdout.close()
