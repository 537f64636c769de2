"""Which MR sequence a DICOM series is, by rules that are written down; or why it is left out."""

from __future__ import annotations

import re
from collections.abc import Sequence

from datamodules.readers._dicom_header import Slice

LOCALISER = re.compile(
    r"(?<![a-z])loc(?:ali[sz]er)?(?![a-z])|scout|survey|3[- _]?plane|calibration|\bref(?:erence)?[ _-]?scan|asset"
)
PROJECTIONS = {
    "PROJECTION IMAGE",
    "MIP",
    "MIN IP",
    "MINIP",
    "MPR",
    "CSA MPR",
    "SCREEN SAVE",
    "REFORMATTED",
    "CSAPARALLEL",
}
DIFFUSION = re.compile(r"dwi|diff|trace|ivim|b[ _=-]?val")
NAMED_MAPS = (
    (re.compile(r"(?<![a-z])d?adc(?![a-z])|(?<!e)adc$|apparent[ _-]?diffusion"), "ADC"),
    (re.compile(r"t2[ _]?(?:\*|star)|r2[ _]?(?:\*|star)|swi(?![a-z])"), "T2STAR"),
    (re.compile(r"fat[ _-]?fraction|pdff|(?<![a-z])ff(?![a-z])"), "PDFF"),
    (re.compile(r"elastogra|(?<![a-z])mre(?![a-z])"), "MRE"),
    (re.compile(r"mrcp"), "MRCP"),
)
DIXON = (
    (re.compile(r"opp(?:osed)?(?![a-z])|out[ _-]?of[ _-]?phase|outphase|(?<![a-z])op(?![a-z])"), "OUT"),
    (re.compile(r"in[ _-]?phase|(?<![a-z])ip(?![a-z])|(?<![a-z])in(?![a-z])"), "IN"),
    (re.compile(r"water|_w$"), "WATER"),
    (re.compile(r"(?<![a-z])fat(?![a-z _-]*(?:sat|sup))|_f$"), "FAT"),
)
DIXON_KINDS = {"OPP_PHASE": "OUT", "OP": "OUT", "OUT_PHASE": "OUT", "IN_PHASE": "IN", "IP": "IN",
               "WATER": "WATER", "W": "WATER", "FAT": "FAT", "F": "FAT"}  # fmt: skip
WEIGHTINGS = (
    (re.compile(r"(?<![a-z])pd(?![a-z])|proton"), "PDW"),
    (re.compile(r"t1"), "T1W"),
    (re.compile(r"t2"), "T2W"),
    (re.compile(r"vibe|lava|thrive|fl[23]d|fspgr|spgr|flash|mprage|dixon|dual[ _-]?echo|(?<![a-z])quick3d"), "T1W"),
    (re.compile(r"haste|ssfse|blade|propeller|(?<![a-z])(?:tse|fse|frfse)(?![a-z])"), "T2W"),
)


def reason_to_skip(stack: Sequence[Slice], minimum: int) -> str | None:
    """Why a stack is no image volume of its own, or None.

    Args:
        stack: Slices of one volume.
        minimum: The fewest slices that make a volume.
    """
    first = stack[0]
    words = set(first.image_type)
    if first.modality != "MR":
        return f"modality {first.modality or 'unknown'}, not MR"
    if first.colours != 1:
        return "a colour picture, not measured signal"
    if "LOCALIZER" in words or LOCALISER.search(first.description.lower()):
        return "a localiser"
    if words & PROJECTIONS or any("MPR" in word or "PROJECTION" in word for word in words):
        return "a projection or reformat, derived from another series"
    if words & {"P", "PHASE", "PHASE MAP", "R", "REAL", "I", "IMAGINARY"}:
        return "a phase, real or imaginary image, not magnitude"
    if words & {"FA", "EADC", "EXP", "EXPONENTIAL", "TENSOR", "TENSOR_B0"} or "eadc" in first.description.lower():
        return "a derived map that no rule knows"
    if not first.placed:
        return "no position, orientation or pixel spacing in its header"
    if len(stack) < minimum:
        return f"{len(stack)} slice{'s' if len(stack) > 1 else ''}, fewer than {minimum}"
    return None


def sequence_of(stack: Sequence[Slice], diffusion: bool = False) -> str | None:
    """The sequence's name by ImageType, b-value and SeriesDescription, or None where no rule fits.

    In this order: ADC maps; diffusion with a b-value (``DWI_b800``); named maps (``T2STAR``, ``PDFF``,
    ``MRE``, ``MRCP``); then ``PDW``, ``T1W`` or ``T2W`` by the words in the description, with
    ``_IN``, ``_OUT``, ``_WATER`` or ``_FAT`` where a Dixon or dual-echo T1W says so.

    Args:
        stack: Slices of one volume.
        diffusion: Whether its series has an image with a b-value above 0. A b-value of 0 alone proves
            nothing: GE and Philips write it into images of every kind.
    """
    first = stack[0]
    text = first.description.lower()
    words = set(first.image_type)
    if "ADC" in words:
        return "ADC"
    if "DIFFUSION" in words or ((diffusion or first.b_value) and not NAMED_MAPS[0][0].search(text)):
        return None if first.b_value is None else diffusion_name(first.b_value)
    for pattern, name in NAMED_MAPS:
        if pattern.search(text):
            return name
    if DIFFUSION.search(text):
        return None if first.b_value is None else diffusion_name(first.b_value)
    for pattern, name in WEIGHTINGS:
        if pattern.search(text):
            return f"{name}{_dixon(words, text)}" if name == "T1W" else name
    return None


def diffusion_name(b_value: float) -> str:
    """``DWI_b800`` for 800 s/mm²."""
    return f"DWI_b{b_value:g}"


def _dixon(words: set[str], text: str) -> str:
    for word in sorted(words):
        if word in DIXON_KINDS:
            return f"_{DIXON_KINDS[word]}"
    if not re.search(r"dixon|dual|(?:in|out|opp)[ _-]?(?:of[ _-]?)?phase|(?<![a-z])(?:ip|op|opp|in)$|_[wf]$", text):
        return ""
    for pattern, name in DIXON:
        if pattern.search(text):
            return f"_{name}"
    return ""
