"""Batched intensity transforms, by TorchIO's names where TorchIO has them.

Normalised images have negative values, for which a power or a coil's gain has no meaning. So gamma
and bias field act on the signal above each item's minimum; on images that begin at 0 they equal
TorchIO's.
"""

from __future__ import annotations

import torch
from torch import Tensor

from datamodules.augmentation_base import (
    IntensityTransform,
    Params,
    Range,
    as_range,
    item_view,
    uniform,
)


class RandomBiasField(IntensityTransform):
    """Multiply by a smooth coil profile: the exponential of a random polynomial.

    Args:
        coefficients: Range of each coefficient, 0.5 for (-0.5, 0.5).
        order: Of the polynomial.
        p: Probability that an item is transformed.

    Source: Van Leemput et al. 1999; TorchIO's RandomBiasField.
    """

    def __init__(self, coefficients: Range = 0.5, order: int = 3, p: float = 1.0) -> None:
        super().__init__(p)
        self.coefficients = as_range(coefficients, "RandomBiasField: coefficients")
        if order < 0:
            raise ValueError(f"RandomBiasField: order={order} must not be negative")
        self.order = int(order)

    def make_params(self, items: int, channels: int, generator: torch.Generator) -> Params:
        """Draw ``coefficients`` of x^a y^b z^c, (items, order + 1, order + 1, order + 1)."""
        size = self.order + 1
        drawn = uniform(generator, *self.coefficients, items, size, size, size)
        powers = torch.arange(size)
        total = powers[:, None, None] + powers[None, :, None] + powers[None, None, :]
        return {"coefficients": drawn * (total <= self.order)}

    def apply(self, image: Tensor, params: Params, spacing: Tensor | None) -> Tensor:
        """Multiply the signal above each item's minimum by its field."""
        field = params["coefficients"]
        order = field.shape[1] - 1
        for edge in image.shape[2:]:  # each round uses up the first axis of powers and appends one of voxels
            field = torch.einsum("nabc,ia->nbci", field, _powers(edge, order, field))
        low = image.amin((2, 3, 4), keepdim=True)
        return (image - low) * field.exp_().unsqueeze(1) + low


class RandomGamma(IntensityTransform):
    """Raise the image, scaled to its range, to a random power.

    Args:
        log_gamma: Range of the power's logarithm, 0.3 for (-0.3, 0.3).
        invert_probability: Of taking the power of the inverted image, as nnU-Net does.
        p: Probability that an item is transformed.
    """

    def __init__(self, log_gamma: Range = 0.3, invert_probability: float = 0.0, p: float = 1.0) -> None:
        super().__init__(p)
        self.log_gamma = as_range(log_gamma, "RandomGamma: log_gamma")
        if not 0 <= invert_probability <= 1:
            raise ValueError(f"RandomGamma: invert_probability={invert_probability} must lie in [0, 1]")
        self.invert_probability = invert_probability

    def make_params(self, items: int, channels: int, generator: torch.Generator) -> Params:
        """Draw ``gamma`` (items, channels) and ``invert``, bool, (items,)."""
        gamma = uniform(generator, *self.log_gamma, items, channels).exp()
        return {"gamma": gamma, "invert": torch.rand(items, generator=generator) < self.invert_probability}

    def apply(self, image: Tensor, params: Params, spacing: Tensor | None) -> Tensor:
        """Raise to the power between each channel's minimum and maximum, which stay."""
        low, high = image.amin((2, 3, 4), keepdim=True), image.amax((2, 3, 4), keepdim=True)
        width = (high - low).clamp(min=1e-7)
        invert = item_view(params["invert"])
        share = (image - low).div_(width)
        share = torch.where(invert, 1 - share, share).pow(item_view(params["gamma"]))
        return torch.where(invert, 1 - share, share).mul_(width).add_(low)


class RandomBrightness(IntensityTransform):
    """Multiply the normalised image, as nnU-Net's multiplicative brightness.

    Args:
        multiplier: Range of the factor.
        p: Probability that an item is transformed.
    """

    def __init__(self, multiplier: Range = (0.75, 1.25), p: float = 1.0) -> None:
        super().__init__(p)
        self.multiplier = as_range(multiplier, "RandomBrightness: multiplier", minimum=0.0, symmetric=False)

    def make_params(self, items: int, channels: int, generator: torch.Generator) -> Params:
        """Draw ``multiplier`` (items, channels)."""
        return {"multiplier": uniform(generator, *self.multiplier, items, channels)}

    def apply(self, image: Tensor, params: Params, spacing: Tensor | None) -> Tensor:
        """Multiply."""
        return image * item_view(params["multiplier"])


