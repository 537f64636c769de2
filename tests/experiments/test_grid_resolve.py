"""A plan by the real parser: what differs, which cells are one, and every lie of a study at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from datamodules.errors import InputError
from experiments.grid_folder import GridFolder, Plan
from experiments.grid_resolve import make_plan
from experiments.grid_words import Places
from experiments.lightning_cli import parsed
from experiments.study import Study
from tests.experiments.grids import BASE, SEGMENTER, write_study
from tests.tiny import Tiny

LR = "model.init_args.optimizer.init_args.lr"


def planned(tiny: Tiny, folder: Path, **changes: Any) -> Plan:
    study = Study.load(write_study(folder, tiny, **changes))
    assert study.cohort is not None and study.splits is not None
    places = Places.of(study.cohort, study.splits, folder / "runs", None)
    return make_plan(study, places, GridFolder(folder / "runs" / "tiny"), "reason", {"sha": None, "diff": None})


def test_cells_are_those_of_fit_and_show_what_differs(tiny_cohort: Tiny, tmp_path: Path) -> None:
    axes = {"lr": {"key": LR, "values": [0.001, 0.01]}}
    arms = {"reference": {"masks": "reference"}, "predicted": {"masks": "out_of_fold"}}
    plan = planned(tiny_cohort, tmp_path, axes=axes, arms=arms, segmenter=SEGMENTER)
    assert len(plan["cells"]) == 2 + 2 * 2 * 2 and len({cell["key"] for cell in plan["cells"]}) == 10
    assert plan["masks"] == {"segmenter": [cell["key"] for cell in plan["cells"][:2]]}
    first = plan["cells"][2]
    assert first["run"] == str(parsed("fit", first["words"]).directory.path), "fit takes the very folder"
    assert first["differs"] == {}, "the base is the first arm's first cell"
    last = plan["cells"][-1]
    assert last["differs"] == {
        LR: [0.01, 0.001], "data.init_args.fold": [1, 0], "data.init_args.mask_source": ["out_of_fold", "reference"],
    }  # fmt: skip
    assert last["run"] is None, "its id depends on masks that are not made yet"
    again = planned(tiny_cohort, tmp_path, axes=axes, arms=arms, segmenter=SEGMENTER)
    assert again["cells"] == plan["cells"]


def test_another_segmenter_makes_other_masked_cells(tiny_cohort: Tiny, tmp_path: Path) -> None:
    arms = {"reference": {"masks": "reference"}, "predicted": {"masks": "out_of_fold"}}
    longer = {**SEGMENTER, "set": {**SEGMENTER["set"], "trainer.max_epochs": 7}}
    one, two = (
        {cell["arm"]: cell["key"] for cell in planned(tiny_cohort, tmp_path, arms=arms, segmenter=first)["cells"]}
        for first in (SEGMENTER, longer)
    )
    assert one["reference"] == two["reference"] and one["predicted"] != two["predicted"]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"set": {"trainer.max_epoch": 3}}, "reference: unknown key 'trainer.max_epoch'; did you mean"),
        ({"set": {"trainer.max_epochs": "many"}}, "trainer.max_epochs"),
        ({"base": {**BASE, "config": "masked_attention"}}, "no such configuration"),
        ({"arms": {"blind": {"masks": "none"}}}, "needs masks"),
        ({"arms": {"a": {"masks": "reference"}, "b": {"masks": "reference"}}}, "is the same cell as a, fold 0, seed 0"),
    ],
)
def test_a_lie_ends_the_plan(changes: dict[str, Any], expected: str, tiny_cohort: Tiny, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        planned(tiny_cohort, tmp_path, **changes)
    assert any(expected in fault for fault in caught.value.faults), caught.value.faults
    assert not (tmp_path / "runs" / "tiny" / ".grid" / "plan.json").exists()
