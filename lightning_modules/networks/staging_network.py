"""What a staging network is: sequences that may be missing, masks, and clinical covariates in; logits out."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from lightning_modules.networks.patient_network import ClassifierOutput


class StagingNetwork(nn.Module):
    """Base of the networks that the staging module trains.

    Args:
        sequences: Names in the order of the image's channels.
        covariates: Names in the order of the batch's covariates; empty for none.
        outputs: Logits that it gives, which the module's loss must ask for.
        ways: Ways of the mask in, as ``check_ways`` gives them; empty for an arm without.

    Raises:
        ValueError: No sequence, or a name twice.
    """

    def __init__(
        self, sequences: Sequence[str], covariates: Sequence[str], outputs: int, ways: tuple[str, ...] = ()
    ) -> None:
        super().__init__()
        if not sequences or len(set(sequences)) != len(sequences):
            raise ValueError(f"sequences={tuple(sequences)}: name each sequence once, at least one")
        if len(set(covariates)) != len(covariates):
            raise ValueError(f"covariates={tuple(covariates)}: name each covariate once")
        self.sequences = tuple(sequences)
        self.covariates = tuple(covariates)
        self.outputs = outputs
        self.ways = ways

    @property
    def uses_mask(self) -> bool:
        """Whether the arm sees a mask at all."""
        return bool(self.ways)

    def forward(
        self,
        image: Tensor,
        present: Tensor | None = None,
        mask: Tensor | None = None,
        covariates: Tensor | None = None,
    ) -> ClassifierOutput:
        """Classify.

        Args:
            image: One channel a sequence, shape (B, S, I, J, K); a missing one may hold anything.
            present: Which sequences each patient has, bool, shape (B, S); None means all.
            mask: Share of liver, in [0, 1], shape (B, S, I, J, K), or (B, 1, I, J, K) for one common
                mask; None for an arm without.
            covariates: Values as measured, NaN where unknown, shape (B, F); None for an arm without.

        Returns:
            Logits and what they rest on.
        """
        raise NotImplementedError

    def set_covariate_statistics(self, mean: Tensor, spread: Tensor) -> None:
        """Keep mean and standard deviation (F,) of the training patients; they travel in the checkpoint."""
        raise NotImplementedError
