"""Features against the consensus of the Image Biomarker Standardisation Initiative, and how a scan is stored."""

from __future__ import annotations

import csv
import math
import re
from pathlib import Path

import numpy as np
import pytest

from datamodules.errors import InputError
from experiments.radiomics_features import FAMILIES, USUAL, FeatureSettings, features_of
from tests.tiny import affine_of, phantom, write

# The digital phantom, 5 x 4 x 4 voxels of 2 mm, one word a row, one line a slice; and some of its consensus values.
# Source: Zwanenburg et al., Radiology 2020; 295:328-338; the values as in the reference manual, arXiv:1612.07003.
GREY = ("14411 14611 41641 44641", "14411 11611 11311 44611", "14411 11111 11911 11611", "14411 11111 11111 11611")
LIVER = ("11111 11111 11111 11111", "11111 11111 01111 11111", "11100 11111 11011 11111", "11100 11111 11111 11111")
CONSENSUS = {
    "morph_volume": (556, 4), "morph_area_mesh": (388, 3), "morph_diam": (13.1, 0.1), "stat_mean": (2.15, 0),
    "stat_kurt": (-0.355, 0), "stat_energy": (567, 0), "ih_entropy": (1.27, 0), "cm_contrast_3D_comb": (5.12, 0),
    "cm_corr_3D_comb": (0.183, 0), "rlm_sre_3D_comb": (0.729, 0), "rlm_rl_var_3D_comb": (0.598, 0),
    "szm_sze_3D": (0.255, 0), "szm_zs_var_3D": (331, 0), "ngt_coarseness_3D": (0.0296, 0),
    "ngt_strength_3D": (0.763, 0), "ngl_lde_3D": (0.045, 0), "ngl_dc_entr_3D": (4.4, 0),
}  # fmt: skip


def plain(by_slice: bool) -> FeatureSettings:
    """As the phantom is meant: neither resampled, normalised nor binned."""
    return FeatureSettings(
        spacing=None,
        by_slice=by_slice,
        families=tuple(FAMILIES),
        normalisation="none",
        bins=None,
        wavelet=None,
        log_sigma=(),
    )


def consensus_name(name: str) -> str:
    """MIRP's name of a feature as the table of consensus values has it."""
    name = re.sub(r"_d1|_a0\.0", "", name).replace("_3d_v_mrg", "_3D_comb").replace("_2d_s_mrg", "_2D_comb")
    return name.replace("_3d", "_3D").replace("_2d", "_2D")


def agrees(value: float, reference: float, tolerance: float) -> bool:
    """Within the tolerance, or, where that is 0, the same to the three digits that are published."""
    half = 0.0 if reference == 0 else 0.5 * 10 ** (math.floor(math.log10(abs(reference))) - 2)
    return abs(value - reference) <= max(tolerance, half * 1.0001)


def volume(slices: tuple[str, ...]) -> np.ndarray:
    rows = [[[int(digit) for digit in row] for row in plane.split()] for plane in slices]
    return np.array(rows, dtype=np.int16).transpose(2, 1, 0)


def test_the_embedded_phantom_has_the_published_values(tmp_path: Path) -> None:
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    image = write(tmp_path / "image.nii.gz", volume(GREY), affine)
    mask = write(tmp_path / "mask.nii.gz", volume(LIVER).astype(np.uint8), affine)
    found = {consensus_name(name): value for name, value in features_of(image, mask, (1,), plain(False)).items()}
    wrong = {name: found[name] for name, (value, within) in CONSENSUS.items() if not agrees(found[name], value, within)}
    assert not wrong


@pytest.mark.real
@pytest.mark.parametrize("by_slice", [False, True])
def test_all_features_agree_with_the_consensus(by_slice: bool, test_data: Path) -> None:
    folder = test_data / "ibsi_digital_phantom"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there: no consensus values of the digital phantom at hand")
    with (folder / "reference_values.csv").open() as stream:
        rows = [row for row in csv.DictReader(stream, delimiter=";") if row["reference value"]]
    known = {row["tag"]: (float(row["reference value"]), float(row["tolerance"])) for row in rows}
    found = features_of(folder / "image.nii.gz", folder / "mask.nii.gz", (), plain(by_slice))
    named = {consensus_name(name): value for name, value in found.items()}
    assert named.keys() <= known.keys(), "each feature has a consensus value"
    assert not {name: value for name, value in named.items() if not agrees(value, *known[name])}
    families = {name.split("_")[0] for name in named}
    assert families == {"morph", "stat", "ih", "cm", "rlm", "szm", "dzm", "ngt", "ngl"}
    assert len(named) == 159


def test_how_a_scan_is_stored_changes_nothing(tmp_path: Path) -> None:
    """The same body with two axes stored the other way round; and one whose scanner axes are tilted."""
    settings = FeatureSettings(spacing=(10.0, 10.0, 10.0), wavelet=None, log_sigma=(8.0,))
    found = []
    for kind in ("ras", "lps", "oblique"):
        image, mask = phantom(3, 200.0, kind)
        files = [write(tmp_path / f"{kind}-{name}.nii.gz", array, affine_of(kind))
                 for name, array in (("image", image), ("mask", mask))]  # fmt: skip
        found.append(features_of(files[0], files[1], (1,), settings))
    assert len(found[0]) > 200 and any(name.startswith("log_s_8.0_cm") for name in found[0])
    for other in found[1:]:
        assert other.keys() == found[0].keys()
        for name, value in found[0].items():
            assert other[name] == pytest.approx(value, rel=1e-3, abs=1e-4, nan_ok=True), name


def test_a_mask_without_liver_has_no_features(tmp_path: Path) -> None:
    image, mask = phantom(1, 200.0)
    paths = [write(tmp_path / f"{name}.nii.gz", array, affine_of("ras"))
             for name, array in (("image", image), ("mask", mask * 0))]  # fmt: skip
    assert features_of(paths[0], paths[1], (), FeatureSettings()) == {}


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"families": ("shape", "glcn")}, "--families glcn: unknown"),
        ({"bins": 1}, "--bins 1"),
        ({"bin_width": 5.0}, "contradict"),
        ({"bins": None, "bin_width": -1.0}, "--bin-width -1"),
        ({"spacing": (0.0, 1.0, 1.0)}, "--spacing"),
        ({"log_sigma": (0.0,)}, "--log-sigma"),
        ({"wavelet": "coiflet"}, "--wavelet coiflet"),
        ({"normalisation": "zscore"}, "--normalisation zscore"),
    ],
)
def test_settings_that_mean_nothing(wrong: dict[str, object], said: str) -> None:
    with pytest.raises(InputError, match=re.escape(said)):
        FeatureSettings(**wrong)  # type: ignore[arg-type]


def test_gldm_and_the_others_are_named_as_the_field_does() -> None:
    assert {"shape", "firstorder", "glcm", "glrlm", "glszm", "ngtdm", "gldm"} <= set(USUAL)
