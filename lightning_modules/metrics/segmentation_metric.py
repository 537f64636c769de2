"""The class form of the segmentation metrics: means over scans, the same under one process as under many."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.data import dim_zero_cat

from lightning_modules.metrics.patient_metrics import id_numbers
from lightning_modules.metrics.segmentation import segmentation_scores

NAMES = (
    "dice", "iou", "hd95_mm", "assd_mm", "surface_dice", "volume_ml", "reference_volume_ml", "volume_difference_ml",
    "volume_difference_percent",
)  # fmt: skip
"""What :meth:`SegmentationMetrics.compute` returns, beside ``scans`` and ``scans_without_distance``."""


class SegmentationMetrics(Metric):
    """Means over scans of all metrics of :func:`lightning_modules.metrics.segmentation.segmentation_scores`.

    State: id and metrics of each scan, float64 of shape (N, 9), reduced by concatenation. A distributed sampler
    pads uneven data with repeated scans: each id counts once. A distance or difference that does not exist, by the
    empty-mask policy of :mod:`lightning_modules.metrics.segmentation`, is left out of its mean;
    ``scans_without_distance`` says how many there were.

    Args:
        tolerance_mm: Of the normalised surface Dice, in mm.
        options: Of ``torchmetrics.Metric``.
    """

    full_state_update = False
    is_differentiable = False
    ids: list[Tensor]
    values: list[Tensor]

    def __init__(self, tolerance_mm: float = 2.0, **options: Any) -> None:
        super().__init__(**options)
        self.tolerance_mm = tolerance_mm
        self.add_state("ids", default=[], dist_reduce_fx="cat")
        self.add_state("values", default=[], dist_reduce_fx="cat")

    def update(
        self, pred: Tensor, target: Tensor, spacing: Sequence[float] | Sequence[Sequence[float]], scan_id: Sequence[str]
    ) -> None:
        """Measure scans of one shape.

        Args:
            pred: Predicted masks, non-zero is liver, shape (B, 1, I, J, K) or (B, I, J, K).
            target: Reference masks, the same shape.
            spacing: Voxel spacing in mm along I, J, K, for all scans or one triple a scan.
            scan_id: One id an item.

        Raises:
            ValueError: The shapes, or the numbers of ids or spacings, differ.
        """
        steps = torch.as_tensor(spacing, dtype=torch.float64)
        items = pred.shape[0]
        if pred.shape != target.shape or len(scan_id) != items or steps.shape not in ((3,), (items, 3)):
            raise ValueError(
                f"pred {tuple(pred.shape)}, target {tuple(target.shape)}, {len(scan_id)} ids and spacing of shape "
                f"{tuple(steps.shape)} do not fit"
            )
        rows = []
        for index, step in enumerate(steps.expand(items, 3).tolist()):
            p, r = (mask[index].reshape(mask.shape[-3:]).cpu().numpy() for mask in (pred, target))
            scores = segmentation_scores(p, r, step, self.tolerance_mm)
            rows.append([getattr(scores, name) for name in NAMES])
        self.values.append(torch.tensor(rows, dtype=torch.float64, device=pred.device).reshape(items, len(NAMES)))
        self.ids.append(id_numbers(scan_id, pred.device))

    def sync(self, *args: Any, **kwargs: Any) -> None:
        """Gather all ranks' scans; a rank that has seen none takes part too, or the others would wait for ever."""
        if not self.ids:
            self.ids.append(torch.zeros(0, dtype=torch.int64, device=self.device))
            self.values.append(torch.zeros((0, len(NAMES)), dtype=torch.float64, device=self.device))
        super().sync(*args, **kwargs)

    def compute(self) -> dict[str, Tensor]:
        """Mean of each metric over scans, float64; NaN where no scan has it.

        Raises:
            ValueError: No scan has been seen.
        """
        # a list state is a list before, and one tensor after, it is gathered
        ids, values = dim_zero_cat(self.ids), dim_zero_cat(self.values)
        if ids.numel() == 0:
            raise ValueError("the metric has seen no scan yet; update it before computing")
        ordered, places = ids.sort(stable=True)
        first = torch.ones_like(ordered, dtype=torch.bool)
        first[1:] = ordered[1:] != ordered[:-1]
        values = values[places[first]]
        means = dict(zip(NAMES, values.nanmean(0), strict=True))
        undefined = values[:, NAMES.index("hd95_mm")].isnan().sum()
        return {**means, "scans": first.sum(), "scans_without_distance": undefined}
