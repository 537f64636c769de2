"""What a part's scans must have before anything learns from them: a label, and a mask that does not leak. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from datamodules.cohort import Scan
from datamodules.labels import LabelRule
from datamodules.masks import MaskSet


def honesty_faults(
    scans: Sequence[Scan],
    targets: Mapping[str, int],
    rule: LabelRule,
    part: str,
    name: str,
    mask_source: str,
    mask_set: MaskSet | None,
    test_patients: Iterable[str],
) -> list[str]:
    """Why the scans of a part may not be used, one line each.

    Args:
        scans: Scans of the part.
        targets: Class by patient, under the part's rule.
        rule: That rule.
        part: ``train``, ``valid`` or ``test``.
        name: What faults call the cohort.
        mask_source: ``none``, ``reference``, ``out_of_fold``, ``external`` or ``perturbed``.
        mask_set: Predicted masks, or None.
        test_patients: The test part of the fold.

    Returns:
        Patients without a label, missing reference masks, and masks that leak or are damaged; empty where all is well.
    """
    faults = [
        f"{name}: patient {patient!r} is in the {part} part but has no label for the rule {rule}; "
        "make the split with this rule"
        for patient in sorted({scan.patient_id for scan in scans} - set(targets))
    ]
    if mask_source == "reference" or (mask_source == "perturbed" and mask_set is None):
        faults += [
            f"{name}: scan {scan.scan_id!r} has no reference mask, and mask_source is {mask_source}"
            for scan in scans
            if scan.mask is None
        ]
    if mask_set is not None:
        faults += [*mask_set.leaks(scans, test_patients), *mask_set.damaged(scans)]
    return faults
