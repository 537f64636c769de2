"""Intensity normalisation against TorchIO and its own laws."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torchio as tio
from torchio.transforms.preprocessing.intensity.histogram_standardization import _normalize

from datamodules.normalisation import NYUL_PERCENTILES, fit_nyul, normalisation_of
from datamodules.store_entry import quantise

RNG = np.random.default_rng(0)
grey = RNG.gamma(2.0, 90.0, (40, 30, 20)).astype(np.float32)


def test_zscore_of_the_body() -> None:
    found = normalisation_of(grey, "zscore")
    body = grey[grey > grey.mean()].astype(np.float64)
    assert found.mean == pytest.approx(body.mean(), rel=1e-6)
    assert found.std == pytest.approx(body.std(ddof=1), rel=1e-5)
    theirs = tio.ZNormalization.znorm(torch.from_numpy(grey), torch.from_numpy(grey > grey.mean()))
    assert theirs is not None
    np.testing.assert_allclose(found.apply(grey), theirs.numpy(), atol=1e-4)


def test_statistics_survive_a_large_offset() -> None:
    shifted = grey + np.float32(30_000)
    body = shifted[shifted > shifted.mean(dtype=np.float64)].astype(np.float64)
    assert normalisation_of(shifted, "zscore").std == pytest.approx(body.std(ddof=1), rel=1e-3)


def test_percentile_window_is_torchios() -> None:
    theirs = tio.RescaleIntensity(out_min_max=(0, 1), percentiles=(0.5, 99.5))(torch.from_numpy(grey[None])).numpy()[0]
    ours = normalisation_of(grey, "percentile").apply(grey)
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    assert (ours.min(), ours.max()) == (0.0, 1.0)


def test_none_changes_nothing() -> None:
    np.testing.assert_array_equal(normalisation_of(grey, "none").apply(grey), grey)


def test_nyul_maps_landmarks_to_landmarks() -> None:
    landmarks = fit_nyul([grey, grey * 3 + 20, grey**0.9])
    assert landmarks[0] == 0
    assert landmarks[-1] == pytest.approx(1)
    assert list(landmarks) == sorted(landmarks)
    body = grey[grey > grey.mean()]
    marks = np.percentile(body, NYUL_PERCENTILES).astype(np.float32)
    np.testing.assert_allclose(normalisation_of(grey, "nyul", landmarks).apply(marks), landmarks, atol=1e-5)


def test_nyul_brings_scanners_together() -> None:
    landmarks = fit_nyul([grey])
    for gain, offset in ((1.0, 0.0), (7.0, 300.0), (0.1, 5.0)):
        other = grey * np.float32(gain) + np.float32(offset)
        ours = normalisation_of(other, "nyul", landmarks).apply(other)
        np.testing.assert_allclose(ours, normalisation_of(grey, "nyul", landmarks).apply(grey), atol=1e-3)


def test_nyul_is_torchios_within_the_landmarks() -> None:
    """TorchIO's landmarks stand at other percentiles: give it ours at those, and compare between them."""
    shared = np.array([1, 10, 20, 25, 30, 40, 50, 60, 70, 75, 80, 90, 99])
    body = grey > grey.mean()
    landmarks = np.array(fit_nyul([grey, grey**1.3]))
    source, target = np.percentile(grey[body], NYUL_PERCENTILES), landmarks
    theirs = _normalize(
        torch.from_numpy(grey),
        np.interp(np.percentile(grey[body], shared), source, target),
        mask=body,
        cutoff=(0.01, 0.99),
    ).numpy()
    inside = (grey > source[0]) & (grey < source[-1])
    ours = normalisation_of(grey, "nyul", tuple(landmarks)).apply(grey)
    np.testing.assert_allclose(ours[inside], theirs[inside], atol=1e-3)


@pytest.mark.parametrize("kind", ["zscore", "percentile", "nyul", "none"])
def test_sixteen_bits_keep_a_ten_thousandth_of_the_range(kind: str) -> None:
    landmarks = fit_nyul([grey]) if kind == "nyul" else ()
    found = normalisation_of(grey, kind, landmarks)
    exact = found.apply(grey)
    stored, scale, offset = quantise(grey.copy(), found)
    assert stored.dtype == np.int16
    error = np.abs(stored.astype(np.float32) * np.float32(scale) + np.float32(offset) - exact).max()
    assert error < 1e-4 * (exact.max() - exact.min()) / 2


def test_an_outlier_does_not_coarsen_the_rest() -> None:
    image = grey.copy()
    image[0, 0, 0] = 3e6
    found = normalisation_of(image, "nyul", fit_nyul([grey]))
    stored, scale, offset = quantise(image.copy(), found)
    assert stored.dtype == np.float32
    assert (scale, offset) == (1.0, 0.0)
    np.testing.assert_array_equal(stored, found.apply(image))


def test_constant_images_and_wrong_requests_are_refused() -> None:
    flat = np.ones((4, 4, 4), dtype=np.float32)
    for kind in ("zscore", "percentile"):
        with pytest.raises(ValueError, match="same intensity"):
            normalisation_of(flat, kind)
    with pytest.raises(ValueError, match="same intensity"):
        fit_nyul([flat])
    with pytest.raises(ValueError, match="at least one"):
        fit_nyul([])
    with pytest.raises(ValueError, match="landmarks"):
        normalisation_of(grey, "nyul")
    with pytest.raises(ValueError, match="one of"):
        normalisation_of(grey, "minmax")
