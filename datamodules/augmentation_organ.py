"""Batched transforms of the labelled organ alone."""

from __future__ import annotations

import torch
from torch import Tensor

from datamodules.augmentation_base import BatchedTransform, Params, Range, as_range, item_view, uniform


class RandomOrganSignal(BatchedTransform):
    """Scale the signal of the labelled organ, and leave its surroundings as they are.

    Iron darkens the liver on T2-weighted images, fat and oedema brighten it. Where no training patient
    has such a liver, the network learns that livers have one brightness among their neighbours; with
    this transform it has to know them by place, shape and texture. For segmentation only: a classifier
    would lose what it looks for.

    Args:
        log_factor: Range of the factor's logarithm; (-1.0, 0.4) is from 0.37 to 1.5. One number d stands
            for (-d, d).
        p: Probability that an item is transformed.
    """

    def __init__(self, log_factor: Range = (-1.0, 0.4), p: float = 1.0) -> None:
        super().__init__(p)
        self.log_factor = as_range(log_factor, "RandomOrganSignal: log_factor")

    def make_params(self, items: int, channels: int, generator: torch.Generator) -> Params:
        """Draw ``factor`` (items, channels)."""
        return {"factor": uniform(generator, *self.log_factor, items, channels).exp()}

    def apply(self, image: Tensor, mask: Tensor, params: Params) -> Tensor:
        """Scale the signal above each channel's minimum, with a border one voxel wide.

        Args:
            image: float32, shape (N, C, I, J, K).
            mask: 0 and 1, shape (N, 1, I, J, K), any number type.
            params: From :meth:`make_params`.

        Returns:
            The transformed image, same shape; where there is no organ, equal to the image.
        """
        share = torch.nn.functional.avg_pool3d(mask.to(image.dtype), 3, stride=1, padding=1, count_include_pad=False)
        low = image.amin((2, 3, 4), keepdim=True)
        gain = 1 + share * (item_view(params["factor"]) - 1)
        return (image - low).mul_(gain).add_(low)
