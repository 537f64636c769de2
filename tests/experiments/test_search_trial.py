"""One trial: its folds, reports, pruning, failures and second tries; by a process that only seems to train."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from experiments import search_trial
from experiments.search_file import Search
from experiments.search_trial import PrunedError, Setting, Task, TrialError, train
from tests.experiments.fake_fit import EPOCHS
from tests.experiments.searches import LR, write_search
from tests.tiny import Tiny


class Trial:
    """A trial of two folds, and what it reports."""

    def __init__(self, folder: Path, tiny: Tiny, **changes: Any) -> None:
        search = Search.load(write_search(folder, tiny, folds=[0, 1], **changes))
        self.how = folder / "how.json"
        self.steps: dict[int, float] = {}
        self.stop_at = 10**9
        self.task = Task(
            Setting(search, folder / "runs", folder / "store", (0, 1)), "trial-0000", {"x": 5.0}, {LR: 5.0}, self.report
        )
        self.ends()

    def ends(self, **how: Any) -> None:
        """How the processes end."""
        self.how.write_text(json.dumps(how))

    def report(self, step: int, value: float) -> bool:
        self.steps[step] = value
        return step >= self.stop_at

    def starts(self, fold: int) -> int:
        """How often a fold has been begun."""
        path = self.task.setting.runs / "tiny" / "trial-0000" / f"{fold:012d}" / "starts"
        return len(path.read_text().splitlines()) if path.is_file() else 0


@pytest.fixture
def trial(tiny_cohort: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Trial:
    return prepared(tiny_cohort, tmp_path, monkeypatch)


def prepared(tiny: Tiny, folder: Path, patch: pytest.MonkeyPatch, **changes: Any) -> Trial:
    patch.setattr(search_trial, "COMMAND", ("-m", "tests.experiments.fake_fit"))
    patch.setenv("FAKE_FIT", str(folder / "how.json"))
    return Trial(folder, tiny, **changes)


def test_the_mean_over_folds(trial: Trial) -> None:
    # (5 - 3)² + fold + 1 in the last epoch
    assert train(trial.task) == [5.5]
    assert trial.steps == {
        **{epoch + 1: 4.0 + EPOCHS - epoch for epoch in range(EPOCHS)},
        # of the second fold: the mean of the first's best and its own so far
        **{EPOCHS + epoch + 1: (5.0 + 5.0 + EPOCHS - epoch) / 2 for epoch in range(EPOCHS)},
    }
    assert trial.starts(0) == trial.starts(1) == 1


def test_several_objectives_are_those_of_the_best_checkpoint(
    tiny_cohort: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    metrics = {"valid/loss": "minimize", "valid/auc": "maximize", "minutes": "minimize"}
    objective = [{"metric": name, "direction": direction} for name, direction in metrics.items()]
    trial = prepared(tiny_cohort, tmp_path, monkeypatch, objective=objective)
    # five minutes on two processes, in each of two folds
    assert train(trial.task) == pytest.approx([5.5, 0.9, 20.0])


def test_pruned_in_the_second_fold(trial: Trial) -> None:
    trial.stop_at = EPOCHS + 2
    with pytest.raises(PrunedError):
        train(trial.task)
    assert max(trial.steps) == EPOCHS + 2


def test_a_second_try_keeps_what_is_finished(trial: Trial) -> None:
    """A process that is killed in the second fold: the next try leaves the first fold alone."""
    trial.ends(dies_in=1)
    with pytest.raises(TrialError, match="ended by SIGKILL"):
        train(trial.task)
    trial.ends()
    steps = dict(trial.steps)
    trial.steps.clear()
    assert train(trial.task) == [5.5]
    assert (trial.starts(0), trial.starts(1)) == (1, 2)
    assert steps.items() <= trial.steps.items(), "what was reported is reported again: it is another trial to Optuna"


def test_the_last_line_tells_why(trial: Trial) -> None:
    trial.ends(refuse=True)
    with pytest.raises(TrialError) as caught:
        train(trial.task)
    assert caught.value.reason == "data.init_args.cohort: is of no use" and caught.value.wrong_request


def test_what_is_not_a_number_fails(trial: Trial) -> None:
    trial.ends(nan=True)
    with pytest.raises(TrialError, match="fold 0: valid/loss is not a number"):
        train(trial.task)
    assert not trial.steps


def test_the_training_ends_with_its_worker(trial: Trial) -> None:
    """An interrupted worker leaves no process behind."""
    trial.ends(hangs_in=0)

    def interrupted(_step: int, _value: float) -> bool:
        raise KeyboardInterrupt

    object.__setattr__(trial.task, "report", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(trial.task)
    (pid,) = (trial.task.setting.runs / "tiny" / "trial-0000" / f"{0:012d}" / "starts").read_text().split()
    assert not Path(f"/proc/{pid}").exists()
