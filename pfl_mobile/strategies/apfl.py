"""APFL: a personal model trained for its mix with the global one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from typing_extensions import override

from pfl_mobile.hyperparameters import Param
from pfl_mobile.plan.phases import Mix, Phase, RepeatPhase, TrainPhase
from pfl_mobile.plan.schema import CopyStart, Plan, ServeMix
from pfl_mobile.strategies.registry import register
from pfl_mobile.strategies.state import RoundContext
from pfl_mobile.strategies.strategy import Strategy, local_plan


@register(
    "apfl",
    title="Personal model trained for its mix with the global one",
    paper="Deng, Kamani and Mahdavi 2020, Adaptive personalized federated learning (arXiv 2003.13461)",
    shares="all trained tensors",
    keeps="a personal copy of them",
)
@dataclass(frozen=True, kw_only=True)
class APFL(Strategy):
    """The paper's algorithm 1 with a fixed mixture. Device i trains its version w_i of the global model, and v_i:

        vbar_i = alpha v_i + (1 - alpha) w_i
        w_i <- w_i - eta grad f_i(w_i),    v_i <- v_i - eta grad_v f_i(vbar_i)

    where grad_v f_i(vbar_i) = alpha * grad f_i at vbar_i: the factor goes into the learning rate of the copy
    ``personal``, whose gradients are taken at the mix with theta. vbar_i is what is served.

    With ``Local(steps=...)`` the two take turns step by step as in the paper, though each on a mini-batch of its
    own; with ``epochs`` w_i is trained first and v_i then for its mix with the w_i that is sent (a plan says
    counts of steps, not how many make an epoch). The paper's adaptive alpha, which takes gradient steps
    alpha_i <- alpha_i - eta <v_i - w_i, grad f_i(vbar_i)>, is not there: alpha is a number of the plan, the same
    on all devices and in all rounds.

    Limits: alpha = 0 is FedAvg, alpha = 1 local training beside FedAvg.
    """

    alpha: Annotated[float, Param("0 is the global model, 1 a local one", low=0.0, high=1.0)] = 0.5

    @override
    def phases(self, at: RoundContext) -> tuple[Phase, ...]:
        """Both models; in turn where Local counts steps."""
        if self.alpha == 0:
            return (at.local.train(),)
        if at.local.steps is not None:
            turn = (at.local.train(steps=1), self._personal(at, steps=1))
            return (RepeatPhase(times=at.local.steps, phases=turn),)
        return (at.local.train(), self._personal(at))

    @override
    def copies(self, at: RoundContext) -> dict[str, CopyStart]:
        """The personal model, which starts where the global one is."""
        return {"personal": CopyStart(of="global")} if self.alpha else {}

    @override
    def keep(self, at: RoundContext) -> tuple[str, ...]:
        return tuple(self.copies(at))

    @override
    def serve(self, at: RoundContext) -> str | ServeMix:
        return ServeMix(one="personal", other="theta", alpha=self.alpha) if self.alpha else "theta"

    @override
    def personal_plan(self, at: RoundContext) -> Plan | None:
        """The personal model once more, for its mix with the final global one."""
        if self.alpha == 0:
            return super().personal_plan(at)
        return local_plan(at, self._personal(at), keep=self.keep(at), serve=self.serve(at))

    def _personal(self, at: RoundContext, **terms: Any) -> TrainPhase:
        optimizer = at.local.optimizer.model_copy(update={"lr": self.alpha * at.local.optimizer.lr})
        mix = Mix(other="theta", alpha=self.alpha)
        return at.local.train(trains="personal", evaluate_at=mix, optimizer=optimizer, **terms)
