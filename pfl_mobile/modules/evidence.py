"""How much the message so far says about whose words it has."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pfl_mobile.errors import ConfigError

#: The least probability that is told from 0: its logarithm stays finite where a token is impossible.
LEAST = 1e-30
# Evidence of one token at most.
_MOST = 3.0


def check_evidence(owner: str, share: float, evidence: float, fade: float, specials: int) -> None:
    """Check the settings of a mixture.

    Raises:
        ConfigError: one of them is out of its range.
    """
    if not 0.0 < share < 1.0:
        raise ConfigError(f"{owner}: share={share}", mend="give a number between 0 and 1")
    if not (math.isfinite(evidence) and evidence >= 0.0 and 0.0 <= fade <= 1.0):
        raise ConfigError(
            f"{owner}: evidence={evidence}, fade={fade}",
            mend="give evidence of 0 or more, and a fade from 0 to 1",
        )
    if specials < 1:
        raise ConfigError(
            f"{owner}: specials={specials}", mend="give 1 or more: token 0 fills rows and entries up"
        )


@dataclass(frozen=True)
class Evidence:
    """Bayesian weights of two predictors of a message, whose evidence fades.

    Attributes:
        share: of the first predictor, before any evidence.
        evidence: how much a token says, as a factor of the logarithm of the ratio of its probabilities.
        fade: what a token's evidence is multiplied with for each token after it.
        specials: the first ids, which stand for no word: they are no evidence.
    """

    share: float
    evidence: float
    fade: float
    specials: int

    def weigh(self, tokens: Tensor, ratio: Tensor) -> Tensor:
        """The log odds of the first predictor at each position; its share is their sigmoid.

        Args:
            tokens: int64 [B, T].
            ratio: log(p_first / p_second) of each token but the first where it stands, [B, T - 1, 1].

        Returns:
            [B, T, 1], each from the tokens up to its own.
        """
        told = torch.where(
            tokens[:, 1:].unsqueeze(-1) < self.specials,
            torch.zeros_like(ratio),
            torch.clamp(ratio, -_MOST, _MOST),
        )
        at = torch.arange(tokens.shape[1], device=tokens.device)
        gap = (at.unsqueeze(-1) - 1 - at[:-1]).to(ratio.dtype)  # [T, T - 1]
        faded = torch.exp(torch.clamp(gap, min=0.0) * math.log(max(self.fade, 1e-30)))
        faded = torch.where(gap < 0, torch.zeros_like(faded), faded)
        start = math.log(self.share / (1.0 - self.share))
        odds: Tensor = start + self.evidence * torch.matmul(faded, told)
        return odds
