"""Reptile: an initial model in the middle of where the devices go from it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

import numpy as np
from typing_extensions import override

from pfl_mobile.hyperparameters import Param
from pfl_mobile.plan.schema import Plan
from pfl_mobile.strategies.registry import register
from pfl_mobile.strategies.state import RoundContext, Server, Values
from pfl_mobile.strategies.strategy import Strategy, local_plan
from pfl_mobile.strategies.weighting import Equally, Weighting


@register(
    "reptile",
    title="Meta-learned initial model (Reptile)",
    paper="Nichol, Achiam and Schulman 2018, On first-order meta-learning algorithms (arXiv 1803.02999)",
    shares="all trained tensors",
    keeps="the adapted model, once the rounds are over",
)
@dataclass(frozen=True, kw_only=True)
class Reptile(Strategy):
    """The paper's batched form: phi <- phi + epsilon * (1/n) sum_i (U^k_i(phi) - phi).

    U^k_i are k steps of device i as Local says; k must be above 1, as one step is plain training on all examples.
    Every device counts the same, as tasks do in the paper. Once the rounds are over a device adapts with the same
    optimizer.

    Limits: epsilon = 1 is FedAvg with equal weights.
    """

    weighting: Weighting = field(default_factory=Equally)
    epsilon: Annotated[
        float, Param("step of the server; 1 is FedAvg with equal weights", low=0.0, open=("low",))
    ] = 0.5
    adapt_epochs: Annotated[
        int, Param("passes over a device's examples once the rounds are over", low=1, high=10_000)
    ] = 1

    @override
    def apply(self, server: Server, change: Values) -> None:
        """Epsilon times the mean change."""
        super().apply(server, {name: np.float32(self.epsilon) * delta for name, delta in change.items()})

    @override
    def personal_plan(self, at: RoundContext) -> Plan | None:
        """The adaptation that the initial model was made for."""
        return local_plan(at, at.local.train(epochs=self.adapt_epochs))
