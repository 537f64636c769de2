"""From one latent severity to what is measured of a patient, and to what it does to the body."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from datamodules.errors import InputError

LSM_THRESHOLD_KPA = 12.0
LSM_HEALTHY_KPA = 3.6
LSM_SEVERE_KPA = 46.0
LSM_LOG_SD = 0.30
METAVIR_CUTS = (0.12, 0.26, 0.38, 0.50)
"""Median stiffness 5, 7, 9.5 and 13 kPa; compare 7.1, 9.5 and 12.5 kPa for F2, F3 and F4 in Castéra et al.,
Gastroenterology 2005;128:343-350."""
STAGE_CUTS = (0.42, 0.72)
READING_SD = 0.09
"""Spread of a histological or radiological reading around the latent severity."""


@dataclasses.dataclass(frozen=True, slots=True)
class PhantomStrength:
    """How strongly each effect of the latent severity shows: the one place to tune difficulty.

    Each number is the effect at severity 1; 0 switches an effect off. The texture is the main
    signal and lies inside the liver; spleen and ascites lie outside it, are true correlates of
    fibrosis, and are weak by default.

    Attributes:
        texture: Relative signal difference between septum and nodule on T2W; on T1W it is reversed
            and 0.6 times as strong.
        nodularity: Height of the surface nodules in mm (standard deviation of the surface).
        caudate: Growth of the caudate lobe's diameters, relative.
        right_lobe: Shrinkage of the right lobe in mm from below; the wall side gives way by a quarter.
        spleen: Growth of the spleen's diameters, relative.
        ascites: Thickness of the fluid rim around liver and spleen in mm.
    """

    texture: float = 0.75
    nodularity: float = 1.8
    caudate: float = 0.45
    right_lobe: float = 22.0
    spleen: float = 0.10
    ascites: float = 4.0

    def __post_init__(self) -> None:
        negative = [name for name, value in dataclasses.asdict(self).items() if not 0 <= value < math.inf]
        if negative:
            raise InputError(f"strength {negative[0]}: {getattr(self, negative[0])} is not a number from 0; correct it")


@dataclasses.dataclass(frozen=True, slots=True)
class Findings:
    """What a latent severity led to in one patient.

    Attributes:
        severity: The latent severity in [0, 1].
        lsm_kpa: Liver stiffness in kPa, one decimal.
        metavir: Histological stage 0–4.
        stage: Radiological stage 1–3.
        age: Years.
        sex: ``F`` or ``M``.
        texture: Severity as the texture shows it, in [0, 1]; the next four likewise.
        nodularity: As the surface shows it.
        shape: As caudate and right lobe show it.
        spleen: As the spleen shows it.
        ascites: As the fluid shows it; 0 in most patients.
    """

    severity: float
    lsm_kpa: float
    metavir: int
    stage: int
    age: float
    sex: str
    texture: float
    nodularity: float
    shape: float
    spleen: float
    ascites: float


def expected_lsm_kpa(severity: float) -> float:
    """Median liver stiffness in kPa at a latent severity in [0, 1]: exponential, so monotone."""
    return LSM_HEALTHY_KPA * math.exp(severity * math.log(LSM_SEVERE_KPA / LSM_HEALTHY_KPA))


def draw_findings(rng: np.random.Generator) -> Findings:
    """Draw one patient: severity, what is measured, and what the body shows.

    LSM is log-normal around its median; METAVIR and stage are cuts of the severity read with an
    error, each with its own; every effect follows the severity with an error of its own, largest
    for the spleen and the ascites, so that no single sign gives the label away.

    Args:
        rng: The patient's own stream.

    Returns:
        The patient's findings. The same number of random values is drawn for every patient.
    """
    severity = float(rng.beta(1.05, 1.25))
    errors = rng.standard_normal(8)
    lsm = expected_lsm_kpa(severity) * math.exp(LSM_LOG_SD * float(errors[0]))
    metavir = sum(severity + READING_SD * float(errors[1]) > cut for cut in METAVIR_CUTS)
    stage = 1 + sum(severity + READING_SD * float(errors[2]) > cut for cut in STAGE_CUTS)

    def shown(index: int, spread: float) -> float:
        return min(1.0, max(0.0, severity + spread * float(errors[index])))

    return Findings(
        severity=severity,
        lsm_kpa=round(min(75.0, max(2.0, lsm)), 1),
        metavir=metavir,
        stage=stage,
        age=float(np.clip(np.round(rng.normal(52.0 + 8.0 * severity, 11.0)), 20, 85)),
        sex="F" if rng.random() < 0.45 else "M",
        texture=shown(3, 0.14),
        nodularity=shown(4, 0.18),
        shape=shown(5, 0.20),
        spleen=shown(6, 0.35),
        ascites=max(0.0, shown(7, 0.22) - 0.72) / 0.28,
    )
