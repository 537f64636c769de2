"""How far a search is, what is best, and which parameters matter: as text and as JSON values. Never torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import optuna
import yaml
from optuna.trial import FrozenTrial, TrialState

from datamodules.errors import InputError
from datamodules.files import write_text
from experiments.grid_folder import held
from experiments.search_file import Search
from experiments.search_folder import SearchFolder
from experiments.search_space import nested, plain, settings_of
from experiments.search_storage import arm_of, has_failed, tally

EVALUATORS = ("fanova", "ped-anova")


def overview(search: Search, study: optuna.Study, folder: SearchFolder) -> dict[str, Any]:
    """How far a search is, as JSON values; nothing is changed.

    Args:
        search: The search.
        study: Its study.
        folder: Its folder.
    """
    trials = study.get_trials(deepcopy=False)
    counts = tally(trials)
    local = search.storage is None
    return {
        "search": search.name,
        "asked": search.trials,
        "complete": counts.complete,
        "pruned": counts.pruned,
        "running": counts.running,
        "waiting": counts.waiting,
        "failed": counts.failed,
        "lost": counts.lost,
        "best": [_row(trial, search, local, folder) for trial in best_of(study)],
        "trials": [_row(trial, search, local, folder) for trial in trials],
    }


def best_of(study: optuna.Study) -> list[FrozenTrial]:
    """The best trial; of several objectives, all that no other one beats in each. Empty where none has ended well."""
    if not study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
        return []
    return list(study.best_trials) if len(study.directions) > 1 else [study.best_trial]


def status_text(view: dict[str, Any], search: Search) -> str:
    """The overview for people."""
    ended = view["complete"] + view["pruned"]
    lines = [
        f"{view['search']}: {ended} of {view['asked']} trials ended ({view['pruned']} pruned), "
        f"{view['running']} running, {view['waiting']} waiting, {view['failed']} failed, "
        f"{view['lost']} lost and queued again"
    ]
    for row in view["trials"]:
        if row["state"] in ("running", "gone"):
            reached = "" if row["epochs"] == 0 else f", {row['epochs']} epochs, {row['last']:.4g} so far"
            gone = " (its worker has ended; the next run tries it again)" if row["state"] == "gone" else ""
            lines.append(f"  {row['state']}: trial {row['trial']}{reached}{gone}; {_shown(row['parameters'])}")
    failed = [row for row in view["trials"] if row["state"] == "failed"]
    lines += [f"  failed: trial {row['trial']}: {row['reason']}" for row in failed[-5:]]
    lines += [f"  best: {line}" for line in _best_lines(view, search)]
    return "\n".join(lines) + "\n"


def best_text(view: dict[str, Any], search: Search) -> str:
    """The best trial, or trials, for people."""
    return "\n".join(_best_lines(view, search)) + "\n"


def importance_of(study: optuna.Study, search: Search, evaluator: str) -> dict[str, dict[str, float]]:
    """Importance of each parameter for each objective; those of one objective add up to 1.

    Parameters that some trials were not asked for are left out: their importance is not comparable.

    Args:
        study: The study.
        search: The search.
        evaluator: ``fanova`` (variance explained by forests) or ``ped-anova`` (what sets the best trials apart).

    Raises:
        InputError: Too few trials have ended well, or all with the same value.
    """
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if len(complete) < 4:
        raise InputError(f"{search.name}: {len(complete)} trials have ended well; importance needs 4 at least")
    result: dict[str, dict[str, float]] = {}
    for index, objective in enumerate(search.objectives):
        if len({trial.values[index] for trial in complete}) < 2:
            raise InputError(f"{search.name}: all trials have the same {objective.metric}; no parameter is important")
        made: optuna.importance.BaseImportanceEvaluator
        if evaluator == "fanova":
            made = optuna.importance.FanovaImportanceEvaluator(seed=search.seed)
        else:
            made = optuna.importance.PedAnovaImportanceEvaluator()
        # Optuna takes a given target for one to be minimised
        sign = -1.0 if objective.direction == "maximize" else 1.0
        target = None if len(search.objectives) == 1 else _Value(index, sign)
        found = optuna.importance.get_param_importances(study, evaluator=made, target=target)
        result[objective.metric] = {name: float(value) for name, value in found.items()}
    return result


def importance_text(found: dict[str, dict[str, float]], search: Search) -> str:
    """Importances for people."""
    lines = []
    for metric, values in found.items():
        lines.append(metric)
        width = max((len(name) for name in values), default=0)
        lines += [f"  {name:<{width}}  {value:6.3f}  {'#' * round(40 * value)}" for name, value in values.items()]
        left_out = [parameter.name for parameter in search.space if parameter.name not in values]
        if left_out:
            lines.append(f"  not asked for in every trial, and so left out: {', '.join(left_out)}")
    return "\n".join(lines) + "\n"


def write_config(search: Search, trial: FrozenTrial, path: Path) -> None:
    """Write a trial's settings as an overlay of the search's configurations, for a study's arm.

    Args:
        search: The search.
        trial: The trial.
        path: The file to write.

    Raises:
        InputError: It cannot be written.
    """
    reached = ", ".join(
        f"{objective.metric} {value:.6g}" for objective, value in zip(search.objectives, trial.values, strict=True)
    )
    shipped = ", ".join(
        Path(config).name.removesuffix(".yaml") if "/" in config else config for config in search.configs
    )
    head = (
        f"# Search {search.name}, trial {trial.number}: {reached}, on validation patients.\n"
        f"# An arm of a study: {{config: [{shipped}, {path.name}]}}\n"
    )
    settings = {**search.settings, **settings_of(trial.params, search.space)}
    for key in settings.keys() - plain(settings).keys():
        head += f"# The search had this as well, which an overlay cannot hold: {{{key}: {json.dumps(settings[key])}}}\n"
    body = yaml.safe_dump(nested(plain(settings)), sort_keys=False, allow_unicode=False)
    write_text(path, head.encode("ascii", "backslashreplace").decode() + body)


class _Value:
    """One of several objectives; a class, because Optuna may send it to other processes."""

    def __init__(self, index: int, sign: float) -> None:
        self.index, self.sign = index, sign

    def __call__(self, trial: FrozenTrial) -> float:
        return self.sign * float(trial.values[self.index])


def _row(trial: FrozenTrial, search: Search, local: bool, folder: SearchFolder) -> dict[str, Any]:
    state = trial.state.name.lower()
    if trial.state == TrialState.FAIL:
        state = "failed" if has_failed(trial) else "lost"
    elif trial.state == TrialState.RUNNING and local and not held(folder.lock(trial.number)):
        state = "gone"
    steps = sorted(trial.intermediate_values)
    values = trial.values if trial.state == TrialState.COMPLETE else None
    metrics = [objective.metric for objective in search.objectives]
    return {
        "trial": trial.number,
        "state": state,
        "values": None if values is None else dict(zip(metrics, values, strict=True)),
        "parameters": dict(trial.params),
        "epochs": len(steps),
        "last": trial.intermediate_values[steps[-1]] if steps else None,
        "seconds": trial.user_attrs.get("seconds"),
        "reason": trial.user_attrs.get("reason"),
        "runs": str(folder.search / arm_of(trial)),
    }


def _best_lines(view: dict[str, Any], search: Search) -> list[str]:
    if not view["best"]:
        return ["no trial has ended well yet"]
    return [
        f"trial {row['trial']}: {', '.join(f'{metric} {value:.4g}' for metric, value in row['values'].items())}; "
        f"{_shown(row['parameters'])}"
        for row in view["best"]
    ]


def _shown(parameters: dict[str, Any]) -> str:
    """Parameters in a line; of long keys the last part."""
    names = {name: name.rsplit(".", 1)[-1] for name in parameters}
    short = list(names.values())
    return ", ".join(
        f"{names[name] if short.count(names[name]) == 1 else name} "
        f"{f'{value:.4g}' if isinstance(value, float) else value}"
        for name, value in parameters.items()
    )
