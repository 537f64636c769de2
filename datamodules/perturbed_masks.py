"""Perturbed masks of a cohort's scans, made once and kept in the store as NIfTI on the native grids."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import numpy as np

from datamodules.cohort import Scan
from datamodules.errors import InputError
from datamodules.files import read_json, sha256_of_file, sha256_of_json, write_json
from datamodules.images import Volume, read_mask, write_nifti
from datamodules.masks import MaskSet
from datamodules.perturbation import MaskPerturbation, dice_of, transplanted
from datamodules.store_fill import usable_cores

FORMAT: Final = 1
"""Raised with every change that alters the masks made from the same parameters."""


class PerturbedMasks:
    """Masks made worse on purpose, by scan id.

    Args:
        perturbation: How.
        folder: Where they are kept, by what they were made from; any number of runs may share it.
        originals: Predicted masks to make worse; None takes the cohort's reference masks.
    """

    def __init__(self, perturbation: MaskPerturbation, folder: Path, originals: MaskSet | None) -> None:
        self.perturbation = perturbation
        self.folder = folder
        self.originals = originals
        self._scans: dict[str, Scan] = {}
        self._others: dict[str, list[Scan]] = {}
        self._made: dict[str, tuple[Path, float | None]] = {}

    def add_part(self, scans: Iterable[Scan]) -> list[str]:
        """Name the scans of one part: the mask of another patient comes from the same part.

        Returns:
            What forbids it, one line each.
        """
        scans = sorted(scans, key=lambda scan: scan.scan_id)
        faults = []
        for scan in scans:
            others = [other for other in scans if other.patient_id != scan.patient_id]
            self._scans[scan.scan_id], self._others[scan.scan_id] = scan, others
            if self.perturbation.kind == "swap" and not others:
                faults.append(
                    f"data.init_args.perturbation: scan {scan.scan_id!r} is alone in its part, so there is no other "
                    "patient's mask; choose another kind"
                )
        return faults

    def make_all(self) -> None:
        """Make the masks of all parts that were named.

        Raises:
            InputError: See :meth:`path`.
        """
        with ThreadPoolExecutor(usable_cores()) as pool:
            # what raises in a thread is raised here; distances and interpolation leave the interpreter to others
            list(pool.map(self._of, self._scans))

    def path(self, scan_id: str) -> Path:
        """The mask of a scan, on its native grid; made now where it is missing.

        Raises:
            InputError: The mask that it is made from is missing or at fault.
        """
        return self._of(scan_id)[0]

    def dice(self, scan_id: str) -> float | None:
        """Dice of a scan's perturbed mask against its reference mask on the native grid; None without a reference."""
        return self._of(scan_id)[1]

    def _of(self, scan_id: str) -> tuple[Path, float | None]:
        if scan_id not in self._made:
            self._made[scan_id] = self._kept(self._scans[scan_id])
        return self._made[scan_id]

    def _kept(self, scan: Scan) -> tuple[Path, float | None]:
        donor = self._donor(scan)
        sources = [self._file(item) for item in (scan, donor) if item is not None]
        key = sha256_of_json(
            {
                "format": FORMAT,
                "perturbation": self.perturbation.as_json(),
                "scan": scan.scan_id,
                "masks": [[sha256_of_file(path), sorted(labels)] for path, labels in sources],
                "reference": None if scan.mask is None else [sha256_of_file(scan.mask), sorted(scan.mask_labels)],
            }
        )
        path = self.folder / key[:2] / f"{key}.nii.gz"
        note = path.with_name(f"{key}.json")
        # the note is written last, so that its presence means that the mask is whole
        if not (path.is_file() and note.is_file()):
            mask = self._perturbed(scan, donor)
            dice = None
            if scan.mask is not None:
                reference = read_mask(scan.mask, scan.mask_labels)
                dice = dice_of(mask.data != 0, reference.data != 0)
            write_nifti(path, mask.data, mask.affine, like=sources[0][0])
            write_json(note, {"scan": scan.scan_id, "perturbation": self.perturbation.as_json(), "dice": dice})
        record = read_json(note, "the note beside a perturbed mask")
        return path, record["dice"]

    def _perturbed(self, scan: Scan, donor: Scan | None) -> Volume:
        path, labels = self._file(scan)
        original = read_mask(path, labels)
        if donor is None:
            mask = self.perturbation.apply(original.data != 0, original.spacing, self.perturbation.stream(scan.scan_id))
        else:
            other_path, other_labels = self._file(donor)
            other = read_mask(other_path, other_labels)
            i, j, k = original.data.shape
            mask = transplanted(other.data != 0, other.affine, (i, j, k), original.affine)
        return Volume(mask.astype(np.uint8), original.affine, path)

    def _donor(self, scan: Scan) -> Scan | None:
        if self.perturbation.kind != "swap":
            return None
        others = self._others[scan.scan_id]
        return others[int(self.perturbation.stream(scan.scan_id).integers(len(others)))]

    def _file(self, scan: Scan) -> tuple[Path, tuple[int, ...]]:
        """The mask file that is made worse, and its liver labels (none: any value but zero)."""
        if self.originals is not None:
            return self.originals.path(scan.scan_id), ()
        if scan.mask is None:
            raise InputError(f"scan {scan.scan_id!r} has no reference mask to perturb; give predicted ones as masks")
        return scan.mask, scan.mask_labels
