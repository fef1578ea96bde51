"""Ditto: a personal model beside the global one, held near it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from typing_extensions import override

from pfl_mobile.hyperparameters import Param
from pfl_mobile.plan.phases import Phase, TrainPhase
from pfl_mobile.plan.schema import CopyStart, Plan
from pfl_mobile.strategies.registry import register
from pfl_mobile.strategies.state import RoundContext
from pfl_mobile.strategies.strategy import Strategy, local_plan


@register(
    "ditto",
    title="Personal model held near the global one",
    paper="Li and others 2021, Ditto: fair and robust federated learning through personalization (arXiv 2012.04221)",
    shares="all trained tensors",
    keeps="a personal copy of them",
)
@dataclass(frozen=True, kw_only=True)
class Ditto(Strategy):
    """The paper's algorithm 1. Device k trains what it sends as in FedAvg, and a personal model v_k beside it:

        min_v h_k(v; w) = F_k(v) + lambda/2 |v - w|^2,    v_k <- v_k - eta (grad F_k(v_k) + lambda (v_k - w^t))

    with w^t as it was received. In the update rule: a second train phase on the copy ``personal``, anchor =
    global, mu = lambda, applied as an exact proximal step, so that no lambda diverges. The global part is FedAvg's
    bit for bit. v_k starts at the values that the device gets first; the paper starts it at the shipped ones.

    Limits: lambda = 0 is local training; lambda -> infinity is the global model.
    """

    lam: Annotated[float, Param("lambda: 0 is local training, infinity the global model", low=0.0)] = 0.1
    personal_epochs: Annotated[
        int | None, Param("passes for the personal model; None: as for the global one", low=1, high=10_000)
    ] = None

    @override
    def phases(self, at: RoundContext) -> tuple[Phase, ...]:
        """The global model, then the personal one."""
        return (at.local.train(), self._personal(at))

    @override
    def copies(self, at: RoundContext) -> dict[str, CopyStart]:
        """The personal model, which starts where the global one is."""
        return {"personal": CopyStart(of="global")}

    @override
    def keep(self, at: RoundContext) -> tuple[str, ...]:
        return ("personal",)

    @override
    def serve(self, at: RoundContext) -> str:
        return "personal"

    @override
    def personal_plan(self, at: RoundContext) -> Plan | None:
        """The personal model once more, held near the final global one."""
        return local_plan(at, self._personal(at), keep=self.keep(at), serve=self.serve(at))

    def _personal(self, at: RoundContext) -> TrainPhase:
        epochs = {} if self.personal_epochs is None else {"epochs": self.personal_epochs}
        return at.local.train(trains="personal", anchor="global", mu=self.lam, prox="implicit", **epochs)
