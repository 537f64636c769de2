"""Agreement without truth: what it is, and that it says something of the Dice that nobody knows."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from scipy import ndimage, stats
from sklearn.metrics import cohen_kappa_score

from datamodules.cohort import Cohort
from datamodules.masks import MaskRecord, quality_band, quality_of
from experiments.cli import main
from experiments.masks import make_masks
from experiments.quality import agreement_of, agreement_report, border_entropy, report_lines, spearman_interval
from experiments.trained_segmenter import TrainedSegmenter, segmenter_runs
from lightning_modules.metrics.segmentation import dice
from tests.tiny import TESTED, Tiny, affine_of, phantom

LogOdds = npt.NDArray[np.float32]


def ball(radius: float, centre: tuple[float, float, float] = (12, 12, 6)) -> LogOdds:
    """Log-odds of a ball: the distance from its surface in voxels."""
    places = np.stack(np.meshgrid(*(np.arange(n) for n in (24, 24, 12)), indexing="ij"), -1)
    return np.asarray(radius - np.linalg.norm(places - np.asarray(centre), axis=-1), dtype=np.float32)


def record(truth: float, agreement: float, entropy: float = 0.5, kind: str = "segmenters") -> MaskRecord:
    return MaskRecord("x.nii.gz", "0" * 64, ("k",), truth, quality_band(truth), "reference", agreement, kind, entropy)


def test_agreement_is_the_mean_dice_of_all_pairs() -> None:
    predictions = [ball(5), ball(4), ball(5, (13, 12, 6))]
    expected = np.mean([dice(a > 0, b > 0) for a, b in itertools.combinations(predictions, 2)])
    assert agreement_of(predictions).dice == pytest.approx(expected)
    assert agreement_of([ball(5)] * 3).dice == 1.0
    with pytest.raises(ValueError, match="at least two"):
        agreement_of([ball(5)])


def test_models_that_agree_on_no_liver_do_not_agree_on_a_liver() -> None:
    nothing = np.full((24, 24, 12), -9, np.float32)
    assert agreement_of([nothing, nothing]).dice == 0.0
    assert agreement_of([nothing, nothing]).border_entropy is None


def test_border_entropy_against_its_definition() -> None:
    # a corner of the grid: the border of the volume is no border of the liver
    values = ball(4, (5, 5, 5))[:11, :11, :11]
    mask = values > 0
    for sharpness in (0.1, 1.0, 10.0):
        p = 1 / (1 + np.exp(-sharpness * values.astype(float)))
        found = []
        for place in np.argwhere(np.ones_like(mask)):
            near = [place + step * sign for step in np.eye(3, dtype=int) for sign in (-1, 1)]
            around = {bool(mask[tuple(q)]) for q in near if (q >= 0).all() and (q < mask.shape).all()}
            if (not mask[tuple(place)]) in around:
                q = p[tuple(place)]
                found.append(-(q * np.log2(q) + (1 - q) * np.log2(1 - q)))
        assert border_entropy(p.astype(np.float32), mask) == pytest.approx(np.mean(found), abs=1e-5)
    assert border_entropy(np.full(mask.shape, 0.5, np.float32), mask) == pytest.approx(1.0)


def test_bands_come_from_the_best_that_is_known() -> None:
    assert quality_of(0.95, 1, 0.5) == (3, "reference")
    assert quality_of(None, 1, 0.99) == (1, "reader")
    assert quality_of(None, None, 0.9) == (2, "agreement")
    assert quality_of(None, None, None) == (None, None)


def test_the_report_against_scipy_and_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    truth = rng.uniform(0.7, 1.0, 30)
    said = np.clip(truth + rng.normal(0, 0.04, 30), 0, 1)
    entropy = 1 - truth + rng.normal(0, 0.01, 30)
    masks = {f"s{n}": record(t, a, e) for n, (t, a, e) in enumerate(zip(truth, said, entropy, strict=True))}
    masks["without truth"] = MaskRecord("y.nii.gz", "0" * 64, ("k",), None, 2, "agreement", 0.9, "segmenters", 0.5)
    masks["alone"] = MaskRecord("z.nii.gz", "0" * 64, ("k",), 0.9, 2, "reference")
    patients = {name: name for name in masks}
    report = agreement_report(masks, patients)
    assert set(report) == {"segmenters"}
    found = report["segmenters"]
    assert (found["scans"], found["patients"]) == (30, 30)
    assert found["spearman"] == pytest.approx(stats.spearmanr(said, truth).statistic, abs=1e-4)
    assert found["spearman_entropy"] == pytest.approx(stats.spearmanr(entropy, truth).statistic, abs=1e-4)
    assert found["low"] < found["spearman"] < found["high"]
    assert found["mean_absolute_error"] == pytest.approx(np.abs(said - truth).mean(), abs=1e-4)
    bands = [[quality_band(value) for value in values] for values in (said, truth)]
    assert found["kappa"] == pytest.approx(cohen_kappa_score(*bands, weights="quadratic"), abs=1e-4)
    (line,) = report_lines(report)
    assert f"rank correlation {found['spearman']:.2f} [" in line and "30 patients" in line


def test_too_few_patients_give_no_number() -> None:
    masks = {f"s{n}": record(0.9 + n / 100, 0.8 + n / 100) for n in range(6)}
    report = agreement_report(masks, {name: f"patient {int(name[1]) // 2}" for name in masks})
    assert report["segmenters"]["patients"] == 3
    assert report["segmenters"]["spearman"] is None
    assert "too few" in report_lines(report)[0]
    same = {f"s{n}": record(0.9, 1.0) for n in range(6)}
    alike = agreement_report(same, {name: name for name in same})["segmenters"]
    assert alike["spearman"] is None, "no spread, no rank correlation"
    assert agreement_report({}, {}) == {}


def test_a_patients_scans_are_drawn_together() -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(size=12)
    y = x + rng.normal(size=12)
    alone = spearman_interval(x, y, [str(n) for n in range(12)])
    doubled = spearman_interval(np.tile(x, 4), np.tile(y, 4), [str(n) for n in range(12)] * 4)
    as_if = spearman_interval(np.tile(x, 4), np.tile(y, 4), [str(n) for n in range(48)])
    assert alone is not None and doubled is not None and as_if is not None
    assert doubled.high - doubled.low == pytest.approx(alone.high - alone.low, rel=0.1)
    assert as_if.high - as_if.low < 0.7 * (alone.high - alone.low), "scans are not patients"


@pytest.mark.parametrize("seed", range(2))
def test_agreement_predicts_dice_on_simulated_masks(seed: int) -> None:
    """Four models err by smooth noise whose size differs from scan to scan, each in its own places."""
    rng = np.random.default_rng(seed)
    masks = {}
    for number in range(24):
        truth = ball(rng.uniform(4, 5.5)) > 0
        spread = rng.uniform(0.3, 4.0)
        noise = [ndimage.gaussian_filter(rng.normal(size=truth.shape), 1.5) for _ in range(4)]
        depth = ndimage.distance_transform_edt(truth) - ndimage.distance_transform_edt(~truth)
        predictions = [(depth + spread * values / values.std()).astype(np.float32) for values in noise]
        found = agreement_of(predictions)
        mean = np.mean(predictions, axis=0) > 0
        masks[f"s{number}"] = record(dice(mean, truth), found.dice, found.border_entropy or 0.0)
    report = agreement_report(masks, {name: name for name in masks})["segmenters"]
    assert report["low"] > 0.6, "the interval is far from zero"
    assert report["spearman_entropy"] is not None
    assert report["kappa"] is None or report["kappa"] >= 0


def test_masks_say_how_far_segmenters_agree(
    segmenters: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "masks"
    assert main(["masks", str(segmenters / "tiny"), "--out", str(out)]) == 0
    assert "agreement of segmenters against Dice, 4 patients" in capsys.readouterr().out
    made = make_masks(segmenters / "tiny", out)
    for mask in made.masks.values():
        assert (mask.agreement is not None) == (len(mask.segmenters) > 1)
        assert mask.agreement is None or (0 < mask.agreement <= 1 and mask.agreement_of == "segmenters")
        assert mask.quality_from == "reference", "where there is a reference the band is that of the Dice"


@pytest.mark.slow
def test_variations_say_how_far_one_segmenter_agrees_with_itself(segmenters: Path, tmp_path: Path) -> None:
    out = tmp_path / "masks"
    made = make_masks(segmenters / "tiny", out)
    varied = make_masks(segmenters / "tiny", out, variations=True)
    for name, mask in varied.masks.items():
        assert mask.agreement is not None
        assert mask.sha256 == made.masks[name].sha256, "the mask stays that of the scan as it is"
        assert mask.agreement_of == ("segmenters" if len(mask.segmenters) > 1 else "variations")
    assert (out / "quality.json").is_file()


def test_without_truth_segmenters_give_a_band_and_variations_none(
    segmenters: Path, tiny_cohort: Tiny, tmp_path: Path
) -> None:
    table = tiny_cohort.table
    frame = table.frame[table.frame["sequence"] == "T2W"].copy()
    frame[["mask", "mask_labels"]] = None
    Cohort(frame, table.root).save(tmp_path / "unknown.csv")
    made = make_masks(segmenters / "tiny", tmp_path / "masks", tmp_path / "unknown.csv", variations=True)
    for scan_id, mask in made.masks.items():
        assert mask.dice is None and mask.agreement is not None
        if table.scan(scan_id).patient_id in TESTED:
            assert (mask.quality, mask.quality_from) == (quality_band(mask.agreement), "agreement")
        else:
            assert (mask.agreement_of, mask.quality, mask.quality_from) == ("variations", None, None)


def test_the_first_variation_is_the_scan_as_it_is(segmenters: Path) -> None:
    from datamodules.images import Volume
    from experiments.inference import Inference
    from experiments.quality import VARIANTS

    segmenter = TrainedSegmenter(segmenter_runs(segmenters / "tiny")[0])
    volume = Volume(phantom(5, 210.0)[0], affine_of("ras"))
    varied = segmenter.variants(volume, Inference(), VARIANTS)
    np.testing.assert_array_equal(varied[0], segmenter.log_odds(volume))
    reference = varied[0] > 0
    for values in varied[1:]:
        assert values.shape == reference.shape
        assert not np.array_equal(values, varied[0]), "a variation varies"
        assert dice(values > 0, reference) > 0.5, "and leaves the liver where it is"
