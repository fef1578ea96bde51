"""MaxFL: devices count that are about to prefer the global model to their own."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

import numpy as np
from typing_extensions import override

from pfl_mobile.hyperparameters import Param
from pfl_mobile.plan.phases import MeasurePhase, Phase
from pfl_mobile.strategies.fedavg import FedAvg
from pfl_mobile.strategies.registry import register
from pfl_mobile.strategies.weighting import SENT_LOSS, ByOwnLoss

if TYPE_CHECKING:
    from pfl_mobile.merge.updates import Updates
    from pfl_mobile.strategies.state import RoundContext, Server

#: Report of a device's loss with the model that it trains alone.
OWN_LOSS = "own_loss"

Warmup = Annotated[int, Param("steps that a device trains alone for its requirement", low=1)]


def appeal_weights(gap: np.ndarray) -> np.ndarray:
    """s(gap) * (1 - s(gap)) with the sigmoid s, scaled so that the largest is 1 and nothing underflows."""
    size = np.abs(gap)
    logarithm = -size - 2 * np.log1p(np.exp(-size))
    return np.asarray(np.exp(logarithm - logarithm.max()), np.float64)


@dataclass(frozen=True, kw_only=True)
class Appeal(ByOwnLoss):
    """MaxFL (Cho, Jhunjhunwala, Li, Smith, Joshi 2022, Maximizing global model appeal, arXiv 2205.14840).

    The global model w appeals to device k when F_k(w) < rho_k, its requirement: the loss of the model that it
    trains alone. Maximizing how many it appeals to, relaxed by a sigmoid s, is min over w of
    sum_k s(F_k(w) - rho_k), whose gradient weighs the devices by

        q_k = s(F_k(w) - rho_k) * (1 - s(F_k(w) - rho_k)),      w <- w + (sum_k q_k c_k) / sum_k q_k

    so a device that is far from its requirement, on either side, counts little. Every device counts the same
    otherwise, whatever its number of examples. The relaxed count is not convex: a round's step can also end where
    one device fewer prefers the model.

    Ours: before training, each device trains a copy from the shipped values for ``warmup`` steps, and reports both
    losses. The copy is made anew in every round, so devices keep nothing; the paper's devices train it once.

    Private rounds: device k counts 4 q_k, which is at most 1, so no loss needs a cap. The step is that of the gradient
    itself, not over sum_k q_k, and ``appeal`` is not kept.

    Limits: with all gaps equal every device counts the same; gaps are in units of the loss, so where all are tiny
    this is FedAvg with equal weights.
    """

    reads: ClassVar[tuple[str, ...]] = (SENT_LOSS, OWN_LOSS)
    warmup: Warmup = 20

    @override
    def measures(self, at: RoundContext) -> tuple[Phase, ...]:
        """F_k with what was sent, and rho_k with what the device trains alone."""
        alone = at.local.train(trains="own", start_from="initial", steps=self.warmup)
        return (*super().measures(at), alone, MeasurePhase(report=OWN_LOSS, at="own"))

    @override
    def own_weight(self, losses: Mapping[str, float], examples: float) -> float:
        """4 q_k; examples do not count."""
        size = abs(losses[SENT_LOSS] - losses[OWN_LOSS])
        return 4 * math.exp(-size) / (1 + math.exp(-size)) ** 2

    @override
    def cohort_weights(self, updates: Updates, server: Server) -> np.ndarray:
        """Proportional to q_k; keeps the share of the cohort that prefers the global model as ``appeal``."""
        gap = updates.report(SENT_LOSS) - updates.report(OWN_LOSS)
        server.numbers["appeal"] = float((gap < 0).mean())
        return appeal_weights(gap)


@register(
    "maxfl",
    title="MaxFL: maximal appeal of the global model",
    paper="Cho, Jhunjhunwala, Li, Smith, Joshi 2022, Maximizing global model appeal in federated learning "
    "(arXiv 2205.14840)",
    shares="all trained tensors, and two losses",
)
def maxfl(warmup: Warmup = 20) -> FedAvg:
    """FedAvg with :class:`Appeal`."""
    return FedAvg(weighting=Appeal(warmup=warmup))
