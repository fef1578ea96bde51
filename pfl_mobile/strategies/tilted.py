"""TERM: devices count by the exponential of their loss."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import numpy as np
from typing_extensions import override

from pfl_mobile.hyperparameters import Param
from pfl_mobile.strategies.fedavg import FedAvg
from pfl_mobile.strategies.registry import register
from pfl_mobile.strategies.weighting import SENT_LOSS, ByOwnLoss, LossCap, needed_cap

if TYPE_CHECKING:
    from pfl_mobile.merge.updates import Updates
    from pfl_mobile.strategies.state import Server

Tilt = Annotated[
    float,
    Param(
        "tilt: 0 is the mean over devices (FedAvg), large the largest loss alone, far below 0 the smallest",
        low=-1e9,
        high=1e9,
    ),
]


def tilt(losses: np.ndarray, weights: np.ndarray, t: float) -> np.ndarray:
    """weights_k * exp(t * losses_k), up to a common factor, so that nothing overflows.

    Args:
        losses: float [n].
        weights: not negative, [n].
        t: any finite number.
    """
    counted = losses[weights > 0]
    if not len(counted) or t == 0:
        return np.asarray(weights, np.float64)
    top = counted.max() if t > 0 else counted.min()
    # Where the weight is 0 the exponent may be positive; it must not overflow either.
    return np.asarray(weights * np.exp(np.minimum(t * (losses - top), 0.0)), np.float64)


@dataclass(frozen=True, kw_only=True)
class Tilted(ByOwnLoss):
    """Client-level tilted empirical risk minimization (Li 2021, TERM, arXiv 2007.01162).

    The paper minimizes R(t; w) = (1/t) log(sum_k p_k exp(t F_k(w))), p_k = n_k / n, whose gradient is the mean of
    the devices' gradients with weights proportional to p_k exp(t F_k(w)) (its lemma 1). Ours: those weights at the
    merge, F_k measured with the values that the device was sent, normalized over the cohort.

    Differs from the paper: its stochastic solver keeps a moving estimate of R; ours normalizes within the round's
    cohort, and a device's update is several local steps instead of one gradient. For tilting the examples within a
    device see :func:`pfl_mobile.programs.tasks.tilted_task`.

    Private rounds (``loss_cap`` B): device k counts p_k exp(t (min(F_k, B) - B)), p_k its examples up to their cap; for
    t < 0, where a loss of 0 counts most, p_k exp(t max(F_k, 0)). Below B these are the weights above times a number
    that all share, and the step is along the gradient of sum_k p_k exp(t F_k), which has the minimizers of R. Where all
    losses are far below B it is short, so B is best near the largest loss that is still to be told from larger ones.

    Limits: t = 0 is FedAvg; t -> inf merges the device with the largest loss only, t -> -inf the smallest.
    """

    t: Tilt = 1.0
    loss_cap: LossCap = None

    @override
    def check_private(self) -> None:
        """Needs ``loss_cap`` for t > 0."""
        if self.t > 0:
            needed_cap(self, self.loss_cap)

    @override
    def own_weight(self, losses: Mapping[str, float], examples: float) -> float:
        full = needed_cap(self, self.loss_cap) if self.t > 0 else 0.0
        return examples * math.exp(min(self.t * (losses[SENT_LOSS] - full), 0.0))

    @override
    def cohort_weights(self, updates: Updates, server: Server) -> np.ndarray:
        """Proportional to n_k * exp(t * F_k)."""
        return tilt(updates.report(SENT_LOSS), updates.examples, self.t)


@register(
    "term",
    title="FedAvg with a tilted mean over devices",
    paper="Li, Beirami, Sanjabi, Smith 2021, Tilted empirical risk minimization (arXiv 2007.01162)",
    shares="all trained tensors, and one loss",
)
def term(t: Tilt = 1.0, loss_cap: LossCap = None) -> FedAvg:
    """FedAvg with :class:`Tilted`."""
    return FedAvg(weighting=Tilted(t=t, loss_cap=loss_cap))
