"""Ways of telling a network where the liver is: one small class each.

Input ways (``multiply``, ``crop``, ``channel``) change what the encoder sees; ``gate`` changes the
feature maps between its stages; ``attention`` changes how locations are pooled. They combine freely.
The probes (``erase``, ``erase_box``, ``mask_only``) ask whether something else than the liver's signal
gives the answer away; a probe stands alone, or beside ``crop``.

One rule for the odd case: a volume whose mask holds no voxel is treated as if the whole volume were
liver, so the arm falls back to the direct one for that volume, and it is flagged. Nothing is NaN.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F  # noqa: N812  # torch's own habit
from torch import Tensor, nn

MASK_WAYS = ("multiply", "crop", "channel", "gate", "attention")
PROBE_WAYS = ("erase", "erase_box", "mask_only")


def check_ways(ways: Sequence[str]) -> tuple[str, ...]:
    """Check the names of the mask's ways in; ``"none"`` stands for the empty list.

    Raises:
        ValueError: An unknown name, a double one, ``none`` beside others, or a probe beside other ways than crop.
    """
    if isinstance(ways, str):
        ways = [ways]
    if list(ways) == ["none"]:
        return ()
    known = (*MASK_WAYS, *PROBE_WAYS)
    unknown = [way for way in ways if way not in known]
    if unknown:
        raise ValueError(f"mask_injection: {unknown[0]!r} is not one of none (alone), {', '.join(known)}")
    if len(set(ways)) != len(ways):
        raise ValueError(f"mask_injection: {tuple(ways)} names a way twice; name each once")
    probes = [way for way in ways if way in PROBE_WAYS]
    if probes and set(ways) - {probes[0], "crop"}:
        raise ValueError(f"mask_injection: the probe {probes[0]!r} stands alone or beside crop, not in {tuple(ways)}")
    return tuple(ways)


def fill_empty_masks(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Replace the masks of volumes without any liver voxel by ones, and flag them.

    Args:
        mask: Share of liver in each voxel, in [0, 1], shape (B, 1, I, J, K).

    Returns:
        The mask, same shape, and a flag for each volume, bool, shape (B,).
    """
    empty = mask.flatten(1).amax(1) <= 0
    shape = (-1, *[1] * (mask.ndim - 1))
    return torch.where(empty.view(shape), torch.ones_like(mask), mask), empty


