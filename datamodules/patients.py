"""What classification and staging share: targets under the split's rule, honest masks, and one loader a part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

from torch.utils.data import DataLoader, Dataset

from datamodules.augmentation import BatchedAugmentation
from datamodules.base import CohortDataModule, Part
from datamodules.cohort import Scan
from datamodules.errors import InputError
from datamodules.honesty import honesty_faults
from datamodules.labels import LabelRule
from datamodules.loading import Workers
from datamodules.masks import MaskSet
from datamodules.opening import check_masks, label_rules
from datamodules.perturbation import MaskPerturbation
from datamodules.perturbed_masks import PerturbedMasks
from datamodules.preprocessing import Preprocessing
from datamodules.probe_targets import permuted_targets, source_names, source_targets

Sampling = Literal["shuffled", "balanced"]
MaskSource = Literal["none", "reference", "out_of_fold", "external", "perturbed"]
Target = Literal["label", "source", "permuted"]
DEFAULT_GRID = Preprocessing(spacing=(2.0, 2.0, 6.0), shape=(160, 128, 24))
"""Where the configuration names no grid: volumes of one size at a body's usual extent."""
PARTS: tuple[Part, ...] = ("train", "valid", "test")


class OfPatient(Protocol):
    """An item of a data set: a scan, or an examination."""

    @property
    def patient_id(self) -> str:
        """Whose it is."""


