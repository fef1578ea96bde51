"""pFedMe: a global model for which each device's own model is a proximal step away."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from typing_extensions import override

from pfl_mobile.errors import ConfigError
from pfl_mobile.hyperparameters import Param
from pfl_mobile.plan.phases import CombinePhase, MovePhase, Phase, RepeatPhase, Term
from pfl_mobile.strategies.registry import register
from pfl_mobile.strategies.state import RoundContext, Server, Values
from pfl_mobile.strategies.strategy import Strategy


@register(
    "pfedme",
    title="Personal models as Moreau envelopes",
    paper="Dinh, Tran and Nguyen 2020, Personalized federated learning with Moreau envelopes (arXiv 2006.08848)",
    shares="all trained tensors",
    keeps="a personal copy of them",
)
@dataclass(frozen=True, kw_only=True)
class PFedMe(Strategy):
    """The paper's algorithm 1. min_w sum_i F_i(w), F_i(w) = min_theta f_i(theta) + lambda/2 |theta - w|^2.

    A device sets w_i = w_t and does R times, on a new mini-batch D each time:

        theta_i <- K gradient steps on f_i(theta; D) + lambda/2 |theta - w_i|^2      (its learning rate: Local's)
        w_i     <- w_i - eta * lambda * (w_i - theta_i)

    and the server w_(t+1) = (1 - beta) w_t + beta * (mean of w_i). In the update rule: a train phase on the copy
    ``personal`` with ``hold_batch``, anchor = theta, mu = lambda; then a ``move`` of theta. As in the authors'
    program theta_i starts at w_t in each round and goes on from where it is in the R repetitions, and the mean is
    by examples (the paper's is uniform: give ``weighting=Equally()``).

    ``prox="explicit"`` takes the pull into the gradient as that program does, which needs lr * lambda < 2;
    ``implicit`` takes it as an exact step. The program also decays theta by 0.001, which is left out here.
    ``epochs`` and ``steps`` of Local play no part: R and K say how much is trained. A study that is told how many
    local steps or epochs a round has takes R from it, a mini-batch each.

    Limits: beta = 1 replaces w by the mean; lambda -> infinity with eta * lambda = 1 moves neither model;
    lambda = 0 leaves w where it is and trains theta from it.
    """

    lam: Annotated[float, Param("lambda: how near the personal model stays to the global one", low=0.0)] = (
        15.0
    )
    eta: Annotated[float, Param("learning rate of the global model; eta * lambda is at most 2", low=0.0)] = (
        0.005
    )
    beta: Annotated[float, Param("server's step; 1 replaces by the mean", low=0.0, open=("low",))] = 1.0
    local_rounds: Annotated[int, Param("R, mini-batches in a round", low=1, high=10_000)] = 20
    inner_steps: Annotated[int, Param("K, gradient steps on one mini-batch", low=1, high=10_000)] = 5
    prox: Annotated[str, Param("how the pull is applied", choices=("explicit", "implicit"))] = "implicit"

    @override
    def __post_init__(self) -> None:
        super().__post_init__()
        if self.eta * self.lam > 2:
            raise ConfigError(
                f"PFedMe: eta * lam is {self.eta * self.lam:g}, more than 2, which diverges",
                mend="lower eta or lam",
            )

    @override
    def for_steps(self, steps: int) -> dict[str, int]:
        """R: a step of the global model on each mini-batch."""
        return {"local_rounds": steps}

    @override
    def phases(self, at: RoundContext) -> tuple[Phase, ...]:
        """R times: the personal model on one mini-batch, and a step of the global one towards it."""
        inner = at.local.train(
            steps=self.inner_steps,
            hold_batch=True,
            trains="personal",
            anchor="theta",
            mu=self.lam,
            prox=self.prox,
        )
        outer = MovePhase(toward="personal", rate=self.eta * self.lam)
        reset = CombinePhase(makes="personal", terms=(Term(of="theta"),))
        return (reset, RepeatPhase(times=self.local_rounds, phases=(inner, outer)))

    @override
    def keep(self, at: RoundContext) -> tuple[str, ...]:
        return ("personal",)

    @override
    def serve(self, at: RoundContext) -> str:
        return "personal"

    @override
    def apply(self, server: Server, change: Values) -> None:
        """beta times the mean change."""
        super().apply(server, {name: np.float32(self.beta) * delta for name, delta in change.items()})
