"""FedProx: local training held near the global values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from typing_extensions import override

from pfl_mobile.hyperparameters import Param
from pfl_mobile.plan.phases import Phase
from pfl_mobile.strategies.registry import register
from pfl_mobile.strategies.state import RoundContext
from pfl_mobile.strategies.strategy import Strategy


@register(
    "fedprox",
    title="FedAvg with a proximal term",
    paper="Li and others 2020, Federated optimization in heterogeneous networks (arXiv 1812.06127)",
    shares="all trained tensors",
)
@dataclass(frozen=True, kw_only=True)
class FedProx(Strategy):
    """Each device minimizes F_k(w) + mu/2 |w - w_t|^2 (the paper's equation 2).

    In the update rule: anchor = global, d = g + mu * (theta - anchor), applied as an exact proximal step, so
    that no mu diverges.

    Limits: mu = 0 is FedAvg; mu -> infinity leaves the model where it is.
    """

    mu: Annotated[float, Param("strength of the pull to the global values; 0 is FedAvg", low=0.0)] = 0.1

    @override
    def phases(self, at: RoundContext) -> tuple[Phase, ...]:
        """One train phase with the proximal term."""
        return (at.local.train(mu=self.mu, anchor="global", prox="implicit"),)
