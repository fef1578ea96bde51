"""Per-FedAvg: an initial model that one step of each device makes its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from typing_extensions import override

from pfl_mobile.hyperparameters import Param
from pfl_mobile.plan.optimizers import Sgd
from pfl_mobile.plan.phases import Lookahead, Phase
from pfl_mobile.plan.schema import Plan
from pfl_mobile.strategies.registry import register
from pfl_mobile.strategies.state import RoundContext
from pfl_mobile.strategies.strategy import Strategy, local_plan


@register(
    "per_fedavg",
    title="Meta-learned initial model (first-order MAML)",
    paper="Fallah, Mokhtari and Ozdaglar 2020, Personalized federated learning: a meta-learning approach "
    "(arXiv 2002.07948); first-order MAML: Finn, Abbeel and Levine 2017 (arXiv 1703.03400)",
    shares="all trained tensors",
    keeps="the adapted model, once the rounds are over",
)
@dataclass(frozen=True, kw_only=True)
class PerFedAvg(Strategy):
    """The paper's algorithm 1 in its first-order form (FO). min_w (1/n) sum_i f_i(w - alpha grad f_i(w)):

        wtilde_i = w_i - alpha grad f_i(w_i; D),    w_i <- w_i - beta grad f_i(wtilde_i; D')

    with two mini-batches D and D' a step; the factor (I - alpha grad^2 f_i) is left out, as FO does, and there is
    no Hessian-free form (HF). In the update rule: gradients at ``lookahead``, step = alpha; beta is Local's
    learning rate. An epoch is half as many steps as FedAvg's, each with two batches.

    Once the rounds are over a device takes ``adapt_steps`` plain steps of rate alpha.

    Limits: alpha = 0 is FedAvg.
    """

    alpha: Annotated[float, Param("step that devices adapt by; 0 is FedAvg", low=0.0)] = 0.01
    adapt_steps: Annotated[int, Param("steps of a device once the rounds are over", low=1, high=100_000)] = 1

    @override
    def phases(self, at: RoundContext) -> tuple[Phase, ...]:
        """One train phase on gradients at the adapted model."""
        if self.alpha == 0:
            return (at.local.train(),)
        return (at.local.train(evaluate_at=Lookahead(step=self.alpha)),)

    @override
    def personal_plan(self, at: RoundContext) -> Plan | None:
        """The steps that the initial model was made for."""
        if self.alpha == 0:
            return super().personal_plan(at)
        return local_plan(at, at.local.train(steps=self.adapt_steps, optimizer=Sgd(lr=self.alpha)))
