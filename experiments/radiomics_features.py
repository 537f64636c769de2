"""IBSI features of one liver, computed by MIRP: first order, shape, texture, and those of filtered images."""

from __future__ import annotations

import dataclasses
import logging
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import nibabel as nib
import numpy as np

from datamodules.errors import InputError
from datamodules.geometry import geometry_of
from datamodules.images import check_same_grid, decode, decode_mask, read_bytes

FORMAT: Final = 1
"""Raised where the same settings would give other values."""

FAMILIES: Final = {
    "shape": "morph", "firstorder": "stat", "histogram": "ih", "glcm": "cm", "glrlm": "rlm", "glszm": "szm",
    "gldzm": "dzm", "ngtdm": "ngtdm", "gldm": "ngldm",
}  # fmt: skip
"""Families by the names that the field uses, and what MIRP calls them. IBSI calls GLDM 'neighbouring grey level
dependence' (NGLDM)."""

USUAL: Final = ("shape", "firstorder", "histogram", "glcm", "glrlm", "glszm", "ngtdm", "gldm")
NORMALISATIONS: Final = ("standardisation", "range", "none")
LEFT_OUT: Final = ("morph_moran_i", "morph_geary_c")
"""Spatial autocorrelation: of a whole liver, MIRP estimates it on random subsets of 100 voxels, most of the time."""

AROUND_MM: Final = 50.0
"""Filters see this much beyond the liver: more than any of their kernels, less than the whole body."""


@dataclasses.dataclass(frozen=True)
class FeatureSettings:
    """How features are computed. Part of the key that they are kept under.

    Args:
        spacing: Voxel size in mm along left-right, posterior-anterior, inferior-superior to resample to (cubic spline
            for the image, linear at a half for the mask); None keeps the scan's own.
        by_slice: Texture within axial slices (2D, merged over slices), for thick slices; else in 3D.
        families: From ``FAMILIES``.
        normalisation: ``standardisation`` (mean 0, standard deviation 1 over the body), ``range`` (1st to 99th
            percentile of the body becomes 0 to 1), or ``none``.
        bins: Number of grey-level bins within the liver (IBSI's fixed bin number, for arbitrary units); None where
            ``bin_width`` is given. Both None: the image's own grey levels, which must be positive whole numbers.
        bin_width: Width of a bin, in units after normalisation (IBSI's fixed bin size).
        wavelet: Separable stationary wavelet, first level, made rotation invariant: four images; None for none.
        log_sigma: Widths of Laplacian-of-Gaussian filters in mm, one image each; empty for none.

    Raises:
        InputError: A value is out of range.
    """

    spacing: tuple[float, float, float] | None = (3.0, 3.0, 3.0)
    by_slice: bool = False
    families: tuple[str, ...] = USUAL
    normalisation: str = "standardisation"
    bins: int | None = 32
    bin_width: float | None = None
    wavelet: str | None = "coif1"
    log_sigma: tuple[float, ...] = (3.0, 5.0)

    def __post_init__(self) -> None:
        faults = [
            f"--families {name}: unknown; choose from {', '.join(FAMILIES)}"
            for name in self.families
            if name not in FAMILIES
        ]
        if not self.families:
            faults.append("--families: is empty; name at least one")
        if self.spacing is not None and not all(0.2 <= value <= 50 for value in self.spacing):
            faults.append(f"--spacing {self.spacing}: give three values between 0.2 and 50 mm, or native")
        if self.normalisation not in NORMALISATIONS:
            faults.append(f"--normalisation {self.normalisation}: choose one of {', '.join(NORMALISATIONS)}")
        if self.bins is not None and self.bin_width is not None:
            faults.append("--bins and --bin-width contradict each other; choose one")
        if self.bins is not None and not 2 <= self.bins <= 1024:
            faults.append(f"--bins {self.bins}: give between 2 and 1024")
        if self.bin_width is not None and not self.bin_width > 0:
            faults.append(f"--bin-width {self.bin_width}: give more than 0")
        if any(not 0 < sigma <= 20 for sigma in self.log_sigma):
            faults.append(f"--log-sigma {self.log_sigma}: give widths above 0, up to 20 mm")
        if self.wavelet is not None and self.wavelet not in _wavelets():
            faults.append(f"--wavelet {self.wavelet}: no such discrete wavelet; coif1, db2 or haar, say, or none")
        if faults:
            raise InputError(*faults)

    def as_json(self) -> dict[str, Any]:
        """The settings as JSON values, in a fixed order."""
        return dataclasses.asdict(self)

    def for_mirp(self) -> dict[str, Any]:
        """The settings in MIRP's words."""
        families = [FAMILIES[name] for name in self.families]
        words: dict[str, Any] = {"base_feature_families": families, "by_slice": self.by_slice}
        if self.spacing is not None:
            x, y, z = self.spacing
            words["new_spacing"] = [z, y, x]
        if self.normalisation != "none":
            words |= {"tissue_mask_type": "relative_range"}
            method = "standardisation" if self.normalisation == "standardisation" else "quantile_range"
            words["intensity_normalisation"] = method
            if method == "quantile_range":
                words["intensity_normalisation_range"] = [0.01, 0.99]
        prefixes = ["base"]
        filters = []
        if self.wavelet is not None:
            filters.append("separable_wavelet")
            sets = ["ll", "lh", "hh"] if self.by_slice else ["lll", "llh", "lhh", "hhh"]
            words |= {"separable_wavelet_families": self.wavelet, "separable_wavelet_set": sets}
        if self.log_sigma:
            filters.append("laplacian_of_gaussian")
            words["laplacian_of_gaussian_sigma"] = list(self.log_sigma)
        if filters:
            prefixes.append("response_map")
            # shape does not change by a filter
            inside = [family for family in families if family != "morph"]
            words |= {"filter_kernels": filters, "response_map_feature_families": inside or "none"}
            words |= {"crop_around_roi": True, "crop_distance": AROUND_MM}
        for prefix in prefixes:
            words |= self._bins(prefix)
        return words

    def _bins(self, prefix: str) -> dict[str, Any]:
        if self.bins is not None:
            method: dict[str, Any] = {"method": "fixed_bin_number", "n_bins": self.bins}
        elif self.bin_width is not None:
            method = {"method": "fixed_bin_size", "bin_width": self.bin_width}
        else:
            method = {"method": "none"}
        return {f"{prefix}_discretisation_{key}": value for key, value in method.items()}


