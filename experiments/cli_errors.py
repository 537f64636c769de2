"""A model that does not fit its data, found before a run begins, in one line a fault."""

from __future__ import annotations

from lightning.pytorch import LightningModule

from datamodules.base import CohortDataModule
from datamodules.patients import PatientDataModule
from datamodules.segmentation import SegmentationDataModule
from datamodules.slices import SliceDataModule
from datamodules.staging import StagingDataModule
from experiments.cli_hints import (
    MASKED_WITHOUT,
    direct_with_masks,
    does_not_serve,
    staging_masks,
    unfit_edges,
    wrong_classes,
)
from lightning_modules.classification import PatientClassifier
from lightning_modules.direct_classification import DirectClassificationModule
from lightning_modules.masked_classification import MaskedClassificationModule
from lightning_modules.segmentation import SegmentationModule
from lightning_modules.slice_classification import SliceClassificationModule
from lightning_modules.staging import StagingModule


def misfits(model: LightningModule, datamodule: CohortDataModule) -> list[str]:
    """Ways in which a model and its data contradict each other, one line each; found before anything is computed.

    Args:
        model: The learning module.
        datamodule: The data module.
    """
    mask_source = getattr(datamodule, "mask_source", None)
    if isinstance(model, DirectClassificationModule) and mask_source not in (None, "none"):
        return [direct_with_masks(mask_source)]
    if isinstance(model, MaskedClassificationModule) and mask_source == "none":
        return [MASKED_WITHOUT]
    if isinstance(model, SegmentationModule) != isinstance(datamodule, SegmentationDataModule):
        return [does_not_serve(type(datamodule).__name__, type(model).__name__)]
    if isinstance(model, SegmentationModule) and isinstance(datamodule, SegmentationDataModule):
        # whole volumes are padded for prediction, patches for training are not
        name, size = "data.init_args.patch", datamodule.patch
        if size is None:
            name, size = "data.init_args.preprocessing.shape", datamodule.store.preprocessing.shape
        divisor = model.divisible_by
        return [
            unfit_edges(key, edges, divisor)
            for key, edges in ((name, size), ("model.init_args.window", model.window))
            if edges is not None and any(edge % factor for edge, factor in zip(edges, divisor, strict=True))
        ]
    if isinstance(model, StagingModule) != isinstance(datamodule, StagingDataModule):
        return [does_not_serve(type(datamodule).__name__, type(model).__name__)]
    if isinstance(model, SliceClassificationModule) != isinstance(datamodule, SliceDataModule):
        return [does_not_serve(type(datamodule).__name__, type(model).__name__)]
    order = getattr(getattr(model, "network", None), "sequences", datamodule.sequences)
    if isinstance(model, StagingModule) and tuple(order) != datamodule.sequences:
        return [
            f"model.init_args.network.init_args.sequences: {list(order)} are not data.init_args.sequences, "
            f"{list(datamodule.sequences)}; give both the same order"
        ]
    if isinstance(model, StagingModule) and isinstance(datamodule, StagingDataModule):
        if model.network.covariates != datamodule.covariates:
            return [
                f"model.init_args.network.init_args.covariates: {list(model.network.covariates)} are not "
                f"data.init_args.covariates, {list(datamodule.covariates)}; give both the same order"
            ]
        if model.network.uses_mask != (datamodule.mask_source != "none"):
            return [staging_masks(datamodule.mask_source)]
    if (
        isinstance(model, PatientClassifier)
        and isinstance(datamodule, PatientDataModule)
        and model.classes != len(datamodule.class_names)
    ):
        by_source = datamodule.target_kind == "source"
        what = "the cohort's sources are" if by_source else f"the rule {datamodule.rule} has"
        return [wrong_classes(model.classes, what, len(datamodule.class_names))]
    return []
