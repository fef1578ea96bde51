"""q-FFL: the worse a device's loss, the more it counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated

import numpy as np
from typing_extensions import override

from pfl_mobile.errors import PrivacyError
from pfl_mobile.hyperparameters import Param
from pfl_mobile.strategies.registry import register
from pfl_mobile.strategies.state import Server
from pfl_mobile.strategies.strategy import Strategy, mean_change
from pfl_mobile.strategies.weighting import SENT_LOSS, ByOwnLoss, LossCap, Weighting, needed_cap

if TYPE_CHECKING:
    from pfl_mobile.merge.updates import Updates
    from pfl_mobile.modules.roles import DeviceTensorInfo

#: Added to every loss, as in the authors' code, so that F^(q-1) exists at a loss of 0.
TINY = 1e-10

Power = Annotated[float, Param("how much large losses count; 0 is FedAvg", low=0.0)]
Lipschitz = Annotated[float, Param("L: the inverse of the devices' learning rate", low=0.0, open=("low",))]


@dataclass(frozen=True, kw_only=True)
class QFair(ByOwnLoss):
    """Weights n_k * F_k^q: the direction of q-FFL's gradient, for any strategy.

    Without the step size that :class:`QFedAvg` derives: the merge is a mean, as in FedAvg.

    Private rounds (``loss_cap`` B): device k counts n_k (min(F_k, B) / B)^q, n_k its examples up to their cap.
    """

    q: Power = 1.0
    loss_cap: LossCap = None

    @override
    def check_private(self) -> None:
        """Needs ``loss_cap`` for q > 0."""
        if self.q > 0:
            needed_cap(self, self.loss_cap)

    @override
    def own_weight(self, losses: Mapping[str, float], examples: float) -> float:
        """As said above; a loss below 0 counts as 0."""
        if self.q == 0:
            return examples
        share = min(max(losses[SENT_LOSS], 0.0) / needed_cap(self, self.loss_cap), 1.0)
        return examples * float(share**self.q)

    @override
    def cohort_weights(self, updates: Updates, server: Server) -> np.ndarray:
        """Proportional to n_k * F_k^q; the largest loss is scaled to 1 so that no power overflows."""
        losses = np.maximum(updates.report(SENT_LOSS), 0.0) + TINY
        return np.asarray(updates.examples * (losses / losses.max()) ** self.q, np.float64)


@dataclass(frozen=True, kw_only=True)
class QFedAvg(Strategy):
    """Minimizes f_q(w) = sum_k p_k / (q + 1) * F_k(w)^(q+1) (the paper's equation 2) by its algorithm 2.

    With the devices' changes c_k = w_k - w and L the inverse of their learning rate:

        Delta_k = -F_k^q * L * c_k
        h_k     = q * F_k^(q-1) * |L * c_k|^2 + L * F_k^q       (a bound of the local Lipschitz constant)
        w      <- w - sum_k p_k Delta_k / sum_k p_k h_k

    Differs from the paper: it draws devices with probability p_k and counts them equally; ours are drawn
    uniformly, so p_k = n_k / n is in both sums. Tensors of groups are merged with the same weights, without h_k.

    Private rounds are refused: h_k takes the norms of single changes. A bound of it, from the clip norm and a cap on
    losses, would be public, but is so far above it that hardly a step is left. FedAvg with ``QFair`` can be private.

    Limits: q = 0 is FedAvg; q -> infinity approaches the device with the largest loss alone (AFL).

    Attributes:
        weighting: a :class:`QFair`, which holds q; with another kind in its place this is FedAvg with that one.
        lipschitz: L.
    """

    weighting: Weighting = field(default_factory=QFair)
    lipschitz: Lipschitz = 10.0

    @override
    def check_private(self, table: Sequence[DeviceTensorInfo]) -> None:
        """Refuses the step of algorithm 2 (PrivacyError)."""
        if isinstance(self.weighting, QFair):
            raise PrivacyError(
                "QFedAvg cannot be private: its step is divided by norms of single changes",
                mend="take its weights alone: the strategy 'fedavg' with the fairness 'qffl' and a loss_cap",
            )
        super().check_private(table)

    @override
    def merge(self, server: Server, updates: Updates) -> None:
        """The step of algorithm 2."""
        if not isinstance(self.weighting, QFair):
            super().merge(server, updates)
            return
        with server.undo_on_error():
            names = server.names("shared")
            squares = updates.squares(names)
            # Numerator and denominator over L; what is p_k F_k^q here is scaled so that no power overflows.
            fair = updates.bounded(self.weighting.weights(updates, server))
            losses = np.maximum(updates.report(SENT_LOSS), 0.0) + TINY
            steep = self.weighting.q * fair / losses * self.lipschitz * squares
            change = mean_change(updates, fair, names)
            # of h_k too no device decides alone: one that says that its loss is 0 would end all steps
            shrink = (
                np.float32(fair.sum() / (fair + updates.lowered(steep)).sum()) if change else np.float32(0)
            )
            self.apply(server, {name: shrink * delta for name, delta in change.items()})
            self.merge_groups(server, updates, fair)


@register(
    "qffl",
    title="q-FedAvg: fair resource allocation",
    paper="Li, Sanjabi, Beirami, Smith 2020, Fair resource allocation in federated learning (arXiv 1905.10497)",
    shares="all trained tensors, and one loss",
)
def qffl(q: Power = 1.0, lipschitz: Lipschitz = 10.0, loss_cap: LossCap = None) -> QFedAvg:
    """:class:`QFedAvg` of this power; ``loss_cap`` matters where another strategy takes its weights in private."""
    return QFedAvg(weighting=QFair(q=q, loss_cap=loss_cap), lipschitz=lipschitz)
