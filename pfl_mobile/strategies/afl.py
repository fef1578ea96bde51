"""AFL: the mixture of domains with the largest loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

import numpy as np
from typing_extensions import override

from pfl_mobile.hyperparameters import Param
from pfl_mobile.strategies.fedavg import FedAvg
from pfl_mobile.strategies.registry import register
from pfl_mobile.strategies.weighting import SENT_LOSS, ByLoss, group_losses

if TYPE_CHECKING:
    from pfl_mobile.merge.updates import Updates
    from pfl_mobile.strategies.state import Server

Step = Annotated[float, Param("step of the mixture's ascent; 0 keeps all domains equal", low=0.0)]


def project_to_simplex(x: np.ndarray) -> np.ndarray:
    """The nearest point with entries that are not negative and sum to 1 (Duchi 2008), float64 [n]."""
    ordered = np.sort(x)[::-1]
    excess = (np.cumsum(ordered) - 1) / np.arange(1, len(x) + 1)
    last = np.flatnonzero(ordered > excess)[-1]
    return np.asarray(np.maximum(x - excess[last], 0.0), np.float64)


@dataclass(frozen=True, kw_only=True)
class Agnostic(ByLoss):
    """Agnostic federated learning (Mohri, Sivek, Suresh 2019, arXiv 1902.00146).

    min over w, max over lambda in the simplex, of sum_k lambda_k F_k(w), k running over domains: the devices'
    groups, or every device alone where there are none. In each round (the paper's Stochastic-AFL)

        w      <- a step on sum_k lambda_k F_k
        lambda <- projection of (lambda + step * F(w)) onto the simplex

    both from the same w: the merge weighs a device by lambda_k (shared out by examples within a domain).

    Differs from the paper: several local steps; only the round's cohort reports its loss, so only those lambda
    rise before the projection; a domain that is seen for the first time enters with an average lambda.

    Limits: step = 0 counts all domains equally.
    """

    why_not_private: ClassVar[str] = "it keeps a mixture that follows the losses of the devices or groups"
    step: Step = 0.1

    @override
    def weights(self, updates: Updates, server: Server) -> np.ndarray:
        """lambda_k, times the device's part of the domain's examples; then lambda takes its step."""
        domains = list(updates.groups) or [str(client) for client in updates.clients]
        known: dict[str, float] = dict(server.numbers.get("afl", {}))
        fresh = sorted(set(domains) - set(known))
        known |= dict.fromkeys(fresh, 1 / (len(known) + len(fresh)))
        total = sum(known.values())
        losses, examples = group_losses(domains, updates.report(SENT_LOSS), updates.examples)
        shares = [n / examples[d] for d, n in zip(domains, updates.examples, strict=True)]
        weights = np.array([known[d] / total * s for d, s in zip(domains, shares, strict=True)])
        raised = [value / total + self.step * losses.get(d, 0.0) for d, value in known.items()]
        mixture = project_to_simplex(np.array(raised))
        server.numbers["afl"] = dict(zip(known, mixture.tolist(), strict=True))
        return weights


@register(
    "afl",
    title="Agnostic federated learning",
    paper="Mohri, Sivek, Suresh 2019, Agnostic federated learning (arXiv 1902.00146)",
    shares="all trained tensors, and one loss",
)
def afl(step: Step = 0.1) -> FedAvg:
    """FedAvg with :class:`Agnostic`."""
    return FedAvg(weighting=Agnostic(step=step))
