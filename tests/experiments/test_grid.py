"""A study's cells one after the other: what fails leaves the others to go on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from datamodules.errors import InputError
from experiments.grid import Places, run_study, words_of
from experiments.study import Arm, Cell, Study
from tests.tiny import Tiny

SEGMENTER = Arm("segmenter", ("segmentation",), "none", "segmenter", {})
DIRECT = Arm("direct", ("direct", "demo/classification"), "none", "classifier", {"trainer.max_epochs": 3})
MASKED = Arm("masked", ("masked_attention_resnet",), "out_of_fold", "classifier", {})


def study(**changes: Any) -> Study:
    values: dict[str, Any] = {
        "name": "s", "cohort": None, "splits": None, "folds": None, "seeds": (0,), "segmenter": SEGMENTER,
        "arms": (DIRECT, MASKED), "reference": None,
    }  # fmt: skip
    return Study(**{**values, **changes})


def places(tmp_path: Path) -> Places:
    return Places(Path("c"), Path("s"), tmp_path, Path("store"), {"trainer.precision": "32-true"})


def pairs(words: list[str]) -> list[tuple[str, str]]:
    return list(zip(words[::2], words[1::2], strict=True))


def test_the_words_of_a_cell(tmp_path: Path) -> None:
    words = pairs(words_of(Cell(DIRECT, 1, 7), study(), places(tmp_path), None))
    assert words[:2] == [("-c", "direct"), ("-c", "demo/classification")]
    for pair in (
        ("--study", "s"), ("--arm", "direct"), ("--role", "classifier"), ("--seed_everything", "7"),
        ("--data.init_args.fold", "1"), ("--trainer.max_epochs", "3"), ("--trainer.precision", "32-true"),
    ):  # fmt: skip
        assert pair in words
    assert not [key for key, _ in words if "mask" in key or "quality" in key]


def test_only_masked_arms_get_masks(tmp_path: Path) -> None:
    masks = tmp_path / "masks"
    masks.mkdir()
    (masks / "masks.json").write_text("{}")
    direct = dict(pairs(words_of(Cell(DIRECT, 0, 0), study(), places(tmp_path), masks)))
    masked = dict(pairs(words_of(Cell(MASKED, 0, 0), study(), places(tmp_path), masks)))
    assert direct["--data.init_args.quality_from"] == str(masks)
    assert "--data.init_args.masks" not in direct and "--data.init_args.mask_source" not in direct
    assert masked["--data.init_args.mask_source"] == "out_of_fold"
    assert masked["--data.init_args.masks"] == str(masks)


@pytest.fixture
def faked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Cells that are not trained; those of the arm ``broken`` fail."""
    started: list[str] = []

    def fit_and_test(words: list[str]) -> bool:
        arm = words[words.index("--arm") + 1]
        started.append(f"{arm} {words[words.index('--data.init_args.fold') + 1]}")
        if arm == "broken":
            raise RuntimeError("CUDA out of memory\nand many lines more")
        return False

    monkeypatch.setattr("experiments.lightning_cli.fit_and_test", fit_and_test)
    monkeypatch.setattr("experiments.masks.make_masks", lambda *_: type("Made", (), {"masks": {}})())
    return started


def go(tiny: Tiny, tmp_path: Path, what: Study) -> list[str]:
    return run_study(what, tiny.cohort, tiny.splits, tmp_path, tmp_path / "store")


def test_segmenters_come_first(faked: list[str], tiny_cohort: Tiny, tmp_path: Path) -> None:
    assert go(tiny_cohort, tmp_path, study()) == []
    assert faked == [f"{arm} {fold}" for arm in ("segmenter", "direct", "masked") for fold in (0, 1)]


def test_without_masked_arms_no_segmenter_is_trained(faked: list[str], tiny_cohort: Tiny, tmp_path: Path) -> None:
    assert go(tiny_cohort, tmp_path, study(arms=(DIRECT,))) == []
    assert faked == ["direct 0", "direct 1"]


def test_a_failed_cell_leaves_the_others_to_go_on(faked: list[str], tiny_cohort: Tiny, tmp_path: Path) -> None:
    broken = Arm("broken", ("direct",), "none", "classifier", {})
    failures = go(tiny_cohort, tmp_path, study(arms=(broken, DIRECT)))
    assert failures == [f"broken, fold {fold}, seed 0: RuntimeError: CUDA out of memory" for fold in (0, 1)]
    assert faked[-2:] == ["direct 0", "direct 1"]


def test_masked_arms_wait_for_all_segmenters(faked: list[str], tiny_cohort: Tiny, tmp_path: Path) -> None:
    broken = Arm("broken", ("segmentation",), "none", "segmenter", {})
    failures = go(tiny_cohort, tmp_path, study(segmenter=broken))
    assert [line for line in failures if "not started, because a segmenter failed" in line and "masked" in line]
    assert not [name for name in faked if name.startswith("masked")]
    assert "direct 1" in faked


def test_a_wrong_request_stops_the_study(monkeypatch: pytest.MonkeyPatch, tiny_cohort: Tiny, tmp_path: Path) -> None:
    def refuse(words: list[str]) -> bool:
        raise InputError("x: wrong; correct it")

    monkeypatch.setattr("experiments.lightning_cli.fit_and_test", refuse)
    with pytest.raises(InputError, match="x: wrong"):
        go(tiny_cohort, tmp_path, study())
