"""Scafflix: explicit personalization and local training, both so that less has to be sent."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Annotated

import numpy as np
from typing_extensions import override

from pfl_mobile.hyperparameters import Param
from pfl_mobile.merge.updates import Updates
from pfl_mobile.plan.phases import CombinePhase, Mix, Phase, Term, TrainPhase
from pfl_mobile.plan.schema import CopyStart, Plan, ServeMix
from pfl_mobile.random import derive, uniform
from pfl_mobile.strategies.registry import register
from pfl_mobile.strategies.state import RoundContext, Server, Values
from pfl_mobile.strategies.strategy import Strategy, local_plan
from pfl_mobile.strategies.weighting import Equally, Weighting

_SHARED = ("role:shared",)
_LAST = "scafflix.last"


@register(
    "scafflix",
    title="Mix with a local optimum, control variates, rare communication",
    paper="Yi, Condat and Richtarik 2023, Explicit personalization and local training: double communication "
    "acceleration in federated learning (arXiv 2305.13170)",
    shares="all trained tensors",
    keeps="the device's own optimum, its control variate and what it sent last",
)
@dataclass(frozen=True, kw_only=True)
class Scafflix(Strategy):
    """The paper's algorithm 1 for the FLIX problem min_x (1/n) sum_i f_i(alpha_i x + (1 - alpha_i) x_i*).

    x_i* minimizes f_i alone. In each step, with a coin that shows heads with probability p, the same for all:

        xtilde_i = alpha_i x_i + (1 - alpha_i) x_i*,   g_i = grad f_i(xtilde_i)
        xhat_i   = x_i - (gamma_i / alpha_i) (g_i - h_i)
        heads:  xbar = (gamma / n) sum_j (alpha_j^2 / gamma_j) xhat_j   (to the server and back)
                x_i <- xbar,  h_i <- h_i + (p alpha_i / gamma_i) (xbar - xhat_i)
        tails:  x_i <- xhat_i

    A round is what lies between two heads: the server draws its number of local steps, geometric with mean 1 / p,
    from the round's seed, in place of Local's epochs or steps. A study that is told how many local steps or epochs a
    round has takes p from it: 1 / steps. In the update rule: gradients at ``mix`` with the
    copy ``optimum``, control = -h_i, the copy ``minus_h``; gamma_i / alpha_i is Local's learning rate, so with one
    alpha and one rate for all, xbar is the plain mean and one vector per round is all that is sent. h_i needs xbar,
    which a device learns when it is asked again; until then it keeps xhat_i as the copy ``sent``.

    What differs from the paper:

    * alpha and gamma are the same for all devices (the paper allows alpha_i, and gamma_i by the smoothness of f_i);
    * x_i* is not computed to the end beforehand: each time a device takes part it first trains ``optimum`` further;
    * not everybody must take part. The server keeps the averages of rounds whose devices have not been back, and
      gives each its own as the set ``merged``, so that sum_i h_i = 0 holds over everybody, once what is underway is
      counted. So one vector goes up in a round and two come down, which are the same where everybody takes part.
      The paper's rates of convergence are for full participation;
    * the weighting decides about the mean (equal by default); with fixed weights w_i it is sum_i w_i h_i that is 0;
    * tensors of groups and personal ones have h_i = 0; personal ones are trained at the mix and never sent.

    Limits: alpha = 1 is i-Scaffnew with one rate (no personalization); p = 1 communicates at each step, and is
    gradient descent where everybody takes part; alpha -> 0 serves the device's own optimum.
    """

    weighting: Weighting = field(default_factory=Equally)
    p: Annotated[float, Param("probability of communication after a local step", low=0.001, high=1.0)] = 0.2
    alpha: Annotated[
        float, Param("part of the shared model; 1 is no personalization", low=0.0, high=1.0, open=("low",))
    ] = 0.5
    optimum_epochs: Annotated[
        int, Param("passes for the device's own optimum each time it takes part", low=1, high=10_000)
    ] = 5
    optimum_lr: Annotated[
        float | None, Param("learning rate for it; None: Local's", low=0.0, open=("low",))
    ] = None

    def steps(self, seed: int) -> int:
        """Local steps of the round with this seed: geometric, P(k) = p (1 - p)^(k - 1)."""
        if self.p == 1:
            return 1
        drawn = float(uniform(derive(seed, 1), 1)[0])
        return 1 + math.floor(math.log1p(-drawn) / math.log1p(-self.p))

    @override
    def full_sync_steps(self, at: RoundContext) -> int:
        """Those of the round: full synchronization is p = 1."""
        return self.steps(at.seed)

    @override
    def for_steps(self, steps: int) -> dict[str, float]:
        """The p with so many local steps on average between two communications."""
        return {"p": 1 / steps}

    @override
    def phases(self, at: RoundContext) -> tuple[Phase, ...]:
        """h_i for the last round, the own optimum, the steps of this round.

        Raises:
            ConfigError: no shared tensors, or an optimizer that is not plain SGD.
        """
        at.need("shared", self)
        scale = self.p / at.plain_rate(self)
        where = {} if self.alpha == 1 else {"evaluate_at": Mix(other="optimum", alpha=self.alpha)}
        return (
            # The gap first, then its scale: so nothing is lost to rounding when the rate is small.
            CombinePhase(group=_SHARED, makes="gap", terms=(Term(of="sent"), Term(of="merged", times=-1.0))),
            CombinePhase(
                group=_SHARED, makes="minus_h", terms=(Term(of="minus_h"), Term(of="gap", times=scale))
            ),
            *self._optimum(at),
            at.local.train(steps=self.steps(at.seed), control="minus_h", **where),
            CombinePhase(group=_SHARED, makes="sent", terms=(Term(of="theta"),)),
        )

    @override
    def copies(self, at: RoundContext) -> dict[str, CopyStart]:
        """-h_i, and what the device sent last: nothing that differs from the average."""
        return {"minus_h": CopyStart(), "sent": CopyStart(of="merged", group=_SHARED)}

    @override
    def keep(self, at: RoundContext) -> tuple[str, ...]:
        """-h_i, what was sent, and the own optimum."""
        return ("minus_h", "sent") if self.alpha == 1 else ("minus_h", "sent", "optimum")

    @override
    def serve(self, at: RoundContext) -> str | ServeMix:
        """The mix with the own optimum."""
        return "theta" if self.alpha == 1 else ServeMix(one="theta", other="optimum", alpha=self.alpha)

    @override
    def personal_plan(self, at: RoundContext) -> Plan | None:
        """The own optimum and, for the steps of an average round, personal tensors once more; shared ones stay."""
        phases: tuple[Phase, ...] = self._optimum(at)
        if at.has("personal"):
            group = ("role:personal",)
            where = {} if self.alpha == 1 else {"evaluate_at": Mix(other="optimum", alpha=self.alpha)}
            phases = (*phases, at.local.train(group=group, steps=round(1 / self.p), **where))
        if not phases:
            return None
        return local_plan(at, *phases, keep=() if self.alpha == 1 else ("optimum",), serve=self.serve(at))

    def _optimum(self, at: RoundContext) -> tuple[TrainPhase, ...]:
        if self.alpha == 1:
            return ()
        optimizer = at.local.optimizer
        if self.optimum_lr is not None:
            optimizer = optimizer.model_copy(update={"lr": self.optimum_lr})
        return (at.local.train(trains="optimum", epochs=self.optimum_epochs, optimizer=optimizer),)

    # -- the server

    @override
    def sets(self, server: Server) -> dict[str, Values]:
        """The global values, and the last average for the devices that were in it."""
        latest = server.sets.get(_merged(server.round - 1), server.values)
        return {**super().sets(server), "merged": latest}

    @override
    def sets_for(self, server: Server, client: int, group: str) -> dict[str, Values]:
        """For a device that was away, the average that it took part in last."""
        sets = super().sets_for(server, client, group)
        last = server.numbers.get(_LAST, {}).get(str(client))
        if last is not None and last != server.round - 1:
            sets["merged"] = server.sets[_merged(last)]
        return sets

    @override
    def merge(self, server: Server, updates: Updates) -> None:
        """FedAvg's merge; the average stays until all its devices have been back.

        Raises:
            NonFiniteError: a merged value is NaN or infinite; nothing is changed then.
        """
        with server.undo_on_error():
            super().merge(server, updates)
            now = {str(client): server.round for client in updates.clients}
            server.numbers[_LAST] = {**server.numbers.get(_LAST, {}), **now}
            waiting = {_merged(last) for last in server.numbers[_LAST].values()}
            for name in [n for n in server.sets if n.startswith(_merged("")) and n not in waiting]:
                del server.sets[name]

    @override
    def apply(self, server: Server, change: Values) -> None:
        """Keep the average itself, whatever the server optimizer makes of it."""
        old = server.values
        super().apply(server, change)
        mean = {n: old[n] + change[n] if n in change else old[n] for n in server.names("shared")}
        # A plain server made the same values: then there is one array, not two.
        server.sets[_merged(server.round)] = {
            n: server.values[n] if np.array_equal(v, server.values[n]) else v for n, v in mean.items()
        }


def _merged(at: int | str) -> str:
    return f"scafflix.merged.{at}"
