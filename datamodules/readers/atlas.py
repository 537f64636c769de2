"""ATLAS: contrast-enhanced T1 of livers with tumours; label 1 is liver, 2 tumour, disjoint."""

from __future__ import annotations

import re
from pathlib import Path

from datamodules.cohort import Cohort
from datamodules.readers._common import Notify, cohort_of, existing_folder, warn
from datamodules.readers._folders import labelled_images

LIVER_AND_TUMOUR = "1,2"
_PARTS = {"Tr": "train", "Ts": "test"}


def read(root: Path, *, notify: Notify = warn) -> Cohort:
    """Read ATLAS; liver and tumour together are the liver's mask.

    A mask bears its image's name, or ``lb7`` where the image is ``im7``.

    Args:
        root: The folder with ``imagesTr`` and ``labelsTr``, or one above it.
        notify: Called with images without a mask.

    Returns:
        One row a scan, sequence ``T1W``.

    Raises:
        InputError: Nothing is found, a mask has no image, or two folders could be the same one and
            differ.
    """
    root = existing_folder(root, "ATLAS")
    rows = [
        {
            "scan_id": f"atlas_{entry.case}",
            "patient_id": f"atlas_{entry.case}",
            "sequence": "T1W",
            "image": str(entry.image),
            "mask": None if entry.mask is None else str(entry.mask),
            "mask_labels": None if entry.mask is None else LIVER_AND_TUMOUR,
            "source": "atlas",
            "official_split": entry.split,
        }
        for entry in labelled_images(root, _PARTS, _case, notify)
    ]
    return cohort_of(rows, root, str(root))


def _case(stem: str) -> str:
    """The case of an image's or mask's file name: ``7`` for ``im7``, ``lb7`` and ``im7_0000``."""
    numbered = re.fullmatch(r"(?:im|lb)(\d+)(?:_0000)?", stem)
    return numbered[1] if numbered else stem.removesuffix("_0000")
