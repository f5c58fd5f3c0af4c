"""Codes of latent actions as what the language model is to tell, from the last word that it was given.

All codes of a latent action are told at once; LAPA and UniVLA write them one after the other as words.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from pyramid.errors import DataError
from vla.objectives.config import TokensConfig

if TYPE_CHECKING:
    from pyramid.mixture.batch import Group

__all__ = ["LatentTokens"]


class LatentTokens(nn.Module):
    """Layer norm and a linear map from the hidden state of the last word to the codes.

    Args:
        config: sizes of the codebook.
        width: width of the backbone's tokens.
    """

    def __init__(self, config: TokensConfig, width: int) -> None:
        super().__init__()
        self.config = config
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, config.positions * config.codes)

    def forward(self, context: Tensor, mask: Tensor) -> Tensor:
        """Maps context float [B, L, C] with mask bool [B, L] to logits float [B, positions, codes]."""
        place = torch.arange(mask.shape[1], device=mask.device)
        last = torch.where(mask, place, 0).amax(1)
        hidden = context[torch.arange(len(context), device=mask.device), last]
        return self.out(self.norm(hidden)).unflatten(-1, (self.config.positions, self.config.codes))  # type: ignore[no-any-return]

    def errors(self, group: Group, encoded: tuple[Tensor, Tensor]) -> Tensor:
        """Returns the cross-entropy of each sample, mean over its codes, nats, float [B].

        Raises:
            DataError: the labels have no codes, or others than the config says; the source is named.
        """
        codes, (positions, n) = group.codes, (self.config.positions, self.config.codes)
        if codes is None:
            raise DataError(
                f"source '{group.source[0]}': its latent actions have no codes; label with a model that has a "
                "codebook, or set objectives.tokens.weight: 0"
            )
        if codes.shape[1] != positions or int(codes.max()) >= n or int(codes.min()) < 0:
            raise DataError(
                f"source '{group.source[0]}': latent actions of {codes.shape[1]} codes up to {int(codes.max())}, "
                f"objectives.tokens says {positions} codes below {n}"
            )
        logits = self(*encoded).float()
        return nn.functional.cross_entropy(logits.transpose(1, 2), codes, reduction="none").mean(1)
