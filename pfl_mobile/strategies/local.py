"""Local training: every device for itself, the baseline that a federation must beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from typing_extensions import override

from pfl_mobile.merge.updates import Updates
from pfl_mobile.plan.schema import Plan
from pfl_mobile.strategies.registry import register
from pfl_mobile.strategies.state import RoundContext, Server
from pfl_mobile.strategies.strategy import Strategy


@register(
    "local",
    title="Local training, nothing is sent",
    paper="the baseline of McMahan and others 2017 (arXiv 1602.05629) and of every paper on personalization",
    shares="nothing",
    keeps="the whole model",
)
@dataclass(frozen=True, kw_only=True)
class LocalTraining(Strategy):
    """Each device minimizes F_k(w) from the shipped values, and goes on from there in the next round.

    No values are taken over from the aggregator, so a device keeps all its trained tensors whatever their role.
    Weighting and server optimizer have nothing to work on.

    Limits: with one device it is FedAvg.
    """

    merges_means: ClassVar[bool] = False

    @override
    def plan(self, at: RoundContext) -> Plan:
        """One train phase, no upload."""
        return Plan(phases=(at.local.train(),), keep=(), seed=at.seed % 2**63)

    @override
    def personal_plan(self, at: RoundContext) -> Plan | None:
        """The same once more."""
        return self.plan(at)

    @override
    def merge(self, server: Server, updates: Updates) -> None:
        """Nothing came, so nothing changes."""