def features_of(image: Path, mask: Path, labels: tuple[int, ...], settings: FeatureSettings) -> dict[str, float]:
    """The features of one scan's liver.

    Args:
        image: The scan, NIfTI.
        mask: The liver on the scan's grid, NIfTI.
        labels: Values of the mask that count; empty for any but zero.
        settings: How.

    Returns:
        Value by MIRP's name of the feature (``cm_contrast_d1_3d_v_mrg_fbn_n32``), NaN where it does not exist (a
        division by zero within one grey level, say). Empty where the mask is, on the grid that features are
        computed on.

    Raises:
        InputError: A file cannot be used, or MIRP cannot compute on it.
    """
    scan = decode(read_bytes(image), image)
    liver = decode_mask(read_bytes(mask), mask, labels)
    check_same_grid(scan, liver, image, mask)
    if not liver.data.any():
        return {}
    geometry = geometry_of(scan.data.shape, scan.affine, None, None)
    mirp = _mirp()
    with tempfile.TemporaryDirectory(prefix="radiomics-") as folder:
        # canonical and along the axes: MIRP would resample an oblique scan along the scanner's axes
        affine = np.diag([*geometry.spacing, 1.0])
        paths = []
        for name, array in (
            ("image", np.asarray(scan.data, dtype=np.float32)),
            ("mask", np.asarray(liver.data, dtype=np.uint8)),
        ):
            paths.append(Path(folder) / f"{name}.nii")
            nib.save(nib.Nifti1Image(np.ascontiguousarray(geometry.to_canonical(array)), affine), paths[-1])
        try:
            with _quiet(), _without_autocorrelation(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                tables = mirp.extract_features(
                    image=str(paths[0]), mask=str(paths[1]), image_modality="mr", **settings.for_mirp()
                )
        except Exception as error:  # of many kinds: a wavelet longer than the image, say
            why = " ".join(str(error).split())[:200]
            raise InputError(
                f"{image}: MIRP cannot compute its features ({type(error).__name__}: {why}); change the settings, or "
                "leave the scan out of the cohort"
            ) from error
    if not tables or tables[0] is None:
        return {}
    row = tables[0].iloc[0]
    begins = tuple(f"{name}_" for name in ("morph", "stat", "ih", "cm", "rlm", "szm", "dzm", "ngt", "ngl"))
    found = {}
    for name, value in row.items():
        if str(name).startswith((*begins, "wavelet_", "log_")):
            number = float("nan") if value is None else float(value)
            found[str(name)] = number if np.isfinite(number) else float("nan")
    return found


def versions() -> dict[str, str]:
    """What the values depend on besides the settings."""
    return {"format": str(FORMAT), "mirp": str(_version())}


def require_mirp() -> None:
    """Stop where MIRP is not installed.

    Raises:
        InputError: It is not.
    """
    from importlib.util import find_spec

    if find_spec("mirp") is None:
        raise InputError("radiomics needs the package MIRP, which is not installed; pip install 'hepastage[radiomics]'")


def _version() -> str:
    from importlib.metadata import version

    return version("mirp")


def _mirp() -> Any:
    import mirp

    return mirp


def _wavelets() -> list[str]:
    import pywt

    return list(pywt.wavelist(kind="discrete"))


@contextmanager
def _quiet() -> Iterator[None]:
    """MIRP logs each step on the root logger, and makes handlers for it on standard output."""
    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    root.addHandler(logging.NullHandler())
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)


@contextmanager
def _without_autocorrelation() -> Iterator[None]:
    """Leave ``LEFT_OUT`` out: MIRP takes families only, though its generator can take names."""
    from mirp._features import feature_generator, morph_3d_features

    usual = feature_generator.generate_morph_3d_features
    names = [name for name in morph_3d_features.get_morphology_3d_class_dict() if name not in LEFT_OUT]

    def some(settings: Any, features: list[str] | None = None) -> Any:
        wanted = names if features is None and settings.has_morphology_family() else features
        return usual(settings=settings, features=wanted)

    feature_generator.generate_morph_3d_features = some
    try:
        yield
    finally:
        feature_generator.generate_morph_3d_features = usual
