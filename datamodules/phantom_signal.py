"""Tissue relaxation times and the signal equations of the digital liver phantom."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

FIELDS_T = (1.5, 3.0)
R2_PRIME_PER_T = 6.0
"""Reversible dephasing in 1/s per tesla of field, the same for all tissues: it matters little at 2–5 ms."""


@dataclasses.dataclass(frozen=True, slots=True)
class Tissue:
    """Relaxation times and proton density of one tissue.

    Attributes:
        t1_ms: Longitudinal relaxation time in ms at 1.5 T and at 3 T.
        t2_ms: Transverse relaxation time in ms at 1.5 T and at 3 T.
        density: Hydrogen per volume relative to water, hydrogen mass fraction × mass density from
            ICRU Report 44, Appendix A.
        flow: What flow leaves of a spin-echo signal, 1 where nothing moves. A choice, not a measurement.
        source: Where the times come from.
    """

    t1_ms: tuple[float, float]
    t2_ms: tuple[float, float]
    density: float
    source: str
    flow: float = 1.0


BAZELAIRE = "de Bazelaire et al., Radiology 2004;230:652-659, table of normal abdominal tissues"
STANISZ = "Stanisz et al., Magn Reson Med 2005;54:507-512, table 1"
GOLD = "Gold et al., AJR 2004;183:343-351 (subcutaneous fat)"
FLUID = "free water: rounded from cerebrospinal fluid, T1 near 4 s and T2 near 2 s at both fields"
CHOSEN = "chosen to look as the tissue does; no measurement behind it"

TISSUES: Mapping[str, Tissue] = {
    "air": Tissue((1000.0, 1000.0), (1.0, 1.0), 0.0, "no hydrogen"),
    "liver": Tissue((586.0, 809.0), (46.0, 34.0), 0.96, BAZELAIRE),
    "spleen": Tissue((1057.0, 1328.0), (79.0, 61.0), 0.97, BAZELAIRE),
    "pancreas": Tissue((584.0, 725.0), (46.0, 43.0), 0.99, BAZELAIRE),
    "kidney cortex": Tissue((966.0, 1142.0), (87.0, 76.0), 0.97, BAZELAIRE),
    "kidney medulla": Tissue((1412.0, 1545.0), (85.0, 81.0), 0.97, BAZELAIRE),
    "muscle": Tissue((856.0, 898.0), (27.0, 29.0), 0.96, BAZELAIRE),
    "marrow": Tissue((549.0, 586.0), (49.0, 49.0), 0.97, BAZELAIRE),
    # turbo spin echo shows fat bright, which the shorter single-echo times of de Bazelaire would not
    "fat": Tissue((288.0, 371.0), (165.0, 133.0), 0.97, GOLD),
    "arterial blood": Tissue((1441.0, 1932.0), (290.0, 275.0), 0.97, STANISZ, flow=0.06),
    "venous blood": Tissue((1441.0, 1932.0), (290.0, 275.0), 0.97, STANISZ, flow=0.14),
    "spinal cord": Tissue((745.0, 993.0), (74.0, 78.0), 0.99, STANISZ),
    "fluid": Tissue((4000.0, 4000.0), (2000.0, 2000.0), 1.0, FLUID),
    "bile": Tissue((2500.0, 2500.0), (600.0, 600.0), 1.0, CHOSEN),
    "disc": Tissue((900.0, 1000.0), (80.0, 75.0), 0.9, CHOSEN),
    "cortical bone": Tissue((1000.0, 1000.0), (1.0, 1.0), 0.58, CHOSEN),
    "lung": Tissue((1200.0, 1300.0), (30.0, 25.0), 0.24, CHOSEN),
    "bowel": Tissue((700.0, 850.0), (70.0, 60.0), 0.97, CHOSEN),
    "marker": Tissue((250.0, 250.0), (400.0, 400.0), 1.0, "doped oil of a skin marker; " + CHOSEN),
}


@dataclasses.dataclass(frozen=True, slots=True)
class SequenceTiming:
    """What the signal equations need to know of a pulse sequence.

    Attributes:
        kind: ``spin_echo`` or ``gradient_echo`` (spoiled).
        tr_ms: Repetition time in ms.
        te_ms: Echo time in ms.
        flip_deg: Excitation angle in degrees (gradient echo only).
    """

    kind: str
    tr_ms: float
    te_ms: float
    flip_deg: float = 90.0


def spin_echo_signal(density: float, t1_ms: float, t2_ms: float, tr_ms: float, te_ms: float) -> float:
    """Signal of a 90°–180° spin echo, relative to the fully relaxed signal of water.

    ``S = M0 (1 - 2 exp(-(TR - TE/2)/T1) + exp(-TR/T1)) exp(-TE/T2)``

    Args:
        density: M0, relative to water.
        t1_ms: Longitudinal relaxation time in ms.
        t2_ms: Transverse relaxation time in ms.
        tr_ms: Repetition time in ms.
        te_ms: Echo time in ms.

    Returns:
        The signal, at least 0.

    Source: Haacke et al., Magnetic Resonance Imaging: Physical Principles and Sequence Design, 1999, ch. 8.
    """
    longitudinal = 1.0 - 2.0 * math.exp(-(tr_ms - te_ms / 2.0) / t1_ms) + math.exp(-tr_ms / t1_ms)
    return density * longitudinal * math.exp(-te_ms / t2_ms)


def gradient_echo_signal(
    density: float, t1_ms: float, t2_star_ms: float, tr_ms: float, te_ms: float, flip_deg: float
) -> float:
    """Steady-state signal of a spoiled gradient echo, relative to the fully relaxed signal of water.

    ``S = M0 sin(a) (1 - E1) / (1 - cos(a) E1) exp(-TE/T2*)`` with ``E1 = exp(-TR/T1)``

    Args:
        density: M0, relative to water.
        t1_ms: Longitudinal relaxation time in ms.
        t2_star_ms: Effective transverse relaxation time in ms.
        tr_ms: Repetition time in ms.
        te_ms: Echo time in ms.
        flip_deg: Excitation angle ``a`` in degrees.

    Returns:
        The signal, at least 0.

    Source: Ernst and Anderson, Rev Sci Instrum 1966;37:93-102.
    """
    angle = math.radians(flip_deg)
    e1 = math.exp(-tr_ms / t1_ms)
    return density * math.sin(angle) * (1.0 - e1) / (1.0 - math.cos(angle) * e1) * math.exp(-te_ms / t2_star_ms)


def tissue_signals(timing: SequenceTiming, field_t: float) -> dict[str, float]:
    """Signal of every tissue of the table under one pulse sequence.

    Args:
        timing: The pulse sequence.
        field_t: Field strength in tesla, 1.5 or 3.

    Returns:
        Tissue name to signal, relative to fully relaxed water.

    Raises:
        ValueError: The table has no times for that field, or the kind of sequence is unknown.
    """
    at = FIELDS_T.index(field_t)
    signals = {}
    for name, tissue in TISSUES.items():
        t1, t2 = tissue.t1_ms[at], tissue.t2_ms[at]
        if timing.kind == "spin_echo":
            value = tissue.flow * spin_echo_signal(tissue.density, t1, t2, timing.tr_ms, timing.te_ms)
        elif timing.kind == "gradient_echo":
            t2_star = 1.0 / (1.0 / t2 + R2_PRIME_PER_T * field_t / 1000.0)
            value = gradient_echo_signal(tissue.density, t1, t2_star, timing.tr_ms, timing.te_ms, timing.flip_deg)
        else:
            raise ValueError(f"unknown kind of sequence {timing.kind!r}")
        signals[name] = value
    return signals
