"""A search whose study lies in PostgreSQL.

``HEPASTAGE_TEST_POSTGRES=postgresql+psycopg://USER@127.0.0.1:5432/DATABASE python -m pytest -m slow
tests/experiments/test_search_postgres.py``; docs/searches.md says how to start such a server. The study that the test
makes there is deleted in the end.
"""

from __future__ import annotations

import os
import signal
import uuid
from pathlib import Path

import optuna
import pytest

from experiments.search_storage import tally
from tests.experiments.searches import folder_of, run, start, states, study_of, write_search
from tests.experiments.test_search_workers import await_tries
from tests.tiny import Tiny

URL = os.environ.get("HEPASTAGE_TEST_POSTGRES", "")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not URL, reason="HEPASTAGE_TEST_POSTGRES is not set: no PostgreSQL server at hand"),
]


@pytest.mark.timeout(600)
def test_two_workers_share_a_server(tiny_cohort: Tiny, tmp_path: Path) -> None:
    """Two workers, one killed in a trial; it is missed after two minutes, and tried again. A second driver goes on."""
    name = f"tiny-{uuid.uuid4().hex[:8]}"
    path = write_search(tmp_path, tiny_cohort, search=name, storage=URL, trials=6)
    try:
        driver = start(path, "slow", 2)
        begun = await_tries(path, 4, 240)
        lost, worker = list(begun.items())[-1]
        os.kill(worker, signal.SIGKILL)
        output, _ = driver.communicate(timeout=400)
        assert driver.returncode == 0, output
        assert f"trial {int(lost[-4:])}: its worker has ended; it is queued again" in output, output
        counts = tally(study_of(path).trials)
        assert (counts.ended, counts.failed, counts.lost, counts.running) == (6, 0, 1, 0)
        again = [trial for trial in study_of(path).trials if trial.user_attrs.get("losses")]
        assert [trial.params for trial in again] == [study_of(path).trials[int(lost[-4:])].params]
        before = [trial.params for trial in study_of(path).trials]
        write_search(tmp_path, tiny_cohort, search=name, storage=URL, trials=9)
        code, output = run(path, "branin", 2)
        assert code == 0, output
        assert [trial.params for trial in study_of(path).trials][: len(before)] == before
        assert states(path).count("COMPLETE") == 9 and not {"RUNNING", "WAITING"} & set(states(path))
        assert not folder_of(path).journal.exists()
    finally:
        optuna.delete_study(study_name=name, storage=URL)
