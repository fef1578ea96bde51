"""Bounded group loss: no group's loss above a bound."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, ClassVar

import numpy as np
from typing_extensions import override

from pfl_mobile.errors import ConfigError
from pfl_mobile.hyperparameters import Param
from pfl_mobile.strategies.fedavg import FedAvg
from pfl_mobile.strategies.registry import register
from pfl_mobile.strategies.weighting import SENT_LOSS, ByLoss, group_losses

if TYPE_CHECKING:
    from pfl_mobile.merge.updates import Updates
    from pfl_mobile.strategies.state import Server

MaxLoss = Annotated[float, Param("zeta: bound on every group's mean loss", low=0.0, open=("low",))]
Step = Annotated[float, Param("step of the dual variables", low=0.0)]
Cap = Annotated[float, Param("B: bound on the sum of the dual variables; 0 is FedAvg", low=0.0)]

#: theta stays within +-LIMIT: exp(10) is all of B already, and a bound long met can still be felt again soon.
LIMIT = 10.0


@dataclass(frozen=True)
class BoundStatus:
    """Whether the bound holds.

    Attributes:
        max_loss: the bound zeta.
        losses: mean training loss of each group, when its devices last reported.
        excess: by how much each group that is above the bound is above it.
    """

    max_loss: float
    losses: Mapping[str, float]
    excess: Mapping[str, float]

    @property
    def met(self) -> bool:
        """No group is above the bound."""
        return not self.excess

    @override
    def __str__(self) -> str:
        """In words."""
        if self.met:
            return f"every group's loss is at most {self.max_loss:g}"
        worst = max(self.excess, key=lambda group: self.excess[group])
        return (
            f"{len(self.excess)} of {len(self.losses)} groups are above the bound {self.max_loss:g}; "
            f"the worst is {worst!r} with {self.losses[worst]:.4g}, {self.excess[worst]:.4g} too much"
        )


@dataclass(frozen=True)
class BoundedGroupLoss(ByLoss):
    """Fair federated learning via bounded group loss (Hu, Wu, Smith 2022, arXiv 2203.10190).

    min over w of F(w) such that r_a(w) = (mean loss of group a) - zeta <= 0 for every group a, through the
    Lagrangian min over w, max over lambda >= 0 with |lambda|_1 <= B, of F(w) + sum_a lambda_a r_a(w). It is an
    instance of the reductions of Agarwal 2018 (arXiv 1803.02453), whose exponentiated gradient moves the duals:

        lambda_a = B * exp(theta_a) / (1 + sum_b exp(theta_b)),    theta_a <- theta_a + step * r_a(w)

    Ours: device k of group a counts n_k / n + lambda_a * n_k / m_a (n, m_a: examples of the cohort and of its part
    in a), which is the weight of its F_k in that Lagrangian; losses are measured with the values that were sent.

    Differs from the paper: the merge divides by the sum of the weights, so B changes the direction and not the
    size of a step; the last model is served, while the guarantee is for the mean over all rounds; theta is kept
    within +-10; groups are of devices, while the paper's can also run through the examples of one device.

    Limits: B = 0 is FedAvg; a large B with a bound that cannot be met trains for the worst groups only, and
    :meth:`status` says by how much the bound is missed.

    Attributes:
        groups: group name to the indexes of its devices; None takes the groups that come with the updates.
        max_loss: zeta.
        step: of theta.
        bound: B.
    """

    needs_groups: ClassVar[bool] = True
    why_not_private: ClassVar[str] = (
        "it keeps multipliers that follow the losses of groups, a release of its own that no noise protects"
    )
    groups: Mapping[str, Sequence[int] | np.ndarray] | None = None
    max_loss: MaxLoss = 0.15
    step: Step = 1.0
    bound: Cap = 10.0

    @cached_property
    def _group_of(self) -> dict[int, str]:
        return {int(i): name for name, members in (self.groups or {}).items() for i in members}

    def names(self, updates: Updates) -> list[str]:
        """Group of each device of the round.

        Raises:
            ConfigError: there are no groups, or they lack a device.
        """
        if self.groups is None:
            if not updates.groups:
                raise ConfigError(
                    "BoundedGroupLoss has no groups", mend="give groups=, or data whose users have groups"
                )
            return list(updates.groups)
        missing = [i for i in updates.clients if i not in self._group_of]
        if missing:
            raise ConfigError(
                f"BoundedGroupLoss: {len(missing)} users of this round are in no group, the first is {missing[0]}",
                mend="put every user in one of the groups",
            )
        return [self._group_of[i] for i in updates.clients]

    @override
    def weights(self, updates: Updates, server: Server) -> np.ndarray:
        """n_k / n + lambda_a * n_k / m_a; then theta takes its step."""
        names, examples = self.names(updates), updates.examples
        losses, sizes = group_losses(names, updates.report(SENT_LOSS), examples)
        kept = server.numbers.get("bounded_group_loss", {"theta": {}, "loss": {}})
        theta: dict[str, float] = dict.fromkeys(losses, 0.0) | kept["theta"]
        multiplier = dict(zip(theta, self._multipliers(np.array(list(theta.values()))), strict=True))
        for group, loss in losses.items():
            raised = theta[group] + self.step * (loss - self.max_loss)
            theta[group] = float(np.clip(raised, -LIMIT, LIMIT))
        server.numbers["bounded_group_loss"] = {"theta": theta, "loss": {**kept["loss"], **losses}}
        pull = np.array([multiplier[g] / sizes[g] for g in names])
        return np.asarray(examples * (1 / examples.sum() + pull), np.float64)

    def _multipliers(self, theta: np.ndarray) -> np.ndarray:
        """lambda of each theta; the largest exponent is 0, so that nothing overflows."""
        top = max(float(theta.max()), 0.0)
        up = np.exp(theta - top)
        return np.asarray(self.bound * up / (np.exp(-top) + up.sum()), np.float64)

    def status(self, server: Server) -> BoundStatus:
        """Whether the bound held when the groups last reported their training losses, and what is missing.

        Raises:
            ConfigError: no round has been merged yet.
        """
        if "bounded_group_loss" not in server.numbers:
            raise ConfigError("no group has reported a loss yet", mend="run a round first")
        losses: dict[str, float] = server.numbers["bounded_group_loss"]["loss"]
        excess = {g: loss - self.max_loss for g, loss in losses.items() if loss > self.max_loss}
        return BoundStatus(self.max_loss, losses, excess)


@register(
    "bounded_group_loss",
    title="FedAvg under a bound on every group's loss",
    paper="Hu, Wu, Smith 2022, Fair federated learning via bounded group loss (arXiv 2203.10190)",
    shares="all trained tensors, and one loss",
)
def bounded_group_loss(max_loss: MaxLoss = 0.15, step: Step = 1.0, bound: Cap = 10.0) -> FedAvg:
    """FedAvg with :class:`BoundedGroupLoss`; the groups come with the data."""
    return FedAvg(weighting=BoundedGroupLoss(max_loss=max_loss, step=step, bound=bound))
