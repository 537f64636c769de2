"""From slices to a patient: mean of probabilities, majority vote, attention, a small transformer."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812  # torch's own habit
from torch import Tensor, nn

AGGREGATIONS = ("mean", "vote", "attention", "transformer")
Aggregation = Literal["mean", "vote", "attention", "transformer"]


class Aggregated(NamedTuple):
    """A patient's logits (B, classes) and the weight of each slice (B, K), which sums to 1."""

    logits: Tensor
    slice_attention: Tensor


class MeanProbability(nn.Module):
    """Classify each slice, and average the probabilities over the slices that count.

    Args:
        features: Length of a slice's feature vector.
        classes: 1 for one logit (sigmoid), else one logit a class (softmax).
        dropout: Before the classifier.
    """

    def __init__(self, features: int, classes: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.head = _head(features, classes, dropout)

    def forward(self, features: Tensor, used: Tensor) -> Aggregated:
        """Aggregate features (B, K, D) over the slices where used (B, K) is true."""
        weights = _even(used)
        return Aggregated(mean_of_probabilities(self.head(features), weights), weights)


class MajorityVote(MeanProbability):
    """Classify each slice, and let them vote.

    A vote has no gradient, so training takes the mean of the probabilities; in evaluation mode the
    logits are those of the smoothed share of votes, (votes + 1/2) / (slices + classes / 2), which
    keeps them finite.
    """

    def forward(self, features: Tensor, used: Tensor) -> Aggregated:
        """Aggregate features (B, K, D) over the slices where used (B, K) is true."""
        if self.training:
            return super().forward(features, used)
        logits = self.head(features).float()
        counted = used.unsqueeze(2).to(logits.dtype)
        slices = counted.sum(1)
        if logits.shape[2] == 1:
            votes = ((logits > 0) * counted).sum(1)
            share = (votes + 0.5) / (slices + 1)
            return Aggregated(torch.logit(share), _even(used))
        classes = logits.shape[2]
        votes = (F.one_hot(logits.argmax(2), classes) * counted).sum(1)
        return Aggregated(((votes + 0.5) / (slices + classes / 2)).log(), _even(used))


class SliceScores(nn.Module):
    """Gated attention over slices.

    Args:
        features: Length of a slice's feature vector.
        hidden: Width of the hidden layer.

    Source: Ilse, Tomczak, Welling 2018, Attention-based deep multiple instance learning, eq. 9.
    """

    def __init__(self, features: int, hidden: int = 64) -> None:
        super().__init__()
        self.value = nn.Linear(features, hidden)
        self.gate = nn.Linear(features, hidden)
        self.score = nn.Linear(hidden, 1)

    def forward(self, features: Tensor, used: Tensor) -> Tensor:
        """Weigh features (B, K, D); returns weights (B, K), float32, summing to 1 over the used slices."""
        scores = self.score(torch.tanh(self.value(features)) * torch.sigmoid(self.gate(features))).squeeze(2)
        weights: Tensor = scores.float().masked_fill(~used, float("-inf")).softmax(1)
        return weights


class SliceAttention(nn.Module):
    """Pool slices with gated attention, and classify the pooled vector.

    Args:
        features: Length of a slice's feature vector.
        classes: Number of logits.
        dropout: Before the classifier.
    """

    def __init__(self, features: int, classes: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.weigh = SliceScores(features)
        self.head = _head(features, classes, dropout)

    def forward(self, features: Tensor, used: Tensor) -> Aggregated:
        """Aggregate features (B, K, D) over the slices where used (B, K) is true."""
        weights = self.weigh(features, used)
        pooled = torch.einsum("bk,bkd->bd", weights, features.float()).to(features.dtype)
        return Aggregated(self.head(pooled), weights)


class SliceTransformer(nn.Module):
    """Let slices see each other through a small transformer, then pool them with gated attention.

    Slices carry a sinusoidal code of their place along K, so order counts but their number is free.

    Args:
        features: Length of a slice's feature vector.
        classes: Number of logits.
        dropout: Inside the transformer and before the classifier.
        width: Width of the tokens, a multiple of ``heads``.
        layers: Transformer layers.
        heads: Attention heads.
    """

    def __init__(
        self, features: int, classes: int, dropout: float = 0.0, width: int = 128, layers: int = 2, heads: int = 4
    ) -> None:
        super().__init__()
        self.project = nn.Linear(features, width)
        layer = nn.TransformerEncoderLayer(width, heads, 2 * width, dropout, batch_first=True, norm_first=True)
        # nested tensors would make the result depend on whether slices are left out
        self.layers = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.pool = SliceAttention(width, classes, dropout)

    def forward(self, features: Tensor, used: Tensor) -> Aggregated:
        """Aggregate features (B, K, D) over the slices where used (B, K) is true."""
        tokens = self.project(features)
        tokens = tokens + _place(tokens.shape[1], tokens.shape[2], tokens)
        tokens = self.layers(tokens, src_key_padding_mask=~used)
        aggregated: Aggregated = self.pool(tokens, used)
        return aggregated


def slice_aggregation(kind: Aggregation, features: int, classes: int, dropout: float = 0.0) -> nn.Module:
    """Make the aggregation of this name; each maps features (B, K, D) and used (B, K) to :class:`Aggregated`.

    Raises:
        ValueError: Unknown name.
    """
    known: dict[str, type[nn.Module]] = {
        "mean": MeanProbability,
        "vote": MajorityVote,
        "attention": SliceAttention,
        "transformer": SliceTransformer,
    }
    if kind not in known:
        raise ValueError(f"aggregation {kind!r} is not one of {', '.join(known)}")
    return known[kind](features, classes, dropout)


def mean_of_probabilities(logits: Tensor, weights: Tensor) -> Tensor:
    """Turn slices' logits into the logits of their mean probability, without leaving log space.

    Args:
        logits: Shape (B, K, classes); one class means a sigmoid.
        weights: Weight of each slice, shape (B, K), summing to 1.

    Returns:
        Logits, shape (B, classes): their sigmoid or softmax is the weighted mean of the slices'.
    """
    logits = logits.float()
    log_weights = weights.log().unsqueeze(2)
    if logits.shape[2] == 1:
        positive = torch.logsumexp(F.logsigmoid(logits) + log_weights, 1)
        negative = torch.logsumexp(F.logsigmoid(-logits) + log_weights, 1)
        return positive - negative
    return torch.logsumexp(logits.log_softmax(2) + log_weights, 1)


def _head(features: int, classes: int, dropout: float) -> nn.Module:
    return nn.Sequential(nn.Dropout(dropout), nn.Linear(features, classes))


def _even(used: Tensor) -> Tensor:
    weights = used.float()
    return weights / weights.sum(1, keepdim=True)


def _place(slices: int, width: int, like: Tensor) -> Tensor:
    """Sinusoidal code of the place along K as a share of the volume, shape (1, slices, width)."""
    place = torch.linspace(0, 1, slices, device=like.device).unsqueeze(1)
    count = (width + 1) // 2
    frequency = torch.exp(torch.linspace(0, math.log(100.0), count, device=like.device))
    angle = place * frequency * math.pi
    return torch.cat([angle.sin(), angle.cos()], 1)[None, :, :width].to(like.dtype)
