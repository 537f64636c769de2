"""Signal equations, texture, anatomy and acquisition of the phantom, against numbers from elsewhere."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from scipy import stats

from datamodules.phantom_acquisition import SCANNERS, Grid, Scanner, acquire, canvas_of, coil, draw_grid, scanner_of
from datamodules.phantom_anatomy import Patient, deformed, draw_patient
from datamodules.phantom_canvas import smooth_max, smooth_min
from datamodules.phantom_organs import paint_body
from datamodules.phantom_severity import PhantomStrength, draw_findings
from datamodules.phantom_signal import (
    TISSUES,
    SequenceTiming,
    gradient_echo_signal,
    spin_echo_signal,
    tissue_signals,
)
from datamodules.phantom_texture import phantom_texture


def test_spin_echo_by_hand() -> None:
    # TR and TE so that the exponentials are powers of e: (1 - 2 e^-2 + e^-2.5) e^-1
    assert spin_echo_signal(0.5, 1000.0, 1000.0, 2500.0, 1000.0) == pytest.approx(
        0.5 * (1 - 2 * 0.1353352832 + 0.0820849986) * 0.3678794412, abs=1e-9
    )
    # the liver at 1.5 T, TR 3200, TE 80: 0.96 × (1 - 2 × 0.004551 + 0.004250) × 0.17567
    assert spin_echo_signal(0.96, 586.0, 46.0, 3200.0, 80.0) == pytest.approx(0.16783, abs=2e-5)


def test_gradient_echo_by_hand_and_at_the_ernst_angle() -> None:
    # 90 degrees: M0 (1 - E1) exp(-TE/T2*)
    assert gradient_echo_signal(1.0, 500.0, 20.0, 100.0, 4.0, 90.0) == pytest.approx(
        (1 - math.exp(-0.2)) * math.exp(-0.2), abs=1e-12
    )
    ernst = math.degrees(math.acos(math.exp(-0.2)))
    best = gradient_echo_signal(1.0, 500.0, 20.0, 100.0, 4.0, ernst)
    for angle in (ernst - 3.0, ernst + 3.0):
        assert gradient_echo_signal(1.0, 500.0, 20.0, 100.0, 4.0, angle) < best
    # closed form at the Ernst angle: sqrt((1 - E1) / (1 + E1))
    e1 = math.exp(-0.2)
    assert best == pytest.approx(math.sqrt((1 - e1) / (1 + e1)) * math.exp(-0.2), abs=1e-12)


def test_published_times_stand_in_the_table() -> None:
    # de Bazelaire 2004, abstract, 3 T
    for name, t1, t2 in (
        ("liver", 809, 34), ("spleen", 1328, 61), ("pancreas", 725, 43), ("kidney cortex", 1142, 76),
        ("kidney medulla", 1545, 81), ("muscle", 898, 29), ("marrow", 586, 49),
    ):  # fmt: skip
        assert (TISSUES[name].t1_ms[1], TISSUES[name].t2_ms[1]) == (t1, t2)
    assert all(tissue.source for tissue in TISSUES.values())


@pytest.mark.parametrize("at", SCANNERS)
def test_contrast_is_what_radiologists_expect(at: Scanner) -> None:
    t1 = tissue_signals(at.timing["T1W"], at.field_t)
    t2 = tissue_signals(at.timing["T2W"], at.field_t)
    assert t2["fluid"] > t2["spleen"] > t2["liver"] > t2["muscle"]
    assert t1["fat"] > t1["liver"] > t1["spleen"] > t1["fluid"]
    assert t2["fat"] > t2["liver"]
    assert t2["venous blood"] < t2["liver"]


def test_unknown_sequence_or_field_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown kind"):
        tissue_signals(SequenceTiming("echo planar", 1.0, 1.0), 3.0)
    with pytest.raises(ValueError, match="not in tuple"):
        tissue_signals(SequenceTiming("spin_echo", 1.0, 1.0), 7.0)


def test_texture_grows_with_severity_and_keeps_its_physical_scale() -> None:
    fields = [phantom_texture((48, 48, 24), (2.0, 2.0, 4.0), s, np.random.default_rng(0)) for s in (0.0, 0.5, 1.0)]
    spread = [float(field.std()) for field in fields]
    assert spread[0] == 0.0 and spread[2] == pytest.approx(2 * spread[1], rel=1e-4) and spread[2] > 0.15
    assert np.ptp(fields[2]) <= 1.0 and abs(float(fields[2].mean())) < 1e-3
    assert fields[2].dtype == np.float32

    def crossings_per_mm(step: float) -> float:
        field = phantom_texture((96, 48, 48), (step, step, step), 1.0, np.random.default_rng(1))
        return float((np.diff(np.signbit(field), axis=0) != 0).sum()) / (95 * 48 * 48 * step)

    assert crossings_per_mm(1.0) == pytest.approx(crossings_per_mm(2.0), rel=0.15)
    # a septum every 5 to 10 mm along a line: two crossings each
    assert 2 / 12 < crossings_per_mm(1.0) < 2 / 4


def test_texture_draws_the_same_numbers_at_any_severity() -> None:
    first, second = np.random.default_rng(2), np.random.default_rng(2)
    phantom_texture((8, 8, 8), (2.0, 2.0, 2.0), 0.1, first)
    phantom_texture((8, 8, 8), (2.0, 2.0, 2.0), 0.9, second)
    assert first.random() == second.random()
    with pytest.raises(ValueError, match="severity"):
        phantom_texture((8, 8, 8), (2.0, 2.0, 2.0), 1.2, first)


def test_smooth_extrema_touch_the_sharp_ones_away_from_the_crease() -> None:
    a = np.array([0.0, 5.0, -9.0, 2.0], dtype=np.float32)
    b = np.array([0.0, -5.0, 3.0, 1.0], dtype=np.float32)
    np.testing.assert_allclose(smooth_max(a, b, 4.0)[1:3], [5.0, 3.0])
    np.testing.assert_allclose(smooth_min(a, b, 4.0)[1:3], [-5.0, -9.0])
    # at a tie the crease is moved by a quarter of the blend
    assert smooth_max(a, b, 4.0)[0] == pytest.approx(1.0)


def patient(severity: float, seed: int = 0, strength: PhantomStrength | None = None) -> Patient:
    findings = dataclasses.replace(
        draw_findings(np.random.default_rng(seed)),
        severity=severity, texture=severity, nodularity=severity, shape=severity, spleen=severity, ascites=0.0,
    )  # fmt: skip
    return draw_patient(
        findings, strength or PhantomStrength(), 0.5, np.random.default_rng(seed), np.random.default_rng(seed)
    )


def straight_grid(shape: tuple[int, int, int] = (84, 60, 24)) -> Grid:
    affine = np.diag([4.0, 4.0, 8.0, 1.0])
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(shape) - 1.0) / 2.0) + (0.0, 0.0, -14.0)
    return Grid(shape, affine, 8.0, (0.0, 0.0, 0.0))


def test_deformation_does_not_fold() -> None:
    line = np.arange(-160.0, 161.0, 8.0, dtype=np.float32)
    lines = [line[:, None, None], line[None, :, None], line[None, None, :]]
    for seed in range(5):
        x, y, z = deformed(lines[0], lines[1], lines[2], patient(0.5, seed).waves)
        rows = [np.stack([np.gradient(axis, 8.0, axis=k) for k in range(3)], axis=-1) for axis in (x, y, z)]
        assert np.linalg.det(np.stack(rows, axis=-2)).min() > 0.3


def test_mask_is_liver_tissue_and_texture_spreads_its_signal() -> None:
    ones = dict.fromkeys(TISSUES, 0.0) | {"liver": 1.0}
    spread = []
    for severity in (0.0, 0.4, 0.9):
        body = patient(severity)
        canvas, layers = canvas_of(straight_grid(), body, ones)
        paint_body(canvas, body, 1.0)
        shape = (84, 60, 24, layers)
        share = canvas.liver.reshape(shape).mean(-1)
        assert share.min() >= 0.0 and share.max() <= 1.0 + 1e-5
        inside = share > 0.99
        signal = canvas.signal.reshape(shape).mean(-1) / body.gain["liver"]
        # no other tissue has a signal here, so outside the liver it is dark and inside about one
        assert float(np.abs(signal[share == 0.0]).max()) < 1e-5
        parenchyma = signal[inside & (signal > 0.4)]
        assert parenchyma.size > 0.9 * inside.sum()
        assert float(np.median(parenchyma)) == pytest.approx(1.0, abs=0.12)
        spread.append(float(parenchyma.std()))
    assert spread[0] < spread[1] < spread[2]


def test_right_lobe_shrinks_and_caudate_grows() -> None:
    volumes = {}
    for severity in (0.0, 1.0):
        for strength in (PhantomStrength(), PhantomStrength(right_lobe=0.0)):
            body = patient(severity, strength=strength)
            canvas, layers = canvas_of(straight_grid(), body, dict.fromkeys(TISSUES, 1.0))
            paint_body(canvas, body, 1.0)
            volumes[severity, strength.right_lobe > 0] = float(canvas.liver.sum()) / layers * 4 * 4 * 8 / 1e6
    assert volumes[1.0, True] < 0.92 * volumes[0.0, True]
    assert volumes[1.0, False] > volumes[0.0, False]


def test_noise_is_rician_in_air() -> None:
    body = patient(0.3)
    scanner = dataclasses.replace(SCANNERS[1], gain=1e5, dtype="uint16")
    image, _ = acquire(body, scanner, "T2W", straight_grid(), False, np.random.default_rng(0))
    # in air the Rician becomes a Rayleigh: mean / sd = sqrt(pi / (4 - pi)) = 1.913
    corner = image[:4, :4, :].astype(float)
    assert corner.mean() / corner.std() == pytest.approx(math.sqrt(math.pi / (4 - math.pi)), rel=0.1)
    assert stats.kstest(corner.ravel(), stats.rayleigh(scale=corner.mean() / math.sqrt(math.pi / 2)).cdf).pvalue > 1e-3


def test_coil_is_smooth_and_around_one() -> None:
    field = coil(straight_grid(), 0.2, np.random.default_rng(0))
    assert field.min() > 0.2 and field.max() < 5.0
    assert np.abs(np.diff(np.log(field), axis=0)).max() < 0.08


def test_sequences_of_a_patient_share_orientation_but_not_the_grid() -> None:
    body = patient(0.5)
    seeds = (np.random.default_rng(7), np.random.default_rng(7))
    first = draw_grid(body, scanner_of(0), "T2W", 1.0, seeds[0], np.random.default_rng(1))
    second = draw_grid(body, scanner_of(0), "T1W", 1.0, seeds[1], np.random.default_rng(2))
    directions = [g.affine[:3, :3] / np.linalg.norm(g.affine[:3, :3], axis=0) for g in (first, second)]
    np.testing.assert_allclose(directions[0], directions[1], atol=1e-12)
    assert first.shape != second.shape and first.shift_mm != second.shift_mm
    assert second.slice_mm < first.slice_mm


def test_further_sources_are_scanners_of_their_own() -> None:
    assert [scanner_of(n).field_t for n in range(4)] == [1.5, 3.0, 1.5, 3.0]
    assert len({scanner_of(n).gain for n in range(4)}) == 4
