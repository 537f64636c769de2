"""A folder of predicted masks with the record of who made them, and the rule that keeps them honest."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from datamodules.cohort import Scan
from datamodules.errors import InputError
from datamodules.files import read_json, sha256_of_file, write_json

FORMAT = 1
RECORD = "masks.json"
QUALITY_BOUNDS = (0.85, 0.93)
"""Dice below the first is band 1 (poor), from the second on band 3 (good). Our reading: the published
scores 1 to 3 were given by readers, and no Dice was published for them."""


QualitySource = Literal["reference", "reader", "agreement"]


@dataclasses.dataclass(frozen=True, slots=True)
class Segmenter:
    """Who made a mask.

    Attributes:
        study: Study of the segmenter's run; ``external`` for masks that were made elsewhere.
        arm: Its arm; empty for external masks.
        fold: Its fold, counted from 0.
        split_sha256: Hash of the split it was trained under; empty for external masks.
        trained_on: Patients whose scans changed its weights; None where that is unknown.
        maker: For external masks, what made them in words: ``TotalSegmentator v2.4``, ``reader A``.
    """

    study: str
    arm: str
    fold: int | None
    split_sha256: str
    trained_on: tuple[str, ...] | None
    maker: str = ""

    def words(self, key: str) -> str:
        """The segmenter in a fault's line.

        Args:
            key: Its key in the record.
        """
        return self.maker or f"segmenter {self.study}/{self.arm} {key[:12]} of fold {self.fold}"


@dataclasses.dataclass(frozen=True, slots=True)
class MaskRecord:
    """One predicted mask.

    Attributes:
        file: NIfTI on the scan's native grid, relative to the folder; non-zero is liver.
        sha256: Hash of the file.
        segmenters: Checkpoint hashes of the models whose log-odds were averaged; for an external mask, its maker's key.
        dice: Dice against the reference mask on the native grid, or None without a reference.
        quality: Band 1 (poor) to 3 (good), or None where it is unknown.
        quality_from: What the band was taken from: the Dice against the ``reference``, the ``reader``'s column of the
            cohort table, or the ``agreement`` of predictions; None without a band.
        agreement: Mean pairwise Dice of several predictions of this mask, in [0, 1]; None where there was one alone.
        agreement_of: Whose: ``segmenters`` that may predict this patient, or ``variations`` of one segmenter's
            prediction. The two are not comparable.
        border_entropy: Mean binary entropy in bits of the averaged prediction along the mask's border, in [0, 1].
    """

    file: str
    sha256: str
    segmenters: tuple[str, ...]
    dice: float | None
    quality: int | None
    quality_from: QualitySource | None = None
    agreement: float | None = None
    agreement_of: str | None = None
    border_entropy: float | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class MaskSet:
    """All masks of a folder.

    Attributes:
        folder: Where the files lie.
        segmenters: By checkpoint hash (64 hexadecimal digits).
        masks: By scan id.
        missing: Scans of the cohort that have no mask, by consent (``--allow-missing``).
        inference: How the segmenters were asked (mirroring, precision, largest component); empty for external masks.
    """

    folder: Path
    segmenters: Mapping[str, Segmenter]
    masks: Mapping[str, MaskRecord]
    missing: tuple[str, ...] = ()
    inference: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @classmethod
    def load(cls, folder: str | Path) -> MaskSet:
        """Read a folder's record.

        Raises:
            InputError: There is no record, or it is torn or of another format.
        """
        folder = Path(folder)
        path = folder / RECORD
        record = read_json(path, "the record of a folder of masks, as 'hepastage masks' writes it,")
        try:
            if record["format"] != FORMAT:
                raise InputError(f"{path}: format {record['format']} is not {FORMAT}; make the masks anew")
            segmenters = {
                key: Segmenter(**{**value, "trained_on": _patients(value["trained_on"])})
                for key, value in record["segmenters"].items()
            }
            masks = {
                key: MaskRecord(**{**value, "segmenters": tuple(value["segmenters"])})
                for key, value in record["masks"].items()
            }
            missing = tuple(str(scan_id) for scan_id in record.get("missing", ()))
            unknown = sorted({name for mask in masks.values() for name in mask.segmenters} - set(segmenters))
        except (KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{path}: is not a record of masks ({error}); make the masks anew") from error
        if unknown:
            raise InputError(f"{path}: names segmenters without saying whom they trained on: {', '.join(unknown)}")
        return cls(folder, segmenters, masks, missing, record.get("inference", {}))

    @classmethod
    def load_for(cls, mask_source: str, folder: str | Path) -> MaskSet:
        """Read a folder's record for a classifier that takes its masks from there.

        Masks whose maker's training patients are unknown cannot be out of fold; as external masks they pass, with a
        warning that says what nobody can check.

        Args:
            mask_source: ``out_of_fold``, ``external``, or ``perturbed`` for masks that will be made worse.
            folder: The folder.

        Raises:
            InputError: As :meth:`load`, or masks of unknown training patients as ``out_of_fold``.
        """
        masks = cls.load(folder)
        unknown = sorted({maker.words(key) for key, maker in masks.segmenters.items() if maker.trained_on is None})
        if unknown and mask_source == "out_of_fold":
            raise InputError(
                f"{masks.folder / RECORD}: nobody knows which patients {', '.join(unknown)} trained on, so these masks "
                "are not out of fold; set data.init_args.mask_source to external"
            )
        if unknown:
            warnings.warn(
                f"{masks.folder}: the training patients of {', '.join(unknown)} are unknown: if they are among this "
                "study's, its masks are better than they would be on new patients, and so is every result that uses "
                "them. Where the patients are known, give them to 'hepastage masks --external' as --trained-on",
                stacklevel=2,
            )
        return masks

    def save(self) -> None:
        """Write the record into the folder, atomically."""
        write_json(
            self.folder / RECORD,
            {
                "format": FORMAT,
                "segmenters": {key: dataclasses.asdict(value) for key, value in sorted(self.segmenters.items())},
                "masks": {key: dataclasses.asdict(value) for key, value in sorted(self.masks.items())},
                **({"missing": sorted(self.missing)} if self.missing else {}),
                **({"inference": dict(self.inference)} if self.inference else {}),
            },
        )

    def path(self, scan_id: str) -> Path:
        """The mask file of a scan.

        Raises:
            InputError: The scan has no mask here.
        """
        if scan_id not in self.masks:
            raise InputError(f"{self.folder}: no mask for scan {scan_id!r}; run 'hepastage masks' for the whole cohort")
        return self.folder / self.masks[scan_id].file

    def damaged(self, scans: Iterable[Scan]) -> list[str]:
        """Masks whose files are not the ones that the record vouches for, one line each.

        Args:
            scans: The scans whose masks are wanted; those without a record are left to :meth:`leaks`.
        """
        faults = []
        for scan in scans:
            record = self.masks.get(scan.scan_id)
            if record is None:
                continue
            path = self.folder / record.file
            if not path.is_file():
                faults.append(f"{path}: no such file; run 'hepastage masks' again, it makes what is missing")
            elif sha256_of_file(path) != record.sha256:
                faults.append(
                    f"{path}: is not the mask that {RECORD} vouches for (its content has changed); run 'hepastage "
                    "masks' again, it makes what is changed"
                )
        return faults

    def leaks(self, scans: Iterable[Scan], test_patients: Iterable[str]) -> list[str]:
        """What forbids these masks for a classifier, one line each.

        A mask must come from models that did not train on its patient; and a test patient's mask from
        models that saw no test patient at all.

        Args:
            scans: The scans whose masks the classifier is to see.
            test_patients: The test part of the classifier's fold.

        Returns:
            Lines that name patient, segmenter and fold; empty where all is well.
        """
        tested = set(test_patients)
        faults = []
        for scan in scans:
            record = self.masks.get(scan.scan_id)
            if record is None:
                faults.append(
                    f"{self.folder}: no mask for scan {scan.scan_id!r}; run 'hepastage masks' for the whole cohort"
                )
                continue
            for key in record.segmenters:
                segmenter = self.segmenters[key]
                who, trained_on = segmenter.words(key), set(segmenter.trained_on or ())
                if {scan.patient_id, scan.origin} & trained_on:
                    faults.append(
                        f"{self.folder}: the mask of patient {scan.patient_id!r} (scan {scan.scan_id!r}) comes from "
                        f"{who}, which trained on this patient; use out-of-fold masks ('hepastage masks')"
                    )
                elif scan.patient_id in tested and tested & trained_on:
                    others = sorted(tested & trained_on)
                    faults.append(
                        f"{self.folder}: the mask of test patient {scan.patient_id!r} comes from {who}, which trained "
                        f"on the test patient {others[0]!r}; make the masks under the classifier's own split"
                    )
        return faults


def quality_band(dice: float | None) -> int | None:
    """Segmentation-quality band of a Dice: 1 poor, 2 fair, 3 good; None without a reference."""
    if dice is None:
        return None
    return 1 + sum(dice >= bound for bound in QUALITY_BOUNDS)


def quality_of(
    dice: float | None, reader: int | None, agreement: float | None
) -> tuple[int | None, QualitySource | None]:
    """Quality band of a mask and what it was taken from: the best that is known.

    Args:
        dice: Against the reference mask, where there is one.
        reader: The reader's band of the scan in the cohort table, where there is one.
        agreement: Mean pairwise Dice of several segmenters, where there are several; it is read as if it were the
            Dice, and how well it stands for that is what ``hepastage masks`` reports.
    """
    if dice is not None:
        return quality_band(dice), "reference"
    if reader is not None:
        return reader, "reader"
    if agreement is not None:
        return quality_band(agreement), "agreement"
    return None, None


def _patients(value: list[str] | None) -> tuple[str, ...] | None:
    return None if value is None else tuple(value)
