"""Local training: every device for itself, the baseline that a federation must beat."""

from __future__ import annotations

from dataclasses import dataclass

from pfl_mobile.local.plan import Plan
from pfl_mobile.strategies.registry import register
from pfl_mobile.strategies.strategy import Context, Server, Strategy
from pfl_mobile.strategies.updates import Updates


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

    What it trains is kept as the copy ``personal``, as the device's tensors themselves belong to the
    aggregator where their role is ``shared``. A model with personal tensors only is trained in place.

    Weighting and server optimizer have nothing to work on. Limits: with one device it is FedAvg.
    """

    def plan(self, at: Context) -> Plan:
        """One train phase, no upload."""
        name = self.serve(at)
        return Plan(
            phases=(at.local.train(trains=name),), keep=self.keep(at), serve=name, seed=at.seed % 2**63
        )

    def keep(self, at: Context) -> tuple[str, ...]:
        """The device's own model."""
        return ("personal",) if at.traveling else ()

    def serve(self, at: Context) -> str:
        """The device's own model."""
        return "personal" if at.traveling else "theta"

    def merge(self, server: Server, updates: Updates) -> None:
        """Nothing came, so nothing changes."""