class PatientDataModule(CohortDataModule):
    """Base of the data modules whose items have a target; subclasses say what an item is.

    Args:
        cohort: See ``CohortDataModule``.
        splits: See ``CohortDataModule``.
        fold: See ``CohortDataModule``.
        store: See ``CohortDataModule``.
        preprocessing: Must set a shape: volumes of one batch have one size.
        sequences: See ``CohortDataModule``.
        rule: Label rule of train and valid parts; None takes the split's, and another one is refused.
        test_rule: Label rule of the test part; None takes the split's.
        mask_source: ``none``, ``reference``, ``out_of_fold``, ``external`` or ``perturbed``.
        masks: Folder of predicted masks; required for ``out_of_fold`` and ``external``. With ``perturbed`` these are
            made worse, under the same rules; without a folder, the reference masks are. Refused otherwise.
        batch_size: See ``CohortDataModule``.
        workers: See ``CohortDataModule``.
        augmentation: See ``CohortDataModule``.
        resident: See ``CohortDataModule``.
        sampling: How an epoch of training is drawn: ``shuffled``, each item once; ``balanced``, all classes equally
            often, in an epoch of the same length.
        perturbation: How masks are made worse; required for ``perturbed``, refused otherwise.
        target: What is predicted: the ``label`` of the rule, or, for probes, the scan's ``source``, or labels
            ``permuted`` among the patients of the part in training and validation (by the run's seed), while those
            of the test part stay true.

    Raises:
        InputError: Arguments that contradict each other or the split.
    """

    def __init__(
        self,
        cohort: str,
        splits: str | None,
        fold: int,
        store: str,
        preprocessing: Preprocessing,
        sequences: Sequence[str],
        rule: str | None,
        test_rule: str | None,
        mask_source: MaskSource,
        masks: str | None,
        batch_size: int,
        workers: Workers,
        augmentation: BatchedAugmentation | None,
        sampling: Sampling = "shuffled",
        perturbation: MaskPerturbation | None = None,
        target: Target = "label",
        resident: bool = False,
    ) -> None:
        super().__init__(
            cohort, splits, fold, store, preprocessing, sequences, batch_size, workers, augmentation, resident
        )
        if preprocessing.shape is None:
            raise InputError("data.init_args.preprocessing.shape is not set; volumes of one batch need one size")
        self.rule, self.test_rule = label_rules(self.splits, rule, test_rule)
        self.sampling = sampling
        self.mask_source = mask_source
        self.mask_set = _mask_set(mask_source, masks)
        self.mask_files: MaskSet | PerturbedMasks | None = self.mask_set
        if (perturbation is None) == (mask_source == "perturbed"):
            raise InputError(
                "data.init_args.perturbation: mask_source perturbed needs one, such as {kind: dilate, mm: 5}"
                if perturbation is None
                else f"data.init_args.perturbation: is ignored with mask_source {mask_source}; set that to perturbed"
            )
        if perturbation is not None:
            self.mask_files = PerturbedMasks(perturbation, self.store.root / "perturbed", self.mask_set)
        self.target_kind: Target = target
        self._targets: dict[Part, Mapping[str, int]] = {}

    @property
    def class_names(self) -> tuple[str, ...]:
        """What the classes of the target are called, in the order of their numbers."""
        return source_names(self.cohort) if self.target_kind == "source" else self.rule.class_names

    def targets(self, part: Part) -> Mapping[str, int]:
        """Target class by patient, under the rule of the part; of modules that have rules.

        Raises:
            InputError: The rule gives no target, or a patient's scans come from several sources.
        """
        # asked for once a row of the record
        if part not in self._targets:
            self._targets[part] = self._targets_of(part)
        return self._targets[part]

    def _targets_of(self, part: Part) -> Mapping[str, int]:
        if self.target_kind == "source":
            return source_targets(self.cohort, self.fold.train)
        rule: LabelRule = self.test_rule if part == "test" else self.rule
        if not rule.has_target:
            raise InputError(f"{self.cohort.name}: the rule {rule} gives no target; make the split with another --rule")
        target = rule.apply(self.cohort).target
        if self.target_kind == "permuted" and part != "test":
            return permuted_targets(target, getattr(self.fold, part), part, self.seed)
        return target

    def honest_scans(self, part: Part) -> list[Scan]:
        """The scans of a part, all with a target and a mask that the arm may see.

        Raises:
            InputError: A patient without a target, a missing reference mask, or masks that leak: all faults.
        """
        scans = self.scans_of(part)
        rule = self.test_rule if part == "test" else self.rule
        faults = honesty_faults(
            scans,
            self.targets(part),
            rule,
            part,
            self.cohort.name,
            self.mask_source,
            self.mask_set,
            self.fold.test,
        )
        if isinstance(self.mask_files, PerturbedMasks):
            faults += self.mask_files.add_part(scans)
        if faults:
            raise InputError(*faults)
        return scans

    def item_classes(self, part: Part) -> list[int]:
        """Class of each item of a part, in the order of its items."""
        target = self.targets(part)
        return [target[item.patient_id] for item in self.items(part)]

    def class_counts(self) -> list[int]:
        """Training items of each class."""
        classes = self.item_classes("train")
        return [classes.count(label) for label in range(len(self.class_names))]

    def balanced_classes(self) -> Sequence[int] | None:
        """See ``CohortDataModule``."""
        return self.item_classes("train") if self.sampling == "balanced" else None

    def items(self, part: Part) -> Sequence[OfPatient]:
        """The items of a part, checked."""
        raise NotImplementedError

    def dataset(self, part: Part) -> Dataset[Any]:
        """The items of a part as tensors."""
        raise NotImplementedError

    def prepare_data(self) -> None:
        """Fill the store, once a node; all masks are checked before anything is computed."""
        for part in PARTS:
            # a sealed split has no test patients
            if part != "test" or self.splits is None or self.fold.test:
                self.items(part)
        self.store.fill(self.cohort)
        if isinstance(self.mask_files, PerturbedMasks):
            self.mask_files.make_all()

    def train_dataloader(self) -> DataLoader[Any]:
        """Shuffled training items."""
        return self.loader(self.dataset("train"), train=True)

    def val_dataloader(self) -> DataLoader[Any]:
        """Validation items."""
        return self.loader(self.dataset("valid"), train=False)

    def test_dataloader(self) -> DataLoader[Any]:
        """Test items."""
        return self.loader(self.dataset("test"), train=False)

    def predict_dataloader(self) -> DataLoader[Any]:
        """The same as the test items."""
        return self.test_dataloader()


def _mask_set(mask_source: MaskSource, masks: str | None) -> MaskSet | None:
    """The predicted masks of an arm, or None for an arm that takes none.

    Raises:
        InputError: Source and folder contradict each other.
    """
    check_masks(mask_source, masks)
    return None if masks is None else MaskSet.load_for(mask_source, masks)
