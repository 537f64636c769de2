"""What a job does at its scheduler's signals: when it queues itself again, by what SLURM says of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from callbacks.preemption import is_preempted, queue_again

SHOWN = "JobId=7 JobName=cell JobState={state} Requeue=1 PreemptEligibleTime=2026-01-01T00:00:00 PreemptTime={time}"


@pytest.fixture
def scontrol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A double of SLURM's command, which prints a file and notes what it was asked."""
    program = tmp_path / "scontrol"
    program.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\n[ "$1" = requeue ] || cat {tmp_path}/shown\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.delenv("SLURM_ARRAY_JOB_ID", raising=False)
    return tmp_path


@pytest.mark.parametrize(
    ("state", "time", "expected"),
    [
        ("RUNNING", "2026-01-01T00:01:00", True),
        ("RUNNING", "None", False),
        # scancel, and the time limit: nobody wants such a job again
        ("CANCELLED", "None", False),
        ("TIMEOUT", "2026-01-01T00:01:00", False),
    ],
)
def test_only_a_preempted_job_is_queued_again(state: str, time: str, expected: bool, scontrol: Path) -> None:
    (scontrol / "shown").write_text(SHOWN.format(state=state, time=time))
    assert is_preempted() is expected
    assert (scontrol / "asked").read_text() == "show --oneliner job 7\n"


def test_the_job_is_named_with_its_place_in_an_array(scontrol: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert queue_again()
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "5")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "2")
    assert queue_again()
    assert (scontrol / "asked").read_text() == "requeue 7\nrequeue 5_2\n"


def test_outside_a_job_nothing_is_asked(scontrol: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_JOB_ID")
    assert not is_preempted() and not queue_again()
    assert not (scontrol / "asked").exists()


def test_a_refusal_is_said(scontrol: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (scontrol / "scontrol").write_text("#!/bin/sh\necho 'Requested operation is disabled' >&2; exit 1\n")
    assert not queue_again()
    assert "scontrol requeue failed (Requested operation is disabled)" in capsys.readouterr().err