class RandomContrast(IntensityTransform):
    """Stretch about the mean, and keep the range, as nnU-Net's contrast.

    Args:
        factor: Range of the stretch.
        p: Probability that an item is transformed.
    """

    def __init__(self, factor: Range = (0.75, 1.25), p: float = 1.0) -> None:
        super().__init__(p)
        self.factor = as_range(factor, "RandomContrast: factor", minimum=0.0, symmetric=False)

    def make_params(self, items: int, channels: int, generator: torch.Generator) -> Params:
        """Draw ``factor`` (items, channels)."""
        return {"factor": uniform(generator, *self.factor, items, channels)}

    def apply(self, image: Tensor, params: Params, spacing: Tensor | None) -> Tensor:
        """Stretch and clip to the former range."""
        low, high = image.amin((2, 3, 4), keepdim=True), image.amax((2, 3, 4), keepdim=True)
        mean = image.mean((2, 3, 4), keepdim=True)
        stretched = (image - mean).mul_(item_view(params["factor"])).add_(mean)
        return torch.minimum(torch.maximum(stretched, low), high)


class RandomIntensityRemap(IntensityTransform):
    """Send intensities through a random curve, so that no organ's brightness can be relied on.

    The curve is piecewise linear through points shifted up and down at even steps of the range; with
    large shifts it is not monotone, so dark livers turn bright and the reverse. Mean and standard
    deviation are brought back afterwards.

    Args:
        num_points: Of the curve, at least 2.
        max_shift: Of a point, as a share of the range.
        p: Probability that an item is transformed.
    """

    def __init__(self, num_points: int = 6, max_shift: float = 0.3, p: float = 1.0) -> None:
        super().__init__(p)
        if num_points < 2 or max_shift < 0:
            raise ValueError("RandomIntensityRemap: needs num_points of at least 2 and max_shift not negative")
        self.num_points = num_points
        self.max_shift = float(max_shift)

    def make_params(self, items: int, channels: int, generator: torch.Generator) -> Params:
        """Draw ``curve``, the values at even steps of the range, (items, channels, num_points)."""
        steps = torch.linspace(0, 1, self.num_points)
        return {"curve": steps + uniform(generator, -self.max_shift, self.max_shift, items, channels, self.num_points)}

    def apply(self, image: Tensor, params: Params, spacing: Tensor | None) -> Tensor:
        """Send each voxel through its item's curve."""
        curve = params["curve"]
        low, high = image.amin((2, 3, 4), keepdim=True), image.amax((2, 3, 4), keepdim=True)
        last = curve.shape[2] - 1
        place = (image - low).div_((high - low).clamp(min=1e-7)).mul_(last)
        # the curve as a sum of ramps: quicker than looking up each voxel's two points
        values = item_view(curve[..., 0]).expand_as(image).clone()
        for point in range(last):
            rise = item_view(curve[..., point + 1] - curve[..., point])
            values.addcmul_((place - point).clamp_(0, 1), rise)
        # two passes and a norm: torch's var_mean takes three times as long on a processor
        mean = image.mean((2, 3, 4), keepdim=True)
        spread = torch.linalg.vector_norm(image - mean, dim=(2, 3, 4), keepdim=True)
        values.sub_(values.mean((2, 3, 4), keepdim=True))
        new_spread = torch.linalg.vector_norm(values, dim=(2, 3, 4), keepdim=True)
        return values.mul_(spread / new_spread.clamp(min=1e-6)).add_(mean)


class RandomNoise(IntensityTransform):
    """Add Gaussian noise.

    Args:
        mean: Range of the noise's mean, in units of the normalised image.
        std: Range of its standard deviation; one number is the upper end.
        p: Probability that an item is transformed.
    """

    def __init__(self, mean: Range = 0.0, std: Range = (0.0, 0.25), p: float = 1.0) -> None:
        super().__init__(p)
        self.mean = as_range(mean, "RandomNoise: mean")
        top = (0.0, float(std)) if isinstance(std, (int, float)) else std
        self.std = as_range(top, "RandomNoise: std", minimum=0.0)

    def make_params(self, items: int, channels: int, generator: torch.Generator) -> Params:
        """Draw ``mean``, ``std`` (items,) and ``seed`` of each item's field, int64 (items,)."""
        return {
            "mean": uniform(generator, *self.mean, items),
            "std": uniform(generator, *self.std, items),
            "seed": torch.randint(0, 2**62, (items,), generator=generator),
        }

    def apply(self, image: Tensor, params: Params, spacing: Tensor | None) -> Tensor:
        """Add a field drawn on the image's device from each item's seed."""
        noise = torch.empty_like(image)
        for item, seed in enumerate(params["seed"].tolist()):
            noise[item].normal_(generator=torch.Generator(image.device).manual_seed(seed))
        return noise.mul_(item_view(params["std"])).add_(item_view(params["mean"])).add_(image)


def _powers(edge: int, order: int, like: Tensor) -> Tensor:
    """Powers of the place along an axis, scaled to -1 … 1 at the outer voxels, shape (edge, order + 1)."""
    place = torch.arange(edge, device=like.device, dtype=like.dtype) - (edge - 1) / 2
    place = place / max((edge - 1) / 2, 1e-7)
    return torch.stack([place**power for power in range(order + 1)], 1)
