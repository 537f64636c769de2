"""Clinical covariates (age, sex, laboratory values) as a token, and a network that sees nothing else."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lightning_modules.networks.patient_network import ClassifierOutput
from lightning_modules.networks.staging_network import StagingNetwork


class CovariateEncoder(nn.Module):
    """Turn a patient's covariates into tokens.

    Each known value is standardised by the training patients and mapped to the token's width; an
    unknown one is a learned vector of its own, never a number. In training known values are hidden
    at random, so that this vector is learned even where every training patient has the value.

    Args:
        names: Covariates in the order of the batch.
        width: Width of a token.
        tokens: Tokens a patient.
        hidden_share: Probability in training that a known value is hidden, in (0, 1).

    Raises:
        ValueError: No name, or a share out of range.
    """

    mean: Tensor
    spread: Tensor

    def __init__(self, names: Sequence[str], width: int, tokens: int = 1, hidden_share: float = 0.1) -> None:
        super().__init__()
        if not names:
            raise ValueError("covariates is empty; name at least one, such as age")
        if not 0 < hidden_share < 1:
            raise ValueError(f"covariate_dropout={hidden_share}: must lie in (0, 1); it teaches what 'unknown' means")
        self.names = tuple(names)
        self.tokens = tokens
        self.hidden_share = hidden_share
        # NaN until training has begun: a network that knows no mean must not pretend to
        self.register_buffer("mean", torch.full((len(names),), float("nan")))
        self.register_buffer("spread", torch.full((len(names),), float("nan")))
        self.slope = nn.Parameter(torch.randn(len(names), width) * 0.1)
        self.level = nn.Parameter(torch.zeros(len(names), width))
        self.unknown = nn.Parameter(torch.zeros(len(names), width))
        self.mix = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, width), nn.GELU(), nn.Linear(width, tokens * width)
        )
        self.norm = nn.LayerNorm(width)

    def set_statistics(self, mean: Tensor, spread: Tensor) -> None:
        """Keep mean and standard deviation of the training patients, both (F,), the latter positive."""
        if mean.shape != self.mean.shape or spread.shape != self.mean.shape:
            raise ValueError(f"statistics of {tuple(mean.shape)} covariates for a network of {len(self.names)}")
        self.mean.copy_(mean)
        self.spread.copy_(spread)

    def forward(self, values: Tensor) -> Tensor:
        """Encode values as measured (B, F), NaN where unknown; returns tokens (B, tokens, width).

        Raises:
            ValueError: The shape does not fit, or no training has set the statistics.
        """
        if values.ndim != 2 or values.shape[1] != len(self.names):
            raise ValueError(f"covariates {tuple(values.shape)} do not fit the network's: {self.names}")
        if not bool(torch.isfinite(self.mean).all()):
            raise ValueError("the covariates' mean and spread are unknown; train the network, or load its weights")
        known = ~values.isnan()
        if self.training:
            known = known & (torch.rand(values.shape, device=values.device) >= self.hidden_share)
        scores = torch.where(known, (values - self.mean) / self.spread, 0.0)
        told = scores[:, :, None] * self.slope + self.level
        vectors = torch.where(known[:, :, None], told, self.unknown.expand_as(told))
        mixed: Tensor = self.mix(vectors.sum(1)).view(len(values), self.tokens, -1)
        return torch.as_tensor(self.norm(mixed))


class CovariateClassifier(StagingNetwork):
    """Probe: stage a patient from clinical covariates alone; images and masks are not looked at.

    Args:
        sequences: Those of the data module, so that it has the same patients as the arms beside it.
        covariates: Names in the order of the data module's.
        classes: Logits, as many as the module's loss asks for.
        width: Width of the hidden layer.
        dropout: Before the classifier.
        covariate_dropout: See ``CovariateEncoder``.

    Raises:
        ValueError: A repeated name, no covariate, or a share out of range.
    """

    def __init__(
        self,
        sequences: Sequence[str] = ("T1W", "T2W"),
        covariates: Sequence[str] = ("age", "sex"),
        classes: int = 3,
        width: int = 32,
        dropout: float = 0.0,
        covariate_dropout: float = 0.1,
    ) -> None:
        super().__init__(sequences, covariates, classes)
        self.encode = CovariateEncoder(covariates, width, 1, covariate_dropout)
        self.head = nn.Sequential(nn.Dropout(dropout), nn.Linear(width, classes))

    def forward(
        self,
        image: Tensor,
        present: Tensor | None = None,
        mask: Tensor | None = None,
        covariates: Tensor | None = None,
    ) -> ClassifierOutput:
        """See :class:`StagingNetwork`; ``slice_attention`` is zero everywhere, since no slice is looked at."""
        if covariates is None:
            raise ValueError("the network sees covariates alone, the batch has none; set data.init_args.covariates")
        logits = self.head(self.encode(covariates)[:, 0])
        batch, count, slices = image.shape[0], image.shape[1], image.shape[-1]
        empty = torch.zeros(batch, dtype=torch.bool, device=image.device)
        return ClassifierOutput(logits, image.new_zeros(batch, count * slices), None, empty)

    def set_covariate_statistics(self, mean: Tensor, spread: Tensor) -> None:
        """See :class:`StagingNetwork`."""
        self.encode.set_statistics(mean, spread)
