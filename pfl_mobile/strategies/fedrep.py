"""FedRep: a shared representation, and a head on each device that is trained first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from typing_extensions import override

from pfl_mobile.hyperparameters import Param
from pfl_mobile.plan.phases import Phase, TrainPhase
from pfl_mobile.plan.schema import Plan
from pfl_mobile.strategies.registry import register
from pfl_mobile.strategies.state import RoundContext
from pfl_mobile.strategies.strategy import Strategy, local_plan


@register(
    "fedrep",
    title="Shared representation, personal head trained first",
    paper="Collins and others 2021, Exploiting shared representations for personalized federated learning "
    "(arXiv 2102.07078)",
    shares="representation",
    keeps="head",
    split=True,
)
@dataclass(frozen=True, kw_only=True)
class FedRep(Strategy):
    """The paper's algorithm 1. In round t device i, with representation phi and head h:

        for s = 1..tau_h:   h_i <- GRD(f_i(h_i, phi), h_i, alpha)      (phi as it was sent)
        then                phi_i <- GRD(f_i(h_i, phi), phi, alpha)    (the new head held)
        server:             phi <- mean of phi_i

    phi are the tensors with the role ``shared``, h those with the role ``personal``. ``head_epochs`` is tau_h in
    passes over the examples; the representation is trained as ``Local`` says. The paper averages with equal
    weights, here the weighting decides (by examples unless another is given).

    Once the rounds are over a device trains its head alone, as the paper does for devices that are new.

    Limits: with no personal tensor it would be FedAvg, which is refused here, as it is surely a mistake.
    """

    head_epochs: Annotated[
        int,
        Param("passes over a device's examples for the head before the representation", low=1, high=10_000),
    ] = 5

    @override
    def phases(self, at: RoundContext) -> tuple[Phase, ...]:
        """The head, then the representation.

        Raises:
            ConfigError: the model has no personal tensors.
        """
        return (self._head(at), at.local.train(group=at.traveling))

    @override
    def personal_plan(self, at: RoundContext) -> Plan | None:
        """The head on the final representation."""
        return local_plan(at, self._head(at))

    def _head(self, at: RoundContext) -> TrainPhase:
        at.need("personal", self)
        return at.local.train(group=("role:personal",), epochs=self.head_epochs)