class MultiplyMask(nn.Module):
    """Multiply the image by the mask.

    With a mask of ones the image is unchanged bit for bit; outside the mask the gradient is zero.
    """

    def forward(self, image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Mask image (B, C, I, J, K) with mask (B, 1, I, J, K); returns both."""
        return image * mask.to(image.dtype), mask


class CropToMask(nn.Module):
    """Crop each volume in-plane to its liver's box, and resize back to the volume's own edges.

    The box is one per volume, so that slices stay aligned; slices are not resampled along K, since
    slices without liver are left out later. Both axes are enlarged by the same factor, so shape is
    kept: texture and contour are what tells the stage. Voxels beyond the volume are zero.

    Args:
        margin: Voxels to leave around the liver on each side.
    """

    def __init__(self, margin: int = 8) -> None:
        super().__init__()
        if margin < 0:
            raise ValueError(f"margin={margin}: must not be negative")
        self.margin = margin

    def forward(self, image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Crop image (B, C, I, J, K) and mask (B, 1, I, J, K) together; returns both, same shapes."""
        batch, channels, edge_i, edge_j, slices = image.shape
        inside = mask[:, 0] > 0
        low_i, high_i = _extent(inside.any(3).any(2), self.margin)
        low_j, high_j = _extent(inside.any(3).any(1), self.margin)
        share = torch.maximum((high_i - low_i) / edge_i, (high_j - low_j) / edge_j).clamp(max=1.0)
        centre_i = _keep_inside((low_i + high_i) / edge_i - 1, share)
        centre_j = _keep_inside((low_j + high_j) / edge_j - 1, share)
        # affine_grid counts axes from the last: x is J, y is I
        zero = torch.zeros_like(share)
        theta = torch.stack([share, zero, centre_j, zero, share, centre_i], 1).view(batch, 2, 3)
        both = torch.cat([image, mask.to(image.dtype)], 1)
        planes = both.permute(0, 1, 4, 2, 3).reshape(batch, (channels + 1) * slices, edge_i, edge_j)
        grid = F.affine_grid(theta, [batch, 1, edge_i, edge_j], align_corners=False)
        # bf16 would lose the position of a voxel in a large plane
        with torch.autocast(planes.device.type, enabled=False):
            planes = F.grid_sample(planes.float(), grid.float(), align_corners=False).to(image.dtype)
        both = planes.view(batch, channels + 1, slices, edge_i, edge_j).permute(0, 1, 3, 4, 2)
        return both[:, :channels], both[:, channels:].to(mask.dtype)


class MaskChannel(nn.Module):
    """Give the mask as one more channel of the image."""

    def forward(self, image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Join image (B, C, I, J, K) and mask (B, 1, I, J, K); returns (B, C + 1, I, J, K) and the mask."""
        return torch.cat([image, mask.to(image.dtype)], 1), mask


class EraseLiver(nn.Module):
    """Probe: set the liver to zero, the normalised image's mean, and leave everything else.

    With the exact mask the hole still shows the liver's shape; with its box it does not.

    Args:
        box: Erase the box around the liver in every slice, instead of the liver alone.
        margin: Voxels added to the box on each side.
    """

    def __init__(self, box: bool = False, margin: int = 0) -> None:
        super().__init__()
        self.box = box
        self.margin = margin

    def forward(self, image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Erase in image (B, C, I, J, K) by mask (B, 1, I, J, K); returns both."""
        if not self.box:
            return image * (1 - mask).to(image.dtype), mask
        inside = mask[:, 0] > 0
        hole = torch.ones_like(mask, dtype=torch.bool)
        for axis in (1, 2):
            low, high = _extent(inside.any(3).any(3 - axis), self.margin)
            place = torch.arange(mask.shape[1 + axis], device=mask.device)
            span = (place >= low[:, None]) & (place < high[:, None])
            hole = hole & span.view(len(span), 1, *[-1 if a == axis else 1 for a in (1, 2, 3)])
        return image.masked_fill(hole, 0.0), mask


class MaskOnly(nn.Module):
    """Probe: put the mask in the place of every channel, so that shape is all there is."""

    def forward(self, image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Replace image (B, C, I, J, K) by mask (B, 1, I, J, K); returns both."""
        return mask.to(image.dtype).expand_as(image), mask


class InputInjection(nn.Module):
    """The input ways in their one sensible order: multiply, then crop, then channel.

    Multiplying comes before cropping, since interpolation after the crop would let voxels just
    outside the liver through.

    Args:
        ways: Any of :data:`MASK_WAYS`, or a probe; those that do not touch the input are passed over.
        crop_margin: Voxels left around the liver by ``crop``.
    """

    def __init__(self, ways: Sequence[str], crop_margin: int = 8) -> None:
        super().__init__()
        ways = check_ways(ways)
        known: dict[str, nn.Module] = {
            "multiply": MultiplyMask(),
            "erase": EraseLiver(),
            "erase_box": EraseLiver(box=True, margin=crop_margin),
            "mask_only": MaskOnly(),
            "crop": CropToMask(crop_margin),
            "channel": MaskChannel(),
        }
        self.steps = nn.ModuleList(step for name, step in known.items() if name in ways)
        self.extra_channels = int("channel" in ways)

    def forward(self, image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Apply the steps to image (B, C, I, J, K) and mask (B, 1, I, J, K); returns both."""
        for step in self.steps:
            image, mask = step(image, mask)
        return image, mask


class MaskGate(nn.Module):
    """Let a stage's feature maps pass inside the liver, and outside only as far as learned.

    ``f * (m + (1 - m) * sigmoid(g))`` with the mask m at the map's resolution and one learned g a
    channel: 0 shuts the outside off, 1 ignores the mask. The form is ours; it keeps context where it
    helps and lets the pass rate be read off afterwards.

    Args:
        channels: Channels of the feature maps.
        initial_pass: Share of the outside that passes at the start, in (0, 1).
    """

    def __init__(self, channels: int, initial_pass: float = 0.5) -> None:
        super().__init__()
        if not 0 < initial_pass < 1:
            raise ValueError(f"initial_pass={initial_pass}: must lie between 0 and 1")
        self.logit = nn.Parameter(torch.full((channels,), float(torch.logit(torch.tensor(initial_pass)))))

    def forward(self, features: Tensor, mask: Tensor) -> Tensor:
        """Gate features (N, C, *locations) with mask (N, 1, *locations) in [0, 1]; returns the features' shape."""
        held = torch.sigmoid(-self.logit).view(1, -1, *[1] * (features.ndim - 2))
        # f - f (1 - m) (1 - sigmoid(g)): the same, in fewer passes through maps of the features' own type and layout;
        # exact at m = 1, and in bf16 the share that passes is true to 0.004
        return features - features * (1 - mask).to(features.dtype) * held.to(features.dtype)


class AttentionPool(nn.Module):
    """Pool feature maps over locations with learned gated attention, within a mask where one is given.

    Args:
        channels: Channels of the feature maps.
        hidden: Width of the attention's hidden layer.
        dimensions: 2 for slices, 3 for volumes.

    Source: Ilse, Tomczak, Welling 2018, eq. 9 (gated attention), over locations instead of
    instances; with a mask, weights are proportional to the location's share of liver.
    """

    def __init__(self, channels: int, hidden: int = 64, dimensions: Literal[2, 3] = 2) -> None:
        super().__init__()
        convolution = nn.Conv2d if dimensions == 2 else nn.Conv3d
        self.value = convolution(channels, hidden, 1)
        self.gate = convolution(channels, hidden, 1)
        self.score = convolution(hidden, 1, 1)

    def forward(self, features: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Pool.

        Args:
            features: Feature maps, shape (N, C, *locations).
            mask: Share of liver in each location, in [0, 1], shape (N, 1, *locations), or None.

        Returns:
            Pooled features (N, C) and the attention (N, *locations), which sums to 1.
        """
        scores = self.score(torch.tanh(self.value(features)) * torch.sigmoid(self.gate(features)))
        if mask is None:
            mask = torch.ones_like(scores)
        return masked_attention_pool(features, mask, scores)


def masked_attention_pool(features: Tensor, mask: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
    """Pool feature maps over the liver with learned attention.

    Args:
        features: Feature maps, shape (N, C, H, W), or (N, C, H, W, D) of volumes.
        mask: Share of liver in each location, in [0, 1], one channel, else the features' shape.
        scores: Unnormalised attention, shape of the mask.

    Returns:
        Pooled features, shape (N, C), and the weights, shape (N, H, W) or (N, H, W, D), zero where the mask is.
        Where a mask is empty, the unmasked mean of that item with even weights.

    Raises:
        ValueError: The spatial shapes differ.

    Source: Ilse, Tomczak, Welling 2018, eq. 8, restricted to the mask.
    """
    if not features.shape[2:] == mask.shape[2:] == scores.shape[2:]:
        shapes = [tuple(t.shape[2:]) for t in (features, mask, scores)]
        raise ValueError(f"features, mask and scores have different locations: {shapes}")
    flat_mask, flat_scores = mask.flatten(1).float(), scores.flatten(1).float()
    empty = flat_mask.amax(1, keepdim=True) <= 0
    flat_mask = torch.where(empty, torch.ones_like(flat_mask), flat_mask)
    flat_scores = torch.where(empty, torch.zeros_like(flat_scores), flat_scores)
    # outside voxels get no weight and no gradient; log of the share keeps border locations light
    inside = flat_mask > 0
    logits = flat_scores + torch.where(inside, flat_mask, torch.ones_like(flat_mask)).log()
    weights = logits.masked_fill(~inside, float("-inf")).softmax(1)
    pooled = torch.einsum("nl,ncl->nc", weights, features.flatten(2).float())
    return pooled.to(features.dtype), weights.view(mask.shape[0], *mask.shape[2:])


def resize_mask(mask: Tensor, shape: Sequence[int]) -> Tensor:
    """Bring a mask to a feature map's resolution by area averaging.

    Args:
        mask: Shape (N, 1, I, J), or (N, 1, I, J, K) of volumes, in [0, 1].
        shape: The map's edges (H, W) or (H, W, D).

    Returns:
        Share of liver in each location, shape (N, 1, *shape). No liver voxel is lost.
    """
    if len(shape) == 3:
        return F.adaptive_avg_pool3d(mask.float(), (int(shape[0]), int(shape[1]), int(shape[2])))
    return F.adaptive_avg_pool2d(mask.float(), (int(shape[0]), int(shape[1])))


def _extent(profile: Tensor, margin: int) -> tuple[Tensor, Tensor]:
    """First and one past the last true entry of each row (B, N), widened by the margin, in voxels."""
    edge = profile.shape[1]
    numbers = profile.to(torch.int64)
    low = numbers.argmax(1)
    high = edge - numbers.flip(1).argmax(1)
    return (low - margin).clamp(min=0).float(), (high + margin).clamp(max=edge).float()


def _keep_inside(centre: Tensor, share: Tensor) -> Tensor:
    """Shift a window of the given share so that it does not leave the volume, in [-1, 1] coordinates."""
    room = 1 - share
    return torch.minimum(torch.maximum(centre, -room), room)
